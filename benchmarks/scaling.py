"""Scaling: time and memory of a step against batch, width, depth, specs and population, one at a time.

Each group varies one quantity for one relaxation and ends with the slopes of log time and log memory over its log: 1 is
linear, 0 is constant. The step is a training step (loss and gradient), for the population one PGPE estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Any

import torch

import tightrope as tr
from benchmarks.case import Case, Prepared, Record
from benchmarks.problem import CLASSES, EPS, SEED, SHAPE, Problem, loss_of, problem, smoother_step, training_step
from benchmarks.protocol import Group, median_seconds, ours
from tightrope.core.spec import Spec

CNN3 = {"network": "cnn3", "width": 16, "batch": 16}

# For each axis the fixed part of the setting and the values of the varied one. Depth counts hidden layers.
AXES: dict[str, tuple[Mapping[str, Any], tuple[int, ...]]] = {
    "batch": (CNN3, (4, 8, 16, 32, 64)),
    "width": (CNN3, (4, 8, 16, 32)),
    "depth": ({"network": "mlp", "width": 128, "batch": 16}, (2, 4, 8, 16)),
    "specs": (CNN3, (1, 4, 16, 64, 256)),
    "pairs": (CNN3 | {"batch": 4, "chunk": 4}, (4, 8, 16, 32, 64)),
}


@dataclass(frozen=True)
class Options:
    """Which axes and relaxations, and how many of the points of each, the smallest first."""

    device: str
    threads: int | None = None
    axes: Sequence[str] = tuple(AXES)
    relaxations: Sequence[str] = ("ibp", "crown_ibp", "deeppoly")
    points: int = 5


def groups(options: Options) -> list[Group]:
    """One for each axis and relaxation."""
    return [_group(options, axis, relaxation) for axis in options.axes for relaxation in options.relaxations]


def prepare(case: Case) -> Prepared:
    """Set one point up."""
    setting = case.setting
    made = problem(setting, setting["batch"])
    if "pairs" in setting:
        net, params = tr.from_module(made.module, SHAPE)
        loss = loss_of(net, setting["relaxation"], made.box, made.labels)
        return smoother_step(loss, net, params, setting["pairs"], setting["chunk"])
    spec = _random_spec(made, setting["specs"]) if "specs" in setting else None
    return Prepared(training_step(made, setting["relaxation"], spec))


def conclude(group: Record) -> Record:
    """The group with the slopes of its points."""
    axis = group["setting"]["axis"]
    rows = [row for row in group["contenders"] if row["status"] == "ok"]
    return group | {
        "slopes": {
            "time": slopes([(row["setting"][axis], median_seconds(row)) for row in rows]),
            "memory": slopes([(row["setting"][axis], row.get("peak_memory_mib") or 0.0) for row in rows]),
        }
    }


def slopes(points: Sequence[tuple[float, float]]) -> Record | None:
    """Slopes of log y over log x; points with y = 0, which no measurement resolved, are left out.

    Returns:
        ``least_squares`` over all points and ``last`` between the two largest, where fixed costs weigh least; None
        for fewer than two points.

    Example:
        >>> slopes([(1, 5.0), (2, 20.0), (4, 80.0)])
        {'least_squares': 2.0, 'last': 2.0}
    """
    logs = [(math.log(x), math.log(y)) for x, y in sorted(points) if y > 0]
    if len(logs) < 2:
        return None
    return {"least_squares": _slope(logs), "last": _slope(logs[-2:])}


def _slope(points: Sequence[tuple[float, float]]) -> float:
    return round(linear_regression(*zip(*points, strict=True)).slope, 3)


def _group(options: Options, axis: str, relaxation: str) -> Group:
    fixed, values = AXES[axis]
    setting = {**fixed, "axis": axis, "relaxation": relaxation, "eps": EPS}
    described = ", ".join(f"{key} {value}" for key, value in fixed.items() if key not in ("network", axis))
    return Group(
        __name__,
        f"{axis}, {relaxation}, {fixed['network']}, {described}",
        setting | {"device": options.device, "threads": options.threads},
        {f"{axis} {value}": ours({axis: value}) for value in values[: options.points]},
        1,
        "steps/s",
    )


def _random_spec(made: Problem, rows: int) -> Spec:
    """A property of so many rows, each a random combination of the outputs."""
    batch, device = made.labels.shape[0], made.labels.device
    matrix = torch.randn(batch, rows, CLASSES, generator=torch.Generator().manual_seed(SEED)).to(device)
    return Spec(matrix, torch.zeros(batch, rows, device=device), tuple(range(rows)))
