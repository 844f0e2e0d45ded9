"""Leaky ReLU and its convex envelope."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from tightrope.core.bounds import Interval, Lines, Params, Shape
from tightrope.core.op import ElementwiseOp, Tilt
from tightrope.ops import _piecewise


@dataclass(frozen=True)
class LeakyRelu(ElementwiseOp):
    """max(x, a x) with a negative-side slope a in [0, 1]."""

    negative_slope: float

    modules = (nn.LeakyReLU,)
    breakpoints = (0.0,)
    roundings = 2

    @classmethod
    def from_module(cls, module: nn.LeakyReLU, path: str, shape: Shape) -> LeakyRelu:
        if not 0.0 <= module.negative_slope <= 1.0:
            raise ValueError(f"has negative_slope {module.negative_slope}; it must be in [0, 1]")
        return cls(float(module.negative_slope))

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [(nn.LeakyReLU(0.1), (6,)), (nn.LeakyReLU(0.5), (2, 3, 3))]

    def forward(self, params: Params, *inputs: Tensor) -> Tensor:
        return F.leaky_relu(inputs[0], self.negative_slope)

    def interval(self, pre: Interval) -> Interval:
        return Interval(F.leaky_relu(pre.lower, self.negative_slope), F.leaky_relu(pre.upper, self.negative_slope))

    def stable(self, pre: Interval) -> Tensor:
        return _piecewise.stable(pre)

    def envelope(self, pre: Interval, tilt: Tilt) -> Lines:
        return _piecewise.envelope(pre, tilt, self.negative_slope)

    def outward(self, pre: Interval, lines: Lines) -> Lines:
        return _piecewise.outward(pre, lines, self.negative_slope)

    def chord(self, pre: Interval) -> Tilt:
        return _piecewise.chord(pre)

    def minimum_area(self, pre: Interval) -> Tilt:
        return _piecewise.minimum_area(pre)

    def soft(self, pre: Interval) -> Tilt:
        return _piecewise.soft(pre)
