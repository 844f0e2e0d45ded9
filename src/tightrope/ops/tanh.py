"""The hyperbolic tangent, and lines that bound it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tightrope.core.bounds import Interval, Lines, Params, Shape
from tightrope.core.op import ElementwiseOp, Tilt
from tightrope.core.rounding import FUNCTION_ERROR, largest, moved_apart
from tightrope.ops import _s_shaped


@dataclass(frozen=True)
class Tanh(ElementwiseOp):
    """tanh(x). Lines are tangents where it bends away from them, and chords where it bends towards them.

    Source: Zhang et al. 2018 (CROWN, arXiv 1811.00866), table 2; Singh et al. 2019 (POPL), section 4.
    """

    modules = (nn.Tanh,)
    roundings = FUNCTION_ERROR

    @classmethod
    def from_module(cls, module: nn.Tanh, path: str, shape: Shape) -> Tanh:
        return cls()

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [(nn.Tanh(), (6,)), (nn.Tanh(), (2, 3, 3))]

    def forward(self, params: Params, *inputs: Tensor) -> Tensor:
        return inputs[0].tanh()

    def interval(self, pre: Interval) -> Interval:
        return Interval(torch.tanh(pre.lower), torch.tanh(pre.upper))

    def stable(self, pre: Interval) -> Tensor:
        return _s_shaped.stable(pre)

    def envelope(self, pre: Interval, tilt: Tilt) -> Lines:
        return _s_shaped.envelope(pre, tilt)

    def outward(self, pre: Interval, lines: Lines) -> Lines:
        return moved_apart(pre, lines, torch.tanh(largest(pre)))

    def chord(self, pre: Interval) -> Tilt:
        return _s_shaped.chord(pre)

    def minimum_area(self, pre: Interval) -> Tilt:
        return _s_shaped.minimum_area(pre)
