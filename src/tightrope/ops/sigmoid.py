"""The logistic sigmoid, and lines that bound it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tightrope.core.bounds import Interval, Lines, Params, Shape
from tightrope.core.op import ElementwiseOp, Tilt
from tightrope.core.rounding import FUNCTION_ERROR, moved_apart
from tightrope.ops import _s_shaped


@dataclass(frozen=True)
class Sigmoid(ElementwiseOp):
    """1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2. Its lines are those of tanh, scaled in the same way.

    Source: Zhang et al. 2018 (CROWN, arXiv 1811.00866), table 2; Singh et al. 2019 (POPL), section 4.
    """

    modules = (nn.Sigmoid,)
    roundings = FUNCTION_ERROR

    @classmethod
    def from_module(cls, module: nn.Sigmoid, path: str, shape: Shape) -> Sigmoid:
        return cls()

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [(nn.Sigmoid(), (6,)), (nn.Sigmoid(), (2, 3, 3))]

    def forward(self, params: Params, *inputs: Tensor) -> Tensor:
        return inputs[0].sigmoid()

    def interval(self, pre: Interval) -> Interval:
        return Interval(torch.sigmoid(pre.lower), torch.sigmoid(pre.upper))

    def stable(self, pre: Interval) -> Tensor:
        return _s_shaped.stable(pre)

    def envelope(self, pre: Interval, tilt: Tilt) -> Lines:
        lower_slope, lower_bias, upper_slope, upper_bias = _s_shaped.envelope(_halved(pre), tilt)
        assert lower_bias is not None
        return Lines(lower_slope / 4, (1 + lower_bias) / 2, upper_slope / 4, (1 + upper_bias) / 2)

    def outward(self, pre: Interval, lines: Lines) -> Lines:
        return moved_apart(pre, lines, 1.0)

    def chord(self, pre: Interval) -> Tilt:
        return _s_shaped.chord(_halved(pre))

    def minimum_area(self, pre: Interval) -> Tilt:
        return _s_shaped.minimum_area(_halved(pre))


def _halved(pre: Interval) -> Interval:
    return Interval(pre.lower / 2, pre.upper / 2)
