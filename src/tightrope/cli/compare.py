"""``tightrope compare``: runs beside each other, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tightrope.cli._console import out, print_hint, table
from tightrope.cli._guard import guarded
from tightrope.errors import InputError
from tightrope.reports.compare import Pairing, pairings, settings, warnings
from tightrope.reports.gather import TrainedRun, gather
from tightrope.reports.results import KINDS
from tightrope.reports.units import duration, percent, probability, span


@guarded
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them. All are compared to the first.")],
) -> None:
    """Compare runs: settings that differ, accuracies with intervals, and differences on the same images."""
    gathered = gather(runs)
    found = gathered.runs
    if gathered.cells:
        raise InputError("That is an experiment's folder: tightrope experiment NAME --summary compares its cells.")
    if len(found) < 2:
        raise InputError("Give at least two runs to compare.")
    differing = settings(found)
    names = [run.label for run in found]
    if differing:
        rows = [[key, *values] for key, values in differing]
        out.print(table(["setting", *names], rows, "Settings that differ", numbers=False))
    else:
        print_hint("The runs have the same settings.")
    out.print(table(["", *names], _accuracies(found), "Shares of the images, with 95 % intervals"))
    for pair in pairings(found):
        out.print(_differences(pair) if pair.differences else f"{pair.one_label} - {pair.other_label}: {pair.why_not}")
    for warning in warnings(found):
        out.print(f"Mind: {warning}", style="yellow", markup=False, soft_wrap=True)
    print_hint(
        "An order is claimed only where the interval of the paired difference excludes 0. It speaks of these networks "
        f"and of more such images, not of other seeds. As a page: tightrope report {' '.join(map(str, runs))}"
    )


def _accuracies(runs: tuple[TrainedRun, ...]) -> list[list[str]]:
    mains = [run.main for run in runs]
    rows = [["certified", *(_certified_how(main.what) if main else "not yet" for main in mains)]]
    for kind in KINDS:
        shares = [
            main and (getattr(main.summary, f"{kind}_accuracy"), getattr(main.summary, f"{kind}_interval"))
            for main in mains
        ]
        rows.append([f"{kind} accuracy", *(f"{percent(s[0])} %\n{span(*s[1])}" if s else "" for s in shares)])
    rows.append(["unknown images", *(f"{main.summary.unknown:,}" if main else "" for main in mains)])
    rows.append(["weights", *(f"{run.record.weights:,}" for run in runs)])
    return [*rows, ["time of training", *(duration(run.record.seconds) for run in runs)]]


def _certified_how(what: str) -> str:
    return what.replace(", ", "\n")


def _differences(pair: Pairing) -> Table:
    assert pair.one is not None
    columns = ["accuracy", "difference", "95 % interval", "only it / only the first", "McNemar p", "so it is"]
    rows = [
        [
            each.kind,
            f"{100 * each.mean:+.2f}",
            f"{100 * each.low:+.2f} to {100 * each.high:+.2f}",
            f"{each.only_one:,} / {each.only_other:,}",
            probability(each.p),
            each.verdict,
        ]
        for each in pair.differences
    ]
    what = f"the same {pair.differences[0].images:,} images of {pair.one.data}, eps {pair.one.eps}"
    return table(columns, rows, f"{pair.one_label} - {pair.other_label}, in points: {what}")
