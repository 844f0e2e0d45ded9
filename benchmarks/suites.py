"""The suites by name: what each measures, prints and draws. A new suite is one file and one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks import figures, limit, plan, population, profile, protocol, report, scaling, training, verification
from benchmarks.case import Effort, Record
from benchmarks.protocol import Group


@dataclass(frozen=True)
class Suite:
    """One suite.

    Attributes:
        options: what can be chosen; every option but ``device``, ``threads`` and ``small`` is one of the command line.
        groups: what to measure.
        measure: one group.
        draw: the picture of all groups.
        quick: options of a run that only shows that it works.
        show: prints a group.
        memory: whether peak memory is measured.
        quick_memory: the same for quick runs, where fresh processes take most of the time.
    """

    options: type[Any]
    groups: Callable[[Any], list[Group]]
    measure: Callable[[Group, Effort], Record]
    draw: Callable[[Sequence[Record]], Figure]
    quick: Mapping[str, Any] = field(default_factory=dict)
    show: Callable[[Record, Console], None] = report.show
    memory: bool = True
    quick_memory: bool = False


def _concluded(conclude: Callable[[Record], Record]) -> Callable[[Group, Effort], Record]:
    def measure(group: Group, effort: Effort) -> Record:
        return conclude(protocol.measure(group, effort))

    return measure


SUITES = {
    "training": Suite(
        training.Options,
        training.groups,
        protocol.measure,
        figures.bars,
        {"networks": ("cnn3",), "batches": (4,), "width": 4},
        quick_memory=True,
    ),
    "population": Suite(
        population.Options,
        population.groups,
        protocol.measure,
        figures.bars,
        {"relaxations": ("ibp", "deeppoly"), "pairs": 4, "images": 16, "width": 4}
        | {"chunks": (1, 4), "passes": (16, 64), "memory_pairs": (4, 16)},
    ),
    "scaling": Suite(
        scaling.Options,
        scaling.groups,
        _concluded(scaling.conclude),
        figures.slopes,
        {"relaxations": ("ibp", "deeppoly"), "points": 2},
    ),
    "limit": Suite(
        limit.Options,
        limit.groups,
        _concluded(limit.conclude),
        figures.limits,
        {"networks": ("cnn3",), "batches": (4,), "width": 4, "small": True},
        memory=False,
    ),
    "plan": Suite(
        plan.Options,
        plan.groups,
        _concluded(plan.compare),
        figures.forecasts,
        {"networks": ("cnn3_tiny",), "batches": (4,), "relaxations": ("ibp",)},
    ),
    "profile": Suite(
        profile.Options,
        profile.groups,
        profile.measure,
        figures.shares,
        {"batches": (4,), "width": 4},
        profile.show,
        memory=False,
    ),
    "verify": Suite(
        verification.Options,
        verification.groups,
        verification.measure,
        figures.cactus,
        {"count": 2, "timeout": 5.0},
        verification.show,
        memory=False,
    ),
}
