"""What TAPS and STAPS share: adversarial margins from a box in the middle of the network, and their product loss."""

from __future__ import annotations

import torch
from torch import Tensor

from tightrope.core.bounds import Interval, Metrics, Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.protocols import Attack, Batch
from tightrope.core.spec import Spec, evaluate
from tightrope.methods._small_box import interval_margins, kept_intervals
from tightrope.methods._terms import cross_entropy, holds, margin_term, term


def latent_noise(network: Network, batch: Batch, attack: Attack, at: int | str, generator: torch.Generator) -> Tensor:
    """Start noise of one attack for each row of each sample, in the value that the network is split at."""
    first, _ = network.split(at)
    corner = batch.x.new_zeros(()).expand(batch.spec.matrix.shape[:2].numel(), *first.shapes[first.output])
    return attack.noise(Box(corner, corner), generator)


def box_term(network: Network, params: Params, box: Box, batch: Batch, keep: float) -> tuple[Tensor, Metrics]:
    """The IBP loss of a box."""
    return margin_term(interval_margins(network, params, box, batch.spec, keep), batch, "surrogate")


def product_term(
    network: Network,
    params: Params,
    box: Box,
    batch: Batch,
    noise: Tensor,
    *,
    at: int | str,
    attack: Attack,
    weight: float,
    threshold: float,
    keep: float,
) -> tuple[Tensor, Metrics]:
    """Each sample's loss of the estimated margins times its IBP loss, the former's gradient ``weight`` times its own.

    Source: Mao et al. 2023 (arXiv 2305.04574), section 3.4: with alpha = weight / (1 + weight) the gradient is
    proportional to alpha L_IBP grad L_TAPS + (1 - alpha) L_TAPS grad L_IBP.
    """
    first, second = network.split(at)
    latent = kept_intervals(first, params, box, keep).interval(first.output)
    rows = latent_margins(second, params, latent, batch.spec, attack, noise, threshold)
    estimate = cross_entropy(rows, batch)
    weighted = estimate.detach() + weight * (estimate - estimate.detach())
    whole = cross_entropy(interval_margins(network, params, box, batch.spec, keep), batch)
    return term(weighted * whole, holds(rows, batch), "surrogate")


def latent_margins(
    network: Network, params: Params, latent: Interval, spec: Spec, attack: Attack, noise: Tensor, threshold: float
) -> Tensor:
    """Each row's value at the worst input that an attack on that row alone finds in a latent box: (batch, rows).

    Source: Mao et al. 2023 (arXiv 2305.04574), section 3.2, the multi-estimator.
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

    Source: Mao et al. 2023 (arXiv 2305.04574), section 3.3.
    """
    lower, upper = interval.lower.detach(), interval.upper.detach()
    reach = (threshold * (upper - lower)).clamp(min=torch.finfo(point.dtype).tiny)
    to_lower, to_upper = (
        torch.where(upper > lower, (1.0 - distance / reach).clamp(0.0, 1.0), 0.5)
        for distance in (point - lower, upper - point)
    )
    return point + to_lower * (interval.lower - lower) + to_upper * (interval.upper - upper)
