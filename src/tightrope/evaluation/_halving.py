"""All jumps of a function on a line, and its largest changes as the step goes to 0.

:mod:`tightrope.evaluation.jumps` marks at most one jump between neighbouring points of a picture; here all count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
"""A function at positions (points,), all at once: (points,)."""

HALVINGS = 20
EVERYWHERE = 3  # first halvings of all intervals, so that none holds jumps that make up for each other
_FOLLOWED = 4  # intervals of largest change that are halved to the end, whether they seem to jump or not


class Jump(NamedTuple):
    """A discontinuity: where it is, and the function's value right of it minus that left of it."""

    at: float
    size: float


class Change(NamedTuple):
    """The largest change of the function that was seen over so small a step."""

    step: float
    largest: float


class Search(NamedTuple):
    """What halving found.

    Attributes:
        jumps: in ascending order.
        changes: from the widest step to the narrowest. Where the function jumps they level off at its largest jump,
            where it is Lipschitz they are proportional to the step.
        complete: whether every suspicious interval was followed to the end.
    """

    jumps: list[Jump]
    changes: list[Change]
    complete: bool


def halve(
    function: Function,
    points: Tensor,
    found: Tensor,
    *,
    smallest: float,
    halvings: int = HALVINGS,
    limit: int = 4096,
) -> Search:
    """Halve the steps of a grid until what is left of a change is a jump.

    Every interval is halved three times, then as long as its second difference f(a) - 2 f(m) + f(b) is half of
    ``smallest`` at least: over a step h it is O(h^2) where f is smooth and O(h) at a kink, but stays at the size of a
    jump. So the cost is about 2 evaluations a halving for every jump and few for the rest. Jumps that are closer to
    each other than the last step count as one, and those that make up for each other within an eighth of a step of the
    grid are missed.

    Args:
        function: on the line.
        points: an evenly spaced grid, (points,), of an odd number of points >= 3.
        found: its values there.
        smallest: size of the jumps that are looked for.
        halvings: of the grid's step. A slope of more than ``smallest`` over the last step is taken for a jump.
        limit: intervals halved at once; beyond it those of the smallest changes are dropped.

    Example:
        >>> step = lambda t: t + 0.5 * (t > 0.3)
        >>> grid = torch.linspace(-1, 1, 9, dtype=torch.float64)
        >>> [jump] = halve(step, grid, step(grid), smallest=0.01).jumps
        >>> round(jump.at, 4), round(jump.size, 4)
        (0.3, 0.5)
    """
    changes = grid_changes(points, found)
    intervals = torch.stack([points[:-1], points[1:], found[:-1], found[1:]])
    complete = True
    for halving in range(halvings):
        left, right, before, after = intervals
        middle = (left + right) / 2
        here = function(middle)
        halves = torch.cat([torch.stack([left, middle, before, here]), torch.stack([middle, right, here, after])], 1)
        sizes = (halves[3] - halves[2]).abs()
        changes.append(Change(float((right - left)[0]) / 2, float(sizes.max())))
        live = ((before - 2 * here + after).abs() >= smallest / 2).repeat(2)
        live[sizes.topk(min(_FOLLOWED, len(sizes))).indices] = True
        live |= torch.tensor(halving < EVERYWHERE, device=live.device)
        if int(live.sum()) > limit:
            complete = False
            live &= sizes >= sizes[live].topk(limit).values[-1]
        intervals = halves[:, live]
    left, right, before, after = intervals[:, intervals[0].argsort()]
    jumps = [
        Jump(at, size)
        for at, size in zip(((left + right) / 2).tolist(), (after - before).tolist(), strict=True)
        if abs(size) >= smallest
    ]
    return Search(jumps, changes, complete)


def grid_changes(points: Tensor, found: Tensor) -> list[Change]:
    """The largest change over steps of 2^k points, from half of the grid to single points."""
    strides = [1 << k for k in range((len(points) - 1).bit_length() - 1)]
    step = float(points[1] - points[0])
    return [Change(s * step, float((found[s:] - found[:-s]).abs().max())) for s in reversed(strides)]
