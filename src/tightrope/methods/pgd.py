"""Adversarial training with projected gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.box import ball
from tightrope.core.network import Network
from tightrope.core.protocols import Attack, Batch
from tightrope.methods._terms import check_weight, mix, natural_term, point_term, rows_at


@dataclass(frozen=True)
class PgdTraining:
    """(1 - w) natural + w cross-entropy at adversarial inputs: robust in practice, certifies little.

    The attack is recomputed at the params that the loss is evaluated at, and is a constant to the gradient.

    Args:
        attack: what looks for adversarial inputs: loss (cross-entropy or margin), steps, restarts and step sizes are
            its options.
        robust_weight: w.

    Source: Madry et al. 2018 (arXiv 1706.06083), the saddle point problem.
    """

    attack: Attack
    robust_weight: float = 1.0

    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight(self.robust_weight)

    def draws(
        self, network: Network, batch: Batch, eps: Tensor, generator: torch.Generator, *, fading: float = 0.0
    ) -> dict[str, Tensor]:
        """The attack's start noise."""
        return {"start": self.attack.noise(ball(batch.x, eps), generator)}

    def loss(
        self, network: Network, params: Params, batch: Batch, eps: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """See :meth:`tightrope.core.protocols.TrainingMethod.loss`."""
        natural, metrics = natural_term(network, params, batch)
        worst = self.attack.perturb(network, params, ball(batch.x, eps), batch.spec, draws["start"])
        robust, more = point_term(rows_at(network, params, batch, worst), batch, "surrogate")
        return mix(self.robust_weight, natural, robust), metrics | more
