"""STAPS: TAPS over SABR's small box."""

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
from tightrope.methods._latent import Latent
from tightrope.methods._small_box import inner_box, small_box
from tightrope.methods._terms import check_share, check_weight, mix, natural_term


@dataclass(frozen=True)
class Staps:
    """(1 - w) natural + w L_TAPS * L_IBP as in TAPS, both of the small box that SABR selects.

    During the ramp of eps the robust loss is L_IBP of the small box alone, which is SABR's. Neither an upper nor a
    lower bound of the worst-case loss.

    Args:
        search: what looks for the centre of the small box; its step size is a share of where that may lie.
        attack: in the latent box; its step size is a share of that.
        split: the last layer of the first part, by module path (``"layers.8"``); or its number of layers, which if
            negative are those of the second part. See :meth:`tightrope.core.network.Network.split`.
        ratio: of the small box's half-width to that of the clipped ball.
        gradient_weight: what the gradient of the estimate's loss is multiplied by, relative to that of IBP's.
        threshold: share of the latent box's width over which its ends receive gradients.
        shrink: what the upper ends of ReLUs that are not stable are multiplied by; 1 for sound propagation.
        robust_weight: w.

    Source: Mao et al. 2023 (arXiv 2305.04574), STAPS; Mueller et al. 2023 (arXiv 2210.04871), the SABR loss.
    """

    search: Attack
    attack: Attack
    split: int | str
    ratio: float = 0.4
    gradient_weight: float = 1.0
    threshold: float = 0.5
    shrink: float = 1.0
    robust_weight: float = 1.0

    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight(self.robust_weight)
        check_share("ratio", self.ratio)
        _ = self._latent

    @property
    def _latent(self) -> Latent:
        return Latent(self.split, self.attack, self.gradient_weight, self.threshold, self.shrink)

    def draws(
        self, network: Network, batch: Batch, eps: Tensor, generator: torch.Generator, *, fading: float = 0.0
    ) -> dict[str, Tensor]:
        """The start noise of the search for the centre, and of the latent attacks except during the ramp."""
        centre = self.search.noise(inner_box(ball(batch.x, eps), self.ratio), generator)
        return {"centre": centre, **self._latent.draws(network, batch, generator, fading)}

    def loss(
        self, network: Network, params: Params, batch: Batch, eps: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """See :meth:`tightrope.core.protocols.TrainingMethod.loss`."""
        natural, metrics = natural_term(network, params, batch)
        full, noise = ball(batch.x, eps), draws["centre"]
        box = small_box(network, params, full, batch.spec, ratio=self.ratio, search=self.search, noise=noise)
        robust, more = self._latent.loss(network, params, box, batch, draws)
        return mix(self.robust_weight, natural, robust), metrics | more
