"""One file per training method: a pure loss of the params."""
