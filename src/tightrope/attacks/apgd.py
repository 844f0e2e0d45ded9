"""Auto-PGD: projected gradient ascent that chooses its step size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tightrope.attacks._losses import LOSSES
from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.deadline import time_is_up
from tightrope.core.network import Network
from tightrope.core.spec import Spec, clause_margins, evaluate
from tightrope.errors import InputError, UnknownNameError

_MOMENTUM = 0.75  # alpha of the paper: share of the gradient step in a step
_INCREASES = 0.75  # rho: share of steps that have to improve the loss, else the step size is halved
_FIRST_STEP = 2.0  # half-widths of the box


@dataclass(frozen=True)
class Apgd:
    """Signed gradient steps with momentum; a step size that is halved, and the best point returned to, when stuck.

    At checkpoints, which come more often towards the end, a restart of a sample halves its step size if fewer than
    three quarters of the steps since the last one improved its loss, or if neither its step size nor its best loss has
    changed there. All restarts of all samples ascend in one batch, and the worst input seen by any is returned.

    Args:
        steps: gradient steps.
        restarts: independent starts.
        loss: what is ascended: ``"margin"``, minus the property's worst margin; ``"ce"``, the cross-entropy; ``"dlr"``,
            the difference of logits ratio, free of their scale; ``"dlr_targeted"``, with a clause to break for each
            restart: first the one of the least margin at the centre of the box, then the next ones in turn. For
            properties that are no classification see :mod:`tightrope.attacks._losses`.

    Cost: restarts * (steps + 1) forward and backward passes, in ``steps + 1`` batches.

    Source: Croce and Hein 2020 (arXiv 2003.01690), algorithm 1 and sections 3 and 4.

    Example:
        >>> import tightrope as tr
        >>> net, params = tr.from_module(torch.nn.Linear(2, 3), (2,))
        >>> box = tr.linf_box(torch.full((1, 2), 0.5), 0.1)
        >>> spec, attack = tr.margin_spec(torch.tensor([0]), 3), Apgd(steps=5, loss="dlr")
        >>> x = attack.perturb(net, params, box, spec, attack.noise(box, torch.Generator().manual_seed(0)))
        >>> bool(((x >= box.lower) & (x <= box.upper)).all())
        True
    """

    steps: int = 40
    restarts: int = 1
    loss: Literal["margin", "ce", "dlr", "dlr_targeted"] = "margin"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise UnknownNameError("attack loss", self.loss, LOSSES)
        if self.steps < 0 or self.restarts < 1:
            raise InputError(f"An attack needs steps >= 0 and restarts >= 1, got {self.steps} and {self.restarts}.")

    def noise(self, box: Box, generator: torch.Generator) -> Tensor:
        """Start noise, uniform in [0, 1], (restarts, batch, *input shape)."""
        shape = (self.restarts, *box.lower.shape)
        return torch.rand(shape, generator=generator, dtype=box.lower.dtype, device=box.lower.device)

    def perturb(self, network: Network, params: Params, box: Box, spec: Spec, noise: Tensor) -> Tensor:
        """The inputs of smallest margin seen, see :class:`tightrope.core.protocols.Attack`."""
        params, restarts = {name: value.detach() for name, value in params.items()}, len(noise)
        target = _targets(network, params, box, spec, restarts)
        box = Box(*(end.repeat(restarts, *[1] * (end.ndim - 1)) for end in box))
        spec = spec.samples(torch.arange(len(spec.matrix), device=spec.matrix.device).repeat(restarts))
        x, margin = self._ascend(_Objective(network, params, box, spec, target, self.loss), noise.flatten(0, 1))
        x, margin = x.unflatten(0, (restarts, -1)), margin.unflatten(0, (restarts, -1))
        worst = margin.argmin(dim=0).reshape(1, -1, *[1] * (x.ndim - 2))
        chosen: Tensor = x.take_along_dim(worst, dim=0)[0]
        return chosen.detach()

    def _ascend(self, objective: _Objective, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The input of smallest margin that each start came by, and that margin."""
        box = objective.box
        x = before = _project(box.lower + noise * (box.upper - box.lower), box)
        found, least = box.lower, torch.full_like(x.flatten(1)[:, 0], torch.inf)
        pace = _Pace.start(least)
        best = _Point(x, torch.zeros_like(x), -least)
        checkpoints = _checkpoints(self.steps)
        for step in range(self.steps + 1):
            here, margin = objective(x)
            found, least = _where(margin < least, x, found), torch.fmin(margin, least)
            if step == self.steps or time_is_up():
                break
            pace = pace.saw(here.loss)
            best = _better(best, here)
            if step in checkpoints:
                pace, stuck = pace.checked(best.loss, step - checkpoints[step])
                x, here = _where(stuck, best.x, x), _back(stuck, best, here)
            share = _MOMENTUM if step else 1.0
            x, before = _moved(x, before, here.gradient, pace.size, share, box), x
        return found, least


