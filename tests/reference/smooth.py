"""Lines that bound tanh and sigmoid, found by root finding and by looking at every candidate.

Zhang et al. 2018 (CROWN), section 3.2: on the convex side the chord bounds from above and tangents from below, on the
concave side the other way round; across the inflection at 0 the steepest tangent passes through an end.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq

from reference.network import SShaped


def _roots(gap, low: float, high: float) -> list[float]:
    """The root of a function on an interval where it changes sign, else none."""
    return [brentq(gap, low, high, xtol=1e-15)] if low < high and gap(low) * gap(high) < 0 else []


def extremes(layer: SShaped, slope: float, low: float, high: float) -> tuple[float, float]:
    """The range of f(x) - slope x on [low, high]: its ends, and where the derivative vanishes on either side of 0."""
    parts = [(low, min(high, 0.0)), (max(low, 0.0), high)]
    inner = [x for part in parts for x in _roots(lambda x: layer.derivative(x) - slope, *part)]
    values = [float(layer(np.array(x)) - slope * x) for x in (low, high, *inner)]
    return min(values), max(values)


def chord_slope(layer: SShaped, low: float, high: float) -> float:
    """Of the line through both ends."""
    return float((layer(np.array(high)) - layer(np.array(low))) / (high - low))


def upper_slope(layer: SShaped, low: float, high: float) -> float:
    """The slope of the upper line of least area."""
    chord = chord_slope(layer, low, high)
    if high <= 0.0:
        return chord
    start, middle = 0.0, (low + high) / 2
    if low < 0.0:  # the tangent through the lower end; without one in the interval, the chord

        def gap(x: float) -> float:
            return float(layer.derivative(x) * (x - low) - (layer(np.array(x)) - layer(np.array(low))))

        touching = _roots(gap, 0.0, high)
        if not touching:
            return chord
        start = touching[0]
    return layer.derivative(max(start, middle))


def lower_slope(layer: SShaped, low: float, high: float) -> float:
    """The slope of the lower line of least area: f is symmetric about the point (0, f(0))."""
    return upper_slope(layer, -high, -low)


def slopes(layer: SShaped, low: float, high: float, rule: str) -> tuple[float, float]:
    """Slopes of the lower and the upper line. adaptive: least area; chord: both the chord's; box: both 0."""
    if rule == "box" or high - low < 1e-12:
        return 0.0, 0.0
    if rule == "chord":
        return (chord_slope(layer, low, high),) * 2
    return lower_slope(layer, low, high), upper_slope(layer, low, high)
