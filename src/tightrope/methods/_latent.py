"""What TAPS and STAPS share: adversarial margins from a box in the middle of the network, and their product loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.core.bounds import Interval, Metrics, Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.protocols import Attack, Batch
from tightrope.core.spec import Spec, evaluate
from tightrope.methods._small_box import interval_margins, kept_intervals
from tightrope.methods._terms import check_not_negative, check_share, cross_entropy, holds, margin_term, term


@dataclass(frozen=True)
class Latent:
    """The part of the loss that starts from a box of inputs.

    Args:
        split: where intervals end and attacks begin.
        attack: of the second part.
        gradient_weight: what the gradient of the estimate's loss is multiplied by.
        threshold: of the connector.
        keep: share of their range that activations keep.
    """

    split: int | str
    attack: Attack
    gradient_weight: float
    threshold: float
    keep: float

    def __post_init__(self) -> None:
        check_not_negative(gradient_weight=self.gradient_weight)
        check_share("threshold", self.threshold)
        check_share("shrink", self.keep)

    def draws(self, network: Network, batch: Batch, generator: torch.Generator, fading: float) -> dict[str, Tensor]:
        """Start noise of one attack for each row of each sample; none during the ramp of eps."""
        first, _ = network.split(self.split)
        corner = batch.x.new_zeros(()).expand(batch.spec.matrix.shape[:2].numel(), *first.shapes[first.output])
        return {"latent": self.attack.noise(Box(corner, corner), generator)} if fading == 0 else {}

    def loss(
        self, network: Network, params: Params, box: Box, batch: Batch, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """Each sample's loss of the estimated margins times its IBP loss; during the ramp the IBP loss alone.

        Source: Mao et al. 2023 (arXiv 2305.04574), the TAPS loss and its regularisation: with alpha =
        weight / (1 + weight) the gradient is proportional to alpha L_IBP grad L_TAPS + (1 - alpha) L_TAPS grad L_IBP.
        """
        whole = interval_margins(network, params, box, batch.spec, self.keep)
        if "latent" not in draws:
            return margin_term(whole, batch, "surrogate")
        first, second = network.split(self.split)
        latent = kept_intervals(first, params, box, self.keep).interval(first.output)
        rows = latent_margins(second, params, latent, batch.spec, self.attack, draws["latent"], self.threshold)
        estimate = cross_entropy(rows, batch)
        weighted = estimate.detach() + self.gradient_weight * (estimate - estimate.detach())
        return term(weighted * cross_entropy(whole, batch), holds(rows, batch), "surrogate")


def latent_margins(
    network: Network, params: Params, latent: Interval, spec: Spec, attack: Attack, noise: Tensor, threshold: float
) -> Tensor:
    """Each row's value at the worst input that an attack on that row alone finds in a latent box: (batch, rows).

    Source: Mao et al. 2023 (arXiv 2305.04574), the multi-estimator.
    """
    batch, rows, outputs = spec.matrix.shape
    alone = Spec(spec.matrix.reshape(-1, 1, outputs), spec.offset.reshape(-1, 1), (0,))
    many = Interval(*(end.repeat_interleave(rows, 0) for end in latent))
    box = Box(many.lower.detach(), many.upper.detach())
    worst = connected(attack.perturb(network, params, box, alone, noise), many, threshold)
    return evaluate(alone, network(params, worst)).reshape(batch, rows)


def connected(point: Tensor, interval: Interval, threshold: float) -> Tensor:
    """The point of a box, with a gradient to the box: the rectified linear gradient connector.

    The derivative to the lower end falls from 1 where the point lies on it to 0 at the share ``threshold`` of the width
    above it; likewise at the upper end. All others are 0. Where the box has no width both are 1/2.

    Source: Mao et al. 2023 (arXiv 2305.04574), the gradient connector.
    """
    lower, upper = interval.lower.detach(), interval.upper.detach()
    reach = (threshold * (upper - lower)).clamp(min=torch.finfo(point.dtype).tiny)
    to_lower, to_upper = (
        torch.where(upper > lower, (1.0 - distance / reach).clamp(0.0, 1.0), 0.5)
        for distance in (point - lower, upper - point)
    )
    return point + to_lower * (interval.lower - lower) + to_upper * (interval.upper - upper)
