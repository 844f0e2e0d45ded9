"""TAPS: interval bounds through the first layers, attacks through the last."""

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
from tightrope.methods._terms import check_weight, mix, natural_term


@dataclass(frozen=True)
class Taps:
    """(1 - w) natural + w L_TAPS * L_IBP, sample by sample.

    L_TAPS is the cross-entropy of margins that are estimated in two parts: IBP through the first layers gives a box, in
    which one attack for each margin looks for the worst input of the last layers. Gradients reach the box through the
    connector of :func:`tightrope.methods._latent.connected`. During the ramp of eps the robust loss is L_IBP alone.

    Neither an upper nor a lower bound: the box is too large, and the attacks find too little.

    Args:
        attack: in the latent box; its step size is a share of that.
        split: the last layer of the first part, by module path (``"layers.8"``); or its number of layers, which if
            negative are those of the second part. See :meth:`tightrope.core.network.Network.split`.
        gradient_weight: what the gradient of the estimate's loss is multiplied by, relative to that of IBP's.
        threshold: share of the latent box's width over which its ends receive gradients.
        shrink: what the upper ends of ReLUs that are not stable are multiplied by; 1 for sound propagation.
        robust_weight: w.

    Source: Mao et al. 2023 (arXiv 2305.04574), the TAPS loss.
    """

    attack: Attack
    split: int | str
    gradient_weight: float = 1.0
    threshold: float = 0.5
    shrink: float = 1.0
    robust_weight: float = 1.0

    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight(self.robust_weight)
        _ = self._latent

    @property
    def _latent(self) -> Latent:
        return Latent(self.split, self.attack, self.gradient_weight, self.threshold, self.shrink)

    def draws(
        self, network: Network, batch: Batch, eps: Tensor, generator: torch.Generator, *, fading: float = 0.0
    ) -> dict[str, Tensor]:
        """The start noise of the latent attacks; nothing during the ramp."""
        return self._latent.draws(network, batch, generator, fading)

    def loss(
        self, network: Network, params: Params, batch: Batch, eps: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """See :meth:`tightrope.core.protocols.TrainingMethod.loss`."""
        natural, metrics = natural_term(network, params, batch)
        robust, more = self._latent.loss(network, params, ball(batch.x, eps), batch, draws)
        return mix(self.robust_weight, natural, robust), metrics | more
