"""Whether leaves cover a box: cut by cut, each into two sides that lie next to each other.

A neuron that *every* leaf of a part is split at cuts it into two: where it is >= 0, and where it is <= 0. So does a
plane through the box that cuts no leaf's box. A part is covered if both its sides are, or if it is one leaf, whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tightrope.auditor.graph import Array


class NoCover(Exception):  # noqa: N818
    """Leaves that do not cover their box; says which."""


@dataclass(frozen=True, eq=False)
class Cell:
    """A part of the box, between ends (entries,).

    Attributes:
        parent: what it was cut out of.
    """

    lower: Array
    upper: Array
    parent: Cell | None = None


@dataclass(frozen=True, eq=False)
class Leaf:
    """A subproblem.

    Attributes:
        number: in the certificate.
        lower, upper: its box, (entries,).
        signs: 1 or -1, by the numbers of the neurons that it is split at.
    """

    number: int
    lower: Array
    upper: Array
    signs: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class _Part:
    cell: Cell
    decided: Mapping[int, int]
    leaves: list[Leaf]


def cells(leaves: list[Leaf], whole: Cell) -> Iterator[tuple[Leaf, Cell]]:
    """Every leaf with the cell that is its box.

    Raises:
        NoCover: a part has no leaf, two leaves, or leaves without a common cut.
    """
    waiting = [_Part(whole, {}, leaves)]
    while waiting:
        part = waiting.pop()
        if not part.leaves:
            raise NoCover(f"no leaf covers the part with {_words(part)}")
        only = part.leaves[0]
        if len(part.leaves) == 1 and _is_whole(only, part):
            yield only, part.cell
        else:
            waiting += _halves(part)


def _is_whole(leaf: Leaf, part: _Part) -> bool:
    same = np.array_equal(leaf.lower, part.cell.lower) and np.array_equal(leaf.upper, part.cell.upper)
    return same and set(leaf.signs) == set(part.decided)


def _halves(part: _Part) -> list[_Part]:
    common = set.intersection(*(set(leaf.signs) for leaf in part.leaves)) - set(part.decided)
    if common:
        neuron = min(common)
        sides = ([leaf for leaf in part.leaves if leaf.signs[neuron] == sign] for sign in (1, -1))
        return [
            _Part(part.cell, {**part.decided, neuron: sign}, side) for sign, side in zip((1, -1), sides, strict=True)
        ]
    return _cut_box(part)


def _cut_box(part: _Part) -> list[_Part]:
    cell = part.cell
    lower, upper = (np.stack([getattr(leaf, end) for leaf in part.leaves]) for end in ("lower", "upper"))
    for axis in np.flatnonzero((lower > cell.lower).any(0) | (upper < cell.upper).any(0)).tolist():
        for place in np.unique(np.concatenate([lower[:, axis], upper[:, axis]])):
            below, above = upper[:, axis] <= place, lower[:, axis] >= place
            if cell.lower[axis] < place < cell.upper[axis] and (below | above).all():
                ends = (_moved(cell.upper, axis, place), _moved(cell.lower, axis, place))
                low, high = Cell(cell.lower, ends[0], cell), Cell(ends[1], cell.upper, cell)
                sides = ([leaf for leaf, on in zip(part.leaves, where, strict=True) if on] for where in (below, above))
                return [_Part(half, part.decided, side) for half, side in zip((low, high), sides, strict=True)]
    numbers = ", ".join(str(leaf.number) for leaf in part.leaves[:5])
    raise NoCover(f"leaves {numbers} do not cover the part with {_words(part)}, or do so twice")


def _moved(end: Array, axis: int, place: float) -> Array:
    moved = end.copy()
    moved[axis] = place
    return moved


def _words(part: _Part) -> str:
    signs = [f"neuron {neuron} {'>=' if sign > 0 else '<='} 0" for neuron, sign in part.decided.items()]
    return ", ".join(signs) or "no neuron decided"
