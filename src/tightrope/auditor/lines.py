"""Lines that bound an activation on an interval.

A line is found in two steps. Which *slope* is useful may be guessed in any way; the *offset* that makes a line of that
slope valid is then bounded rigorously, rounding included. Nothing rests on the first step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tightrope.auditor.graph import Activation, Array

Mask = npt.NDArray[np.bool_]

UNIT = 2.0**-53
_ULPS = 16 * UNIT
"""Relative error that NumPy's tanh and a few roundings after it stay far below (tanh: 4 units in the last place)."""
_TINY = 1e-300
_STEPS = 60


class Interval(NamedTuple):
    """Ends of the entries of a value, each (entries,) or (leaves, entries)."""

    lower: Array
    upper: Array


class Lines(NamedTuple):
    """``slope x + offset`` below and above the activation."""

    lower_slope: Array
    lower_offset: Array
    upper_slope: Array
    upper_offset: Array


def lines(op: Activation, pre: Interval, rule: str, tilt: Array | None = None) -> Lines:
    """Valid lines on the interval.

    Args:
        op: the activation.
        pre: the interval; where it is empty (lower > upper) anything is valid.
        rule: of the slopes: ``adaptive``, ``soft``, ``zero``, ``parallel`` or ``constant``.
        tilt: in [0, 1], of the lower slope instead, from the flattest useful one to the steepest; NaN: by the rule.
    """
    pre = Interval(*(np.asarray(end, dtype=np.float64) for end in pre))
    mirrored = Interval(-pre.upper, -pre.lower)
    if op.function == "relu":
        below, above = _relu_slopes(op.slope, pre, rule, tilt)
        return Lines(below, _relu_below(op.slope, pre, below), above, _relu_above(op.slope, pre, above))
    if op.function == "sigmoid":  # (1 + tanh(x / 2)) / 2
        half = lines(Activation("tanh"), Interval(pre.lower / 2, pre.upper / 2), rule, tilt)
        offsets = ((1 + offset) / 2 for offset in (half.lower_offset, half.upper_offset))
        low, high = (
            offset + sign * _ULPS * (1 + np.abs(offset)) for offset, sign in zip(offsets, (-1, 1), strict=True)
        )
        return Lines(half.lower_slope / 4, low, half.upper_slope / 4, high)
    below, above = _tanh_slopes(mirrored, rule, tilt, lower=True), _tanh_slopes(pre, rule, None, lower=False)
    return Lines(below, -_tanh_above(mirrored, below), above, _tanh_above(pre, above))


def one_line(op: Activation, pre: Interval) -> Mask:
    """Where the activation is a single line on a finite interval, or as good as."""
    if op.function != "relu":
        return np.zeros(pre.lower.shape, dtype=bool)
    positive, negative = _sides(pre)
    return (positive | negative) & np.isfinite(pre.upper - pre.lower)


def image(op: Activation, pre: Interval) -> Interval:
    """A range that the activation stays in; all of them grow with their argument."""
    lower, upper = (_value(op, end) for end in pre)
    if op == Activation("relu"):
        return Interval(lower, upper)
    size = 1.0 if op.function == "sigmoid" else 0.0
    low, high = (_ULPS * np.maximum(np.abs(end), size) + _TINY for end in (lower, upper))
    return Interval(lower - low, upper + high)


def _value(op: Activation, x: Array) -> Array:
    if op.function == "relu":
        return np.maximum(x, op.slope * x)
    return np.tanh(x) if op.function == "tanh" else 0.5 + 0.5 * np.tanh(x / 2)


# ------------------------------------------------------------------------------- max(x, a x), 0 <= a <= 1: convex


def _relu_slopes(a: float, pre: Interval, rule: str, tilt: Array | None) -> tuple[Array, Array]:
    lower, upper = pre
    width = upper - lower
    share = np.divide(upper, width, out=np.zeros_like(width), where=width > 0)
    chord = a + (1 - a) * share
    steep = upper * (1 + 1e-9) >= -lower  # a tie, however it was rounded, is taken as steep
    chosen = {"adaptive": np.where(steep, 1.0, a), "zero": np.full_like(width, a), "parallel": chord}
    chosen["soft"] = a + (1 - a) * np.clip(3 * share - 1, 0.0, 1.0)
    chosen["constant"] = np.zeros_like(width)
    below, above = chosen[rule], np.zeros_like(width) if rule == "constant" else chord
    if tilt is not None:
        below = np.where(np.isnan(tilt), below, a + (1 - a) * tilt)
    positive, negative = _sides(pre)
    below, above = (np.where(positive, 1.0, np.where(negative, a, slope)) for slope in (below, above))
    return np.clip(below, 0.0, 1.0), np.clip(above, 0.0, 1.0)


def _sides(pre: Interval) -> tuple[Mask, Mask]:
    """Where an interval lies above 0, and where below, as good as: by rounding alone an end may lie beyond 0."""
    near = 1e-12 * np.maximum(np.abs(pre.lower), np.abs(pre.upper))
    return pre.lower >= -near, pre.upper <= near


