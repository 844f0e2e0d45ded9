"""CC-IBP: the loss of a mean of adversarial margins and IBP margins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.network import Network
from tightrope.core.protocols import Attack, Batch
from tightrope.methods._expressive import check_options, expressive_loss, start_noise
from tightrope.methods._terms import margin_term, mix


@dataclass(frozen=True)
class CcIbp:
    """(1 - w) natural + w [L((1 - alpha) adversarial margins + alpha IBP margins)], sample by sample.

    alpha = 0 is PGD training, alpha = 1 IBP, and the loss grows in between. It is no bound of the worst-case loss.

    Args:
        attack: what looks for adversarial inputs.
        alpha: share of the interval bounds.
        attack_factor: radius of the attack in multiples of eps.
        robust_weight: w.

    Source: De Palma et al. 2024 (arXiv 2305.13991), the loss named CC-IBP.
    """

    attack: Attack
    alpha: float = 0.5
    attack_factor: float = 1.0
    robust_weight: float = 1.0

    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_options(self)

    def draws(
        self, network: Network, batch: Batch, eps: Tensor, generator: torch.Generator, *, fading: float = 0.0
    ) -> dict[str, Tensor]:
        """The attack's start noise."""
        return start_noise(self, batch, eps, generator)

    def loss(
        self, network: Network, params: Params, batch: Batch, eps: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """See :meth:`tightrope.core.protocols.TrainingMethod.loss`."""
        return expressive_loss(self, _between, network, params, batch, eps, draws)


def _between(alpha: float, attacked: Tensor, bounded: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
    return margin_term(mix(alpha, attacked, bounded), batch, "surrogate")
