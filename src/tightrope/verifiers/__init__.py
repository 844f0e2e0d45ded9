"""One file per verifier: what it cannot decide stays unknown."""
