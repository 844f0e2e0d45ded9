"""Projected gradient descent on the margin or the cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.deadline import time_is_up
from tightrope.core.lowering import gradient_of
from tightrope.core.network import Network
from tightrope.core.spec import Spec, evaluate, margin_cross_entropy, worst_margin
from tightrope.errors import InputError, UnknownNameError

LOSSES = ("margin", "ce")

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From points (batch, *input shape) to what is ascended and to what the best point is chosen by, each (batch,)."""


@dataclass(frozen=True)
class Pgd:
    """Signed gradient steps from random starts, projected on the box; the worst input seen is returned.

    Args:
        steps: gradient steps.
        restarts: independent starts.
        step_size: as a share of the box's half-width.
        decay: (step, factor) pairs: from that step on the step size is multiplied by the factor, cumulatively.
        loss: what is ascended: ``"ce"``, the cross-entropy, or ``"margin"``, minus the property's worst margin.

    Cost: restarts * (steps + 1) forward and restarts * steps backward passes; fewer where the time is up.

    Source: Madry et al. 2018 (arXiv 1706.06083), section 2.1.

    Example:
        >>> import tightrope as tr
        >>> net, params = tr.from_module(torch.nn.Linear(2, 2), (2,))
        >>> box = tr.linf_box(torch.full((1, 2), 0.5), 0.1)
        >>> spec, attack = tr.margin_spec(torch.tensor([0]), 2), Pgd(steps=5)
        >>> x = attack.perturb(net, params, box, spec, attack.noise(box, torch.Generator().manual_seed(0)))
        >>> bool(((x >= box.lower) & (x <= box.upper)).all())
        True
    """

    steps: int = 20
    restarts: int = 1
    step_size: float = 0.25
    decay: tuple[tuple[int, float], ...] = ()
    loss: Literal["margin", "ce"] = "ce"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise UnknownNameError("attack loss", self.loss, LOSSES)
        if self.steps < 0 or self.restarts < 1 or not self.step_size > 0:
            raise InputError(
                f"An attack needs steps >= 0, restarts >= 1 and step_size > 0, got {self.steps}, {self.restarts}, "
                f"{self.step_size}."
            )

    def noise(self, box: Box, generator: torch.Generator) -> Tensor:
        """Start noise, uniform in [0, 1], (restarts, batch, *input shape)."""
        shape = (self.restarts, *box.lower.shape)
        return torch.rand(shape, generator=generator, dtype=box.lower.dtype, device=box.lower.device)

    def perturb(self, network: Network, params: Params, box: Box, spec: Spec, noise: Tensor) -> Tensor:
        """The inputs of smallest margin seen, see :class:`tightrope.core.protocols.Attack`."""
        params = {name: value.detach() for name, value in params.items()}

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            rows = evaluate(spec, network(params, x))
            margin = worst_margin(rows, spec.clause)
            return (margin_cross_entropy(rows, spec.clause) if self.loss == "ce" else -margin), -margin

        return self.maximise(objective, box, box.lower + noise * (box.upper - box.lower))

    def maximise(self, objective: Objective, box: Box, starts: Tensor) -> Tensor:
        """The points of largest second value seen on the way up the first, from starts (restarts, batch, *shape)."""
        best, highest = box.lower, box.lower.flatten(1)[:, 0] - torch.inf
        for start in starts:
            x = _project(start, box)
            for step in range(self.steps + 1):
                gradient, score = _ascent(objective, x)
                better = score > highest
                best = torch.where(better.reshape(-1, *[1] * (x.ndim - 1)), x, best)
                highest = torch.where(better, score, highest)
                if time_is_up():
                    return best.detach()
                if step < self.steps:
                    x = self._step(x, gradient, box, step)
        return best.detach()

    def _step(self, x: Tensor, gradient: Tensor, box: Box, step: int) -> Tensor:
        size = self.step_size
        for begin, factor in self.decay:
            size = size * factor if step >= begin else size
        moved = x + size * gradient.sign() * (box.upper - box.lower) / 2
        return _project(moved, box)


def _ascent(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient to ascend, and each point's score."""

    def total(point: Tensor) -> tuple[Tensor, Tensor]:
        value, score = objective(point)
        return value.sum(), score

    gradient, score = gradient_of(total, x)
    return gradient.detach(), score.detach()


def _project(x: Tensor, box: Box) -> Tensor:
    return torch.minimum(torch.maximum(x, box.lower), box.upper)
