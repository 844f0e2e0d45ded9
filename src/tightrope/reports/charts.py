"""Charts of a report, as figures of Plotly in plain values, each with what it shows in words and in numbers.

Colours are numbers of a palette (``tint``): the page has one palette for light and one for dark, and fills them in.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tightrope.records.image import NATURAL
from tightrope.reports.gather import Certification, Radii, TrainedRun
from tightrope.reports.results import KINDS, Group, Kind, pareto
from tightrope.reports.tables import Cell, Table
from tightrope.reports.units import duration, number, percent, printed, radius, rank, span

Figure = dict[str, Any]
TINTS = 6
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
MOST_POINTS = 200
MOST_NAMED = 12  # lines of a legend; of more the names are shown on hovering alone


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: above it.
        caption: what is drawn, and how to read it.
        alt: what it shows, for those who do not see it.
        figure: ``data`` and ``layout`` of Plotly.
        table: the same numbers.
        height: in pixels.
    """

    title: str
    caption: str
    alt: str
    figure: Figure
    table: Table
    height: int = 330


def safe(text: str) -> str:
    """Text that Plotly shows as it is: it would read tags and templates."""
    return html.escape(text, quote=False).replace("%{", "%\u200b{").replace("$", "&#36;")


def wrapped(text: str, width: int = 24) -> str:
    """Broken into lines for an axis, behind separators, and safe."""
    lines, line = list[str](), ""
    for word in text.replace("/", "/ ").replace("-", "- ").split(" "):
        glue = "" if line.endswith(("/", "-")) or not line else " "
        if line and len(line + glue + word) > width:
            lines, line, glue = [*lines, line], "", ""
        line += glue + word
    return "<br>".join(safe(part) for part in [*lines, line])


# -------------------------------------------------------------------------------------------------- accuracies


def accuracies(groups: Sequence[Group]) -> Chart:
    """Natural, adversarial and certified accuracy, with intervals."""
    data = [_dots(groups, kind, index) for index, kind in enumerate(KINDS)]
    names, rows = [wrapped(group.label) for group in groups], list(range(len(groups)))
    layout = {
        "xaxis": {"title": {"text": "share of the images (%)"}, "range": [0, 102]},
        "yaxis": {"range": [len(groups) - 0.5, -0.5], "tickvals": rows, "ticktext": names, "showgrid": False},
    }
    several = any(group.seeds > 1 for group in groups)
    bars = "95 % intervals of the images" + (", or one standard deviation over the seeds" if several else "")
    said = "; ".join(f"{g.label}: {', '.join(f'{kind} {percent(g.mean(kind))} %' for kind in KINDS)}" for g in groups)
    return Chart(
        "Natural, adversarial and certified accuracy",
        f"Points with {bars}.",
        f"Accuracies of {len(groups)} networks. {said}.",
        {"data": data, "layout": layout},
        _accuracy_table(groups),
        height=110 + 64 * len(groups),
    )


