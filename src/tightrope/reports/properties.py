"""Tables and a picture of measured properties of relaxations, beside what was published."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tightrope.records.properties import PropertiesRecord, RelaxationProperties, Smoothness
from tightrope.reports.figures import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "os^Dv*"


class Published(NamedTuple):
    """A row of Jovanovic et al. (TMLR 2022): networks trained by gradients, in units of their own."""

    tightness: float
    continuous: bool
    insensitive: bool
    certified: float


PUBLISHED = {
    "ibp": Published(0.73, True, True, 86.8),
    "hbox": Published(1.76, False, True, 83.7),
    "crown_ibp": Published(2.15, False, False, 75.4),
    "deepz": Published(3.00, True, False, 69.8),
    "deeppoly": Published(3.36, False, False, 70.2),
}

Table = tuple[list[str], list[list[str]]]
"""Names of the columns, and rows."""


def measured(record: PropertiesRecord) -> Table:
    """Tightness, continuity and sensitivity."""
    columns = ["relaxation", "gap", "mean radius", "certified loss", "jumps", "largest jump", "|grad bound|", "degree"]
    return columns, [_measured(each) for each in record.relaxations]


def _measured(each: RelaxationProperties) -> list[str]:
    tight, sensitive = each.tightness, each.sensitivity
    jumps = f"{each.continuity.rate:.3g} a draw" if each.continuity.jumps else "none"
    return [
        each.name,
        f"{tight.gap:.3g}" if tight.gap - tight.proved < 0.05 * tight.gap else f"{tight.proved:.3g} to {tight.gap:.3g}",
        f"{tight.radius:.4f}",
        f"{tight.loss:.4g}",
        jumps if each.continuity.complete else f"at least {jumps}",
        f"{100 * each.continuity.largest / tight.loss:.2g} %" if each.continuity.jumps else "",
        f"{sensitive.bound_gradient:.3g}",
        "" if sensitive.degree is None else f"<= {sensitive.degree}",
    ]


def beside_published(record: PropertiesRecord) -> Table:
    """What was measured here beside the table of Jovanovic et al.; without slope rules, which it does not have."""
    columns = ["relaxation", "tightness", "gap here", "continuous", "jumps here", "insensitive", "degree here"]
    rows = []
    for each in record.relaxations:
        if (known := PUBLISHED.get(each.name)) is not None:
            _, gap, _, _, jumps, _, _, degree = _measured(each)
            told = ("yes" if known.continuous else "no", jumps, "yes" if known.insensitive else "no", degree)
            rows.append([each.name, f"{known.tightness:.2f}", gap, *told])
    return columns, rows


def smoothed(record: PropertiesRecord) -> Table:
    """Slope, curvature and deviation from convexity, before and after smoothing."""
    columns = ["relaxation", "std", "loss", "slope", "at most", "curvature", "at most", "order", "deviation", "at most"]
    return columns, [_smoothed(each, part) for each in record.relaxations for part in each.smoothness]


def _smoothed(each: RelaxationProperties, part: Smoothness) -> list[str]:
    return [
        each.name if part.std == 0 else "",
        f"{part.std:g}",
        f"{part.loss:.4g}" + (f" +- {part.error:.1g}" if part.std > 0 else ""),
        f"{part.slope:.3g}",
        "" if part.slope_bound is None else f"{part.slope_bound:.3g}",
        f"{part.curvature:.3g}",
        "" if part.curvature_bound is None else f"{part.curvature_bound:.3g}",
        "" if part.order is None else f"{part.order:.2f}",
        f"{part.deviation:.2g}",
        f"{part.deviation_drawn:.2g}",
    ]


def worst_margins_told(record: PropertiesRecord) -> str:
    """How well the worst margins are known, in a sentence."""
    settings, known = record.settings, record.exact
    if known == settings.images:
        return f"Worst margins of all {known} images are exact up to {settings.tolerance:g} (branch and bound)."
    return (
        f"Worst margins of {known} of {settings.images} images are exact up to {settings.tolerance:g} (branch and "
        "bound); of the others, gaps go from what is proved to what an attack found."
    )


def draw(record: PropertiesRecord, *paths: Path) -> None:
    """Write pictures: gaps, largest changes by the step, degrees and gradients, curvature by the std.

    Args:
        record: with at least one relaxation.
        paths: the pictures to write; the ending decides the format.
    """
    figure = new_figure(10, 7)
    settings, state = record.settings, "trained" if record.trained else "untrained"
    figure.suptitle(
        f"Relaxations on {record.network} ({state}): {settings.images} {settings.data} {settings.split} images, "
        rf"$\varepsilon$ = {settings.eps}",
        fontsize=11,
    )
    (gaps, changes), (degrees, curvatures) = figure.subplots(2, 2)
    _gaps(gaps, record)
    _changes(changes, record)
    _sensitivities(degrees, record)
    _curvatures(curvatures, record)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _styles(record: PropertiesRecord) -> Iterator[tuple[RelaxationProperties, str, str]]:
    """Every relaxation with a colour and a marker; the colours repeat, but not together with the marker's line."""
    yield from zip(record.relaxations, cycle(COLOURS), cycle(MARKERS), strict=False)


