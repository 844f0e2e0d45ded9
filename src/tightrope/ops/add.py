"""Sums and differences of two branches, as in residual networks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tightrope.core.bounds import Params, Shape
from tightrope.core.coef import Coef
from tightrope.core.frame import Window
from tightrope.core.op import POINT, AffineOp


@dataclass(frozen=True)
class Add(AffineOp):
    """x + y, or x - y with sign -1."""

    sign: int = 1

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [(_Residual(1), (4,)), (_Residual(-1), (4,))]

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1] if self.sign > 0 else inputs[0] - inputs[1]

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return radii[0] + radii[1]

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        return (coef, coef if self.sign > 0 else coef.times(-1.0))

    @property
    def window(self) -> Window:
        return POINT

    def bias(self, params: Params) -> Tensor | None:
        return None

    def roundings(self, params: Params) -> int:
        return 1

    def output_shape(self, *shapes: Shape) -> Shape:
        if shapes[0] != shapes[1]:
            raise ValueError(f"adds samples of different shapes {shapes[0]} and {shapes[1]}")
        return shapes[0]


class _Residual(nn.Module):
    def __init__(self, sign: int) -> None:
        super().__init__()
        self.inner, self.sign = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), sign

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.inner(x)
        return x + branch if self.sign > 0 else x - branch
