"""``tightrope list``: what there is."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from tightrope.cli._console import out, percent, table
from tightrope.cli._guard import guarded
from tightrope.core import registry
from tightrope.experiments.load import families, load_config, single_presets
from tightrope.experiments.model_zoo import summary, zoo
from tightrope.experiments.run import load
from tightrope.experiments.suite import cells, load_suite, suites
from tightrope.experiments.table import load_table, sizes, tables


class Kind(StrEnum):
    """What can be listed."""

    OPS = "ops"
    RELAXATIONS = "relaxations"
    ATTACKS = "attacks"
    VERIFIERS = "verifiers"
    BRANCHINGS = "branchings"
    SMOOTHERS = "smoothers"
    METHODS = "methods"
    MODELS = "models"
    DATASETS = "datasets"
    PRESETS = "presets"
    SUITES = "suites"
    TABLES = "tables"
    ZOO = "zoo"


@guarded
def listing(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List plug-ins of one kind, presets, suites, tables, or trained networks (zoo)."""
    own = {Kind.PRESETS: _presets, Kind.SUITES: _suites, Kind.TABLES: _tables, Kind.ZOO: _zoo}
    rows = own[kind]() if kind in own else _plugins(kind)
    out.print(table(["name", "what it is"], rows, numbers=False))


def _plugins(kind: Kind) -> list[list[str]]:
    modules = {name: sys.modules[registry.find(kind, name).__module__] for name in registry.names(kind)}
    return [[name, (module.__doc__ or "").strip().splitlines()[0]] for name, module in modules.items()]


def _presets() -> list[list[str]]:
    rows = []
    for name in single_presets():
        config = load_config(name)[1]
        method = " ".join([config.method.name, *(str(v) for v in config.method.options.values())])
        smoother = "" if config.smoother.name == "none" else f", smoother {config.smoother.name}"
        text = f"{config.model.name} on {config.data.name}, eps {config.eps.target}: {method}{smoother}"
        rows.append([name, f"{text}, {config.train.epochs} epochs"])
    for family, (networks, methods) in families().items():
        config = load_config(f"{family}/{networks[0]}-{methods[0]}")[1]
        text = (
            f"{config.data.name}, eps {config.eps.target}: networks {', '.join(networks)}; methods {', '.join(methods)}"
        )
        rows.append([f"{family}/NETWORK-METHOD", text])
    return sorted(rows)


def _suites() -> list[list[str]]:
    found = {name: load_suite(name) for name in suites()}
    return [[name, f"{len(list(cells(suite)))} networks, seeds {suite.seeds}"] for name, suite in found.items()]


def _tables() -> list[list[str]]:
    rows = []
    for name in tables():
        found = {budget: load_table(name, budget) for budget in sizes(name)}
        budgets = ", ".join(f"{budget} ({len(table.cells)} networks)" for budget, table in found.items())
        rows.append([name, f"{next(iter(found.values())).layout.title}; --budget {budgets}"])
    return rows


def _zoo() -> list[list[str]]:
    rows = []
    for name in zoo():
        run, found = load(name), summary(name)
        shares = f"natural {percent(found.natural_accuracy)}, certified {percent(found.certified_accuracy)}"
        network = f"{run.config.model.name}, {run.record.weights:,} weights, {run.config.data.name}, eps {found.eps}"
        rows.append([name, f"{network}: {shares} of {found.count:,} test images, completely verified"])
    return rows
