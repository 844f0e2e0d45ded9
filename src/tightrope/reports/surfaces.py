"""Pictures of loss surfaces, from their records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightrope.core.extras import require
from tightrope.records.surface import Axis, Curve, Surface
from tightrope.reports.figures import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN = "#222222"
MAP = "viridis"  # rises evenly in lightness, whatever the eyes
JUMP = COLOURS[5]
LOSS = "certified loss (cross-entropy)"
BAND = 0.25  # opacity
LOG_FROM = 20.0  # ratio of the largest to the smallest loss from which on the scale is logarithmic


def draw(surface: Surface, *paths: Path) -> None:
    """Write pictures of a finished surface.

    A line is a panel for each relaxation with a curve for each std, its 95 % band, and below it the jumps of the plain
    loss. A plane is a heat map for each relaxation and std, all of one scale.

    Args:
        surface: the record.
        paths: the pictures to write; the ending decides the format.
    """
    figure = _line(surface) if len(surface.axes) == 1 else _plane(surface)
    state = {True: " (trained)", False: " (untrained)", None: ""}[surface.trained]
    figure.suptitle(
        f"Certified loss around {surface.name}{state}: {surface.images} {surface.dataset} {surface.split} images, "
        rf"$\varepsilon$ = {surface.eps}",
        fontsize=11,
    )
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


# ------------------------------------------------------------------------------------------------------- lines


def _line(surface: Surface) -> Figure:
    names = surface.relaxations
    searched = _is_searched(surface)
    figure = new_figure(1.2 + 3.2 * len(names), 5.2 if searched else 4.2)
    rows: Any = figure.subplots(
        1 + searched, len(names), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 1)[: 1 + searched]
    )
    for name, axes in zip(names, rows[0], strict=True):
        _curves(axes, surface, name)
    rows[0][0].set_ylabel(LOSS)
    _scale(rows[0][0], surface)
    if searched:
        _strips(rows[1], surface)
    for axes in rows[-1]:
        axes.set_xlabel(_axis_label(surface.axes[0]), fontsize=9)
    _legend(figure, rows[0][0], _further(surface))
    return figure


def _curves(axes: Axes, surface: Surface, relaxation: str) -> None:
    positions = surface.axes[0].positions
    for std, colour in _colours(surface.stds):
        curve = surface.curve(relaxation, std)
        width, order = (0.8, 2.5) if std == 0 else (1.4, 2.0)  # the plain loss above, and thin
        label = _label(std, surface.std_unit)
        axes.plot(*_broken(positions, curve), color=colour, linewidth=width, zorder=order, label=label)
        if std > 0:
            low, high = zip(*curve.interval, strict=True)
            axes.fill_between(positions, low, high, color=colour, alpha=BAND, linewidth=0)
        for jump in curve.jumps or ():
            ends = [jump.before, jump.after]
            axes.plot([jump.position] * 2, ends, color=JUMP, linewidth=2.0, solid_capstyle="butt", zorder=3)
    for point in surface.marks.values():
        axes.axvline(point[0], color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_title(relaxation, fontsize=10)
    axes.set_xlim(positions[0], positions[-1])
    axes.grid(alpha=0.25, linewidth=0.5)


def _broken(positions: Sequence[float], curve: Curve) -> tuple[list[float], list[float]]:
    """The points of a curve, with a gap at every jump."""
    ends = [(j.position, value) for j in curve.jumps or () for value in (j.before, math.nan, j.after)]
    points = sorted([*zip(positions, curve.mean, strict=True), *ends], key=lambda point: point[0])
    x, y = zip(*points, strict=True)
    return list(x), list(y)


def _strips(row: Sequence[Axes], surface: Surface) -> None:
    for name, axes in zip(surface.relaxations, row, strict=True):
        jumps = surface.curve(name, 0.0).jumps or ()
        axes.set_yscale("log")
        axes.vlines([j.position for j in jumps], 1e-12, [j.size for j in jumps], color=JUMP, linewidth=1.2)
        axes.grid(alpha=0.25, linewidth=0.5)
        told = f"{len(jumps)} found, largest {max(j.size for j in jumps):.2g}" if jumps else "none found"
        axes.annotate(told, (0.02, 0.95), xycoords="axes fraction", va="top", fontsize=8)
    sizes = [jump.size for curve in surface.curves for jump in curve.jumps or ()]
    low, high = (min(sizes), max(sizes)) if sizes else (1e-3, 1.0)
    row[0].set_ylim(low / 2, 100 * high)
    row[0].set_ylabel("jumps of the\nplain loss")


def _legend(figure: Figure, axes: Axes, more: Mapping[str, Any]) -> None:
    """Below everything: what the panel names, and more handles by label."""
    handles, labels = axes.get_legend_handles_labels()
    handles, labels = [*handles, *more.values()], [*labels, *more]
    columns = max(1, len(handles))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _further(surface: Surface) -> dict[str, Any]:
    """Handles of what all curves of a line have in common."""
    found = {}
    if max(surface.stds) > 0:
        found["95 % interval"] = require("matplotlib.patches").Patch(color="0.4", alpha=BAND, linewidth=0)
    if _is_searched(surface):
        found["jump of the plain loss"] = require("matplotlib.lines").Line2D([], [], color=JUMP, linewidth=2.0)
    return found


def _is_searched(surface: Surface) -> bool:
    return any(curve.jumps is not None for curve in surface.curves)


# ------------------------------------------------------------------------------------------------------ planes


def _plane(surface: Surface) -> Figure:
    names, stds = surface.relaxations, surface.stds
    figure = new_figure(1.6 + 3.0 * len(names), 1.0 + 2.8 * len(stds))
    rows: Any = figure.subplots(len(stds), len(names), sharex=True, sharey=True, squeeze=False)
    norm = _norm(surface)
    drawn: Any = None
    for row, std in zip(rows, stds, strict=True):
        for axes, name in zip(row, names, strict=True):
            drawn = _heat(axes, surface, surface.curve(name, std), norm)
        row[0].set_ylabel(f"{_label(std, surface.std_unit)}\n{_axis_label(surface.axes[1])}", fontsize=9)
    for axes, name in zip(rows[0], names, strict=True):
        axes.set_title(name, fontsize=10)
    for axes in rows[-1]:
        axes.set_xlabel(_axis_label(surface.axes[0]), fontsize=9)
    bar = figure.colorbar(drawn, ax=rows, label=LOSS, shrink=0.8)
    if _is_wide(*_extent(surface)):
        _plain_numbers(bar.ax)
    _legend(figure, rows[0][0], {})
    return figure


def _heat(axes: Axes, surface: Surface, curve: Curve, norm: Any) -> Any:
    first, second = (axis.positions for axis in surface.axes)
    size = len(second)
    values = [curve.mean[start : start + size] for start in range(0, len(curve.mean), size)]
    by_row = [list(row) for row in zip(*values, strict=True)]  # the second axis upwards
    drawn = axes.pcolormesh(first, second, by_row, norm=norm, cmap=MAP, shading="nearest", rasterized=True)
    axes.contour(first, second, by_row, levels=_levels(norm), colors="white", linewidths=0.5, alpha=0.7)
    if surface.path:
        outline = [require("matplotlib.patheffects").withStroke(linewidth=2.5, foreground=PLAIN)]
        way: dict[str, Any] = {"color": "white", "markersize": 4, "linewidth": 1.0, "path_effects": outline}
        axes.plot(*zip(*surface.path, strict=True), ".-", label="training, epoch by epoch", **way)
    for marker, (name, point) in zip("*PXD", surface.marks.items(), strict=False):
        axes.plot(*point, marker, color=COLOURS[5], markeredgecolor="white", markersize=10, label=name, linestyle="")
    return drawn


def _levels(norm: Any) -> list[float]:
    """Between the ends, evenly on the colours."""
    return [float(norm.inverse(tenth / 10)) for tenth in range(1, 10)]


def _norm(surface: Surface) -> Any:
    colours = require("matplotlib.colors")
    low, high = _extent(surface)
    return colours.LogNorm(low, high) if _is_wide(low, high) else colours.Normalize(low, high)


# -------------------------------------------------------------------------------------------------------- both


def _scale(axes: Axes, surface: Surface) -> None:
    low, high = _extent(surface)
    if _is_wide(low, high):
        axes.set_yscale("log")
        _plain_numbers(axes)


def _plain_numbers(axes: Axes) -> None:
    formatter = require("matplotlib.ticker").FuncFormatter(lambda value, _: _tick(value))
    axes.yaxis.set_major_formatter(formatter)
    axes.yaxis.set_minor_formatter(formatter)


def _tick(value: float) -> str:
    """0.1, 0.2, 0.5, 1, 2 ... and nothing at the numbers between them.

    Example:
        >>> _tick(0.2), _tick(3.0), _tick(50.0)
        ('0.2', '', '50')
    """
    return f"{value:g}" if f"{value:.0e}"[0] in "125" else ""


def _extent(surface: Surface) -> tuple[float, float]:
    """The smallest and the largest loss."""
    found = [value for curve in surface.curves for value in curve.mean if math.isfinite(value)]
    return (min(found), max(found)) if found else (0.0, 1.0)


def _is_wide(low: float, high: float) -> bool:
    return low > 0 and high / low > LOG_FROM


def _colours(stds: Iterable[float]) -> Iterable[tuple[float, str]]:
    """The plain loss in black, the smoothed ones in colours."""
    chosen = [PLAIN, *COLOURS] if 0.0 in (stds := tuple(stds)) else list(COLOURS)
    return ((std, chosen[index % len(chosen)]) for index, std in enumerate(stds))


def _label(std: float, unit: str) -> str:
    told = {"absolute": "", "weight": " of the weights' RMS", "fan_in": " / √fan-in"}[unit]
    return "plain loss" if std == 0 else rf"smoothed, $\sigma$ = {std:g}{told}"


def _axis_label(axis: Axis) -> str:
    share = "" if axis.share is None else f"{100 * axis.share:.0f} % of the variance, "
    return f"{axis.name}\n({share}{axis.unit})"