class _Point(NamedTuple):
    """Inputs, (batch, *input shape), with the gradient of the loss there, and the loss, (batch,)."""

    x: Tensor
    gradient: Tensor
    loss: Tensor


class _Objective(NamedTuple):
    """The loss and the margin of a batch of inputs."""

    network: Network
    params: Params
    box: Box
    spec: Spec
    target: Tensor
    loss: str

    def __call__(self, x: Tensor) -> tuple[_Point, Tensor]:
        def total(point: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            margins = clause_margins(evaluate(self.spec, self.network(self.params, point)), self.spec.clause)
            loss = LOSSES[self.loss](margins, self.target)
            return loss.sum(), (loss, margins.amin(dim=1))

        gradient, (loss, margin) = torch.func.grad(total, has_aux=True)(x)
        return _Point(x, gradient.detach(), loss.detach()), margin.detach()


class _Pace(NamedTuple):
    """The step size of every start and what decides about it, each (batch,).

    Attributes:
        size: in half-widths of the box.
        last: loss at the last step.
        increases: steps since the last checkpoint that improved on the one before.
        peak: best loss by the last checkpoint.
        halved: whether that checkpoint halved the size (bool).
    """

    size: Tensor
    last: Tensor
    increases: Tensor
    peak: Tensor
    halved: Tensor

    @classmethod
    def start(cls, like: Tensor) -> _Pace:
        lowest, none = torch.full_like(like, -torch.inf), torch.zeros_like(like)
        return cls(torch.full_like(like, _FIRST_STEP), torch.full_like(like, torch.inf), none, lowest, none > 0)

    def saw(self, loss: Tensor) -> _Pace:
        return self._replace(last=loss, increases=self.increases + (loss > self.last).to(loss.dtype))

    def checked(self, best: Tensor, steps: int) -> tuple[_Pace, Tensor]:
        """After a checkpoint, the last one having been ``steps`` ago; and who is stuck."""
        stuck = (self.increases < _INCREASES * steps) | (~self.halved & ~(best > self.peak))
        size = torch.where(stuck, self.size / 2, self.size)
        last = torch.where(stuck, best, self.last)  # they go on from there
        return _Pace(size, last, torch.zeros_like(size), best, stuck), stuck


def _targets(network: Network, params: Params, box: Box, spec: Spec, restarts: int) -> Tensor:
    """The clause that each start is to break, (restarts * batch,): those of the least margin at the centre first."""
    rows = evaluate(spec, network(params, box.lower + 0.5 * (box.upper - box.lower)))
    order = clause_margins(rows, spec.clause).argsort(dim=1)
    return torch.cat([order[:, restart % order.shape[1]] for restart in range(restarts)])


def _checkpoints(steps: int) -> dict[int, int]:
    """Each step at which the step size is looked at, with the one before: shares 0.22, 0.41, 0.57 ... of all steps."""
    found, before, percent, width = {}, 0, 22, 22
    while percent <= 100 and steps > 0:
        step = math.ceil(percent * steps / 100)
        if step > before:
            found[step], before = before, step
        width = max(width - 3, 6)
        percent += width
    return found


def _moved(x: Tensor, before: Tensor, gradient: Tensor, size: Tensor, share: float, box: Box) -> Tensor:
    """A gradient step and the last move, in one."""
    width = size.reshape(-1, *[1] * (x.ndim - 1)) * (box.upper - box.lower) / 2
    ahead = _project(x + width * gradient.sign(), box)
    return _project(x + share * (ahead - x) + (1.0 - share) * (x - before), box)


def _better(best: _Point, here: _Point) -> _Point:
    return _back(~(here.loss > best.loss), best, here)


def _back(where: Tensor, best: _Point, here: _Point) -> _Point:
    """``best`` at these samples, ``here`` at the others."""
    return _Point(*(_where(where, a, b) for a, b in zip(best, here, strict=True)))


def _where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def _project(x: Tensor, box: Box) -> Tensor:
    return torch.minimum(torch.maximum(x, box.lower), box.upper)
