"""What the expressive losses share: margins at an adversarial input, and interval bounds of them over the ball."""

from __future__ import annotations

from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import ball
from tightrope.core.network import Network
from tightrope.core.protocols import Attack, Batch
from tightrope.methods._terms import check_not_negative, check_share, check_weight, rows_at
from tightrope.relaxations.ibp import Ibp


def both_margins(
    network: Network, params: Params, batch: Batch, eps: Tensor, attack: Attack, attack_factor: float, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Adversarial margins within ``attack_factor`` * eps and IBP's within eps, each (batch, rows)."""
    worst = attack.perturb(network, params, ball(batch.x, attack_factor * eps), batch.spec, noise)
    bounds = Ibp().bounds(network, params, ball(batch.x, eps), batch.spec)
    return rows_at(network, params, batch, worst), bounds.margins


def check_options(alpha: float, attack_factor: float, robust_weight: float) -> None:
    """Refuse options out of range."""
    check_weight(robust_weight)
    check_share("alpha", alpha)
    check_not_negative(attack_factor=attack_factor)
