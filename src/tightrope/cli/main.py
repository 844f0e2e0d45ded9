"""``tightrope``: the entry point."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Annotated

import typer

from tightrope._version import __version__
from tightrope.cli import STARTED
from tightrope.cli._lazy import importing

_COMMANDS = (
    "train",
    "plan",
    "certify",
    "audit",
    "verify",
    "export",
    "demo",
    "experiment",
    "reproduce",
    "tune",
    "report",
    "compare",
    "lab",
    "list",
)
_FILES = {"list": "listing"}
"""File and function below ``tightrope.cli`` where that is not the command's name, which Python has taken."""

app = typer.Typer(
    name="tightrope",
    cls=importing({name: _FILES.get(name, name) for name in _COMMANDS}),
    help="Train neural networks that are provably robust, and prove it.",
    epilog=(
        "Exit codes: 0 done or verified, 2 bad input, 10 falsified, 20 unknown, 30 an invariant is violated, "
        "70 a bug of ours, 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C. An import that it breaks off leaves half a module, which some libraries then try to live with.

    So the program ends there at once; files are written so that nothing is lost.
    """
    inner = frame
    while inner is not None:
        if inner.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"error: Interrupted.\n")
            os._exit(130)
        inner = inner.f_back
    signal.default_int_handler(number, frame)


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    app(obj=STARTED)  # where time limits count from
