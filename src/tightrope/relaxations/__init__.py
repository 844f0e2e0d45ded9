"""One file per convex relaxation, from loose to tight, written against the facts that ops publish."""
