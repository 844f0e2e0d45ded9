"""Charts of a report, as figures of Plotly in plain values, each with what it shows in words and in numbers.

Colours are numbers of a palette (``tint``): the page has one palette for light and one for dark, and fills them in.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tightrope.records.image import NATURAL
from tightrope.reports.gather import Certification, Radii
from tightrope.reports.results import KINDS, Group, Kind, pareto
from tightrope.reports.tables import Cell, Table
from tightrope.reports.units import duration, percent, printed, radius, rank, span

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


def finite(value: float) -> float | None:
    """A number that JSON has, or a gap in a line."""
    return value if math.isfinite(value) else None


def legend(label: str, index: int, shown: bool) -> Figure:
    """One entry of the legend for all lines of a run."""
    return {"name": safe(label), "legendgroup": str(index), "showlegend": shown}


# -------------------------------------------------------------------------------------------------- accuracies


def accuracies(groups: Sequence[Group]) -> Chart:
    """Natural, adversarial and certified accuracy, with intervals."""
    data = [_dots(groups, kind, index) for index, kind in enumerate(KINDS)]
    names, rows = [wrapped(group.label) for group in groups], list(range(len(groups)))
    layout = {
        "xaxis": {"title": {"text": "share of the images (%)"}, "range": [0, 102]},
        "yaxis": {
            "range": [len(groups) - 0.5, -0.5],
            "tickvals": rows,
            "ticktext": names,
            "showgrid": False,
            "zeroline": False,
        },
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
    marks = _marks(groups)
    points = [_tradeoff_point(group, mark, longest) for group, mark in zip(groups, marks, strict=True)]
    meaning = (
        "Colour: relaxation; shape: smoother. The area" if any(one != other for one, other in marks) else "The area"
    )
    layout = {
        "xaxis": {"title": {"text": "natural accuracy (%)"}},
        "yaxis": {"title": {"text": "certified accuracy (%)"}},
    }
    unbeaten = ", ".join(group.label for group in front)
    return Chart(
        "Natural against certified accuracy",
        f"{meaning} is the time of training. No other network has more of both than those on the front.",
        f"Natural against certified accuracy of {len(groups)} networks. On the Pareto front: {unbeaten}.",
        {"data": [line, *points] if len(front) > 1 else points, "layout": layout},
        _accuracy_table(groups),
        height=380,
    )


def _marks(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """Of each network the numbers of a colour and a shape: its relaxation and its smoother, if these tell all apart."""
    pairs = [(group.first.relaxation, group.first.smoother) for group in groups]
    if len(set(pairs)) < len(pairs):
        return [(index, index) for index in range(len(groups))]
    relaxations, smoothers = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    return [(relaxations.index(relaxation), smoothers.index(smoother)) for relaxation, smoother in pairs]


def _tradeoff_point(group: Group, mark: tuple[int, int], longest: float) -> Figure:
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
        "marker": {"symbol": SYMBOLS[mark[1] % len(SYMBOLS)], "size": [9 + 21 * math.sqrt(group.seconds / longest)]},
        "text": [f"{safe(group.label)}<br>{said}"],
        "hovertemplate": "%{text}<extra></extra>",
        "tint": mark[0] % TINTS,
    }


def cost(groups: Sequence[Group]) -> Chart:
    """Certified accuracy against the time of training."""
    points = [
        {
            **_tradeoff_point(group, mark, 1.0),
            "x": [group.seconds],
            "error_x": {"visible": False},
            "marker": {"symbol": SYMBOLS[mark[1] % len(SYMBOLS)], "size": 11},
        }
        for group, mark in zip(groups, _marks(groups), strict=True)
    ]
    layout = {
        "xaxis": {"title": {"text": "time of training (s)"}, "type": "log"},
        "yaxis": {"title": {"text": "certified accuracy (%)"}},
    }
    said = "; ".join(f"{g.label}: {percent(g.mean('certified'))} % after {duration(g.seconds)}" for g in groups)
    caption = "Times are of the machines that the runs were trained on, see below: they compare on one machine only."
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
            data.append(line | legend(label, index, kind == "certified"))
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
