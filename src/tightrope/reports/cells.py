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
from tightrope.reports.units import duration, percent, printed

Axis = Literal["relaxation", "smoother", "start", "variant"]
Group = Sequence[CellRecord]
"""Cells that differ in their seeds alone."""

HEADS = ("Nat. (%)", "Adv. (%)", "Cert. (%)", "Unknown (%)", "Time")


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
    marks = [f" [{texts.index(own[row]) + 1}]" if own.get(row) else "" for row in order[layout.rows]]
    labels = [f"{printed(row)}{mark}" for row, mark in zip(order[layout.rows], marks, strict=True)]
    heads, body = _grid(cells, layout, order) if layout.columns else _list(cells, layout, order)
    rows = tuple((Cell(label), *entries) for label, entries in zip(labels, body, strict=True))
    footnotes = [f"[{number}] {text}." for number, text in enumerate(texts, start=1)]
    about = [*_about(cells), *_how_sure(cells, layout), *_scale(cells, literature), *common, *footnotes]
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
    heads = HEADS if base is None else (*HEADS, f"against {printed(layout.baseline)}")
    against = [[] if base is None else [Cell(_against(group, base))] for group in groups.values()]
    body = [_measures(group, base or [], _seeds(cells)) for group in groups.values()]
    return heads, [[*measures, *more] for measures, more in zip(body, against, strict=True)]


def _grid(
    cells: Group, layout: Layout, order: Mapping[Axis, Sequence[str]]
) -> tuple[tuple[str, ...], list[list[Cell]]]:
    assert layout.columns is not None
    rows, columns = order[layout.rows], order[layout.columns]

    def group(row: str, column: str) -> Group:
        assert layout.columns is not None
        return _where(_where(cells, layout.rows, row), layout.columns, column)

    def base(row: str, column: str) -> Group:
        return group(row, layout.baseline) if layout.baseline in columns else group(layout.baseline, column)

    body = [[_certified(group(row, c), base(row, c), _seeds(cells)) for c in columns] for row in rows]
    return tuple(map(printed, columns)), body


def _where(cells: Group, axis: Axis, value: str) -> Group:
    return [cell for cell in cells if getattr(cell, axis) == value]


def _seeds(cells: Group) -> int:
    return len({cell.seed for cell in cells})


def _measures(group: Group, base: Group, seeds: int) -> list[Cell]:
    if not group:
        return [Cell("not run"), *(Cell("") for _ in HEADS[1:])]
    natural, adversarial, unknown = (_share(group, key) for key in ("natural", "adversarial", "unknown"))
    seconds = fmean(cell.train_seconds for cell in group)
    return [natural, adversarial, _certified(group, base, seeds), unknown, Cell(duration(seconds), seconds)]


def _share(group: Group, key: str) -> Cell:
    mean = fmean(getattr(cell, key) for cell in group)
    return Cell(percent(mean), mean)


def _certified(group: Group, base: Group, seeds: int) -> Cell:
    """Certified accuracy, half its interval, a star if there are fewer seeds than elsewhere, and a sign where it surely
    differs from the baseline."""
    if not group:
        return Cell("not run")
    mean, (low, high) = fmean(cell.certified for cell in group), interval(group)
    star = "*" if len(group) < seeds else ""
    text = f"{percent(mean)} ± {percent(max(high - mean, mean - low))}{star}{_sign(group, base)}"
    return Cell(text, mean, note=f"natural {_share(group, 'natural').text}")


def interval(group: Group) -> tuple[float, float]:
    """95 % interval of the certified accuracy: Student's over seeds, of one seed Wilson's over its images."""
    if len(group) == 1:
        return wilson(round(group[0].certified * group[0].images), group[0].images)
    low, high = paired([cell.certified for cell in group])
    return max(0.0, low), min(1.0, high)


def _sign(group: Group, base: Group) -> str:
    seeds, _, low, high = difference(group, base)
    return "" if seeds < 2 or low <= 0 <= high else " (+)" if low > 0 else " (-)"


def _against(group: Group, base: Group) -> str:
    seeds, mean, low, high = difference(group, base)
    return "" if seeds < 2 or group == base else f"{100 * mean:+.1f} ± {50 * (high - low):.1f}"


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


def _images(cell: CellRecord) -> str:
    return f"{cell.images:,} {cell.split} images" + (f" of {cell.dataset}" if cell.dataset else "")


def _about(cells: Group) -> list[str]:
    if not cells:
        return []
    images = _listed(f"{_images(cell)} at eps {cell.eps}" for cell in cells)
    networks = _listed(f"{cell.network} ({cell.weights:,} weights)" for cell in cells)
    length = _listed(f"{cell.epochs} epoch{'s' * (cell.epochs != 1)} on {cell.train_images:,} images" for cell in cells)
    machines = _listed(f"{c.threads} thread{'s' * (c.threads != 1)} of {c.processor}" for c in cells if c.threads)
    return [
        f"{networks}, {length}; {images}, complete verification; time is of training"
        + (f", {machines}." if machines else ".")
    ]


def _how_sure(cells: Group, layout: Layout) -> list[str]:
    if not cells:
        return []
    seeds = _seeds(cells)
    if seeds == 1:
        return ["Certified accuracy ± half of Wilson's 95 % interval over the images: one seed shows no order."]
    fewer = " (* fewer; of a single one Wilson's over the images)"
    sure = f"Certified accuracy ± half of Student's 95 % interval over {seeds} seeds{fewer}."
    base = printed(layout.baseline)
    return [
        sure,
        f"(+) and (-): surely above and below {base}, as the 95 % interval of the paired differences excludes 0.",
    ]


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
