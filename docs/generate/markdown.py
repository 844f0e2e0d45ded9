"""Markdown in small pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """A table; with ``numbers`` all columns but the first are set to the right.

    Example:
        >>> print(table(["a", "b"], [["x|y", "2"]], numbers=True))
        | a | b |
        | --- | ---: |
        | x\\|y | 2 |
    """
    rule = ["---", *["---:" if numbers else "---"] * (len(columns) - 1)]
    lines = [columns, rule, *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(title: str, *parts: str) -> str:
    """A page of paragraphs."""
    return "\n\n".join([f"# {title}", *parts]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
