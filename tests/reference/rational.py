"""The degree of a rational function from its values: the AAA algorithm, as in Nakatsukasa, Sète and Trefethen 2018."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def chebyshev(count: int, width: float) -> Array:
    """Points in (-width, width), dense at its ends."""
    return width * np.cos((np.arange(count) + 0.5) * np.pi / count)


def rational_degree(points: Array, found: Array, tolerance: float = 1e-12, most: int = 15) -> int | None:
    """The least m such that a rational function of type (m, m) fits the values up to a share of their range."""
    goal = tolerance * (found.max() - found.min())
    rest, support, fit = np.ones(len(points), dtype=bool), list[int](), np.full_like(found, found.mean())
    for degree in range(most + 1):
        worst = int((np.abs(found - fit) * rest).argmax())
        support.append(worst)
        rest[worst] = False
        cauchy = 1.0 / (points[rest, None] - points[support])
        weights = np.linalg.svd((found[rest, None] - found[support]) * cauchy)[2][-1]
        fit = found.copy()
        fit[rest] = (cauchy @ (weights * found[support])) / (cauchy @ weights)
        if np.abs(found - fit).max() <= goal:
            return degree
    return None
