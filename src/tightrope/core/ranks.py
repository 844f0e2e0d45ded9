"""The processes that share one estimate, as smoothers see them: a number, a count, and sums over all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Sums = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""From this process's tensors by name to their sums over all; a collective call with the same names everywhere."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that work on one run.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        sum: adds up tensors over all of them. Every one calls it, and gets the same result.

    Example:
        >>> Ranks(1, 3, dict).share(8)
        range(2, 5)
    """

    rank: int
    size: int
    sum: Sums

    def share(self, count: int) -> range:
        """Which of ``count`` things are this process's own: consecutive, and as many as the others have, give or take
        one."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)


ALONE = Ranks(0, 1, dict)
"""One process that does everything."""
