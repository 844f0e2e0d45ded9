"""``tightrope``: the entry point."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tightrope._version import __version__
from tightrope.cli import STARTED

_COMMANDS = (
    "train",
    "plan",
    "certify",
    "audit",
    "verify",
    "export",
    "demo",
    "experiment",
    "tune",
    "report",
    "compare",
    "list",
)
_FILES = {"list": "listing"}
"""File and function below ``tightrope.cli`` where that is not the command's name, which Python has taken."""


class _Commands(TyperGroup):
    """Imports a command when it is asked for: the seconds of ``verify --timeout`` are not for what ``train`` needs."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _imported(cmd_name) if cmd_name in _COMMANDS else None


def _imported(name: str) -> Any:
    stem = _FILES.get(name, name)
    single = typer.Typer(add_completion=False)
    single.command(name)(getattr(importlib.import_module(f"tightrope.cli.{stem}"), stem))
    return typer.main.get_command(single)


def _placeholder() -> None:
    """Gives a command its name and its place in the list."""


app = typer.Typer(
    name="tightrope",
    cls=_Commands,
    help="Train neural networks that are provably robust, and prove it.",
    epilog=(
        "Exit codes: 0 done or verified, 2 bad input, 10 falsified, 20 unknown, 30 an invariant is violated, "
        "70 a bug of ours, 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name in _COMMANDS:
    app.command(_name)(_placeholder)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tightrope {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train neural networks that are provably robust, and prove it."""


def main() -> None:
    """Run the command line."""
    app(obj=STARTED)  # where time limits count from
