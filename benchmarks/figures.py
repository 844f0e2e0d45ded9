"""The pictures of the suites, drawn with Matplotlib's object interface: no global state, no display."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from benchmarks.case import Record
from benchmarks.verification import solved

# Colours of Okabe and Ito: distinguishable with colour-blind eyes and in grey.
OURS, PEER, PLAIN, OTHER = "#0072B2", "#E69F00", "#56B4E9", "#999999"
MEANING = {OURS: "Tightrope", PEER: "other libraries", PLAIN: "Tightrope, unperturbed weights", OTHER: "plain PyTorch"}
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
KINDS = {
    "product": "#0072B2",
    "convolution": "#56B4E9",
    "elementwise": "#E69F00",
    "reduction": "#009E73",
    "movement": "#CC79A7",
    "other": "#BBBBBB",
}
SHAPES = ("o", "^", "s", "D", "v")
INCH_A_BAR = 0.23
BAND = 0.3  # around a forecast's measured value
LARGEST_RATIO = 20  # of values that are drawn on a linear scale


def bars(groups: Sequence[Record]) -> Figure:
    """Throughput and peak memory of every contender, one row of panels for each group."""
    figure, rows = _rows_of_panels(groups, (3, 2))
    for group, panels in zip(groups, rows, strict=True):
        wanted = [(_rate, group["unit"]), (_peak_memory, "peak memory of a step (MiB)")]
        wanted = [(value_of, unit) for value_of, unit in wanted if any(value_of(row) for row in group["contenders"])]
        for panel, (value_of, unit) in zip(panels, wanted, strict=False):
            _bars(panel, group, value_of, unit)
        for panel in panels[len(wanted) :]:
            panel.set_axis_off()
        _headline(panels, group)
    _legend(figure, groups)
    return figure


def limits(groups: Sequence[Record]) -> Figure:
    """Achieved operations and bytes a second beside what matrix products and copies of the machine reach."""
    figure, rows = _rows_of_panels(groups, (1, 1))
    for group, panels in zip(groups, rows, strict=True):
        _bars(panels[0], group, lambda row: _median(row, "gflop_per_second"), "GFLOP/s", share="product")
        _bars(panels[1], group, lambda row: _median(row, "gbyte_per_second"), "GB/s", share="copy")
        _headline(panels, group)
    _legend(figure, groups)
    return figure


def slopes(groups: Sequence[Record]) -> Figure:
    """Time above memory, one column for each axis, one line for each relaxation with its slope."""
    axes = list(dict.fromkeys(group["setting"]["axis"] for group in groups))
    kinds = [kind for kind in ("time", "memory") if any(group["slopes"][kind] for group in groups)]
    figure = _figure(3.1 * len(axes), 3.1 * len(kinds) + 0.3)
    panels = figure.subplots(len(kinds), len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        of_axis = [group for group in groups if group["setting"]["axis"] == axis]
        for row, kind in enumerate(kinds):
            _lines(panels[row][column], of_axis, kind)
        panels[0][column].set_title(f"{axis}\n({_fixed(of_axis[0])})", fontsize=9)
        panels[-1][column].set_xlabel(axis)
    for row, kind in enumerate(kinds):
        panels[row][0].set_ylabel({"time": "time of a step (ms)", "memory": "peak memory of a step (MiB)"}[kind])
    return figure


def forecasts(groups: Sequence[Record]) -> Figure:
    """Forecast against measured time and memory, one dot for each contender, with the line and the band to be in."""
    rows = [(row, group["setting"]["forecasts"][row["name"]]) for group in groups for row in group["contenders"]]
    pairs = {
        "time of a step (s)": [(_median(row, "seconds_per_step"), it["seconds_per_step"], row) for row, it in rows],
        "peak memory of a step (MiB)": [(_peak_memory(row), it["peak_memory_mib"], row) for row, it in rows],
    }
    wanted = {title: known for title, each in pairs.items() if (known := [pair for pair in each if pair[0]])}
    figure = _figure(max(1, len(wanted)) * 4.4, 4.6)
    panels = figure.subplots(1, max(1, len(wanted)), squeeze=False)[0]
    for panel, (title, known) in zip(panels, wanted.items(), strict=False):
        _forecasts(panel, title, known)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def cactus(groups: Sequence[Record]) -> Figure:
    """Instances decided above the time spent on them, one line for each verifier: further right and lower is better."""
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure = _figure(0.4 + 4.4 * columns, 0.4 + 3.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(groups) :]:
        panel.remove()
    for panel, group in zip(panels, groups, strict=False):
        for colour, row in zip(LINES, group["contenders"], strict=False):
            times = list(solved(row))
            label = f"{row['name']}: {len(times)} of {group['units_per_step']}"
            panel.step(range(1, len(times) + 1), times, "o-", where="mid", color=colour, markersize=3, label=label)
        panel.set_title(group["name"], fontsize=9)
        panel.set_yscale("log")
        panel.set_xlabel("instances decided")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylabel("seconds in all")
        panel.grid(alpha=0.3)
        if group["contenders"]:
            panel.legend(frameon=False, fontsize=8)
    return figure


def shares(groups: Sequence[Record]) -> Figure:
    """Where the time of a step goes, by kind of operation."""
    figure = _figure(9.0, 1.3 + 0.4 * len(groups))
    panel = figure.subplots()
    for place, group in enumerate(groups):
        start = 0.0
        for kind, colour in KINDS.items():
            width = 100 * group["shares"].get(kind, 0.0)
            panel.barh(place, width, left=start, color=colour, height=0.7, label=kind if place == 0 else None)
            if width >= 5:
                ink = "white" if kind == "product" else "black"
                panel.text(start + width / 2, place, f"{width:.0f}", color=ink, ha="center", va="center", fontsize=8)
            start += width
    panel.set_yticks(range(len(groups)), [group["name"] for group in groups], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlim(0, 100)
    panel.set_xlabel("share of the operations' own time (%)")
    figure.legend(loc="outside upper center", ncols=len(KINDS), frameon=False, fontsize=8)
    return figure


def _forecasts(panel: Axes, title: str, known: Sequence[tuple[Any, float, Record]]) -> None:
    """Colours are relaxations, shapes are smoothers."""
    names = list(dict.fromkeys(row["name"] for *_, row in known))
    relaxations, smoothers = (list(dict.fromkeys(name.split(", ")[place] for name in names)) for place in (0, 1))
    for name in names:
        measured, forecast = zip(*((x, y) for x, y, row in known if row["name"] == name), strict=True)
        relaxation, smoother = name.split(", ")[:2]
        colour, shape = LINES[relaxations.index(relaxation)], SHAPES[smoothers.index(smoother)]
        panel.plot(measured, forecast, shape, color=colour, markersize=5, alpha=0.8, label=name)
    values = [value for x, y, _ in known for value in (x, y)]
    ends = (min(values) / 1.5, max(values) * 1.5)
    panel.plot(ends, ends, color="black", linewidth=0.8)
    below, above = ([(1 + sign * BAND) * end for end in ends] for sign in (-1, 1))
    panel.fill_between(ends, below, above, color=OTHER, alpha=0.25, linewidth=0, label=f"within {BAND:.0%}")
    panel.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal", xlabel="measured", ylabel="forecast")
    panel.set_title(title, fontsize=9)
    panel.tick_params(labelsize=8)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _rows_of_panels(groups: Sequence[Record], widths: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    """Two panels for each group, as high as it has contenders."""
    heights = [0.8 + INCH_A_BAR * len(group["contenders"]) for group in groups]
    figure = _figure(10.0, sum(heights) + 0.7)
    panels = figure.subplots(len(groups), 2, squeeze=False, width_ratios=widths, height_ratios=heights)
    return figure, panels.tolist()


def _headline(panels: Sequence[Axes], group: Record) -> None:
    panels[0].set_title(group["name"], loc="left", fontsize=9, fontweight="bold")
    panels[1].set_yticklabels([])


def _legend(figure: Figure, groups: Sequence[Record]) -> None:
    used = {_colour(row) for group in groups for row in group["contenders"]}
    patches = [Patch(color=colour, label=label) for colour, label in MEANING.items() if colour in used]
    figure.legend(handles=patches, loc="outside upper left", ncols=len(patches), frameon=False, fontsize=8)


def _bars(
    panel: Axes, group: Record, value_of: Callable[[Record], float | None], unit: str, *, share: str | None = None
) -> None:
    """Bars from 0 or, where they would differ too much to be seen, dots on a logarithmic scale."""
    rows = group["contenders"]
    values = [value_of(row) for row in rows]
    known = [value for value in values if value] or [1.0]
    logarithmic = share is None and max(known) > LARGEST_RATIO * min(known)
    if logarithmic:
        panel.set_xscale("log")
        panel.set_xlim(min(known) / 2, max(known) * (max(known) / min(known)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(axis="x", alpha=0.3)
    else:
        panel.set_xlim(0, max(known) * 1.7)
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        if value and logarithmic:
            panel.plot(value, place, "o", color=_colour(row), markersize=6)
        elif value:
            panel.barh(place, value, color=_colour(row), height=0.75)
        where = (value or panel.get_xlim()[0], place)
        text = _label(row, value, share) + _compared(group, row, value_of)
        panel.annotate(text, where, (6, 0), textcoords="offset points", va="center", fontsize=7)
    panel.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlabel(f"{unit}, logarithmic" if logarithmic else unit, fontsize=8)
    panel.tick_params(axis="x", labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)


def _label(row: Record, value: float | None, share: str | None) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    if value is None:
        return "not measured"
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{text} ({row[f'share_of_{share}']['median']:.0%} of {share})" if share else text


def _compared(group: Record, row: Record, value_of: Callable[[Record], float | None]) -> str:
    """The row's ratio as it stands in the record, for throughput or for memory."""
    for ratio in group["ratios"]:
        figure = ratio.get("median") if value_of is _rate else ratio["memory"]
        if ratio["of"] == row["name"] and figure is not None and value_of(row):
            return f"  = {figure:.2f} x {ratio['over']}"
    return ""


