"""TRADES: natural loss, and how much predictions change within the ball."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tightrope.attacks.pgd import Pgd
from tightrope.core.bounds import Metrics, Params
from tightrope.core.box import Box, ball
from tightrope.core.network import Network
from tightrope.core.protocols import Batch
from tightrope.core.spec import evaluate
from tightrope.methods._terms import check_not_negative, holds, point_term

NEARBY = 1e-3  # std of the start noise: at the clean input itself the divergence has no gradient


@dataclass(frozen=True)
class Trades:
    """CE(f(x), y) + weight * max KL(p(x) || p(x')) over the ball, with p the softmax of the outputs.

    The maximiser x', found by signed gradient ascent from x + 0.001 N(0, I), is a constant to the gradient; both p(x)
    and p(x') are not.

    Args:
        weight: of the divergence (1 / lambda in the paper).
        steps: of the ascent.
        step_size: as a share of the ball's half-width.

    Source: Zhang et al. 2019 (arXiv 1901.08573), the multi-class objective and its training algorithm.
    """

    weight: float = 6.0
    steps: int = 10
    step_size: float = 0.25

    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_not_negative(weight=self.weight)
        _ = self._ascent

    @property
    def _ascent(self) -> Pgd:
        return Pgd(steps=self.steps, step_size=self.step_size)

    def draws(
        self, network: Network, batch: Batch, eps: Tensor, generator: torch.Generator, *, fading: float = 0.0
    ) -> dict[str, Tensor]:
        """Normal noise of the start, (batch, *input shape)."""
        noise = torch.randn(batch.x.shape, generator=generator, dtype=batch.x.dtype, device=batch.x.device)
        return {"start": noise}

    def loss(
        self, network: Network, params: Params, batch: Batch, eps: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """See :meth:`tightrope.core.protocols.TrainingMethod.loss`."""
        clean = network(params, batch.x)
        natural, metrics = point_term(evaluate(batch.spec, clean), batch, "natural")
        moved = network(params, self._worst(network, params, batch, ball(batch.x, eps), draws["start"]))
        loss = natural + self.weight * _divergence(clean, moved).mean()
        accuracy = holds(evaluate(batch.spec, moved), batch).mean()
        return loss, {**metrics, "surrogate_loss": loss.detach(), "surrogate_accuracy": accuracy.detach()}

    def _worst(self, network: Network, params: Params, batch: Batch, box: Box, noise: Tensor) -> Tensor:
        fixed = {name: value.detach() for name, value in params.items()}
        clean = network(fixed, batch.x)

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            divergence = _divergence(clean, network(fixed, x))
            return divergence, divergence

        return self._ascent.maximise(objective, box, (batch.x + NEARBY * noise)[None])


def _divergence(clean: Tensor, moved: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(moved)) of outputs (batch, outputs): (batch,)."""
    p, q = F.log_softmax(clean, dim=1), F.log_softmax(moved, dim=1)
    return (p.exp() * (p - q)).sum(1)
