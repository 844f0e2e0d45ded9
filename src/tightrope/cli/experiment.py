"""``tightrope experiment``: a whole comparison, cell by cell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tightrope.cli._console import TrainingProgress, out, print_hint, table
from tightrope.cli._guard import guarded
from tightrope.errors import MissingDataError
from tightrope.experiments.experiment import Budget, Experiment, default_folder, smaller
from tightrope.experiments.suite import SCRATCH, load_suite
from tightrope.records.cell import CellRecord, read_cells
from tightrope.reports.comparison import Comparison, Row, comparisons, rows
from tightrope.reports.gather import condition_name
from tightrope.reports.units import duration, roughly


@guarded
def experiment(
    name: Annotated[str, typer.Argument(help="A suite (see: tightrope list suites), or a TOML file.")],
    size: Annotated[str | None, typer.Option("--size", help="Size of the suite: NAME/SIZE, e.g. digits.")] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Where the cells go. Default: experiments/SUITE.")] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="What to spend at most: minutes (30m), hours (2h), or loss evaluations (2e6)."),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A few cells with one epoch and 8 images each: does it work?")
    ] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Only show what there is.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the dataset lies. Default: $TIGHTROPE_DATA.")
    ] = None,
) -> None:
    """Train, certify and compare all cells of a suite. The same command goes on where it was stopped."""
    full = name if size is None else f"{name}/{size}"
    suite, limit = load_suite(full), Budget() if budget is None else Budget.parse(budget)
    suite = smaller(suite, epochs=1, count=8) if smoke else suite
    folder = out_ or default_folder(full, smoke=smoke)
    if not summary:
        with TrainingProgress(full, epochs=False) as progress:
            left = Experiment(full, suite, folder, limit, data_dir, progress.named).run()
        if left:
            print_hint(f"The budget is spent; {left} cells are left. The same command goes on with them.")
    show(read_cells(folder), folder, suite.baseline)


def show(cells: list[CellRecord], folder: Path, baseline: str = "") -> None:
    """Print the tables."""
    if not cells:
        raise MissingDataError(f"There are no finished cells in {folder}.")
    columns = ["trained with", "seeds", "nat.", "adv.", "cert.", "+-", "unkn.", "losses", "time"]
    title = f"{cells[0].images:,} {cells[0].split} images, eps {cells[0].eps}, complete verification; in percent"
    out.print(table(columns, [_cells_of(row) for row in rows(cells)], title))
    if any(cell.start != SCRATCH for cell in cells):
        print_hint("Losses and time are a cell's own, without those of the network that it started from.")
    if not (found := comparisons(cells, baseline)):
        return
    columns = ["certified accuracy", "seeds", "mean", "95 % interval", "so it is"]
    out.print(table(columns, [_cells_of_comparison(each) for each in found], "Paired over seeds, in points"))
    print_hint("An order is claimed only where the interval excludes 0; with one seed nothing is claimed.")


def _cells_of(row: Row) -> list[str]:
    shares = (row.natural, row.adversarial, row.certified, row.spread, row.unknown)
    return [
        condition_name(row.condition),
        str(row.seeds),
        *(f"{100 * share:.1f}" for share in shares),
        roughly(row.evaluations),
        duration(row.seconds),
    ]


def _cells_of_comparison(each: Comparison) -> list[str]:
    interval = "" if each.seeds < 2 else f"{100 * each.low:+.1f} to {100 * each.high:+.1f}"
    what = f"{each.question}: {condition_name(each.one)} - {condition_name(each.other)}"
    return [what, str(each.seeds), f"{100 * each.mean:+.1f}", interval, each.verdict]
