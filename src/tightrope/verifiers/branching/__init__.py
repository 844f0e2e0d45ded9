"""One file per branching heuristic: how a subproblem that is not decided is cut in two."""
