"""The larger of two values, entry by entry; max-pooling is made of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tightrope.core.bounds import Interval, Params, Shape
from tightrope.core.coef import Coef
from tightrope.core.frame import Window
from tightrope.core.op import POINT, JoinOp


@dataclass(frozen=True)
class Maximum(JoinOp):
    """max(a, b) as a + r, where the third input is r = relu(b - a).

    Linear bounds come from a and r alone. That r hangs on a is lost to intervals, which would give a range as wide as
    those of a, a and b together; the range of max(a, b) is known from a and b, and b is an input for that reason.
    """

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [(_Largest(), (4,)), (nn.MaxPool2d(2), (2, 2, 4))]

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[2]

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return radii[0] + radii[2]

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        return (coef, coef.times(0.0), coef)

    def interval(self, *inputs: Interval) -> Interval:
        a, b, _ = inputs
        return Interval(torch.maximum(a.lower, b.lower), torch.maximum(a.upper, b.upper))

    @property
    def window(self) -> Window:
        return POINT

    def bias(self, params: Params) -> Tensor | None:
        return None

    def roundings(self, params: Params) -> int:
        return 1

    def output_shape(self, *shapes: Shape) -> Shape:
        if len(shapes) != 3 or len(set(shapes)) != 1:
            raise ValueError(f"compares samples of different shapes {shapes[0]} and {shapes[1]}")
        return shapes[0]


class _Largest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.inner(x))
