"""``tightrope reproduce``: a named table, run cell by cell and written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tightrope.cli._console import TrainingProgress, out, print_hint, table
from tightrope.cli._guard import guarded
from tightrope.errors import MissingDataError
from tightrope.experiments.experiment import Budget, Experiment, default_folder, smaller
from tightrope.experiments.table import NamedTable, load_table


@guarded
def reproduce(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="A table (see: tightrope list tables).")],
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="What it may take: minutes, cpu-hours or gpu-hours. Default: its smallest."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="Another suite than that of the budget: a name, or a TOML file.")
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option("--limit", help="Stop after so many minutes (30m), hours (2h) or loss evaluations (2e6)."),
    ] = None,
    out_: Annotated[
        Path | None, typer.Option("--out", help="Where the cells and the table go. Default: experiments/SUITE.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Run nothing: the table of what there is.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="One epoch and 8 images a cell: does it work?")] = False,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the dataset lies. Default: $TIGHTROPE_DATA.")
    ] = None,
) -> None:
    """Train and certify what a table compares, and write it. The same command goes on where it was stopped."""
    found, may_spend = load_table(name, budget, suite), Budget() if limit is None else Budget.parse(limit)
    if smoke:
        found = found.with_suite(smaller(found.suite, epochs=1, count=8))
    folder = out_ or default_folder(found.suite_name, smoke=smoke)
    if not show:
        _run(found, folder, may_spend, data_dir)
    _print(found, folder)


def _run(found: NamedTable, folder: Path, limit: Budget, data_dir: Path | None) -> None:
    total, done = len(found.cells), len(found.finished(folder))
    print_hint(f"{found.name} from the suite {found.suite_name}: {total} networks, {done} of them done, in {folder}.")
    with TrainingProgress(found.name, epochs=False) as progress:
        left = Experiment(found.suite_name, found.suite, folder, limit, data_dir, progress.named, found.cells).run()
    if left:
        print_hint(f"The limit is reached; {left} networks are left. The same command goes on with them.")


def _print(found: NamedTable, folder: Path) -> None:
    if not found.finished(folder):
        raise MissingDataError(f"There are no finished cells of the table {found.name} in {folder}.")
    shown = found.table(folder)
    columns = [column.replace(" ", "\n") for column in shown.columns]  # for terminals that are narrow
    rows = [[cell.text.replace(" ± ", "±") for cell in row] for row in shown.rows]
    out.print(table(columns, rows, shown.title))
    print_hint(shown.note)
    names = ", ".join(path.name for path in found.write(folder))
    print_hint(f"Written to {folder}: {names}; a folder for each network beside them.")