def _dots(groups: Sequence[Group], kind: Kind, tint: int) -> Figure:
    means, ends = [group.mean(kind) for group in groups], [group.ends(kind) for group in groups]
    said = [f"{kind} {percent(mean)} % ({span(*end)})" for mean, end in zip(means, ends, strict=True)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": kind,
        "x": [100 * mean for mean in means],
        "y": [row + 0.24 * (tint - 1) for row in range(len(groups))],
        "error_x": _errors(means, ends),
        "marker": {"symbol": SYMBOLS[tint], "size": 9},
        "text": [f"{safe(group.label)}<br>{each}" for group, each in zip(groups, said, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
        "tint": tint,
    }


def _errors(means: Sequence[float], ends: Sequence[tuple[float, float]]) -> Figure:
    return {
        "type": "data",
        "symmetric": False,
        "array": [100 * (high - mean) for mean, (_, high) in zip(means, ends, strict=True)],
        "arrayminus": [100 * (mean - low) for mean, (low, _) in zip(means, ends, strict=True)],
        "thickness": 1.5,
        "width": 4,
    }


def _accuracy_table(groups: Sequence[Group]) -> Table:
    columns = ("network", *(f"{kind} (%)" for kind in KINDS), "time of training")
    rows = tuple(
        (
            Cell(group.label),
            *(Cell(f"{percent(group.mean(kind))}", group.mean(kind), span(*group.ends(kind))) for kind in KINDS),
            Cell(duration(group.seconds), group.seconds),
        )
        for group in groups
    )
    return Table("The numbers", columns, rows)


def tradeoff(groups: Sequence[Group]) -> Chart:
    """Natural against certified accuracy; the area of a point is the time of training."""
    front = pareto(groups)
    longest = max(group.seconds for group in groups) or 1.0
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [100 * group.mean("natural") for group in front],
        "y": [100 * group.mean("certified") for group in front],
        "line": {"dash": "dot", "width": 1.5},
        "hoverinfo": "skip",
        "tint": "muted",
    }
    points = [_tradeoff_point(group, index, longest) for index, group in enumerate(groups)]
    layout = {
        "xaxis": {"title": {"text": "natural accuracy (%)"}},
        "yaxis": {"title": {"text": "certified accuracy (%)"}},
    }
    unbeaten = ", ".join(group.label for group in front)
    return Chart(
        "Natural against certified accuracy",
        "The area of a point is the time of training. No other network here has more of both than those on the front.",
        f"Natural against certified accuracy of {len(groups)} networks. On the Pareto front: {unbeaten}.",
        {"data": [line, *points] if len(front) > 1 else points, "layout": layout},
        _accuracy_table(groups),
        height=380,
    )


def _tradeoff_point(group: Group, index: int, longest: float) -> Figure:
    natural, certified = group.mean("natural"), group.mean("certified")
    said = f"natural {percent(natural)} %, certified {percent(certified)} %<br>{duration(group.seconds)} of training"
    return {
        "type": "scatter",
        "mode": "markers",
        "name": safe(group.label),
        "x": [100 * natural],
        "y": [100 * certified],
        "error_x": _errors([natural], [group.ends("natural")]),
        "error_y": _errors([certified], [group.ends("certified")]),
        "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": [9 + 21 * math.sqrt(group.seconds / longest)]},
        "text": [f"{safe(group.label)}<br>{said}"],
        "hovertemplate": "%{text}<extra></extra>",
        "tint": index % TINTS,
    }


def cost(groups: Sequence[Group]) -> Chart:
    """Certified accuracy against the time of training."""
    points = [
        {
            **_tradeoff_point(group, index, 1.0),
            "x": [group.seconds],
            "error_x": {"visible": False},
            "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 11},
        }
        for index, group in enumerate(groups)
    ]
    layout = {
        "xaxis": {"title": {"text": "time of training (s)"}, "type": "log"},
        "yaxis": {"title": {"text": "certified accuracy (%)"}},
    }
    said = "; ".join(f"{g.label}: {percent(g.mean('certified'))} % after {duration(g.seconds)}" for g in groups)
    caption = (
        "Times are of the machines that the runs were trained on, see Environment; they compare on one machine only."
    )
    figure = {"data": points, "layout": layout}
    return Chart("Certified accuracy against cost", caption, f"{said}.", figure, _accuracy_table(groups), height=380)


# ------------------------------------------------------------------------------------------------------- radii


