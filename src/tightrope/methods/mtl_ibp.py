"""MTL-IBP: a mean of the adversarial and the IBP loss."""

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
from tightrope.methods._expressive import both_margins, check_options
from tightrope.methods._terms import cross_entropy, holds, mix, natural_term, term


@dataclass(frozen=True)
class MtlIbp:
    """(1 - w) natural + w [(1 - alpha) L(adversarial margins) + alpha L(IBP margins)], sample by sample.

    alpha = 0 is PGD training, alpha = 1 IBP, and the loss grows in between. It is no bound of the worst-case loss.

    Args:
        attack: what looks for adversarial inputs.
        alpha: share of the interval bounds.
        attack_factor: radius of the attack in multiples of eps.
        robust_weight: w.

    Source: De Palma et al. 2024 (arXiv 2305.13991), the loss named MTL-IBP.
    """

    attack: Attack
    alpha: float = 0.5
    attack_factor: float = 1.0
    robust_weight: float = 1.0

    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_options(self.alpha, self.attack_factor, self.robust_weight)

    def draws(
        self, network: Network, batch: Batch, eps: Tensor, generator: torch.Generator, *, fading: float = 0.0
    ) -> dict[str, Tensor]:
        """The attack's start noise."""
        return {"start": self.attack.noise(ball(batch.x, self.attack_factor * eps), generator)}

    def loss(
        self, network: Network, params: Params, batch: Batch, eps: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """See :meth:`tightrope.core.protocols.TrainingMethod.loss`."""
        natural, metrics = natural_term(network, params, batch)
        attacked, bounded = both_margins(network, params, batch, eps, self.attack, self.attack_factor, draws["start"])
        losses = mix(self.alpha, cross_entropy(attacked, batch), cross_entropy(bounded, batch))
        accuracies = mix(self.alpha, holds(attacked, batch), holds(bounded, batch))
        robust, more = term(losses, accuracies, "surrogate")
        return mix(self.robust_weight, natural, robust), metrics | more
