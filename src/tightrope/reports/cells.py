"""Tables of an experiment's cells: what is compared, how sure that is, and what is smaller than in the literature."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tightrope.records.cell import CellRecord
from tightrope.records.intervals import paired, wilson
from tightrope.reports.comparison import difference
from tightrope.reports.tables import Cell, Table
from tightrope.reports.units import duration, percent, span

Axis = Literal["relaxation", "smoother", "start", "variant"]
Group = Sequence[CellRecord]
"""Cells that differ in their seeds alone."""

HEADS = ("Nat. (%)", "Adv. (%)", "Cert. (%)", "95 %", "Unknown (%)", "Seeds", "Time")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Literature(_Section):
    """The scale at which the literature works in the setting of a suite.

    Attributes:
        source: whose.
        network, epochs, train_images, images: what is trained and certified there; None where that is not known.
        remark: what else a reader has to know about the distance.
    """

    source: str = "the literature"
    network: str | None = None
    epochs: int | None = None
    train_images: int | None = None
    images: int | None = None
    remark: str = ""


class Layout(_Section):
    """What a table shows.

    Attributes:
        title: in a sentence.
        heading: of the first column.
        rows: the axis that they are values of.
        columns: a second axis, for a grid of certified accuracies; None for a row of measures each.
        baseline: the row, or in a grid the column or else the row, that the others are compared with.
    """

    title: str
    heading: str
    rows: Axis
    columns: Axis | None = None
    baseline: str = ""


def cell_table(
    cells: Sequence[CellRecord],
    layout: Layout,
    order: Mapping[Axis, Sequence[str]],
    literature: Literature | None = None,
) -> Table:
    """The table of what has been run so far.

    Args:
        cells: final ones of one suite that differ in the axes of the layout and in their seeds alone.
        layout: what the table shows.
        order: of every axis the values to show; one that has not been run says so.
        literature: what the scale is compared with.
    """
    common, own = _departures(cells, layout.rows)
    texts = list(dict.fromkeys(own[row] for row in order[layout.rows] if own.get(row)))
    labels = [f"{row} [{texts.index(own[row]) + 1}]" if own.get(row) else row for row in order[layout.rows]]
    heads, body = _grid(cells, layout, order) if layout.columns else _list(cells, layout, order)
    rows = tuple((Cell(label), *entries) for label, entries in zip(labels, body, strict=True))
    footnotes = [f"[{number}] {text}." for number, text in enumerate(texts, start=1)]
    about = [*_about(cells), _how_sure(cells, layout), *_scale(cells, literature), *common, *footnotes]
    return Table(layout.title, (layout.heading, *heads), rows, " ".join(about))


def csv_text(cells: Iterable[CellRecord]) -> str:
    """One line a cell, every figure as it was recorded."""
    values: list[dict[str, Any]] = [cell.model_dump(mode="json", exclude={"schema_version", "trial"}) for cell in cells]
    joined = [{key: "; ".join(v) if isinstance(v, list) else v for key, v in row.items()} for row in values]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(joined[0]) if joined else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(joined)
    return out.getvalue()


def _list(
    cells: Group, layout: Layout, order: Mapping[Axis, Sequence[str]]
) -> tuple[tuple[str, ...], list[list[Cell]]]:
    groups = {row: _where(cells, layout.rows, row) for row in order[layout.rows]}
    base = groups.get(layout.baseline)
    heads = HEADS if base is None else (*HEADS, f"against {layout.baseline}")
    return heads, [_measures(group, base) for group in groups.values()]


def _grid(
    cells: Group, layout: Layout, order: Mapping[Axis, Sequence[str]]
) -> tuple[tuple[str, ...], list[list[Cell]]]:
    assert layout.columns is not None
    columns = tuple(order[layout.columns])
    groups = {
        (row, column): _where(_where(cells, layout.rows, row), layout.columns, column)
        for row in order[layout.rows]
        for column in columns
    }
    body = [
        [_place(groups[row, column], groups.get(_baseline(layout, order, row, column), [])) for column in columns]
        for row in order[layout.rows]
    ]
    return columns, body


def _baseline(layout: Layout, order: Mapping[Axis, Sequence[str]], row: str, column: str) -> tuple[str, str]:
    """The place that one of a grid is compared with."""
    assert layout.columns is not None
    return (row, layout.baseline) if layout.baseline in order[layout.columns] else (layout.baseline, column)


def _where(cells: Group, axis: Axis, value: str) -> Group:
    return [cell for cell in cells if getattr(cell, axis) == value]


def _measures(group: Group, base: Group | None) -> list[Cell]:
    against = [] if base is None else [Cell(_against(group, base))]
    if not group:
        return [Cell("not run"), *(Cell("") for _ in HEADS[1:]), *against]
    natural, adversarial, certified, unknown = (_mean(group, key) for key in _SHARES)
    seconds = fmean(cell.train_seconds for cell in group)
    shown = [
        *(Cell(percent(share), share) for share in (natural, adversarial, certified)),
        Cell(span(*interval(group))),
    ]
    return [*shown, Cell(percent(unknown), unknown), _number(len(group)), Cell(duration(seconds), seconds), *against]


_SHARES = ("natural", "adversarial", "certified", "unknown")


def _mean(group: Group, key: str) -> float:
    return fmean(getattr(cell, key) for cell in group)


def _number(value: int) -> Cell:
    return Cell(str(value), float(value))


def _place(group: Group, base: Group) -> Cell:
    """Certified accuracy, half its interval, and a sign where it surely differs from the baseline."""
    if not group:
        return Cell("not run")
    certified, (low, high) = _mean(group, "certified"), interval(group)
    seeds, _, least, most = difference(group, base)
    sign = "" if seeds < 2 or least <= 0 <= most else " (+)" if least > 0 else " (-)"
    text = f"{percent(certified)} ± {percent(max(high - certified, certified - low))}{sign}"
    return Cell(text, certified, note=f"natural {percent(_mean(group, 'natural'))}")


def interval(group: Group) -> tuple[float, float]:
    """95 % interval of the certified accuracy: Student's over seeds, of one seed Wilson's over its images."""
    if len(group) == 1:
        return wilson(round(group[0].certified * group[0].images), group[0].images)
    low, high = paired([cell.certified for cell in group])
    return max(0.0, low), min(1.0, high)


def _against(group: Group, base: Group) -> str:
    seeds, mean, low, high = difference(group, base)
    if seeds < 2 or group == base:
        return ""
    order = "" if low <= 0 <= high else ", above" if low > 0 else ", below"
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){order}"


def _departures(cells: Group, axis: Axis) -> tuple[list[str], dict[str, str]]:
    """In what all rows with a published recipe depart from it, as a sentence, and what is to say of single rows."""
    first: dict[str, CellRecord] = {}
    for cell in cells:
        first.setdefault(getattr(cell, axis), cell)
    lists = [cell.departures for cell in first.values() if cell.departures]
    common = [text for text in lists[0] if all(text in each for each in lists)] if lists else []
    own = {
        row: "; ".join([*([cell.note] if cell.note else []), *(t for t in cell.departures if t not in common)])
        for row, cell in first.items()
    }
    sentence = [f"All rows with a published recipe depart from it in {'; '.join(common)}."] if common else []
    return sentence, own


def _about(cells: Group) -> list[str]:
    if not cells:
        return []
    images = _listed(f"{cell.images:,} {cell.split} images of {cell.dataset} at eps {cell.eps}" for cell in cells)
    networks = _listed(f"{cell.network} ({cell.weights:,} weights)" for cell in cells)
    length = _listed(f"{cell.epochs} epochs on {cell.train_images:,} images" for cell in cells)
    machines = _listed(f"{c.threads} thread{'s' * (c.threads != 1)} of {c.processor}" for c in cells if c.threads)
    return [
        f"{networks}, {length}; {images}, complete verification; time is of training"
        + (f", {machines}." if machines else ".")
    ]


def _how_sure(cells: Group, layout: Layout) -> str:
    over = "95 % intervals are Student's over seeds, and Wilson's over the images where there is a single seed"
    if layout.columns:
        mark = f"(+) and (-): by the paired differences surely above and below {layout.baseline}"
        return f"Certified accuracy in % ± half the interval. {over}; {mark}."
    order = "; an order is claimed only where that of the paired differences excludes 0" if layout.baseline else ""
    return f"{over}{order}."


def _scale(cells: Group, literature: Literature | None) -> list[str]:
    """What is smaller than in the literature, in one sentence."""
    if literature is None or not cells:
        return []
    ours = [cell.network for cell in cells if literature.network not in (None, cell.network)]
    smaller = [f"network {_listed(ours)} instead of {literature.network}"] if ours else []
    for what, key in (("epochs", "epochs"), ("training images", "train_images"), ("certified images", "images")):
        theirs, least = getattr(literature, key), min(getattr(cell, key) for cell in cells)
        if theirs is not None and 0 < least < theirs:
            smaller.append(f"{least:,} {what} instead of {theirs:,}")
    sentence = [f"Smaller than {literature.source}: {', '.join(smaller)}."] if smaller else []
    return [*sentence, *([literature.remark] if literature.remark else [])]


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))