def _relu_below(a: float, pre: Interval, slope: Array) -> Array:
    """The least of f(x) - s x: at 0, if it is inside and a <= s <= 1; else at an end."""
    lower, upper = pre
    ends = [np.where(x >= 0, x * (1 - slope), x * (a - slope)) for x in (lower, upper)]
    middle = np.clip(0.0, lower, upper)
    ends.append(np.where(middle >= 0, middle * (1 - slope), middle * (a - slope)))
    least: Array = np.minimum.reduce(ends)
    rounded: Array = least - _ULPS * np.abs(least) - _TINY * (least != 0)
    return rounded


def _relu_above(a: float, pre: Interval, slope: Array) -> Array:
    """The largest of f(x) - s x, of a convex function: at an end."""
    ends = [np.where(x >= 0, x * (1 - slope), x * (a - slope)) for x in pre]
    most: Array = np.maximum(*ends)
    rounded: Array = most + _ULPS * np.abs(most) + _TINY * (most != 0)
    return rounded


# --------------------------------------------------------------- tanh: odd, convex left of 0, concave right of it


def _tanh_slopes(pre: Interval, rule: str, tilt: Array | None, *, lower: bool) -> Array:
    """Slopes of upper lines; lower lines of f are the upper ones on the mirrored interval, as f(-x) = -f(x)."""
    flattest, steepest = _useful(pre)
    middle = 0.5 * (pre.lower + pre.upper)
    least_area = np.clip(_derivative(np.maximum(middle, 0.0)), flattest, steepest)
    chosen = {
        "adaptive": least_area,
        "soft": least_area,
        "zero": flattest if lower else least_area,
        "parallel": np.clip(_chord(pre.lower, pre.upper), flattest, steepest),
        "constant": np.zeros_like(middle),
    }[rule]
    if tilt is not None:
        chosen = np.where(np.isnan(tilt), chosen, flattest + tilt * (steepest - flattest))
    return np.clip(chosen, 0.0, 1.0)


def _useful(pre: Interval) -> tuple[Array, Array]:
    """From the slope at the upper end to that of the line through the lower end that touches the concave side."""
    inside, outside = np.zeros_like(pre.lower), np.maximum(-2 * pre.lower, 0.0) + 1.0
    for _ in range(_STEPS):  # the chord from the lower end grows steeper until it touches
        middle = 0.5 * (inside + outside)
        rising = _derivative(middle) > _chord(np.minimum(pre.lower, 0.0), middle)
        inside, outside = np.where(rising, middle, inside), np.where(rising, outside, middle)
    touching = np.maximum(np.where(pre.lower < 0, inside, 0.0), pre.lower)
    steepest = _chord(pre.lower, np.minimum(touching, pre.upper))
    flattest = np.minimum(_derivative(pre.upper), _chord(pre.lower, pre.upper))
    return np.minimum(flattest, steepest), steepest


def _derivative(x: Array) -> Array:
    return 1.0 - np.tanh(x) ** 2


def _chord(x: Array, y: Array) -> Array:
    """Slope between two points of tanh, by its addition theorem."""
    gap = y - x
    near = np.abs(gap) < 1e-4
    ratio = np.where(near, 1.0 - gap * gap / 3.0, np.tanh(gap) / np.where(near, 1.0, gap))
    return ratio * (1.0 - np.tanh(x) * np.tanh(y))


def _tanh_above(pre: Interval, slope: Array) -> Array:
    """An upper bound of g(x) = tanh(x) - s x on the interval, for any s in [0, 1].

    Left of 0 g is convex: an end or 0 is largest. Right of 0 it is concave and stays below its tangent at any y, here
    near where g'(y) = 0: g(y) + |g'(y)| times the length of that part.
    """
    first, last = np.maximum(pre.lower, 0.0), np.maximum(pre.upper, 0.0)
    safe = np.clip(slope, 1e-300, 1.0)
    y = np.clip(np.arctanh(np.sqrt(np.maximum(1.0 - safe, 0.0)).clip(max=1.0 - UNIT)), first, np.maximum(first, last))
    steepness = np.abs(_derivative(y) - slope) + 4 * _ULPS
    # At an end of the concave part g is monotone on it if it points outwards there, and y itself is the largest.
    outwards = ((y == first) & (_derivative(y) + 4 * _ULPS < slope)) | (
        (y == last) & (_derivative(y) - 4 * _ULPS > slope)
    )
    top = _g(y, slope) + np.where(outwards, 0.0, steepness * (last - first) * (1 + _ULPS))
    ends = np.maximum(_g(pre.lower, slope), _g(pre.upper, slope))
    return np.where(pre.upper > 0, np.maximum(top, ends), ends)


def _g(x: Array, slope: Array) -> Array:
    """tanh(x) - s x, rounded upwards."""
    value, product = np.tanh(x), slope * x
    return value - product + _ULPS * (np.abs(value) + np.abs(product)) + _TINY