def _colour(row: Record) -> str:
    if row["library"].startswith(("auto_LiRPA", "evotorch")):
        return PEER
    if row["library"] != "tightrope":
        return OTHER
    return PLAIN if row["name"].startswith("plain") else OURS


def _rate(row: Record) -> float | None:
    return _median(row, "throughput")


def _peak_memory(row: Record) -> float | None:
    return row.get("peak_memory_mib")


def _milliseconds(row: Record) -> float | None:
    return 1000 * row["seconds_per_step"]["median"] if "seconds_per_step" in row else None


def _median(row: Record, key: str) -> float | None:
    return row[key]["median"] if key in row else None


def _lines(panel: Axes, groups: Sequence[Record], kind: str) -> None:
    value_of = {"time": _milliseconds, "memory": _peak_memory}[kind]
    ticks: set[int] = set()
    for colour, group in zip(LINES, groups, strict=False):
        axis = group["setting"]["axis"]
        points = [(row["setting"][axis], value) for row in group["contenders"] if (value := value_of(row))]
        if not points:
            continue
        places, values = zip(*points, strict=True)
        slope = group["slopes"][kind]
        label = group["setting"]["relaxation"] + (f", slope {slope['least_squares']:.2f}" if slope else "")
        panel.plot(places, values, "o-", color=colour, markersize=3.5, label=label)
        ticks |= set(places)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3)
    if ticks:
        low, high = panel.get_ylim()
        panel.set_ylim(low, high * (high / low) ** 0.4)  # room for the legend
        panel.legend(frameon=False, fontsize=7, loc="upper left")


def _fixed(group: Record) -> str:
    setting = group["setting"]
    shown = [key for key in ("width", "batch", "chunk") if key in setting and key != setting["axis"]]
    return ", ".join([setting["network"], *(f"{key} {setting[key]}" for key in shown)])
