"""Loss surfaces of a run in its report: lines as charts, planes as the pictures beside their records."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tightrope.records.folder import RunFolder
from tightrope.records.surface import Curve, Surface, read_surface
from tightrope.reports.charts import TINTS, Chart, Figure, finite, safe
from tightrope.reports.pictures import Picture
from tightrope.reports.tables import Cell, Table
from tightrope.reports.units import number, printed

_MOST_ROWS = 17


@dataclass(frozen=True)
class Look:
    """A surface as the report shows it.

    Attributes:
        charts: of a line, one a relaxation.
        picture: of a plane; None if it is not beside the record.
        notes: what it is of, and what is missing.
    """

    title: str
    charts: tuple[Chart, ...]
    picture: Picture | None
    notes: tuple[str, ...]


def looks(folder: RunFolder) -> list[Look]:
    """The surfaces in a run's folder.

    Raises:
        CorruptDataError: the record of one is damaged; the file is named.
    """
    return [_look(path) for path in sorted(folder.path.glob("surface*/surface.json"))]


def _look(path: Path) -> Look:
    surface = read_surface(path)
    axes = " and ".join(axis.name for axis in surface.axes)
    state = "trained" if surface.trained else "untrained"
    title = f"Direction: {axes}; around the {state} weights"
    noise = f"{surface.pairs} antithetic pairs of draws, common to all points, stds and relaxations"
    notes = [
        f"{surface.images} images of {surface.dataset} {surface.split}, eps {surface.eps}; {noise}. Record: {path}"
    ]
    if not surface.finished:
        return Look(title, (), None, (f"Not finished: the command that began it goes on. Record: {path}",))
    if len(surface.axes) == 1:
        return Look(title, tuple(_line(surface, name) for name in surface.relaxations), None, tuple(notes))
    picture = path.with_name("surface.png")
    if not picture.is_file():
        return Look(title, (), None, (*notes, f"Its picture {picture} is not there."))
    address = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    return Look(title, (), Picture(address, f"{title}. {_heights(surface)}", title), tuple(notes))


def _line(surface: Surface, name: str) -> Chart:
    curves = [curve for curve in surface.curves if curve.relaxation == name]
    data = [trace for tint, curve in enumerate(curves) for trace in _traces(surface, curve, tint % TINTS)]
    jumps = [jump for curve in curves for jump in curve.jumps or ()]
    marked = " Crosses: jumps of the loss itself." if any(curve.jumps is not None for curve in curves) else ""
    axis = surface.axes[0]
    layout = {
        "xaxis": {"title": {"text": f"{axis.name} ({axis.unit})"}},
        "yaxis": {"title": {"text": "certified loss"}},
    }
    said = "; ".join(f"std {curve.std:g}: {_range(curve)}" for curve in curves)
    largest = f" {len(jumps)} jumps, the largest {number(max(jump.size for jump in jumps))}." if jumps else ""
    return Chart(
        printed(name),
        f"The loss, and its mean under weight noise with its 95 % band.{marked}",
        f"Certified loss of {printed(name)} along {axis.name}. {said}.{largest}",
        {"data": data, "layout": layout},
        _table(surface, curves),
    )


def _traces(surface: Surface, curve: Curve, tint: int) -> Iterator[Figure]:
    x = list(surface.axes[0].positions)
    label = "no smoothing" if curve.std == 0 else f"std {curve.std:g}"
    shared: Figure = {"type": "scatter", "mode": "lines", "x": x, "tint": tint, "legendgroup": str(tint)}
    if curve.std > 0:
        for side, fill in ((0, {}), (1, {"fill": "tonexty"})):
            ends = [finite(interval[side]) for interval in curve.interval]
            yield {**shared, "y": ends, "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip", **fill}
    hover = f"{safe(label)}<br>%{{x:.4g}}: %{{y:.4g}}<extra></extra>"
    line = {"width": 1.5 if curve.std == 0 else 2}
    yield {**shared, "y": [finite(v) for v in curve.mean], "name": safe(label), "line": line, "hovertemplate": hover}
    if curve.jumps:
        yield {
            **shared,
            "mode": "markers",
            "x": [jump.position for jump in curve.jumps],
            "y": [finite(max(jump.before, jump.after)) for jump in curve.jumps],
            "text": [f"jump of {number(jump.size)} at {jump.position:.4g}" for jump in curve.jumps],
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"symbol": "x", "size": 7},
            "showlegend": False,
        }


def _range(curve: Curve) -> str:
    values = [value for value in curve.mean if math.isfinite(value)]
    return f"{number(min(values))} to {number(max(values))}" if values else "not finite"


def _heights(surface: Surface) -> str:
    said = [f"{printed(curve.relaxation)}, std {curve.std:g}: {_range(curve)}" for curve in surface.curves]
    return f"Certified losses: {'; '.join(said)}."


def _table(surface: Surface, curves: list[Curve]) -> Table:
    shown = range(0, len(surface.points), max(1, -(-len(surface.points) // _MOST_ROWS)))
    columns = [_cells(curve, shown) for curve in curves]
    places = [Cell(f"{surface.points[place][0]:.4g}", surface.points[place][0]) for place in shown]
    heads = ("no smoothing" if curve.std == 0 else f"std {curve.std:g}" for curve in curves)
    rows = tuple(zip(places, *columns, strict=True))
    return Table("The numbers", ("position", *heads), rows, "Not every point where there are many.")


def _cells(curve: Curve, shown: range) -> list[Cell]:
    mean, interval = curve.mean, curve.interval
    ends = ["" if curve.std == 0 else f"{number(low)} to {number(high)}" for low, high in interval]
    return [Cell(number(mean[place]), finite(mean[place]), ends[place]) for place in shown]
