"""Named tables: which cells of which suite, at which budget, and how they are laid out."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tightrope.errors import ConfigError, UnknownNameError
from tightrope.experiments.suite import Cell, Suite, cells, load_suite, narrowed
from tightrope.records.cell import CellRecord, read_cells
from tightrope.records.files import write_atomic
from tightrope.reports.cells import Axis, Layout, cell_table, csv_text
from tightrope.reports.figures import certified_by_axes
from tightrope.reports.tables import Table, latex, markdown
from tightrope.reports.units import printed, rank

Size = Literal["minutes", "cpu-hours", "gpu-hours"]
SIZES: tuple[Size, ...] = get_args(Size)
AXES: tuple[Axis, ...] = get_args(Axis)
RANKED: tuple[Axis, ...] = ("relaxation", "smoother")


class TableFile(BaseModel):
    """A table as its file describes it.

    Attributes:
        layout: what it shows.
        sizes: by what it takes, the suite whose cells it is made of.
        only: of an axis the values that it is about, or patterns of them; others are not run for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Layout
    sizes: Annotated[dict[Size, str], Field(min_length=1)]
    only: dict[Axis, tuple[str, ...]] = {}


@dataclass(frozen=True)
class NamedTable:
    """A table at one size.

    Attributes:
        name: of the table.
        suite_name: of the suite whose cells it is made of; tables of one suite share them.
        suite: that suite.
        only: of an axis the values that it is about, or patterns of them.
        layout: what it shows.
    """

    name: str
    suite_name: str
    suite: Suite
    only: Mapping[Axis, tuple[str, ...]]
    layout: Layout

    def with_suite(self, suite: Suite) -> NamedTable:
        """The same of another suite."""
        return replace(self, suite=suite)

    @cached_property
    def cells(self) -> list[Cell]:
        """What it is made of, in the order in which it is run."""
        return list(cells(narrowed(self.suite, self.only)))

    def finished(self, folder: Path) -> list[CellRecord]:
        """The records of them that there are below a folder.

        Raises:
            CorruptDataError: one of the files is not a record.
        """
        wanted = {cell.folder for cell in self.cells}
        return [record for record in read_cells(folder) if _cell(record).folder in wanted]

    @property
    def values(self) -> dict[Axis, list[str]]:
        """Of every axis the values that its cells have: relaxations from loose to tight, smoothers from plain, others
        as in the suite."""
        planned = {axis: {getattr(cell, axis) for cell in self.cells} for axis in AXES}
        found = {axis: [value for value in getattr(self.suite, f"{axis}s") if value in planned[axis]] for axis in AXES}
        return found | {axis: sorted(found[axis], key=rank) for axis in RANKED}

    def table(self, folder: Path) -> Table:
        """What has been run so far; see :func:`tightrope.reports.cells.cell_table`."""
        return cell_table(self.finished(folder), self.layout, self.values, self.suite.literature)

    def write(self, folder: Path) -> list[Path]:
        """Write it beside the cells, under its name: Markdown, LaTeX, the cells as CSV, and of a grid a picture."""
        table = self.table(folder)
        texts = {"md": markdown([table]), "tex": latex([table]), "csv": csv_text(self.finished(folder))}
        paths = {folder / f"{self.name}.{suffix}": text for suffix, text in texts.items()}
        for path, text in paths.items():
            write_atomic(path, text)
        return [*paths, *self._draw(folder)]

    def _names(self, found: Sequence[CellRecord], axis: Axis) -> dict[str, str]:
        values = {getattr(cell, axis) for cell in found}
        return {value: printed(value) for value in self.values[axis] if value in values}

    def _draw(self, folder: Path) -> list[Path]:
        rows, columns = self.layout.rows, self.layout.columns
        if columns is None:
            return []
        found, path = self.finished(folder), folder / f"{self.name}.png"
        certified_by_axes(found, (rows, self._names(found, rows)), (columns, self._names(found, columns)), path)
        return [path]


def tables() -> list[str]:
    """Names of all tables.

    Example:
        >>> "paradox" in tables()
        True
    """
    return sorted(entry.name.removesuffix(".toml") for entry in _root().iterdir() if entry.name.endswith(".toml"))


def sizes(name: str) -> dict[Size, str]:
    """What a table can be reproduced with, from small to large: by budget, the suite.

    Raises:
        UnknownNameError: no such table; the closest is offered.

    Example:
        >>> sizes("paradox")["minutes"]
        'paradox/digits'
    """
    found = _read(name).sizes
    return {size: found[size] for size in SIZES if size in found}


def load_table(name: str, budget: str | None = None, suite: str | None = None) -> NamedTable:
    """A table at a size.

    Args:
        name: of the table.
        budget: ``minutes``, ``cpu-hours`` or ``gpu-hours``; by default the smallest that it has.
        suite: instead of that of the budget: a name, or a TOML file.

    Raises:
        UnknownNameError: no such table, budget or suite; the closest is offered.
        ConfigError: what is wrong with the suite, or that it has nothing to show in this layout.

    Example:
        >>> {cell.smoother for cell in load_table("paradox", "minutes").cells}
        {'none'}
    """
    file, known = _read(name), sizes(name)
    if budget is not None and budget not in known:
        raise UnknownNameError(f"budget of the table {name}", budget, list(known))
    chosen = suite or next(found for size, found in known.items() if budget in (None, size))
    found = NamedTable(name, chosen, load_suite(chosen), file.only, file.layout)
    _check(found)
    return found


def tables_of(folder: Path) -> dict[str, Table]:
    """The named tables that the cells below a folder belong to, by name; none of those of suites in files.

    Raises:
        CorruptDataError: one of the files is not a record.
    """
    suites = {record.suite for record in read_cells(folder)}
    named = [load_table(name, size) for name in tables() for size, suite in sizes(name).items() if suite in suites]
    return {found.name: found.table(folder) for found in named if found.finished(folder)}


def _check(table: NamedTable) -> None:
    """Every place of the table has cells, which differ in their seeds alone."""
    shown, problems = (table.layout.rows, table.layout.columns), []
    for axis, values in table.values.items():
        if axis in shown and not any(values):
            problems.append(f"the suite has none of the values of the axis {axis} that the table shows")
        if axis not in shown and len(values) > 1:
            problems.append(f"the layout does not tell apart the values of the axis {axis}: {', '.join(values)}")
    if problems:
        raise ConfigError(problems, f"the table {table.name} of the suite {table.suite_name}")


def _cell(record: CellRecord) -> Cell:
    return Cell(record.start, record.smoother, record.relaxation, record.seed, record.trial, record.variant)


def _root() -> Traversable:
    return files("tightrope.experiments") / "tables"


def _read(name: str) -> TableFile:
    if name not in (known := tables()):
        raise UnknownNameError("table", name, known)
    try:
        return TableFile.model_validate(tomllib.loads((_root() / f"{name}.toml").read_text(encoding="utf-8")))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ConfigError(problems, name) from None
