"""ReLU and its convex envelope."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tightrope.core.bounds import Interval, Lines, Params, Shape
from tightrope.core.op import ElementwiseOp, Tilt
from tightrope.ops import _piecewise


@dataclass(frozen=True)
class Relu(ElementwiseOp):
    """max(x, 0). On l < 0 < u the lower lines are t x and the upper ones pass through (u, u)."""

    modules = (nn.ReLU,)
    breakpoints = (0.0,)
    roundings = 0

    @classmethod
    def from_module(cls, module: nn.ReLU, path: str, shape: Shape) -> Relu:
        return cls()

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [(nn.ReLU(), (6,))]

    def forward(self, params: Params, *inputs: Tensor) -> Tensor:
        return inputs[0].relu()

    def interval(self, pre: Interval) -> Interval:
        return Interval(pre.lower.relu(), pre.upper.relu())

    def stable(self, pre: Interval) -> Tensor:
        return _piecewise.stable(pre)

    def envelope(self, pre: Interval, tilt: Tilt) -> Lines:
        return _piecewise.envelope(pre, tilt, 0.0)

    def outward(self, pre: Interval, lines: Lines) -> Lines:
        return _piecewise.outward(pre, lines, 0.0)

    def chord(self, pre: Interval) -> Tilt:
        return _piecewise.chord(pre)

    def minimum_area(self, pre: Interval) -> Tilt:
        return _piecewise.minimum_area(pre)

    def soft(self, pre: Interval) -> Tilt:
        return _piecewise.soft(pre)
