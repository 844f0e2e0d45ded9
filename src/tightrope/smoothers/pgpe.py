"""PGPE: the gradient of the smoothed loss from loss values alone."""

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


@dataclass(frozen=True)
class Pgpe:
    """(1 / n) sum_i z_i [L(theta + sigma z_i) - L(theta - sigma z_i)] / (2 sigma), over n antithetic pairs.

    Unbiased for the gradient of the smoothed loss, at jumps and for losses without gradients too. On a linear loss
    a . theta of d weights its variance is (d + 1) / n |a|^2. It never differentiates with respect to the params; raw
    losses, no ranking.

    Args:
        pairs: antithetic pairs per step (n).
        chunk: pairs evaluated at once. The result does not depend on it but for rounding. ``auto`` leaves the number to
            the planner of training, and is 1 elsewhere.

    Cost: 2 * pairs forward passes. Noise is drawn chunk by chunk, so that memory does not grow with their
    number.

    Source: Sehnke et al. 2010 (symmetric sampling), equation 11; Balauca et al. 2024 (arXiv 2403.07095).

    Example:
        >>> smoother = Pgpe(pairs=4096)
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> loss = lambda p: ((p["w"] ** 2).sum(), {})
        >>> g = torch.Generator().manual_seed(0)
        >>> grad = smoother.estimate(loss, params, smoother.init(params, ("w",)), std=0.1, generator=g).grad["w"]
        >>> torch.allclose(grad, torch.tensor([2.0, 4.0]), atol=0.4)
        True
    """

    pairs: int = 32
    chunk: Chunk = 1

    needs_gradient: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(pairs=self.pairs, chunk=at_once(self.chunk))

    def init(self, params: Params, trainable: tuple[str, ...]) -> SmootherState:
        """See :meth:`tightrope.core.protocols.Smoother.init`."""
        return SmootherState(trainable)

    @torch.no_grad()
    def estimate(
        self,
        loss: LossFn,
        params: Params,
        state: SmootherState,
        *,
        std: Std,
        generator: torch.Generator,
    ) -> GradEstimate:
        """See :meth:`tightrope.core.protocols.Smoother.estimate`."""
        by_name = check_std(std, state.trainable, needs_noise=self.needs_noise)
        seed = draw_seed(generator)
        params = {name: value.detach() for name, value in params.items()}
        grad = {name: torch.zeros_like(params[name]) for name in state.trainable}
        averages = Averages()
        for piece in chunks(self.pairs, at_once(self.chunk)):
            noise = stacked_noise(params, by_name, seed, piece)
            above, metrics = evaluate_members(loss, params, noise)
            averages.add(above, metrics)
            below, metrics = evaluate_members(loss, params, noise, -1.0)
            averages.add(below, metrics)
            for name, each in noise.items():  # each is sigma z, hence sigma squared
                weight = (above - below) / (2 * self.pairs * by_name[name] ** 2)
                grad[name] += torch.tensordot(weight.to(each.dtype), each, dims=1)
        return GradEstimate(averages.value(), grad, averages.metrics(), state)
