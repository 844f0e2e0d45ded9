"""Randomized gradient smoothing: the mean gradient at perturbed weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tightrope.core.bounds import Params
from tightrope.core.noise import draw_seed
from tightrope.core.protocols import GradEstimate, Losses, SmootherState, Std
from tightrope.core.ranks import ALONE, Ranks
from tightrope.smoothers._population import (
    Chunk,
    Draws,
    Totals,
    at_once,
    check_counts,
    check_std,
    differentiate_pairs,
    pieces,
    variance_metrics,
)
from tightrope.smoothers.none import Unsmoothed


@dataclass(frozen=True)
class Rgs:
    """(1 / n) sum_i grad L(theta + sigma z_i), over n = 2 * pairs members.

    Unbiased for the gradient of the smoothed loss where L is continuous; blind to jumps (on a step function it is 0).

    Args:
        pairs: pairs of members per step.
        chunk: pairs evaluated at once. The result does not depend on it but for rounding. ``auto`` leaves the number to
            the planner of training, and is 1 elsewhere.
        antithetic: the members of a pair are z and -z, so that the noise of a linear gradient cancels; otherwise
            all members are independent.
        orthogonal: pairs in blocks of so many orthogonal directions, see :class:`tightrope.smoothers.pgpe.Pgpe`.

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
    antithetic: bool = True
    orthogonal: int = 1

    needs_gradient: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = False
    shares_pairs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_counts(pairs=self.pairs, chunk=at_once(self.chunk), orthogonal=self.orthogonal)

    @property
    def evaluations(self) -> int:
        """Losses evaluated, and differentiated, per step."""
        return 2 * self.pairs

    def init(self, params: Params, trainable: tuple[str, ...]) -> SmootherState:
        """See :meth:`tightrope.core.protocols.Smoother.init`."""
        return SmootherState(trainable)

    def estimate(
        self,
        loss: Losses,
        params: Params,
        state: SmootherState,
        *,
        std: Std,
        generator: torch.Generator,
        ranks: Ranks = ALONE,
    ) -> GradEstimate:
        """See :meth:`tightrope.core.protocols.Smoother.estimate`. With std 0 the plain gradient."""
        by_name = check_std(std, state.trainable, needs_noise=self.needs_noise)
        seed = draw_seed(generator)
        if not any(by_name.values()):
            return Unsmoothed().estimate(loss, params, state, std=0.0, generator=generator, ranks=ranks)
        params = {name: value.detach() for name, value in params.items()}
        draws, totals = Draws(params, by_name, seed, self.antithetic, self.orthogonal), Totals(ranks)
        for each, indices in pieces(loss, self.pairs, self.chunk, ranks):
            _, keep, grads = differentiate_pairs(each, params, state.trainable, draws.halves(indices), totals)
            totals.add_samples(keep, grads)
        totals.reduce()
        grad = totals.grad(params, state.trainable, totals.kept)
        metrics = variance_metrics(grad, totals["power"], totals.kept, self.orthogonal) | totals.metrics(self.pairs)
        return GradEstimate(totals.value(), grad, metrics, state)
