"""Points of a box, and a derivative-free search for small values; what it finds refutes any larger bound."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from reference.network import Array, Net, output


def corners(lower: Array, upper: Array, rng: np.random.Generator, limit: int = 1024) -> Array:
    """All 2^d corners of the box if there are at most ``limit``, else that many random ones."""
    lower, upper = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
    if 2 ** len(lower) <= limit:
        return np.array(list(product(*zip(lower, upper, strict=True)))).reshape(-1, len(lower))
    return np.where(rng.integers(0, 2, (limit, len(lower))) == 1, upper, lower)


def random_points(lower: Array, upper: Array, count: int, rng: np.random.Generator) -> Array:
    """Uniform points of the box."""
    points = np.asarray(lower) + rng.random((count, len(lower))) * (np.asarray(upper) - lower)
    return np.clip(points, lower, upper)  # rounding must not leave the box


def coordinate_search(
    function: Callable[[Array], float], start: Array, lower: Array, upper: Array, sweeps: int = 12
) -> tuple[float, Array]:
    """Move one coordinate at a time, to an end of the box or by a step that halves after a barren sweep."""
    point, value = np.array(start, dtype=np.float64), function(start)
    step = (np.asarray(upper) - lower) / 2.0
    for _ in range(sweeps):
        improved = False
        for i in range(len(point)):
            for target in (lower[i], upper[i], point[i] - step[i], point[i] + step[i]):
                trial = point.copy()
                trial[i] = np.clip(target, lower[i], upper[i])
                if (found := function(trial)) < value:
                    point, value, improved = trial, found, True
        if not improved:
            step = step / 2.0
    return value, point


def sampled_min(
    net: Net,
    lower: Array,
    upper: Array,
    row: Array,
    offset: float = 0.0,
    *,
    rng: np.random.Generator,
    points: int = 500,
    restarts: int = 3,
) -> tuple[float, Array]:
    """The smallest row . f(x) + offset seen, and its x: corners, random points, searches from the best."""
    candidates = np.concatenate([corners(lower, upper, rng), random_points(lower, upper, points, rng)])
    values = output(net, candidates) @ row + offset
    best = candidates[np.argsort(values)[:restarts]]
    found = [coordinate_search(lambda x: float(output(net, x) @ row + offset), x, lower, upper) for x in best]
    return min(found, key=lambda pair: pair[0])
