"""The axes of a sample in another order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tightrope.core.bounds import Params, Shape
from tightrope.core.coef import Coef, Dense
from tightrope.core.op import AffineOp


@dataclass(frozen=True)
class Transpose(AffineOp):
    """Axis ``axes[i]`` of a sample becomes axis i."""

    axes: tuple[int, ...]

    monomial = True

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [(_Transposed((0, 2, 3, 1)), (2, 3, 4)), (_Transposed((0, 2, 1)), (3, 2))]

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return inputs[0].permute(0, *(axis + 1 for axis in self.axes))

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return self.linear(params, *radii)

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        back = (self.axes.index(axis) + 2 for axis in range(len(self.axes)))
        return (Dense(coef.dense().value.permute(0, 1, *back)),)

    def bias(self, params: Params) -> Tensor | None:
        return None

    def roundings(self, params: Params) -> int:
        return 0

    def output_shape(self, *shapes: Shape) -> Shape:
        if sorted(self.axes) != list(range(len(shapes[0]))):
            raise ValueError(f"orders the axes of samples of shape {shapes[0]} as {self.axes}")
        return tuple(shapes[0][axis] for axis in self.axes)


class _Transposed(nn.Module):
    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.permute(torch.tanh(x), self.dims).flatten(1)
