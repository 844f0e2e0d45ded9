"""Networks in exact rational arithmetic: what floating point can only come close to.

Matrices are NumPy arrays of ``fractions.Fraction``. A network is a list of nodes as in :mod:`reference.network`; square
roots are taken to 100 digits, which is exact next to any floating point number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import isqrt
from typing import Any, NamedTuple

import numpy as np

from reference.network import INPUT, Add, Affine, LeakyRelu, Net, Node, Relu

Rationals = Any  # an array of Fractions
_DIGITS = 10**100


class Lines(NamedTuple):
    """slope * x + bias below and above, one pair a neuron."""

    lower_slope: Rationals
    lower_bias: Rationals
    upper_slope: Rationals
    upper_bias: Rationals


def rational(values: Any) -> Rationals:
    """Floating point numbers as the rationals that they are."""
    return np.vectorize(Fraction, otypes=[object])(np.asarray(values))


def root(value: Fraction) -> Fraction:
    """The square root, to 100 digits."""
    return Fraction(isqrt(value.numerator * _DIGITS**2 // value.denominator), _DIGITS)


def affine(layer: Affine) -> Affine:
    """A layer whose entries are stored numbers."""
    return Affine(rational(layer.weight), rational(layer.bias))


def batchnorm(weight: Any, bias: Any, mean: Any, var: Any, eps: float, repeats: int) -> Affine:
    """Evaluation mode, every channel ``repeats`` times."""
    scale = [w / root(v + Fraction(eps)) for w, v in zip(rational(weight), rational(var), strict=True)]
    shift = [b - m * s for b, m, s in zip(rational(bias), rational(mean), scale, strict=True)]
    return diagonal([s for s in scale for _ in range(repeats)], [s for s in shift for _ in range(repeats)])


def diagonal(scale: Sequence[Fraction], shift: Sequence[Fraction]) -> Affine:
    """Every entry by itself."""
    matrix = rational(np.zeros((len(scale), len(scale))))
    for i, value in enumerate(scale):
        matrix[i, i] = value
    return Affine(matrix, np.array(shift, dtype=object))


def exact(net: Net) -> Net:
    """A network of stored numbers."""
    nodes = [Node(n, affine(layer) if isinstance(layer, Affine) else layer, i) for n, layer, i in net.nodes]
    return Net(tuple(nodes))


def evaluate(net: Net, x: Rationals) -> dict[str, Rationals]:
    """The value of every node at one input."""
    values = {INPUT: x}
    for name, layer, inputs in net.nodes:
        first = values[inputs[0]]
        if isinstance(layer, Affine):
            values[name] = layer.weight @ first + layer.bias
        elif isinstance(layer, Add):
            values[name] = first + values[inputs[1]]
        else:
            assert isinstance(layer, Relu | LeakyRelu)
            values[name] = np.maximum(first, Fraction(layer.slope) * first)
    return values


def certificate(
    net: Net, lines: Mapping[str, Lines], lower: Rationals, upper: Rationals, rows: Mapping[str, Rationals]
) -> Fraction:
    """Lower bound of the sum over nodes of row . node, by back-substitution to the input with these lines."""
    constant, pending = Fraction(0), dict(rows)
    for name, layer, inputs in reversed(net.nodes):
        if name not in pending:
            continue
        coef = pending.pop(name)
        if isinstance(layer, Affine):
            constant += coef @ layer.bias
            parts = [coef @ layer.weight]
        elif isinstance(layer, Add):
            parts = [coef, coef]
        else:
            below, above, line = np.maximum(coef, 0), np.minimum(coef, 0), lines[name]
            constant += below @ line.lower_bias + above @ line.upper_bias
            parts = [below * line.lower_slope + above * line.upper_slope]
        for source, part in zip(inputs, parts, strict=True):
            pending[source] = pending[source] + part if source in pending else part
    row = pending[INPUT]
    return constant + np.maximum(row, 0) @ lower + np.minimum(row, 0) @ upper
