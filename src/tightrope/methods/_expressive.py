"""What the expressive losses share: margins at an adversarial input, interval bounds of them over the ball, and a loss
between the two that is all that they differ in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.box import ball
from tightrope.core.network import Network
from tightrope.core.protocols import Attack, Batch
from tightrope.methods._terms import check_not_negative, check_share, check_weight, mix, natural_term, rows_at
from tightrope.relaxations.ibp import Ibp

Between = Callable[[float, Tensor, Tensor, Batch], tuple[Tensor, Metrics]]
"""From alpha and the adversarial and IBP margins, (batch, rows) each, to the loss between theirs, with metrics."""


class Options(Protocol):
    """What every expressive loss is told.

    Attributes:
        attack: what looks for adversarial inputs.
        alpha: share of the interval bounds.
        attack_factor: radius of the attack in multiples of eps.
        robust_weight: of the loss against that of the clean inputs.
    """

    @property
    def attack(self) -> Attack: ...
    @property
    def alpha(self) -> float: ...
    @property
    def attack_factor(self) -> float: ...
    @property
    def robust_weight(self) -> float: ...


def check_options(options: Options) -> None:
    """Refuse options out of range."""
    check_weight(options.robust_weight)
    check_share("alpha", options.alpha)
    check_not_negative(attack_factor=options.attack_factor)


def start_noise(options: Options, batch: Batch, eps: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The attack's start noise."""
    return {"start": options.attack.noise(ball(batch.x, options.attack_factor * eps), generator)}


def expressive_loss(
    options: Options,
    between: Between,
    network: Network,
    params: Params,
    batch: Batch,
    eps: Tensor,
    draws: Mapping[str, Tensor],
) -> tuple[Tensor, Metrics]:
    """(1 - w) natural + w between(alpha, margins attacked within attack_factor * eps, IBP margins within eps)."""
    natural, metrics = natural_term(network, params, batch)
    attacked_ball = ball(batch.x, options.attack_factor * eps)
    worst = options.attack.perturb(network, params, attacked_ball, batch.spec, draws["start"])
    bounds = Ibp().bounds(network, params, ball(batch.x, eps), batch.spec)
    robust, more = between(options.alpha, rows_at(network, params, batch, worst), bounds.margins, batch)
    return mix(options.robust_weight, natural, robust), metrics | more
