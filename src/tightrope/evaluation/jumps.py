"""Discontinuities of a function on a line, found by bisection."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tightrope.records.surface import Jump


class Resolution(NamedTuple):
    """How closely is looked, for numbers of some precision.

    Attributes:
        halvings: of the distance between neighbouring points.
        settled: over so many of the last ones a change must not shrink by half to be a jump; that of a function with
            a slope shrinks by half each time.
        smallest: jump that is told from rounding errors, in units of 1 plus the function.
    """

    halvings: int
    settled: int
    smallest: float


RESOLUTION = {torch.float64: Resolution(24, 8, 1e-9), torch.float32: Resolution(10, 4, 1e-4)}


def find_jumps(
    function: Callable[[Tensor], Tensor], positions: Tensor, values: Tensor, resolution: Resolution
) -> tuple[Jump, ...]:
    """At most one jump between each pair of neighbouring points.

    All intervals are halved at once. Of the two halves the one is kept whose change is further from what the discarded
    half before it lets expect: so the search follows a jump also where the slope beside it changes the function more.
    Of several jumps in an interval one is found, not always the largest; one that is small against the function's
    curvature may be missed.

    Args:
        function: from positions (points,) to values (points,).
        positions: ascending, (points,).
        values: of the function there.
        resolution: when a change is a jump.

    Example:
        >>> step = lambda t: torch.where(t < 0.3, t, t + 0.5)
        >>> grid = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
        >>> [jump] = find_jumps(step, grid, step(grid), RESOLUTION[torch.float64])
        >>> round(jump.position, 6), round(jump.size, 6)
        (0.3, 0.5)
    """
    low, high, at_low, at_high = positions[:-1], positions[1:], values[:-1], values[1:]
    expected = _neighbours(at_high - at_low) / 2
    changes = []
    for _ in range(resolution.halvings):
        middle = (low + high) / 2
        at_middle = function(middle)
        left, right = at_middle - at_low, at_high - at_middle
        leftwards = (left - expected).abs() > (right - expected).abs()
        low, at_low = torch.where(leftwards, low, middle), torch.where(leftwards, at_low, at_middle)
        high, at_high = torch.where(leftwards, middle, high), torch.where(leftwards, at_middle, at_high)
        expected = torch.where(leftwards, right, left) / 2
        changes.append((at_high - at_low).abs())
    stays = changes[-1] > changes[-1 - resolution.settled] / 2
    found = stays & (changes[-1] > resolution.smallest * (1.0 + at_low.abs()))
    rows = torch.stack([(low + high) / 2, at_low, at_high], dim=1)[found].tolist()
    return tuple(Jump(position=position, before=before, after=after) for position, before, after in rows)


def _neighbours(changes: Tensor) -> Tensor:
    """Of the two changes beside each the smaller one, 0 where there is none."""
    padded = torch.nn.functional.pad(changes, (1, 1), value=torch.inf)
    left, right = padded[:-2], padded[2:]
    smaller = torch.where(left.abs() < right.abs(), left, right)
    return torch.where(smaller.isfinite(), smaller, 0.0)
