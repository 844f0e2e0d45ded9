"""``python -m tightrope``, and ``torchrun -m tightrope``: the command line."""

from __future__ import annotations

from tightrope.cli.main import main

if __name__ == "__main__":
    main()
