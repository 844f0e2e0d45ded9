"""What attacks ascend, as functions of the property's clause margins m_1 .. m_k.

``(0, -m_1, ..., -m_k)`` are logits in which the property wants entry 0 to win: for a margin spec they are the network's
logits less that of the label. So every loss of logits and a label is one of any property, conjunctions and disjunctions
included, and for classification it is the one of its paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""From clause margins, (batch, clauses), and the clause that each sample is to break, (batch,), to (batch,)."""

_TINY = 1e-12


def _logits(margins: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(margins[:, :1]), -margins], dim=1)


def margin(margins: Tensor, target: Tensor) -> Tensor:
    """Minus the smallest margin."""
    return -margins.amin(dim=1)


def cross_entropy(margins: Tensor, target: Tensor) -> Tensor:
    """``log(1 + sum exp(-m))``; its gradient vanishes where margins are large."""
    return torch.logsumexp(_logits(margins), dim=1)


def dlr(margins: Tensor, target: Tensor) -> Tensor:
    """Minus the smallest margin over the distance of the largest logit from the third.

    One clause has no third logit: there the loss is minus the margin.
    """
    return margin(margins, target) / _spread(margins, others=1)


def dlr_targeted(margins: Tensor, target: Tensor) -> Tensor:
    """Minus the target's margin over the distance of the largest logit from the mean of the third and the fourth.

    Two clauses have no fourth logit: there it is the third alone. One clause has neither: minus the margin.
    """
    return -margins.gather(1, target[:, None])[:, 0] / _spread(margins, others=2)


def _spread(margins: Tensor, others: int) -> Tensor:
    """The largest logit less the mean of the third and those after it, ``others`` together at most."""
    count = min(2 + others, margins.shape[1] + 1)
    if count < 3:
        return torch.ones_like(margins[:, 0])
    top = _logits(margins).topk(count, dim=1).values
    return top[:, 0] - top[:, 2:].mean(dim=1) + _TINY


LOSSES: Mapping[str, Loss] = {"margin": margin, "ce": cross_entropy, "dlr": dlr, "dlr_targeted": dlr_targeted}
