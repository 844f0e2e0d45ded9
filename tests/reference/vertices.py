"""Margins of properties and vertices of polytopes in exact rational arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from reference.exact_arithmetic import Rationals, evaluate, exact, rational
from reference.network import Net


def margin(net: Net, x: Rationals, matrix: Any, offset: Any, clause: Sequence[int]) -> Fraction:
    """min over clauses of max over rows at x."""
    rows = rational(matrix) @ evaluate(exact(net), x)[net.output] + rational(offset)
    return min(max(value for value, owner in zip(rows, clause, strict=True) if owner == c) for c in set(clause))


def solve(matrix: Rationals, vector: Rationals) -> Rationals | None:
    """x with matrix @ x = vector, or None if the square matrix is singular: Gauss-Jordan elimination."""
    rows = np.hstack([matrix, vector[:, None]])
    for i in range(len(rows)):
        pivot = next((r for r in range(i, len(rows)) if rows[r, i] != 0), None)
        if pivot is None:
            return None
        rows[[i, pivot]] = rows[[pivot, i]]
        rows[i] = rows[i] / rows[i, i]
        for r in range(len(rows)):
            if r != i:
                rows[r] = rows[r] - rows[r, i] * rows[i]
    return rows[:, -1]
