"""Penalties on the weights, taken at the weights themselves whatever the smoother."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.core.bounds import Interval, Metrics, Params
from tightrope.core.box import ball
from tightrope.core.network import Network
from tightrope.core.protocols import Batch
from tightrope.errors import InputError
from tightrope.relaxations.ibp import Ibp


@dataclass(frozen=True)
class Penalty:
    """l1 * sum |kernels| + shi * (tightness + ReLU balance).

    Args:
        l1: weight of the L1 norm of all kernels (tensors of two or more axes).
        shi: weight of the regularisers of Shi et al. at the start of the ramp; the loop fades it out.
        tolerance: below which ratio they act.

    Source: Shi et al. 2021 (arXiv 2103.17268), the regularisers of bound tightness and ReLU balance.
    """

    l1: float = 0.0
    shi: float = 0.0
    tolerance: float = 0.5

    def __post_init__(self) -> None:
        if not (self.l1 >= 0 and self.shi >= 0 and self.tolerance > 0):
            raise InputError(f"Penalty weights must be >= 0 and the tolerance > 0, got {self}.")

    def loss(
        self, network: Network, params: Params, batch: Batch, eps: Tensor, fading: Tensor | None
    ) -> tuple[Tensor, Metrics]:
        """The penalty and its parts.

        ``fading``, a scalar in (0, 1], multiplies the regularisers of Shi et al.; None leaves them out.
        """
        value = batch.x.new_zeros(())
        metrics: Metrics = {}
        if self.l1 > 0:
            kernels = [params[name] for name in network.trainable if params[name].ndim > 1]
            metrics["l1"] = sum((k.abs().sum() for k in kernels), batch.x.new_zeros(()))
            value = value + self.l1 * metrics["l1"]
        if self.shi > 0 and fading is not None:
            box = ball(batch.x, eps)
            pre = Ibp().bounds(network, params, box, batch.spec).pre
            metrics["tightness"] = tightness(Interval(*box), list(pre.values()), self.tolerance)
            metrics["balance"] = balance(list(pre.values()), self.tolerance)
            value = value + self.shi * fading * (metrics["tightness"] + metrics["balance"])
        return value, metrics


def tightness(inputs: Interval, pre: list[Interval], tolerance: float) -> Tensor:
    """Mean over layers of relu(tol - d_0 / d_i) / tol, with d the mean width: intervals should not grow."""
    first = (inputs.upper - inputs.lower).mean()
    widths = torch.stack([(i.upper - i.lower).mean() for i in pre])
    return (tolerance - first / widths.clamp(min=1e-12)).relu().mean() / tolerance


def balance(pre: list[Interval], tolerance: float) -> Tensor:
    """Mean over layers of the shortfall below ``tolerance`` of how evenly active and inactive neurons contribute.

    For the centres c of the intervals: the ratio of sum c over active neurons to -sum c over inactive ones, and that
    of their contributions to the variance of c; each ratio inverted where above 1. Layers without either kind do not
    count.
    """
    return torch.stack([_layer_balance(i, tolerance) for i in pre]).mean()


def _layer_balance(interval: Interval, tolerance: float) -> Tensor:
    centre = (interval.lower + interval.upper) / 2
    active, inactive = interval.lower > 0, interval.upper < 0
    squares = (centre - centre.mean()) ** 2
    ratios = [
        _even(torch.where(active, centre, 0.0).sum(), -torch.where(inactive, centre, 0.0).sum()),
        _even(torch.where(active, squares, 0.0).sum(), torch.where(inactive, squares, 0.0).sum()),
    ]
    shortfall = torch.stack([(tolerance - ratio).relu() for ratio in ratios]).sum() / tolerance
    return torch.where(active.any() & inactive.any(), shortfall, 0.0)


def _even(a: Tensor, b: Tensor) -> Tensor:
    """min(a / b, b / a) for a, b > 0."""
    smallest = torch.finfo(a.dtype).tiny
    return torch.minimum(a, b) / torch.maximum(a, b).clamp(min=smallest)
