"""Types and the network graph: torch and the standard library only."""
