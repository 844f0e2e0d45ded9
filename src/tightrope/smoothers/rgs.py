"""Randomized gradient smoothing: the mean gradient at perturbed weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tightrope.core.bounds import Params
from tightrope.core.noise import draw_seed
from tightrope.core.protocols import GradEstimate, LossFn, SmootherState, Std
from tightrope.smoothers._population import (
    Averages,
    Chunk,
    at_once,
    check_counts,
    check_std,
    chunks,
    evaluate_members,
    stacked_noise,
)
from tightrope.smoothers.none import Unsmoothed


@dataclass(frozen=True)
class Rgs:
    """(1 / n) sum_i grad L(theta + sigma z_i), over n = 2 * pairs members in antithetic pairs.

    Unbiased for the gradient of the smoothed loss where L is continuous; blind to jumps (on a step function it is 0).

    Args:
        pairs: antithetic pairs z, -z per step.
        chunk: pairs evaluated at once. The result does not depend on it but for rounding. ``auto`` leaves the number to
            the planner of training, and is 1 elsewhere.

    Cost: 2 * pairs forward and backward passes; memory of 2 * chunk.

    Source: Balauca et al. 2024 (arXiv 2403.07095), randomized gradient smoothing; Duchi et al. 2012.

    Example:
        >>> smoother = Rgs(pairs=4)
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> loss = lambda p: ((p["w"] ** 2).sum(), {})
        >>> g = torch.Generator().manual_seed(0)
        >>> grad = smoother.estimate(loss, params, smoother.init(params, ("w",)), std=0.1, generator=g).grad["w"]
        >>> torch.allclose(grad, torch.tensor([2.0, 4.0]))
        True
    """

    pairs: int = 1
    chunk: Chunk = 1

    needs_gradient: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_counts(pairs=self.pairs, chunk=at_once(self.chunk))

    def init(self, params: Params, trainable: tuple[str, ...]) -> SmootherState:
        """See :meth:`tightrope.core.protocols.Smoother.init`."""
        return SmootherState(trainable)

    def estimate(
        self,
        loss: LossFn,
        params: Params,
        state: SmootherState,
        *,
        std: Std,
        generator: torch.Generator,
    ) -> GradEstimate:
        """See :meth:`tightrope.core.protocols.Smoother.estimate`. With std 0 the plain gradient."""
        by_name = check_std(std, state.trainable, needs_noise=self.needs_noise)
        seed = draw_seed(generator)
        if not any(by_name.values()):
            return Unsmoothed().estimate(loss, params, state, std=0.0, generator=generator)
        members = 2 * self.pairs
        total = {name: torch.zeros_like(params[name]) for name in state.trainable}
        averages = Averages()
        for piece in chunks(self.pairs, at_once(self.chunk)):
            noise = stacked_noise(params, by_name, seed, piece)
            for sign in (1.0, -1.0):
                leaves = {name: params[name].detach().requires_grad_() for name in state.trainable}
                values, metrics = evaluate_members(loss, {**params, **leaves}, noise, sign)
                grads = torch.autograd.grad(values.sum(), list(leaves.values()), materialize_grads=True)
                for name, grad in zip(leaves, grads, strict=True):
                    total[name].add_(grad, alpha=1.0 / members)
                averages.add(values, metrics)
        return GradEstimate(averages.value(), total, averages.metrics(), state)
