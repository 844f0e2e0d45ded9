"""EDAC: adversarial training that looks ahead to weights whose adversarial inputs are less certain."""

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
from tightrope.methods._terms import check_not_negative, check_weight, mix, natural_term, point_term, rows_at


@dataclass(frozen=True)
class Edac:
    """PGD training at extragradient weights: (1 - w) natural + w cross-entropy at theta', adversarial inputs included.

    theta' = theta - step * grad AC(theta), where the adversarial certainty AC is the mean over samples of the variance
    of the logits, over classes, at adversarial inputs of theta. The shift is a constant to the gradient, so that the
    gradient of the loss is that at theta', applied to theta. Statistics of batch normalisation stay those of theta.

    Args:
        attack: what looks for adversarial inputs, at theta and at theta'.
        step: of the shift, in the units of the weights: small, as a step of plain gradient descent with a share of the
            learning rate is (published: 0.3 of it); 0 is PGD training.
        robust_weight: w.

    Cost: twice that of PGD training. Also a smoother without gradients differentiates the certainty.

    Source: Zhang, Backes and Zhang 2023 (arXiv 2310.04539), adversarial certainty and its extragradient step.
    """

    attack: Attack
    step: float = 1e-3
    robust_weight: float = 1.0

    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight(self.robust_weight)
        check_not_negative(step=self.step)

    def draws(
        self, network: Network, batch: Batch, eps: Tensor, generator: torch.Generator, *, fading: float = 0.0
    ) -> dict[str, Tensor]:
        """The start noise of both attacks."""
        box = ball(batch.x, eps)
        return {name: self.attack.noise(box, generator) for name in ("before", "start")}

    def loss(
        self, network: Network, params: Params, batch: Batch, eps: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """See :meth:`tightrope.core.protocols.TrainingMethod.loss`."""
        natural, metrics = natural_term(network, params, batch)
        box = ball(batch.x, eps)
        before = self.attack.perturb(network, params, box, batch.spec, draws["before"])
        ahead = self._ahead(network, params, before)
        worst = self.attack.perturb(network, ahead, box, batch.spec, draws["start"])
        robust, more = point_term(rows_at(network, ahead, batch, worst), batch, "surrogate")
        return mix(self.robust_weight, natural, robust), metrics | more

    def _ahead(self, network: Network, params: Params, x: Tensor) -> dict[str, Tensor]:
        """theta'."""
        fixed = {name: value.detach() for name, value in params.items()}

        def certainty(weights: Params) -> Tensor:
            return network({**fixed, **weights}, x).var(dim=1, correction=0).mean()

        gradient = torch.func.grad(certainty)({name: fixed[name] for name in network.trainable})
        return {**params, **{name: params[name] - self.step * part.detach() for name, part in gradient.items()}}
