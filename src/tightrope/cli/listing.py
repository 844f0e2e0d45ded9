"""``tightrope list``: what there is."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from tightrope.cli._console import out, table
from tightrope.cli._guard import guarded
from tightrope.core import registry
from tightrope.experiments.load import load_config, presets


class Kind(StrEnum):
    """What can be listed."""

    RELAXATIONS = "relaxations"
    SMOOTHERS = "smoothers"
    METHODS = "methods"
    MODELS = "models"
    DATASETS = "datasets"
    PRESETS = "presets"


@guarded
def listing(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List relaxations, smoothers, methods, models, datasets or presets."""
    out.print(table(["name", "what it is"], _presets() if kind is Kind.PRESETS else _plugins(kind)))


def _plugins(kind: Kind) -> list[list[str]]:
    return [[name, _summary(registry.find(kind, name).__doc__)] for name in registry.names(kind)]


def _presets() -> list[list[str]]:
    rows = []
    for name in presets():
        config = load_config(name)[1]
        method = " ".join([config.method.name, *(str(v) for v in config.method.options.values())])
        smoother = "" if config.smoother.name == "none" else f", smoother {config.smoother.name}"
        text = f"{config.model.name} on {config.data.name}, eps {config.eps.target}: {method}{smoother}"
        rows.append([name, f"{text}, {config.train.epochs} epochs"])
    return rows


def _summary(docstring: str | None) -> str:
    return " ".join((docstring or "").strip().split("\n\n")[0].split())
