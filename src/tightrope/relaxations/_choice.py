"""The one place where the values of bounds decide what is computed: only where something is proved, which is eager."""

from __future__ import annotations

from torch import Tensor


def most_of_a_sample(chosen: Tensor) -> int:
    """The largest number of chosen entries that a sample has; 0 without samples.

    Args:
        chosen: (batch, entries), True where chosen.

    Example:
        >>> import torch
        >>> most_of_a_sample(torch.tensor([[True, False, True], [False, False, True]]))
        2
    """
    return max(chosen.sum(1).tolist(), default=0)
