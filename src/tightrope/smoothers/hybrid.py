"""Hybrid: averaged gradients, corrected by loss values for what averaged gradients miss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.noise import draw_seed
from tightrope.core.protocols import GradEstimate, Losses, SmootherState, Std
from tightrope.core.ranks import ALONE, Ranks
from tightrope.errors import InputError
from tightrope.smoothers._population import (
    Chunk,
    Draws,
    Totals,
    at_once,
    check_choice,
    check_counts,
    check_std,
    differentiate_pairs,
    dots,
    pieces,
    variance_metrics,
)
from tightrope.smoothers._projection import SUBSPACES, Projection, Subspace, projection

Control = Literal["leave_one_out", "previous"]
_CONTROL, _RECENT, _SIGNAL, _POWER = "control/", "recent/", "shrink/signal", "shrink/power"


class _Control(NamedTuple):
    """The control variates h_i = (total - g_i) / others of all pairs; 0 where there are no others.

    Attributes:
        own: g_i . noise_i, (pairs,); all 0 where a pair's own gradient g_i has no part in the total.
    """

    total: Mapping[str, Tensor]
    own: Tensor
    others: Tensor

    def along(self, noise: Mapping[str, Tensor], indices: range) -> Tensor:
        """h_i . noise_i of some pairs."""
        products = dots(noise, {name: self.total[name][None].expand_as(z) for name, z in noise.items()})
        return torch.where(self.others > 0, (products - self.own[indices]) / self.others.clamp(min=1), 0.0)


@dataclass(frozen=True)
class Hybrid:
    """h + (1 / n) sum_i z_i (D_i - h . z_i), D_i = [L(theta + sigma z_i) - L(theta - sigma z_i)] / (2 sigma).

    PGPE with a control variate h that does not depend on z_i: unbiased for the gradient of the smoothed loss, at jumps
    too. On a linear loss of gradient a its variance is (d + 1) / n |a - h|^2 where PGPE has (d + 1) / n |a|^2. Jumps
    and odd terms of higher order add a floor that no h removes. h is made of the gradients that the same evaluations
    give, so that the loss must have one.

    Args:
        pairs: antithetic pairs per step (n).
        chunk: pairs evaluated at once. The result does not depend on it but for rounding. ``auto`` leaves the number to
            the planner of training, and is 1 elsewhere.
        control: ``leave_one_out``: for every pair the mean gradient of the other pairs on the same batch (with a single
            pair h is 0, and this is PGPE). ``previous``: a running mean of the gradients of earlier steps.
        decay: of that running mean, and of the means that ``shrink`` uses.
        unbiased: for what the estimate stays unbiased; the correction is projected there, and outside stays h.
            ``gradient``: the whole gradient; the correction has variance d / n |a - h|^2. ``recent``: its projection
            onto the last ``memory`` averaged gradients. ``layers``: onto the direction of each weight tensor.
            ``neurons``: onto that of each neuron's weights, and all biases. With k dimensions the correction has
            variance k / n |a - h|^2.
        memory: gradients that ``recent`` keeps (copies of the weights).
        shrink: multiply the correction by an estimate of the factor of least squared error, |b|^2 / (|b|^2 + v) for
            its mean b and variance v. Unbiased for nothing then, but never much worse than h alone.
        orthogonal: pairs in blocks of so many orthogonal directions, see :class:`tightrope.smoothers.pgpe.Pgpe`;
            needs ``previous``, as leave-one-out means would no longer be independent of the direction left out, and
            goes without ``shrink``, as nothing is known of the variance.

    Tensors that have no noise get the averaged gradient alone.

    Cost: 2 * pairs forward and backward passes; memory of 2 * chunk. ``leave_one_out`` draws the noise twice.

    Source: this project. Control variates for evolution strategies: Tang et al. 2020 (arXiv 1906.08868); guided
    subspaces: Maheswaranathan et al. 2019 (arXiv 1806.10230).

    Example:
        >>> smoother = Hybrid(pairs=4)
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> loss = lambda p: (3 * p["w"].sum(), {})
        >>> g = torch.Generator().manual_seed(0)
        >>> grad = smoother.estimate(loss, params, smoother.init(params, ("w",)), std=0.1, generator=g).grad["w"]
        >>> torch.allclose(grad, torch.tensor([3.0, 3.0]), atol=1e-4)  # where h is exact nothing is left to correct
        True
    """

    pairs: int = 16
    chunk: Chunk = 1
    control: Control = "leave_one_out"
    decay: float = 0.9
    unbiased: Subspace = "gradient"
    memory: int = 8
    shrink: bool = False
    orthogonal: int = 1

    needs_gradient: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = True
    shares_pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(pairs=self.pairs, chunk=at_once(self.chunk), memory=self.memory, orthogonal=self.orthogonal)
        check_choice("control", self.control, ("leave_one_out", "previous"))
        check_choice("unbiased", self.unbiased, SUBSPACES)
        if not 0.0 <= self.decay < 1.0:
            raise InputError(f"decay must be in [0, 1), got {self.decay}.")
        if self.orthogonal > 1 and self.control == "leave_one_out":
            raise InputError("Orthogonal directions depend on each other: use control = 'previous', or orthogonal = 1.")
        if self.orthogonal > 1 and self.shrink:
            raise InputError(
                "shrink needs the variance of independent directions; use orthogonal = 1 or shrink = false."
            )

    @property
    def evaluations(self) -> int:
        """Losses evaluated, and differentiated, per step."""
        return 2 * self.pairs

    def init(self, params: Params, trainable: tuple[str, ...]) -> SmootherState:
        """See :meth:`tightrope.core.protocols.Smoother.init`."""
        tensors: dict[str, Tensor] = {}
        for name in trainable:
            if self.control == "previous":
                tensors[_CONTROL + name] = torch.zeros_like(params[name])
            if self.unbiased == "recent":
                tensors[_RECENT + name] = params[name].new_zeros(self.memory, *params[name].shape)
        if self.shrink:
            device = params[trainable[0]].device
            tensors |= {key: torch.zeros((), dtype=torch.float64, device=device) for key in (_SIGNAL, _POWER)}
        return SmootherState(trainable, {name: value.detach() for name, value in tensors.items()})

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
        params = {name: value.detach() for name, value in params.items()}
        draws = Draws(params, by_name, draw_seed(generator), orthogonal=self.orthogonal)
        totals, known = self._evaluate(loss, params, state.trainable, draws, ranks)
        mean = totals.grad(params, state.trainable, totals.kept)
        if self.control == "previous":
            control = _Control(_of(state, _CONTROL), torch.zeros_like(known["own"]), torch.ones_like(totals.kept))
        else:
            total = {name: grad * totals.kept for name, grad in mean.items()}
            control = _Control(total, known["own"], totals.kept - 1)
        onto = projection(self.unbiased, params, _of(state, _RECENT))
        correction = self._correct(loss, control, known, draws, onto, ranks)
        base = control.total
        if self.control == "leave_one_out":  # the mean of all h_i
            base = {name: torch.where(control.others > 0, grad, 0.0) for name, grad in mean.items()}
        grad, metrics, means = self._combine(base, mean, correction, totals.kept, state)
        return GradEstimate(
            totals.value(), grad, totals.metrics(self.pairs) | metrics, self._next(state, mean, means, totals.kept)
        )

    def _evaluate(
        self, loss: Losses, params: Params, trainable: tuple[str, ...], draws: Draws, ranks: Ranks
    ) -> tuple[Totals, dict[str, Tensor]]:
        """The mean gradient; and of every pair the difference of its losses, its own gradient times its noise, and
        whether it counts, (pairs,) each."""
        totals = Totals(ranks)
        known: dict[str, Tensor] = {}
        for each, indices in pieces(loss, self.pairs, self.chunk, ranks):
            halves = draws.halves(indices)
            values, keep, grads = differentiate_pairs(each, params, trainable, halves, totals)
            totals.add_samples(keep, grads)
            own = dots(halves[0].noise, grads)
            found = {"difference": (values[0] - values[1]) / 2, "own": own, "keep": keep.to(own.dtype)}
            for name, value in found.items():
                known.setdefault(name, value.new_zeros(self.pairs))[indices] = value
        totals.reduce()
        return totals, ranks.sum(known)

    def _correct(
        self,
        loss: Losses,
        control: _Control,
        known: Mapping[str, Tensor],
        draws: Draws,
        onto: Projection,
        ranks: Ranks,
    ) -> Totals:
        """The sum over pairs of z_i (D_i - h_i . z_i) / sigma, projected."""
        totals = Totals(ranks)
        for _, indices in pieces(loss, self.pairs, self.chunk, ranks):
            noise = draws.halves(indices)[0].noise
            missed = (known["difference"][indices] - control.along(noise, indices)) * known["keep"][indices]
            steps = onto({name: z / draws.std[name] ** 2 for name, z in noise.items()})
            totals.add_samples(missed, steps)
        totals.reduce()
        return totals

    def _combine(
        self,
        base: Mapping[str, Tensor],
        mean: Mapping[str, Tensor],
        correction: Totals,
        pairs: Tensor,
        state: SmootherState,
    ) -> tuple[dict[str, Tensor], Metrics, dict[str, Tensor]]:
        """The estimate, what is known of it, and the running means that it used."""
        noisy = {name: base[name] for name in base if correction.has(f"grad/{name}")}
        part = correction.grad(noisy, tuple(noisy), pairs)
        facts = variance_metrics(part, correction["power"], pairs, self.orthogonal)
        factor, means = self._factor(facts, state)
        grad = {name: base[name] + factor * part[name] if name in noisy else mean[name] for name in mean}
        norm = torch.stack([torch.linalg.vector_norm(each).double() for each in grad.values()]).square().sum()
        metrics = {
            "grad_power": norm,
            "grad_variance": factor**2 * facts["grad_variance"],
            "correction_power": facts["grad_power"],
            "correction_factor": factor,
        }
        return grad, metrics, means

    def _factor(self, facts: Metrics, state: SmootherState) -> tuple[Tensor, dict[str, Tensor]]:
        """What the correction is multiplied by."""
        power = facts["grad_power"]
        if not self.shrink:
            return torch.ones_like(power), {}
        signal = power - facts["grad_variance"]
        means = {
            key: self.decay * state.tensors[key] + (1.0 - self.decay) * value
            for key, value in ((_SIGNAL, signal), (_POWER, power))
        }
        share = means[_SIGNAL] / means[_POWER].clamp(min=torch.finfo(torch.float64).tiny)
        return share.clamp(0.0, 1.0), means

    def _next(
        self, state: SmootherState, mean: Mapping[str, Tensor], means: Mapping[str, Tensor], kept: Tensor
    ) -> SmootherState:
        """What the next step needs. A step without a finite member leaves no trace."""
        tensors = dict(state.tensors)
        for name, grad in mean.items():
            safe = torch.where(kept > 0, grad, 0.0)
            if (key := _CONTROL + name) in tensors:
                tensors[key] = self.decay * tensors[key] + (1.0 - self.decay) * safe
            if (key := _RECENT + name) in tensors:
                tensors[key] = torch.cat([tensors[key][1:], safe[None]])
        return SmootherState(state.trainable, {**tensors, **means})


def _of(state: SmootherState, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.tensors.items() if key.startswith(prefix)}
