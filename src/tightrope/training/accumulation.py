"""The loss of a batch piece by piece, in the memory of one piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.lowering import can_recompute
from tightrope.core.protocols import Batch

PieceLoss = Callable[[Params, int], tuple[Tensor, Metrics]]


def pieces(batch: Batch, count: int) -> list[Batch]:
    """The batch in at most ``count`` parts of consecutive samples, as even as can be."""
    sizes = [part.shape[0] for part in batch.x.tensor_split(min(count, batch.x.shape[0]))]
    own = [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]
    return [batch._replace(x=batch.x[each], spec=batch.spec.samples(each)) for each in own]


def accumulated(loss: PieceLoss, params: Params, sizes: Sequence[int]) -> tuple[Tensor, Metrics]:
    """The mean over samples of ``loss(params, piece)``; ``sizes`` are the samples of the pieces.

    By plain autograd each piece is differentiated at once and its graph given free: what is returned is the mean with
    sum G . (params - params), which is 0 and has the accumulated gradient G. So ``params`` may depend on weights, as
    statistics of the whole batch do. In mapped and compiled code it is the mean alone.
    """
    if len(sizes) == 1:
        return loss(params, 0)
    weights = [size / sum(sizes) for size in sizes]
    if not (can_recompute() and any(value.requires_grad for value in params.values())):
        return _mean([loss(params, piece) for piece in range(len(sizes))], weights)
    leaves = {name: value.detach().requires_grad_() for name, value in params.items() if value.requires_grad}
    gradient = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = []
    for piece, weight in enumerate(weights):
        value, metrics = loss({**params, **leaves}, piece)
        parts = torch.autograd.grad(weight * value, list(leaves.values()), materialize_grads=True)
        for name, part in zip(leaves, parts, strict=True):
            gradient[name] += part
        found.append((value.detach(), metrics))
    total, metrics = _mean(found, weights)
    for name, part in gradient.items():
        total = total + (part * (params[name] - params[name].detach())).sum()
    return total, metrics


def _mean(found: Sequence[tuple[Tensor, Metrics]], weights: Sequence[float]) -> tuple[Tensor, Metrics]:
    values = torch.stack([weight * value for (value, _), weight in zip(found, weights, strict=True)])
    names = found[0][1]
    parts = {name: [w * metrics[name] for (_, metrics), w in zip(found, weights, strict=True)] for name in names}
    return values.sum(), {name: torch.stack(each).sum() for name, each in parts.items()}
