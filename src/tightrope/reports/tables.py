"""Tables: what is in them, and how papers print them, in Markdown and LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tightrope.reports.results import KINDS, Group, Kind, Result, Subject, by_subject
from tightrope.reports.units import duration, percent, span


@dataclass(frozen=True)
class Cell:
    """One entry.

    Attributes:
        text: as it is shown.
        key: what to sort by; the text if it is empty.
        note: a second, smaller line.
        best: of its column.
    """

    text: str
    key: float | None = None
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows, and what it is about.

    Attributes:
        title: of the whole.
        columns: their heads; the first names the rows.
        rows: one entry a column.
        note: below it: what the numbers are.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def alignment(self, column: int) -> str:
        """``words`` or ``number``."""
        return "number" if any(row[column].key is not None for row in self.rows) else "words"

    def heat(self, cell: Cell) -> float:
        """Where its number lies between the smallest and the largest of the table, from 0 to 1."""
        keys = [other.key for row in self.rows for other in row if other.key is not None]
        low, high = min(keys), max(keys)
        return 1.0 if cell.key is None or high == low else (cell.key - low) / (high - low)


HEADS = ("Training", "Relaxation", "Smoother", "Nat. (%)", "Adv. (%)", "Cert. (%)", "Time", "Loss evaluations")


def result_tables(found: Iterable[Group]) -> list[Table]:
    """One for each thing that was certified, the best of every accuracy marked.

    Example:
        >>> result_tables([])
        []
    """
    return [_result_table(subject, groups) for subject, groups in by_subject(found).items()]


def _result_table(subject: Subject, groups: Sequence[Group]) -> Table:
    best = {kind: _largest(groups, kind) for kind in KINDS}
    rows = [_result_row(group, best if len(groups) > 1 else {}) for group in groups]
    known = len(HEADS) - all(group.first.evaluations is None for group in groups)
    return Table(str(subject), HEADS[:known], tuple(row[:known] for row in rows), _note(groups))


def _largest(groups: Sequence[Group], kind: Kind) -> str:
    return percent(max(group.mean(kind) for group in groups))


def _result_row(group: Group, best: dict[Kind, str]) -> tuple[Cell, ...]:
    first, evaluations = group.first, group.first.evaluations
    return (
        Cell(group.label, note=f"{first.model}, {first.weights:,} weights" + _seeds(group)),
        Cell(first.relaxation),
        Cell(first.smoother),
        *(_share_cell(group, kind, best) for kind in KINDS),
        Cell(duration(group.seconds), group.seconds),
        Cell("" if evaluations is None else f"{evaluations:,}", evaluations),
    )


def _seeds(group: Group) -> str:
    return f", {group.seeds} seeds" if group.seeds > 1 else ""


def _share_cell(group: Group, kind: Kind, best: dict[Kind, str]) -> Cell:
    mean, spread = group.mean(kind), group.spread(kind)
    text = percent(mean) if spread is None else f"{percent(mean)} ± {percent(spread)}"
    note = span(*group.ends(kind)) if spread is None else ""
    return Cell(text, mean, note, best=percent(mean) == best.get(kind))


def _note(groups: Sequence[Group]) -> str:
    several = any(group.seeds > 1 for group in groups)
    seeds = "Mean ± standard deviation over seeds where there are several. " if several else ""
    best = "Bold: the highest of its column, whether or not the difference is more than chance. " if groups[1:] else ""
    complete = groups[0].first.subject.complete
    proof = "" if complete else "Incomplete verification: certified accuracy is a lower bound of what is provable. "
    return f"{seeds}{best}{proof}Time is of training.".strip()


def seed_table(found: Sequence[Result]) -> Table:
    """Networks one by one, with the intervals of their images."""
    columns = ("Network", "Seed", "Nat. (%)", "Adv. (%)", "Cert. (%)", "Unknown (%)", "Time")
    rows = tuple(
        (
            Cell(result.label),
            Cell(str(result.seed), result.seed),
            *(Cell(percent(share.value), share.value, span(*share[1:])) for share in map(result.share, KINDS)),
            Cell(percent(result.unknown), result.unknown),
            Cell(duration(result.seconds), result.seconds),
        )
        for result in found
    )
    return Table("Every network, seed by seed", columns, rows, "Below a share: its 95 % interval over images.")


def matrix(groups: Sequence[Group]) -> Table | None:
    """Certified accuracy by relaxation and smoother; None where there are not several of either.

    Of several groups in one place the one with the highest certified accuracy is shown, and counted.
    """
    relaxations, smoothers = (list(dict.fromkeys(getattr(g.first, axis) for g in groups)) for axis in _AXES)
    if len(relaxations) < 2 and len(smoothers) < 2:
        return None
    places: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        places.setdefault((group.first.relaxation, group.first.smoother), []).append(group)
    rows = tuple((Cell(name), *(_place(places.get((name, s), [])) for s in smoothers)) for name in relaxations)
    best = max(cell.key for row in rows for cell in row[1:] if cell.key is not None)
    marked = tuple(tuple(replace(cell, best=cell.key == best) for cell in row) for row in rows)
    note = (
        "Certified accuracy in percent; below it the natural one. Of several networks in one place the best is shown."
    )
    return Table(f"{groups[0].first.subject}", ("Relaxation \\ smoother", *smoothers), marked, note)


_AXES = ("relaxation", "smoother")


def _place(groups: Sequence[Group]) -> Cell:
    if not groups:
        return Cell("")
    best = max(groups, key=lambda group: group.mean("certified"))
    several = f", best of {len(groups)}" if len(groups) > 1 else ""
    cell = _share_cell(best, "certified", {})
    return replace(cell, note=f"natural {percent(best.mean('natural'))}{several}")


# --------------------------------------------------------------------------------------------------- Markdown


def markdown(tables: Iterable[Table]) -> str:
    """Tables of GitHub's Markdown, the best in bold.

    Example:
        >>> print(markdown([Table("t", ("a", "b"), ((Cell("x|y"), Cell("1", 1.0, best=True)),))]))
        **t**
        <BLANKLINE>
        | a | b |
        | --- | ---: |
        | x\\|y | **1** |
        <BLANKLINE>
    """
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    rule = [{"words": "---", "number": "---:"}[table.alignment(place)] for place in range(len(table.columns))]
    rows = [[f"**{_plain(cell.text)}**" if cell.best else _plain(cell.text) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in ([_plain(head) for head in table.columns], rule, *rows)]
    note = ["", _plain(table.note)] if table.note else []
    return "\n".join([f"**{_plain(table.title)}**", "", *lines, *note, ""])


def _plain(text: str) -> str:
    """Without a meaning in Markdown or HTML."""
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# ------------------------------------------------------------------------------------------------------ LaTeX


def latex(tables: Iterable[Table]) -> str:
    """Tables for a paper with the package booktabs, the best in bold."""
    return "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    rows = [" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in table.rows]
    columns = "".join({"words": "l", "number": "r"}[table.alignment(place)] for place in range(len(table.columns)))
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_escaped(f'{table.title}. {table.note}'.strip())}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            "    " + " & ".join(map(_escaped, table.columns)) + r" \\",
            r"    \midrule",
            *(f"    {row}" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_cell(cell: Cell) -> str:
    text = _escaped(cell.text)
    return rf"\textbf{{{text}}}" if cell.best else text


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    **{mark: rf"\{mark}" for mark in "&%$#_{}"},
}


def _escaped(text: str) -> str:
    r"""Without a meaning in LaTeX.

    Example:
        >>> _escaped(r"50 % of \x_1")
        '50 \\% of \\textbackslash{}x\\_1'
    """
    return "".join(_LATEX.get(mark, mark) for mark in " ".join(text.split()))
