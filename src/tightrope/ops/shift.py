"""Addition of a constant or of a per-feature weight, as in input normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tightrope.core.bounds import Params, Shape
from tightrope.core.coef import Coef
from tightrope.core.frame import Window
from tightrope.core.op import POINT, AffineOp, constant


@dataclass(frozen=True)
class Shift(AffineOp):
    """x + c, or x - c with sign -1; c is a number or the key of a tensor that broadcasts against a sample."""

    offset: str | float
    shape: Shape
    sign: int = 1

    monomial = True

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [(_Shifted(), (3, 2, 2))]

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return inputs[0]

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return radii[0]

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        return (coef,)

    @property
    def window(self) -> Window:
        return POINT

    def bias(self, params: Params) -> Tensor | None:
        # A full tensor also for numbers: a bias always lives on the device and in the dtype of the params.
        offset = constant(params, self.offset, len(self.shape))
        if not isinstance(offset, Tensor):
            like = next(value for value in params.values() if value.is_floating_point())
            offset = like.new_full((1,) * len(self.shape), offset)
        return self.sign * offset

    def roundings(self, params: Params) -> int:
        return 0

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.shape


class _Shifted(nn.Module):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, -2.0, 3.0]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 1.0 - (x - self.mean)
