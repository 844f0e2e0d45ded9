"""Projected ascent on the variables of Lagrangian bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tightrope.core.deadline import now, seconds_left
from tightrope.errors import TimeUpError
from tightrope.verifiers._subproblems import Items, Lagrangian, Subproblems, Variables

_MEAN, _SQUARE = 0.9, 0.999  # decay of Adam's two averages


class Ascent(NamedTuple):
    """How hard to try.

    Attributes:
        steps: gradient steps.
        rate: of the slopes and weights, which lie in [0, 1], at the first step.
        multiplier_rate: of the multipliers; 1 lets one of them make up for the whole margin in one step.
        decay: of the rates from step to step.
    """

    steps: int
    rate: float = 0.1
    multiplier_rate: float = 0.1
    decay: float = 0.97


def optimised(items: Items, part: Subproblems, ascent: Ascent) -> Subproblems:
    """The subproblems with better variables and their bounds, those that are proved by what they have left as they are.

    Good variables are found in float32, as any are sound; their bounds are computed in the dtype of the problem. When
    the time is up they are what they were.
    """
    try:
        part = _evaluated(items, part, part.variables) if part.size else part
        todo = (~(part.lower > 0)).nonzero()[:, 0]
        if ascent.steps == 0 or len(todo) == 0:
            return part
        left = part.rows(todo)
        found = ascend(Lagrangian(items.single, left.single()), ascent).variables
        left = _evaluated(items, left, _projected(Variables(*(value.to(left.slopes) for value in found))))
    except TimeUpError:
        return part
    return _replaced(part, todo, left)


class _State(NamedTuple):
    """Of the ascent: where it is, Adam's two averages, and the rates."""

    now: Variables
    mean: Variables
    square: Variables
    rate: Variables

    def rows(self, index: Tensor) -> _State:
        return _State(*(Variables(*(value[index] for value in values)) for values in self))


def ascend(bound: Lagrangian, ascent: Ascent) -> Subproblems:
    """The subproblems with the best variables found and their bounds, which never get worse.

    Adam on all variables at once (the bounds of a batch do not share any), each projected on where it may be. NaN and
    infinity improve nothing. It ends early when all bounds are positive, or in time for what follows, which costs about
    as much as two steps; bounds that are positive are left out as soon as they are half of the batch.

    Source: Xu et al. 2021 (alpha-CROWN, arXiv 2011.13824), section 3; Wang et al. 2021 (beta-CROWN, arXiv 2103.06624),
    section 3.3.
    """
    part, state = bound.part, _begin(bound.part, ascent)
    everything, index = part, torch.arange(part.size, device=part.item.device)
    begin = now()
    for step in range(ascent.steps + 1):
        leaves = Variables(*(value.detach().requires_grad_() for value in state.now))
        with torch.enable_grad():
            lower = bound(leaves)
        part = _better(part, leaves, lower.detach())
        left = (~(part.lower > 0)).nonzero()[:, 0]
        a_step = (now() - begin) / (step + 1)
        if step == ascent.steps or len(left) == 0 or seconds_left() < 2 * a_step:
            break
        grads = torch.autograd.grad(lower.sum(), leaves, allow_unused=True, materialize_grads=True)
        state = state._replace(now=_moved(leaves, grads, state, ascent.decay**step, step))
        if 2 * len(left) <= part.size:
            everything, index = _replaced(everything, index, part), index[left]
            part, state = part.rows(left), state.rows(left)
            bound = Lagrangian(bound.items, part)
    return _replaced(everything, index, part)


def _begin(part: Subproblems, ascent: Ascent) -> _State:
    mean, square = (Variables(*(torch.zeros_like(value) for value in part.variables)) for _ in range(2))
    return _State(part.variables, mean, square, _rates(part, ascent))


def _moved(leaves: Variables, grads: Sequence[Tensor], state: _State, decay: float, step: int) -> Variables:
    moved = []
    for value, grad, mean, square, rate in zip(leaves, grads, state.mean, state.square, state.rate, strict=True):
        moved.append(value.detach() + rate * decay * _adam(grad.nan_to_num(0.0, 0.0, 0.0), mean, square, step))
    return _projected(Variables(*moved))


def _replaced(everything: Subproblems, index: Tensor, part: Subproblems) -> Subproblems:
    return Subproblems(*(old.index_copy(0, index, new) for old, new in zip(everything, part, strict=True)))


def _rates(part: Subproblems, ascent: Ascent) -> Variables:
    """Multipliers are margins per unit of a pre-activation: their rate makes a step one of the margin that is missing.

    They are free of the scale of weights and inputs.
    """
    width = torch.where(part.signs != 0, part.pre_upper - part.pre_lower, 1.0)
    missing = part.lower.abs().nan_to_num(1.0, 1.0, 1.0)[:, None]
    unit = (missing / width).nan_to_num(0.0, 0.0, 0.0) * (part.signs != 0)
    rate = torch.full_like(missing, ascent.rate)
    return Variables(rate, ascent.multiplier_rate * unit, rate)


def _adam(grad: Tensor, mean: Tensor, square: Tensor, step: int) -> Tensor:
    """The step of Adam in units of the rate; updates the averages. Free of the gradient's scale."""
    mean.lerp_(grad, 1 - _MEAN)
    square.lerp_(grad.square(), 1 - _SQUARE)
    size = (square / (1 - _SQUARE ** (step + 1))).sqrt()
    return torch.where(size > 0, mean / (1 - _MEAN ** (step + 1)) / size, 0.0)


def _projected(variables: Variables) -> Variables:
    slopes, multipliers, weights = variables
    weights = weights.clamp(min=0.0)
    total = weights.sum(1, keepdim=True)
    return Variables(
        slopes.clamp(0.0, 1.0),
        multipliers.clamp(min=0.0),
        torch.where(total > 0, weights / total, 1.0 / weights.shape[1]),
    )


def _evaluated(items: Items, part: Subproblems, variables: Variables) -> Subproblems:
    with torch.no_grad():
        return _better(part, variables, Lagrangian(items, part)(variables))


def _better(part: Subproblems, variables: Variables, lower: Tensor) -> Subproblems:
    better = (lower > part.lower) & torch.isfinite(lower)
    kept = (torch.where(better[:, None], new.detach(), old) for new, old in zip(variables, part.variables, strict=True))
    slopes, multipliers, weights = kept
    found = torch.where(better, lower, part.lower)
    return part._replace(slopes=slopes, multipliers=multipliers, weights=weights, lower=found)
