"""``tightrope lab surface``: the certified loss along directions in weight space."""

from __future__ import annotations

from typing import Annotated

import typer

from tightrope.cli._guard import guarded


@guarded
def lab_surface(
    source: Annotated[str, typer.Argument(help="A run folder, a preset (see: tightrope list presets) or a TOML file.")],
) -> None:
    """Draw certified losses of relaxations along directions in weight space, before and after smoothing."""