def radius_curves(found: Sequence[tuple[str, Radii]]) -> Chart:
    """Adversarial and certified accuracy as functions of the radius, with intervals; the truth lies between them."""
    data, rows, said = list[Figure](), list[tuple[Cell, ...]](), list[str]()
    for index, (label, radii) in enumerate(found):
        assert radii.summary is not None
        curve = radii.summary.curve
        data += _band([float(Fraction(p.eps)) for p in curve], [p.certified_interval for p in curve], index)
        for kind, dash in (("certified", "solid"), ("adversarial", "dot")):
            shares = [getattr(point, f"{kind}_accuracy") for point in curve]
            line = _radius_line(f"{label}, {kind}", curve, shares, dash, index)
            data.append(line | _legend(label, index, kind == "certified"))
        shown = [point for position, point in enumerate(curve) if position % max(1, len(curve) // 16) == 0]
        rows += [
            (
                Cell(label),
                Cell(radius(p.eps), float(Fraction(p.eps))),
                Cell(percent(p.adversarial_accuracy), p.adversarial_accuracy, span(*p.adversarial_interval)),
                Cell(percent(p.certified_accuracy), p.certified_accuracy, span(*p.certified_interval)),
            )
            for p in shown
        ]
        middle = curve[len(curve) // 2]
        said.append(f"{label}: certified {percent(middle.certified_accuracy)} % at radius {radius(middle.eps)}")
    layout = {
        "xaxis": {"title": {"text": "radius (input units)"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "share of the images (%)"}, "range": [0, 101]},
    }
    return Chart(
        "Accuracy by radius",
        "Solid: images with a proof at that radius, with the 95 % interval. Dotted: images without a known "
        "counterexample. The truth lies between the two.",
        f"Certified and adversarial accuracy as functions of the radius. {'; '.join(said)}.",
        {"data": data, "layout": layout},
        Table("The numbers", ("network", "radius", "adversarial (%)", "certified (%)"), tuple(rows)),
        height=380,
    )


def _legend(label: str, index: int, shown: bool) -> Figure:
    """One entry for all lines of a run."""
    return {"name": safe(label), "legendgroup": str(index), "showlegend": shown}


def _radius_line(name: str, curve: Sequence[Any], shares: Sequence[float], dash: str, index: int) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": safe(name),
        "x": [float(Fraction(point.eps)) for point in curve],
        "y": [100 * share for share in shares],
        "line": {"dash": dash, "width": 2},
        "hovertemplate": f"{safe(name)}<br>radius %{{x:.4g}}: %{{y:.1f}} %<extra></extra>",
        "tint": index % TINTS,
    }


def _band(x: Sequence[float], ends: Sequence[tuple[float, float]], index: int) -> list[Figure]:
    """Between the ends of the intervals."""
    shared = {"type": "scatter", "mode": "lines", "x": list(x), "hoverinfo": "skip", "showlegend": False}
    line = {"width": 0}
    low = {**shared, "y": [100 * low for low, _ in ends], "line": line, "tint": index % TINTS}
    high = {**shared, "y": [100 * high for _, high in ends], "line": line, "fill": "tonexty", "tint": index % TINTS}
    return [low, high]


# ---------------------------------------------------------------------------------------------------- verdicts


def verdicts_over_time(found: Sequence[tuple[str, Certification]]) -> Chart:
    """How many images are decided when each may take so long."""
    data, rows, said = list[Figure](), list[tuple[Cell, ...]](), list[str]()
    for index, (label, given) in enumerate(found):
        times = sorted(max(r.seconds, 1e-6) for r in given.records if r.verdict != "unknown")
        if not times:
            continue
        ranks = _thinned(len(times))
        x, y = [times[rank] for rank in ranks], [100 * (rank + 1) / given.total for rank in ranks]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": safe(label),
                "x": x,
                "y": y,
                "line": {"shape": "hv", "dash": DASHES[index // TINTS % len(DASHES)], "width": 2},
                "hovertemplate": f"{safe(label)}<br>%{{y:.1f}} % within %{{x:.3g}} s<extra></extra>",
                "tint": index % TINTS,
            }
        )
        decided = f"{percent(len(times) / given.total)} % decided"
        said.append(f"{label}: {decided}, half of those within {duration(times[len(times) // 2])}")
        marks = [(share, times[min(len(times) - 1, int(share * len(times)))]) for share in (0.5, 0.9, 0.99)]
        last = (Cell(duration(times[-1]), times[-1]), Cell(f"{len(times):,}", len(times)))
        rows.append((Cell(label), *(Cell(duration(t), t) for _, t in marks), *last))
    layout = {
        "xaxis": {"title": {"text": "time of an image (s)"}, "type": "log"},
        "yaxis": {"title": {"text": "images decided (%)"}, "range": [0, 101]},
    }
    columns = ("certification", "half within", "90 % within", "99 % within", "all within", "images decided")
    return Chart(
        "Images decided by time",
        "Share of the images that are verified or falsified within a time. Images that are decided together share it.",
        f"Share of the images decided as a function of the time of an image. {'; '.join(said)}.",
        {"data": data, "layout": layout},
        Table("The numbers", columns, tuple(rows), "Quantiles of the images that were decided."),
    )


def _thinned(count: int) -> list[int]:
    """Ranks to draw: the ends, and evenly between them."""
    if count <= MOST_POINTS:
        return list(range(count))
    return sorted({round(k * (count - 1) / (MOST_POINTS - 1)) for k in range(MOST_POINTS)})


VERDICTS = ("verified", "falsified", "unknown")


def verdict_table(label: str, given: Certification) -> Table:
    """What each method decided, and the time of the images that it had the last word on."""
    rows = list[tuple[Cell, ...]]()
    for method in sorted({record.method for record in given.records}, key=_turn):
        mine = [record for record in given.records if record.method == method]
        counts = [sum(record.verdict == verdict for record in mine) for verdict in VERDICTS]
        total, longest = sum(record.seconds for record in mine), max(record.seconds for record in mine)
        times = (Cell(duration(total), total), Cell(duration(longest), longest))
        name = "the image itself" if method == NATURAL else printed(method)
        rows.append((Cell(name), *(Cell(f"{count:,}", count) for count in counts), *times))
    columns = ("last word", *VERDICTS, "time together", "longest image")
    return Table(f"{label}: {given.what}", columns, tuple(rows))


def _turn(method: str) -> tuple[int, int, str]:
    """In the order in which methods are tried: the image itself, the attack, then from cheap to tight."""
    first = {NATURAL: 0, "pgd": 1, "apgd": 1}
    return first.get(method, 2), rank(method), method


# ---------------------------------------------------------------------------------------------------- training

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
            data.append(_curve(f"{run.label}, {part}", values, dash, index, unit) | _legend(run.label, index, first))
            said.append(f"{run.label}, {part}: {number(values[-1][1])}{unit and ' ' + unit} at the end")
            shown = values[:: max(1, len(values) // 20)]
            shown = shown if shown[-1] == values[-1] else [*shown, values[-1]]
            rows += [(Cell(run.label), Cell(part), Cell(str(e), e), Cell(number(v), _finite(v))) for e, v in shown]
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
        "y": [_finite(value) for _, value in values],
        "line": {"dash": dash, "width": 2},
        "hovertemplate": f"{safe(name)}<br>epoch %{{x}}: %{{y:.4g}} {unit}<extra></extra>",
        "tint": index % TINTS,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
                    _curve(f"{run.label}, {name}", values, dash, index, "") | _legend(run.label, index, name == "eps")
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


def figure_of(chart: Chart) -> Figure:
    """What the page needs to draw it: traces, the layout with what all charts share, and the height."""
    named = sum(trace.get("showlegend", True) for trace in chart.figure["data"])
    layout = {
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "xanchor": "left"},
        "hovermode": "closest",
        "showlegend": named <= MOST_NAMED,
        **chart.figure["layout"],
    }
    for axis in ("xaxis", "yaxis"):
        layout[axis] = {"automargin": True, **layout.get(axis, {})}
    names = 20 * named if named <= MOST_NAMED else 0
    return {"data": chart.figure["data"], "layout": layout, "height": chart.height + names}
