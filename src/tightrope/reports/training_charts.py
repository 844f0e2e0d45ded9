"""Charts of training: metrics and schedules by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tightrope.reports.charts import TINTS, Chart, Figure, finite, legend, safe
from tightrope.reports.gather import TrainedRun
from tightrope.reports.tables import Cell, Table
from tightrope.reports.units import duration, number

_CURVES: tuple[tuple[str, str, str], ...] = (
    ("natural_accuracy", "Natural accuracy in training", "%"),
    ("surrogate_accuracy", "Surrogate accuracy in training", "%"),
    ("loss", "Loss in training", ""),
    ("grad_norm", "Norm of the gradient estimate", ""),
    ("snr", "Signal-to-noise ratio of the gradient estimate", ""),
    ("plain_cosine", "Cosine of the estimate with the plain gradient", ""),
    ("jump_share", "Share of jumps in the loss's change along a step", ""),
)


def training_curves(runs: Sequence[TrainedRun]) -> list[Chart]:
    """One for each of the metrics that some run has, and the schedules."""
    with_epochs = [run for run in runs if run.epochs]
    if not with_epochs:
        return []
    charts = [_metric_curves(with_epochs, *curve) for curve in _CURVES]
    return [chart for chart in (*charts, _schedules(with_epochs)) if chart]


def _metric_curves(runs: Sequence[TrainedRun], metric: str, title: str, unit: str) -> Chart | None:
    scale = 100 if unit == "%" else 1
    data, rows, said = list[Figure](), list[tuple[Cell, ...]](), list[str]()
    for index, run in enumerate(runs):
        for part, dash in (("validation", "solid"), ("train", "dot")):
            values = [(e.epoch, scale * getattr(e, part)[metric]) for e in run.epochs if metric in getattr(e, part)]
            if not values:
                continue
            first = not any(trace["legendgroup"] == str(index) for trace in data)
            data.append(_curve(f"{run.label}, {part}", values, dash, index, unit) | legend(run.label, index, first))
            said.append(f"{run.label}, {part}: {number(values[-1][1])}{unit and ' ' + unit} at the end")
            shown = values[:: max(1, len(values) // 20)]
            shown = shown if shown[-1] == values[-1] else [*shown, values[-1]]
            rows += [(Cell(run.label), Cell(part), Cell(str(e), e), Cell(number(v), finite(v))) for e, v in shown]
    if not data:
        return None
    caption = "Solid: validation split. Dotted: mean of the training steps of an epoch."
    if metric == "surrogate_accuracy":
        caption += " The surrogate is what training bounds or attacks; it is no certificate."
    layout: dict[str, Figure] = {
        "xaxis": {"title": {"text": "epoch"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": f"{metric.replace('_', ' ')}{unit and f' ({unit})'}"}},
    }
    if metric == "loss" and _spans_decades(data):
        layout["yaxis"]["type"] = "log"
    columns = ("run", "split", "epoch", metric.replace("_", " "))
    table = Table("The numbers", columns, tuple(rows), "Not every epoch where there are many.")
    return Chart(title, caption, f"{title} by epoch. {'; '.join(said)}.", {"data": data, "layout": layout}, table)


def _spans_decades(data: Iterable[Figure]) -> bool:
    values = [value for trace in data for value in trace["y"] if value is not None]
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


def _curve(name: str, values: Sequence[tuple[int, float]], dash: str, index: int, unit: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines" if len(values) > 1 else "markers",
        "name": safe(name),
        "x": [epoch for epoch, _ in values],
        "y": [finite(value) for _, value in values],
        "line": {"dash": dash, "width": 2},
        "hovertemplate": f"{safe(name)}<br>epoch %{{x}}: %{{y:.4g}} {unit}<extra></extra>",
        "tint": index % TINTS,
    }


def _schedules(runs: Sequence[TrainedRun]) -> Chart:
    columns = ("run", "epoch", "eps", "learning rate", "noise (std)", "time")
    facts: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
        ("eps", "solid", lambda e: e.eps),
        ("learning rate", "dot", lambda e: e.lr),
        ("noise (std)", "dashdot", lambda e: e.std),
    )
    data, rows = list[Figure](), list[tuple[Cell, ...]]()
    for index, run in enumerate(runs):
        for name, dash, value in facts:
            values = [(epoch.epoch, value(epoch)) for epoch in run.epochs]
            if any(found > 0 for _, found in values):
                data.append(
                    _curve(f"{run.label}, {name}", values, dash, index, "") | legend(run.label, index, name == "eps")
                )
        shown = run.epochs[:: max(1, len(run.epochs) // 20)]
        rows += [
            (
                Cell(run.label),
                Cell(str(e.epoch), e.epoch),
                *(Cell(number(value(e)), value(e)) for _, _, value in facts),
                Cell(duration(e.seconds), e.seconds),
            )
            for e in shown
        ]
    layout = {
        "xaxis": {"title": {"text": "epoch"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "at the end of the epoch"}, "type": "log", "exponentformat": "power"},
    }
    alt = "Radius, learning rate and weight noise by epoch."
    caption = "Solid: training radius. Dotted: learning rate. Dash-dotted: standard deviation of the weight noise."
    return Chart(
        "Schedules", caption, alt, {"data": data, "layout": layout}, Table("The numbers", columns, tuple(rows))
    )
