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
from tightrope.core.rounding import moved_apart


def stable(pre: Interval) -> Tensor:
    ordered = ~(pre.lower + pre.upper).isnan()
    return ((pre.lower >= 0) | (pre.upper <= 0)) & ordered


def envelope(pre: Interval, tilt: Tilt, a: float) -> Lines:
    up, rest, share = _shares(pre)
    lower, upper = _settled(pre, tilt) if tilt.settled is False else (tilt.lower, tilt.upper)
    chord = share if a == 0.0 else share + a * rest
    upper_bias = up * rest if a == 0.0 else (1.0 - a) * (up * rest)  # u - chord u, without the cancellation
    if upper is not None:
        chord, upper_bias = upper * chord, up * (1.0 - upper) + upper * upper_bias
    return Lines(lower if a == 0.0 else a + (1.0 - a) * lower, None, chord, upper_bias)


def outward(pre: Interval, lines: Lines, a: float) -> Lines:
    """Lines through 0 of a slope in [0, 1] lie below a ReLU however the slope was rounded."""
    return moved_apart(pre, lines, lower=a > 0 or lines.lower_bias is not None)


def _shares(pre: Interval) -> tuple[Tensor, Tensor, Tensor]:
    """max(u, 0), and the shares of the interval's length outside 0 that lie below and above 0.

    Where f is one line one share is exactly 0 and the other exactly 1, so that chords need no case distinction (which
    costs a CPU as much as twenty multiplications).
    """
    up, down = pre.upper.relu(), (-pre.lower).relu()
    down = down + (up + down == 0).to(down.dtype)  # at the one point 0 f is either line
    length = up + down
    return up, down / length, up / length


def _settled(pre: Interval, tilt: Tilt) -> tuple[Tensor, Tensor | None]:
    """The tilt on crossing intervals; on the others the one that gives f itself."""
    fixed = stable(pre)
    lower = torch.where(fixed, (pre.lower >= 0).to(tilt.lower.dtype), tilt.lower)
    return lower, None if tilt.upper is None else torch.where(fixed, 1.0, tilt.upper)


def chord(pre: Interval) -> Tilt:
    """The tilt u / (u - l): a + t (1 - a) is then the slope of the chord, for every a."""
    return Tilt(_shares(pre)[2], settled=True)


def minimum_area(pre: Interval) -> Tilt:
    """Lower line: the steep one where u >= -l, else the flat one (CROWN, DeepPoly). Upper line: the chord."""
    steep = (pre.upper.relu() >= (-pre.lower).relu()).to(pre.lower.dtype)
    return Tilt(steep, settled=True)


def soft(pre: Interval) -> Tilt:
    """Lower line: flat up to 2 u = -l, steep from u = -2 l, between them linear in the share u / (u - l).

    Exactly flat and steep at the ends, and so continuous where a neuron becomes stable, which a logistic function of
    that share would not be.
    """
    return Tilt((3.0 * _shares(pre)[2] - 1.0).clamp(0.0, 1.0), settled=True)
