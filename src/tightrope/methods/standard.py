"""Standard training: cross-entropy at the clean inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.network import Network
from tightrope.core.protocols import Batch
from tightrope.methods._terms import natural_term


@dataclass(frozen=True)
class Standard:
    """The mean cross-entropy of the clean batch. ``eps`` is not used."""

    robust: ClassVar[bool] = False

    def draws(
        self, network: Network, batch: Batch, eps: Tensor, generator: torch.Generator, *, fading: float = 0.0
    ) -> dict[str, Tensor]:
        """None."""
        return {}

    def loss(
        self, network: Network, params: Params, batch: Batch, eps: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """See :meth:`tightrope.core.protocols.TrainingMethod.loss`."""
        return natural_term(network, params, batch)
