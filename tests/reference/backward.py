"""Back-substitution (CROWN, DeepPoly), one row and one neuron at a time.

Zhang et al. 2018, "Efficient neural network robustness certification with general activation functions";
Singh et al. 2019, "An abstract domain for certifying neural networks"; Zhang et al. 2020, "Towards stable and
efficient training of verifiably robust neural networks" (CROWN-IBP).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from reference import smooth
from reference.interval import ibp
from reference.network import INPUT, Add, Affine, Array, Bounds, Net, PreBounds, SShaped, offsets, sizes

Rule = str | Mapping[str, Array]  # a named rule, or the lower slope of every neuron of every activation node


class Lines(NamedTuple):
    """lower_slope x + lower_constant <= activation(x) <= upper_slope x + upper_constant on an interval."""

    lower_slope: float
    lower_constant: float
    upper_slope: float
    upper_constant: float


def lines(slope: float, low: float, high: float, rule: str | float) -> Lines:
    """The two lines of x -> max(x, slope x) on [low, high]; a number as rule is the lower slope if crossing.

    Crossing neurons have the chord as upper line. The lower line goes through 0 with slope
    adaptive: ``slope`` if high < -low else 1;  zero: ``slope``;  one: 1;  chord: the chord's (so DeepZ);
    soft: from ``slope`` at high = -low / 2 to 1 at high = -2 low.
    Rule "box" is the pair of constants [slope low, high] (hBox).
    """
    if low >= 0.0:
        return Lines(1.0, 0.0, 1.0, 0.0)
    if high <= 0.0:
        return Lines(slope, 0.0, slope, 0.0)
    if rule == "box":
        return Lines(0.0, slope * low, 0.0, high)
    chord = (high - slope * low) / (high - low)
    if isinstance(rule, str):
        share = min(max(3.0 * high / (high - low) - 1.0, 0.0), 1.0)
        named = {"adaptive": slope if high < -low else 1.0, "zero": slope, "one": 1.0, "chord": chord}
        named["soft"] = (1.0 - share) * slope + share
        rule = named[rule]
    return Lines(rule, 0.0, chord, high - chord * high)


def smooth_lines(layer: SShaped, low: float, high: float, rule: str) -> Lines:
    """The two lines of an S-shaped function of the slopes that the rule asks for."""
    below, above = smooth.slopes(layer, low, high, rule)
    return Lines(below, smooth.extremes(layer, below, low, high)[0], above, smooth.extremes(layer, above, low, high)[1])


def _substitute(
    net: Net, lower: Array, upper: Array, pre: PreBounds, row: Array, constant: float, at: str, rule: Rule
) -> float:
    """Lower bound of row . node(at) + constant, rewritten over earlier nodes until only the input is left."""
    pending = {at: row}

    def push(name: str, coefficient: Array) -> None:
        pending[name] = pending[name] + coefficient if name in pending else coefficient

    for name, layer, inputs in reversed(net.nodes):
        if name not in pending:
            continue
        coefficient = pending.pop(name)
        if isinstance(layer, Affine):
            constant += float(coefficient @ layer.bias)
            push(inputs[0], coefficient @ layer.weight)
        elif isinstance(layer, Add):
            push(inputs[0], coefficient)
            push(inputs[1], coefficient)
        else:
            earlier = np.zeros_like(coefficient)
            for i, a in enumerate(coefficient):
                choice = rule if isinstance(rule, str) else float(rule[name][i])
                low, high = pre[name][0][i], pre[name][1][i]
                smooth_layer = isinstance(layer, SShaped)
                line = smooth_lines(layer, low, high, choice) if smooth_layer else lines(layer.slope, low, high, choice)
                earlier[i] = a * (line.lower_slope if a >= 0.0 else line.upper_slope)
                constant += a * (line.lower_constant if a >= 0.0 else line.upper_constant)
            push(inputs[0], earlier)
    for a, low, high in zip(pending[INPUT], lower, upper, strict=True):
        constant += a * (low if a >= 0.0 else high)
    return float(constant)


def lower_bounds(
    net: Net,
    lower: Array,
    upper: Array,
    pre: PreBounds,
    rows: Array,
    offset: Array | None = None,
    at: str | None = None,
    rule: Rule = "adaptive",
) -> Array:
    """Lower bound of each entry of rows @ node(at) + offset, given pre-activation bounds; at: the output."""
    node, constants = net.output if at is None else at, offsets(rows, offset)
    pairs = zip(np.asarray(rows, dtype=np.float64), constants, strict=True)
    return np.array([_substitute(net, lower, upper, pre, row, c, node, rule) for row, c in pairs])


def deeppoly(
    net: Net, lower: Array, upper: Array, rows: Array, offset: Array | None = None, rule: Rule = "adaptive"
) -> Bounds:
    """Bounds before every activation by back-substitution to the input, then the margins the same way."""
    size = sizes(net, len(lower))
    pre: dict[str, tuple[Array, Array]] = {}
    for name, layer, inputs in net.nodes:
        if not isinstance(layer, Affine | Add):
            identity = np.eye(size[inputs[0]])
            low = lower_bounds(net, lower, upper, pre, identity, at=inputs[0], rule=rule)
            high = -lower_bounds(net, lower, upper, pre, -identity, at=inputs[0], rule=rule)
            pre[name] = (low, high)
    return Bounds(pre, lower_bounds(net, lower, upper, pre, rows, offset, rule=rule))


def crown_ibp(
    net: Net, lower: Array, upper: Array, rows: Array, offset: Array | None = None, rule: Rule = "adaptive"
) -> Bounds:
    """Bounds before every activation from IBP; only the margins are back-substituted."""
    pre = ibp(net, lower, upper, rows, offset).pre
    return Bounds(pre, lower_bounds(net, lower, upper, pre, rows, offset, rule=rule))
