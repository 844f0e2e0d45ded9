"""What a step looked like: how good the estimate of its gradient was, and what the loss does along it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.protocols import Losses, SmootherState
from tightrope.smoothers._population import losses_of
from tightrope.smoothers.none import Unsmoothed

POINTS = 8  # of the midpoint rule along a step


def cosine(one: Params, other: Params) -> Tensor:
    """Of the angle between two gradients; 0 where one of them is 0."""
    product = _dot(one, other)
    norms = (_dot(one, one) * _dot(other, other)).sqrt()
    return product / norms.clamp(min=torch.finfo(norms.dtype).tiny)


def jump_share(loss: Losses, before: Params, after: Params, trainable: tuple[str, ...]) -> Tensor:
    """How much of the loss's change along a step is jumps: |J| / (|J| + |S|).

    S is the integral of the gradient along the straight line between the two weights (midpoint rule), and J what is
    left of the change: 0 but for the rule's error where the loss is continuous, 1 where it is piecewise constant.

    Cost: 2 losses and ``POINTS`` gradients.
    """
    step = {name: after[name] - before[name] for name in trainable}
    smooth = torch.stack([_slope(loss, before, step, (k + 0.5) / POINTS, trainable) for k in range(POINTS)]).mean()
    with torch.no_grad():
        change = _mean(loss, after) - _mean(loss, before)
    jumps = change - smooth
    total = jumps.abs() + smooth.abs()
    return jumps.abs() / total.clamp(min=torch.finfo(total.dtype).tiny)


def of_step(loss: Losses, before: Params, after: Params, grad: Params, noise: float) -> Metrics:
    """All of them, for one step.

    Args:
        loss: of the step's batch.
        before, after: the weights.
        grad: the estimate that was followed.
        noise: root of the expected squared norm of the weight noise.
    """
    trainable = tuple(grad)
    plain = Unsmoothed().estimate(loss, before, SmootherState(trainable)).grad
    weights = {name: before[name] for name in trainable}
    return {
        "plain_cosine": cosine(grad, plain),
        "jump_share": jump_share(loss, before, after, trainable),
        "noise_to_weight": noise / _dot(weights, weights).sqrt(),
    }


def derived(means: Mapping[str, float], samples: int) -> dict[str, float]:
    """Signal-to-noise ratio |E g|^2 / Var g from means of ``grad_power`` and ``grad_variance``, and the pairs that a
    ratio of 1 would take.

    The estimate's squared norm is that of its mean plus its variance, in expectation.
    """
    if not {"grad_power", "grad_variance"} <= means.keys() or means["grad_variance"] <= 0:
        return {}
    ratio = max(0.0, means["grad_power"] / means["grad_variance"] - 1.0)
    return {"snr": ratio, "pairs_for_snr_1": samples / ratio if ratio > 0 else float("inf")}


def _mean(loss: Losses, params: Params) -> Tensor:
    return torch.stack([each(params)[0] for each in losses_of(loss)]).mean()


def _slope(loss: Losses, start: Params, step: Params, share: float, trainable: tuple[str, ...]) -> Tensor:
    at = {**start, **{name: start[name] + share * change for name, change in step.items()}}
    grad = Unsmoothed().estimate(loss, at, SmootherState(trainable)).grad
    return _dot(grad, step)


def _dot(one: Params, other: Params) -> Tensor:
    return torch.stack([(one[name].detach().double() * other[name].detach().double()).sum() for name in one]).sum()
