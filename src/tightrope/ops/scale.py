"""Multiplication by a constant or by a per-feature weight, as in input normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tightrope.core.bounds import Params, Shape
from tightrope.core.coef import Coef
from tightrope.core.frame import Window
from tightrope.core.op import POINT, AffineOp, constant


@dataclass(frozen=True)
class Scale(AffineOp):
    """c x, or x / c where ``divide``; c is a number or the key of a tensor that broadcasts against a sample."""

    factor: str | float
    shape: Shape
    divide: bool = False

    monomial = True

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [(_Scaled(), (3, 2, 2))]

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return self._apply(params, inputs[0], magnitude=False)

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return self._apply(params, radii[0], magnitude=True)

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        factor = constant(params, self.factor, len(self.shape))
        return (coef.times(1.0 / factor if self.divide else factor),)

    @property
    def window(self) -> Window:
        return POINT

    def bias(self, params: Params) -> Tensor | None:
        return None

    def roundings(self, params: Params) -> int:
        return 3  # the factor's own, its inverse, and the product

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.shape

    def _apply(self, params: Params, x: Tensor, *, magnitude: bool) -> Tensor:
        factor = constant(params, self.factor, len(self.shape))
        if magnitude:
            factor = factor.abs() if isinstance(factor, Tensor) else abs(factor)
        return x / factor if self.divide else x * factor


class _Scaled(nn.Module):
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("std", torch.tensor([0.5, -2.0, 3.0]).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x / self.std
