"""Facts shared by the convex functions of two lines, f(x) = x for x >= 0 and a x below, 0 <= a <= 1.

On an interval l < 0 < u every line of slope a + t (1 - a) through 0 lies below f, and every line through (u, u) with at
most the slope c of the chord lies above it. Elsewhere f is one line. A bound that is NaN is neither side: it counts as
crossing and makes the lines NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tightrope.core.bounds import Interval, Lines
from tightrope.core.op import Tilt


def stable(pre: Interval) -> Tensor:
    ordered = ~(pre.lower + pre.upper).isnan()
    return ((pre.lower >= 0) | (pre.upper <= 0)) & ordered


def _width(pre: Interval, fixed: Tensor) -> Tensor:
    """u - l where the interval crosses 0, and 1 elsewhere, so that no gradient is NaN behind a ``where``."""
    return torch.where(fixed, 1.0, pre.upper - pre.lower)


def envelope(pre: Interval, tilt: Tilt, a: float) -> Lines:
    fixed = stable(pre)
    width = _width(pre, fixed)
    line = torch.where(pre.lower >= 0, torch.ones_like(width), a)  # f itself, where it is one line
    # Term by term instead of (u - a l) / (u - l) and u - slope u: no overflow, no cancellation.
    chord = pre.upper / width - a * (pre.lower / width)
    complement = (a - 1.0) * (pre.lower / width)  # 1 - chord
    lower_slope = torch.where(fixed, line, a + tilt.lower * (1.0 - a))
    upper_slope = torch.where(fixed, line, tilt.upper * chord)
    upper_bias = torch.where(fixed, 0.0, pre.upper * ((1.0 - tilt.upper) + tilt.upper * complement))
    return Lines(lower_slope, None, upper_slope, upper_bias)


def chord(pre: Interval) -> Tilt:
    """The tilt u / (u - l): a + t (1 - a) is then the slope of the chord, for every a."""
    fixed = stable(pre)
    lower = torch.where(fixed, 0.0, pre.upper / _width(pre, fixed))
    return Tilt(lower, torch.ones_like(lower))


def minimum_area(pre: Interval) -> Tilt:
    """Lower line: the steep one where u >= -l, else the flat one (CROWN, DeepPoly). Upper line: the chord."""
    steep = (pre.upper >= -pre.lower).to(pre.lower.dtype)
    return Tilt(steep, torch.ones_like(steep))
