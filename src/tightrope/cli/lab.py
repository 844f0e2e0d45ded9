"""``tightrope lab``: look at what training with a relaxation is up against."""

from __future__ import annotations

import typer

from tightrope.cli._lazy import importing

_COMMANDS = {
    "surface": "lab_surface",
}

lab = typer.Typer(
    name="lab",
    cls=importing(_COMMANDS),
    help="Look at loss surfaces and at properties of relaxations.",
    no_args_is_help=True,
    add_completion=False,
)


@lab.callback()
def options() -> None:
    """Look at loss surfaces and at properties of relaxations."""
