"""A network in exact rational arithmetic: what is true of the stored weights, without any rounding.

Piecewise linear networks only. Slow, for points and for ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from reference.network import INPUT, Add, Affine, Array, Net, SShaped

Vector = list[Fraction]


def exact(values: Array) -> Vector:
    """The numbers that floating point values are."""
    return [Fraction(float(value)) for value in values]


def affine(weight: Array, bias: Array, x: Vector) -> Vector:
    """weight @ x + bias."""
    return [
        sum((w * value for w, value in zip(exact(row), x, strict=True) if w), Fraction(float(constant)))
        for row, constant in zip(weight, bias, strict=True)
    ]


def output(net: Net, x: Vector) -> Vector:
    """f(x)."""
    values = {INPUT: x}
    for name, layer, inputs in net.nodes:
        first = values[inputs[0]]
        if isinstance(layer, Affine):
            values[name] = affine(layer.weight, layer.bias, first)
        elif isinstance(layer, Add):
            values[name] = [a + b for a, b in zip(first, values[inputs[1]], strict=True)]
        elif isinstance(layer, SShaped):
            raise NotImplementedError("an S-shaped function has no exact value")
        else:
            slope = Fraction(layer.slope)
            values[name] = [max(value, slope * value) for value in first]
    return values[net.output]


def margin(net: Net, x: Vector, matrix: Array, offset: Array, clause: Sequence[int]) -> Fraction:
    """min over clauses of max over rows at x."""
    rows = affine(matrix, offset, output(net, x))
    return min(max(value for value, owner in zip(rows, clause, strict=True) if owner == c) for c in set(clause))


def solve(matrix: list[Vector], vector: Vector) -> Vector | None:
    """x with matrix @ x = vector, or None if the square matrix is singular: Gauss-Jordan elimination."""
    rows = [[*row, value] for row, value in zip(matrix, vector, strict=True)]
    for i in range(len(rows)):
        pivot = next((r for r in range(i, len(rows)) if rows[r][i] != 0), None)
        if pivot is None:
            return None
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for r in range(len(rows)):
            if r != i and rows[r][i] != 0:
                factor = rows[r][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [row[-1] for row in rows]
