"""Batch normalisation with given statistics: a scaling and a shift per channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tightrope.core.bounds import Params, Shape
from tightrope.core.coef import Coef
from tightrope.core.frame import Window
from tightrope.core.op import POINT, AffineOp, Statistics


@dataclass(frozen=True)
class BatchNorm(AffineOp):
    """(x - mean) / sqrt(var + epsilon) * weight + bias, per channel (the first axis of a sample)."""

    weight: str | None
    bias_key: str | None
    mean: str
    var: str
    epsilon: float
    momentum: float
    shape: Shape

    modules = (nn.BatchNorm1d, nn.BatchNorm2d)
    monomial = True

    @property
    def statistics(self) -> Statistics:
        return Statistics(self.mean, self.var, self.momentum)

    @classmethod
    def from_module(cls, module: nn.BatchNorm1d | nn.BatchNorm2d, path: str, shape: Shape) -> BatchNorm:
        if shape[0] != module.num_features:
            raise ValueError(f"has {module.num_features} channels, gets samples of shape {shape}")
        if module.running_mean is None:
            raise ValueError("keeps no running statistics; build it with track_running_stats=True")
        weight, bias = (f"{path}weight", f"{path}bias") if module.affine else (None, None)
        # momentum None is torch's cumulative average; a plain 0.1 would silently be another training
        if module.momentum is None:
            raise ValueError("has momentum=None (a cumulative average); give a number such as 0.1")
        mean, var = f"{path}running_mean", f"{path}running_var"
        return cls(weight, bias, mean, var, module.eps, module.momentum, shape)

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        norm = nn.BatchNorm2d(3)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                tensor.copy_(torch.randn(3, generator=generator))  # type: ignore[union-attr]
            norm.running_var.copy_(torch.rand(3, generator=generator) + 0.1)  # type: ignore[union-attr]
        return [(norm, (3, 2, 4)), (nn.BatchNorm1d(5, affine=False), (5,))]

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return inputs[0] * self._scale(params)

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return radii[0] * self._scale(params).abs()

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        return (coef.times(self._scale(params)),)

    @property
    def window(self) -> Window:
        return POINT

    def bias(self, params: Params) -> Tensor | None:
        shift = -self._per_channel(params[self.mean]) * self._scale(params)
        return shift if self.bias_key is None else shift + self._per_channel(params[self.bias_key])

    def roundings(self, params: Params) -> int:
        return 16  # two or three of the scale, where square roots may be off by two units in the last place

    def bias_abs(self, params: Params) -> Tensor | None:
        mean, var = params[self.mean].abs(), params[self.var]
        # A negative variance could cancel out with epsilon.
        size = self._per_channel(torch.where(var >= 0, mean, torch.inf)) * self._scale(params).abs()
        return size if self.bias_key is None else size + self._per_channel(params[self.bias_key]).abs()

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.shape

    def _scale(self, params: Params) -> Tensor:
        scale = torch.rsqrt(params[self.var] + self.epsilon)
        return self._per_channel(scale if self.weight is None else scale * params[self.weight])

    def _per_channel(self, value: Tensor) -> Tensor:
        return value.reshape(-1, *[1] * (len(self.shape) - 1))
