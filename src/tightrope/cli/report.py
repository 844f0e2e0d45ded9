"""``tightrope report``: runs and experiments as one page, or as the tables of a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tightrope.cli._console import err, print_hint, print_note
from tightrope.cli._guard import guarded
from tightrope.errors import InputError
from tightrope.records.files import write_atomic
from tightrope.reports.compare import warnings
from tightrope.reports.gather import Gathered, gather
from tightrope.reports.html import render
from tightrope.reports.results import groups, results
from tightrope.reports.tables import latex, markdown, result_tables


@guarded
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, folders of them, or the folder of an experiment.")],
    out_: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write. Default: report.html; tables go to the output."),
    ] = None,
    markdown_: Annotated[bool, typer.Option("--markdown", help="Only the tables of results, as Markdown.")] = False,
    latex_: Annotated[bool, typer.Option("--latex", help="Only the tables of results, as LaTeX (booktabs).")] = False,
    title: Annotated[str, typer.Option(help="Of the page. Default: the names of the runs.")] = "",
) -> None:
    """Make one HTML file of runs, from their records alone; it needs no network and no other file."""
    if markdown_ and latex_:
        raise InputError("Give --markdown or --latex, not both.")
    gathered = gather(runs)
    if markdown_ or latex_:
        _tables(gathered, out_, latex_)
        return
    path = out_ or Path("report.html")
    _check_out(path)
    text = render(gathered, title)
    write_atomic(path, text)
    for warning in warnings(gathered.runs):
        print_note(f"Mind: {warning}")
    print_hint(f"{path}: {len(text.encode()) / 2**20:.1f} MiB, complete in itself. Open it in any browser.")


def _tables(gathered: Gathered, path: Path | None, as_latex: bool) -> None:
    tables = result_tables(groups(results(gathered)))
    if not tables:
        raise InputError("None of these runs is certified: there are no results. Run: tightrope certify RUN")
    text = latex(tables) if as_latex else markdown(tables)
    if path is None:
        typer.echo(text, nl=False)
    else:
        write_atomic(path, text)
        err.print(f"Written: {path}", markup=False)
    for warning in warnings(gathered.runs):
        print_note(f"Mind: {warning}")


def _check_out(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the file to write: -o {path / 'report.html'}")
