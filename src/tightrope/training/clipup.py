"""ClipUp: steps of a fixed length in the direction of the gradient, with momentum and a speed limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ClipUp(torch.optim.Optimizer):
    """v <- momentum v + lr g / |g|, cut to |v| <= max_speed lr; theta <- theta - v. Norms are over all weights.

    The length of the gradient does not matter, which suits estimates whose length is mostly noise.

    Args:
        weights: to be changed in place.
        lr: length of a step without momentum.
        momentum: share of the velocity that is kept.
        max_speed: largest velocity, in multiples of ``lr``.

    Source: Toklu, Liskowski, Srivastava 2020 (PPSN), algorithm 1.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> w.grad = torch.tensor([300.0, 400.0])
        >>> optimizer = ClipUp([w], lr=0.1)
        >>> optimizer.step()
        >>> w.detach()
        tensor([-0.0600, -0.0800])
    """

    def __init__(self, weights: list[Tensor], lr: float, momentum: float = 0.9, max_speed: float = 2.0) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "max_speed": max_speed})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients that the weights hold."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step(weights, group)

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        length = group["lr"] / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        for weight in weights:
            velocity = self.state[weight].setdefault("velocity", torch.zeros_like(weight))
            velocity.mul_(group["momentum"]).add_(weight.grad * length)
        velocities = [self.state[weight]["velocity"] for weight in weights]
        speed = torch.nn.utils.get_total_norm(velocities)
        factor = (group["max_speed"] * group["lr"] / speed.clamp(min=torch.finfo(speed.dtype).tiny)).clamp(max=1.0)
        for weight, velocity in zip(weights, velocities, strict=True):
            weight.sub_(velocity.mul_(factor))