def _names(axes: Axes, record: PropertiesRecord) -> None:
    axes.set_xticks(range(len(record.relaxations)), [each.name.replace(":", "\n") for each in record.relaxations])
    axes.tick_params(axis="x", labelsize=8)


def _gaps(axes: Axes, record: PropertiesRecord) -> None:
    for place, (each, colour, _) in enumerate(_styles(record)):
        drawn = axes.bar(place, each.tightness.gap, color=colour)
        axes.bar_label(drawn, fmt="%.3g", fontsize=8)
        axes.bar(place, each.tightness.proved, color="none", edgecolor="black", linewidth=1)
    _names(axes, record)
    axes.margins(y=0.1)
    axes.set_title("Tightness: gap to the worst margin (outlined: proved)", fontsize=10)
    axes.set_ylabel("margin, mean over images")


def _changes(axes: Axes, record: PropertiesRecord) -> None:
    for each, colour, marker in _styles(record):
        steps = [change.step for change in each.continuity.changes]
        shares = [change.largest / each.tightness.loss for change in each.continuity.changes]
        axes.loglog(steps, shares, color=colour, marker=marker, markersize=3, linewidth=1, label=each.name)
    axes.set_title("Continuity: largest change of the loss over a step", fontsize=10)
    axes.set_xlabel("step (draws of the largest noise)")
    axes.set_ylabel("share of the loss")
    axes.legend(frameon=False, fontsize=8)


def _sensitivities(axes: Axes, record: PropertiesRecord) -> None:
    for place, (each, colour, _) in enumerate(_styles(record)):
        drawn = axes.bar(place, each.sensitivity.bound_gradient, color=colour)
        degree = each.sensitivity.degree
        axes.bar_label(drawn, [f"degree\n" rf"$\leq$ {degree}" if degree is not None else ""], fontsize=8)
    _names(axes, record)
    axes.margins(y=0.2)
    axes.set_title("Sensitivity: gradient and degree of the bound", fontsize=10)
    axes.set_ylabel("norm of the gradient, mean over draws")


def _curvatures(axes: Axes, record: PropertiesRecord) -> None:
    ticks = ["none", *(f"{std:g}" for std in record.settings.std)]
    for each, colour, marker in _styles(record):
        shares = [part.curvature / part.loss for part in each.smoothness]
        axes.semilogy(range(len(shares)), shares, color=colour, marker=marker, linewidth=1, label=each.name)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_title("Smoothness: largest second difference", fontsize=10)
    axes.set_xlabel(f"std of the smoothing noise ({record.settings.std_unit})")
    axes.set_ylabel("share of the loss, per squared std of noise")
