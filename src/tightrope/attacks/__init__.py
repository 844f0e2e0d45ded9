"""One file per attack; start noise is an argument."""
