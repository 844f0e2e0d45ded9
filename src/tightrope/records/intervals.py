"""Confidence intervals of a share, and of a mean difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from scipy import stats

from tightrope.errors import InputError


def wilson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a success probability: all p with ``|p_hat - p| <= z sqrt(p (1 - p) / n)``.

    Args:
        successes: 0 .. count.
        count: independent trials, at least 1.
        confidence: in (0, 1).

    Returns:
        Lower and upper end, in [0, 1]; exactly 0 for no success and exactly 1 for nothing but successes.

    Raises:
        InputError: numbers out of range.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Example:
        >>> low, high = wilson(8, 10)
        >>> round(low, 4), round(high, 4)
        (0.4902, 0.9433)
    """
    if not 0 <= successes <= count or count < 1 or not 0.0 < confidence < 1.0:
        raise InputError(
            f"An interval needs 0 <= successes <= count, count >= 1 and 0 < confidence < 1, got {successes}, {count}, "
            f"{confidence}."
        )
    z, share = NormalDist().inv_cdf(0.5 + confidence / 2), successes / count
    scale = 1.0 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1.0 - share) / count + z * z / (4.0 * count * count))
    # At the ends the formula gives 0 and 1 exactly; floating point does not.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == count else min(1.0, centre + half)


def paired(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of paired differences, one a seed.

    Args:
        differences: at least one; with a single one nothing is known, and the interval is everything.
        confidence: in (0, 1).

    Raises:
        InputError: no differences, or a confidence out of range.

    Source: Student 1908, "The probable error of a mean".

    Example:
        >>> low, high = paired([1.0, 2.0, 3.0])
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    count = len(differences)
    if count == 0 or not 0.0 < confidence < 1.0:
        raise InputError(f"An interval needs differences and 0 < confidence < 1, got {count} and {confidence}.")
    if count == 1:
        return -math.inf, math.inf
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * stdev(differences) / math.sqrt(count)
    centre = fmean(differences)
    return centre - half, centre + half
