"""Which lines stand in for a non-linear op: rules from an op's facts and its pre-activation bounds to lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from tightrope.core.bounds import Interval, Lines
from tightrope.core.op import ElementwiseOp
from tightrope.errors import UnknownNameError

Rule = Callable[[ElementwiseOp, Interval], Lines]
Slope = Literal["adaptive", "soft", "parallel", "zero"]


def adaptive(op: ElementwiseOp, pre: Interval) -> Lines:
    """Each line of least area (CROWN, DeepPoly): jumps where the two areas are equal."""
    return op.envelope(pre, op.minimum_area(pre))


def soft(op: ElementwiseOp, pre: Interval) -> Lines:
    """As ``adaptive`` but continuous: between the two lines where their areas are close."""
    return op.envelope(pre, op.soft(pre))


def parallel(op: ElementwiseOp, pre: Interval) -> Lines:
    """Both lines with the slope of the chord (DeepZ, Fast-Lin)."""
    return op.envelope(pre, op.chord(pre))


def zero(op: ElementwiseOp, pre: Interval) -> Lines:
    """The flattest lower line and the chord."""
    return op.envelope(pre, op.zero(pre))


def constant(op: ElementwiseOp, pre: Interval) -> Lines:
    """The op itself where it is one line, else the constants of its range (hBox): jumps where that changes."""
    exact, post, stable = op.envelope(pre, op.zero(pre)), op.interval(pre), op.stable(pre)
    slope = torch.where(stable, exact.lower_slope, 0.0)
    exact_lower = 0.0 if exact.lower_bias is None else exact.lower_bias
    lower_bias = torch.where(stable, exact_lower, post.lower)
    return Lines(slope, lower_bias, slope, torch.where(stable, exact.upper_bias, post.upper))


LOWER: dict[Slope, Rule] = {"adaptive": adaptive, "soft": soft, "parallel": parallel, "zero": zero}

CONTINUOUS: frozenset[Slope] = frozenset({"soft", "parallel"})
"""The rules whose lines do not jump, also where a neuron becomes stable."""


def check_slope(slope: str) -> None:
    """Refuse an unknown rule by name."""
    if slope not in LOWER:
        raise UnknownNameError("slope", slope, LOWER)
