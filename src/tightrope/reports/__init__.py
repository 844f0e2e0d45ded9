"""Tables and figures, from run records only."""
