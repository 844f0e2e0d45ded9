"""Pictures of records, drawn with Matplotlib's object interface: no global state, no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from tightrope.core.extras import require
from tightrope.records.cell import CellRecord
from tightrope.records.image import Summary
from tightrope.records.radius import RadiusSummary
from tightrope.records.run import EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito: distinguishable with colour-blind eyes and in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def accuracies(
    summaries: Mapping[str, Summary], curves: Mapping[str, Sequence[EpochRecord]], title: str, path: Path
) -> None:
    """Natural, adversarial and certified accuracy with intervals, beside the training curves.

    Args:
        summaries: certifications by the name of the run, all of the same images and radius.
        curves: epochs of the same runs.
        title: above both.
        path: the picture to write; the ending decides the format.
    """
    figure = new_figure(10, 4.2)
    figure.suptitle(title)
    bars, lines = figure.subplots(1, 2, width_ratios=(3, 2))
    _accuracy_bars(bars, summaries)
    _surrogate_curves(lines, curves)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def certified_by_axes(
    cells: Sequence[CellRecord], rows: tuple[str, Mapping[str, str]], columns: tuple[str, Mapping[str, str]], path: Path
) -> None:
    """Certified accuracy of networks that differ along two axes: a dot for each seed, a bar at their mean.

    Args:
        cells: final ones of one suite.
        rows: an axis, an attribute of the cells; and of its values what they are called. They lie side by side.
        columns: another; its values differ in colour.
        path: the picture to write; the ending decides the format.
    """
    (down, places), (across, colours) = rows, columns
    figure = new_figure(1.5 + 1.6 * len(places), 3.6)
    axes = figure.subplots()
    step = 0.8 / len(colours)
    for index, ((value, name), colour) in enumerate(zip(colours.items(), COLOURS, strict=False)):
        for place, row in enumerate(places, start=1):
            centre = place + (index - (len(colours) - 1) / 2) * step
            shares = [100 * c.certified for c in cells if (getattr(c, down), getattr(c, across)) == (row, value)]
            if shares:
                ends = centre - 0.4 * step, centre + 0.4 * step
                axes.plot(ends, [fmean(shares)] * 2, color=colour, linewidth=4, label=name, solid_capstyle="butt")
                axes.scatter([centre] * len(shares), shares, color="black", s=12, zorder=3)
    _legend_of_each_once(axes)
    axes.set_xticks(range(1, 1 + len(places)), list(places.values()))
    axes.set_ylim(0, None)
    axes.set_ylabel("certified accuracy (%)\ndot: a seed, bar: their mean")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _legend_of_each_once(axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    each = dict(zip(names, handles, strict=True))
    axes.legend(each.values(), each.keys(), frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def radius_curve(found: RadiusSummary, title: str, path: Path) -> None:
    """Adversarial and certified accuracy as functions of the radius, with intervals; the truth lies between them.

    Args:
        found: the distribution.
        title: above it.
        path: the picture to write; the ending decides the format.
    """
    figure = new_figure(6, 4)
    axes = figure.subplots()
    radii = [float(Fraction(point.eps)) for point in found.curve]
    for colour, kind in zip(COLOURS[1:], ("adversarial", "certified"), strict=False):
        intervals = [getattr(point, f"{kind}_interval") for point in found.curve]
        shares = [100 * getattr(point, f"{kind}_accuracy") for point in found.curve]
        axes.plot(radii, shares, color=colour, label=kind)
        low, high = ([100 * ends[side] for ends in intervals] for side in (0, 1))
        axes.fill_between(radii, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_title(title)
    axes.set_xlim(0, radii[-1])
    axes.set_ylim(0, 100)
    axes.set_xlabel("radius (input units)")
    axes.set_ylabel("test images (%), with 95 % intervals")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure: Figure = require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    return figure


def _accuracy_bars(axes: Axes, summaries: Mapping[str, Summary]) -> None:
    kinds = ("natural", "adversarial", "certified")
    width = 0.8 / len(kinds)
    for index, kind in enumerate(kinds):
        heights = [100 * getattr(s, f"{kind}_accuracy") for s in summaries.values()]
        bounds = [getattr(s, f"{kind}_interval") for s in summaries.values()]
        errors = [
            [h - 100 * low for h, (low, _) in zip(heights, bounds, strict=True)],
            [100 * high - h for h, (_, high) in zip(heights, bounds, strict=True)],
        ]
        places = [position + (index - 1) * width for position in range(len(heights))]
        drawn = axes.bar(places, heights, width, yerr=errors, capsize=2, color=COLOURS[index], label=kind)
        axes.bar_label(drawn, fmt="%.0f", fontsize=7, padding=1)
    axes.set_xticks(range(len(summaries)), [name.replace(" / ", "\n") for name in summaries])
    axes.set_ylim(0, 112)
    axes.set_ylabel("test images (%), with 95 % intervals")
    axes.legend(loc="upper center", ncols=3, frameon=False, fontsize=8)


def _surrogate_curves(axes: Axes, curves: Mapping[str, Sequence[EpochRecord]]) -> None:
    for colour, (name, epochs) in zip(COLOURS, curves.items(), strict=False):
        shares = [100 * epoch.validation.get("surrogate_accuracy", float("nan")) for epoch in epochs]
        axes.plot([epoch.seconds for epoch in epochs], shares, color=colour, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("training time (s)")
    axes.set_ylabel("validation images bounded by the\nrelaxation trained with (%)")
    axes.legend(frameon=False, fontsize=8)
