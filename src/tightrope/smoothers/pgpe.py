"""PGPE: the gradient of the smoothed loss from loss values alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.noise import draw_seed
from tightrope.core.protocols import GradEstimate, Losses, SmootherState, Std
from tightrope.core.ranks import ALONE, Ranks
from tightrope.errors import InputError
from tightrope.smoothers import _adaptation as adaptation
from tightrope.smoothers._population import (
    Chunk,
    Draws,
    Half,
    Totals,
    at_once,
    check_choice,
    check_counts,
    check_std,
    evaluate_pairs,
    pieces,
    variance_metrics,
)

Shaping = Literal["none", "ranks"]


@dataclass(frozen=True)
class Pgpe:
    """(1 / n) sum_i z_i [L(theta + sigma z_i) - L(theta - sigma z_i)] / (2 sigma), over n antithetic pairs.

    Unbiased for the gradient of the smoothed loss, at jumps and for losses without gradients too. On a linear loss
    a . theta of d weights its variance is (d + 1) / n |a|^2. It never differentiates with respect to the params; raw
    losses, no ranking, unless asked for.

    Args:
        pairs: pairs of members per step (n).
        chunk: pairs evaluated at once. The result does not depend on it but for rounding. ``auto`` leaves the number to
            the planner of training, and is 1 elsewhere.
        antithetic: the members of a pair are z and -z. Otherwise all 2n members are independent and the estimate is
            (1 / 2n) sum_j z_j L(theta + sigma z_j) / sigma: unbiased too, its variance grows with L^2 / sigma^2.
        orthogonal: pairs in blocks of so many orthogonal directions (blocks of copies of the weights are kept). Every
            direction alone is distributed as before, so the estimate stays unbiased; on a linear loss a block of n has
            variance (d + 2) / n - 1 instead of (d + 1) / n. Pays where n is not small beside d.
        baseline: subtract from every loss the mean of the others: unbiased, for independent members. In antithetic
            pairs every baseline cancels.
        shaping: ``ranks`` replaces losses by their centred ranks in [-1/2, 1/2]: **another objective**, whose
            gradient does not have the length of the loss's.
        adapt: rate at which the std of each tensor descends the smoothed loss; 0 keeps it. In a step the logarithm's
            gradient times the rate changes it by at most 20 %. It tends to shrink the std, and with it the smoothing.
        adapt_floor: smallest std that adaptation reaches, as a share of the given one.

    Cost: 2 * pairs forward passes. Noise is drawn chunk by chunk, so that memory does not grow with their number;
    shaping and baseline draw it twice.

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
    antithetic: bool = True
    orthogonal: int = 1
    baseline: bool = False
    shaping: Shaping = "none"
    adapt: float = 0.0
    adapt_floor: float = 0.1

    needs_gradient: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = True
    shares_pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(pairs=self.pairs, chunk=at_once(self.chunk), orthogonal=self.orthogonal)
        check_choice("shaping", self.shaping, ("none", "ranks"))
        adaptation.check(self.adapt, self.adapt_floor)
        if self.baseline and self.antithetic:
            raise InputError("Antithetic pairs cancel every baseline: leave baseline out, or set antithetic = false.")

    @property
    def evaluations(self) -> int:
        """Losses evaluated per step."""
        return 2 * self.pairs

    def init(self, params: Params, trainable: tuple[str, ...]) -> SmootherState:
        """See :meth:`tightrope.core.protocols.Smoother.init`."""
        return SmootherState(trainable, adaptation.start(trainable) if self.adapt > 0 else {})

    @torch.no_grad()
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
        """See :meth:`tightrope.core.protocols.Smoother.estimate`."""
        by_name = check_std(std, state.trainable, needs_noise=self.needs_noise)
        by_name = adaptation.scaled(by_name, state) if self.adapt > 0 else by_name
        params = {name: value.detach() for name, value in params.items()}
        draws = Draws(params, by_name, draw_seed(generator), self.antithetic, self.orthogonal)
        totals = Totals(ranks)
        known: dict[str, Tensor] = {}
        for each, indices in pieces(loss, self.pairs, self.chunk, ranks):
            halves = draws.halves(indices)
            values, keep = evaluate_pairs(each, params, halves, totals)
            if self.baseline or self.shaping == "ranks":
                _remember(known, values, keep, indices, self.pairs)
            else:
                self._add(totals, halves, values, by_name)
            if self.adapt > 0:
                adaptation.add(totals, halves, values, keep, by_name)
        if known:
            weights = self._weights(ranks.sum(known))
            for _, indices in pieces(loss, self.pairs, self.chunk, ranks):
                self._add(totals, draws.halves(indices), weights[:, indices], by_name)
        totals.reduce()
        samples = totals.kept * (1 if self.antithetic else 2)
        grad = totals.grad(params, state.trainable, samples)
        metrics = variance_metrics(grad, totals["power"], samples, self.orthogonal) | totals.metrics(self.pairs)
        if self.adapt > 0:
            state = adaptation.stepped(state, totals, self.adapt, self.adapt_floor)
        return GradEstimate(totals.value(), grad, metrics, state)

    def _add(self, totals: Totals, halves: tuple[Half, Half], weights: Tensor, std: Mapping[str, float]) -> None:
        """Add the samples of some pairs: weight times z / sigma. Of an antithetic pair there is one."""
        if self.antithetic:
            samples = [(halves[0], (weights[0] - weights[1]) / 2)]
        else:
            samples = list(zip(halves, weights, strict=True))
        for half, weight in samples:
            totals.add_samples(weight, half.noise, std)

    def _weights(self, known: Mapping[str, Tensor]) -> Tensor:
        """What stands for the losses of all members, (2, pairs); 0 for those that were dropped."""
        values, keep = known["values"], known["keep"]
        members = 2 * keep.sum()
        if self.shaping == "ranks":
            ordered = torch.where(keep > 0, values, torch.inf).flatten().argsort(stable=True).argsort()
            values = (ordered / (members - 1).clamp(min=1) - 0.5).reshape(values.shape).to(values.dtype)
        if self.baseline:
            others = (values * keep).sum() - values
            values = values - others / (members - 1).clamp(min=1)
        return values * keep


def _remember(known: dict[str, Tensor], values: Tensor, keep: Tensor, indices: range, pairs: int) -> None:
    """Put losses where they belong among those of all pairs and processes."""
    if not known:
        known.update(values=values.new_zeros(2, pairs), keep=values.new_zeros(pairs))
    known["values"][:, indices], known["keep"][indices] = values, keep.to(values.dtype)
