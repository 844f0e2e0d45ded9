"""SABR: interval bounds of a small box around an adversarial input."""

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
from tightrope.methods._small_box import inner_box, interval_margins, small_box
from tightrope.methods._terms import check_share, check_weight, margin_term, mix, natural_term


@dataclass(frozen=True)
class Sabr:
    """(1 - w) natural + w IBP loss of the box of ratio * eps around the worst of the centres that keep it in the ball.

    Neither an upper nor a lower bound of the worst-case loss: what holds in the small box says nothing of the rest.

    Args:
        attack: what looks for the centre, in the ball of (1 - ratio) eps, clipped; its step size is a share of that.
        ratio: of the small box's half-width to that of the clipped ball (lambda); 1 is IBP, 0 PGD training.
        shrink: what the upper ends of ReLUs that are not stable are multiplied by; 1 for sound propagation.
        robust_weight: w.

    Source: Mueller et al. 2023 (arXiv 2210.04871), the SABR loss, and the ReLU shrinking of its experiments.
    """

    attack: Attack
    ratio: float = 0.4
    shrink: float = 1.0
    robust_weight: float = 1.0

    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight(self.robust_weight)
        check_share("ratio", self.ratio)
        check_share("shrink", self.shrink)

    def draws(
        self, network: Network, batch: Batch, eps: Tensor, generator: torch.Generator, *, fading: float = 0.0
    ) -> dict[str, Tensor]:
        """The start noise of the search for the centre."""
        return {"centre": self.attack.noise(inner_box(ball(batch.x, eps), self.ratio), generator)}

    def loss(
        self, network: Network, params: Params, batch: Batch, eps: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """See :meth:`tightrope.core.protocols.TrainingMethod.loss`."""
        natural, metrics = natural_term(network, params, batch)
        full, noise = ball(batch.x, eps), draws["centre"]
        box = small_box(network, params, full, batch.spec, ratio=self.ratio, search=self.attack, noise=noise)
        rows = interval_margins(network, params, box, batch.spec, self.shrink)
        robust, more = margin_term(rows, batch, "surrogate")
        return mix(self.robust_weight, natural, robust), metrics | more
