"""Confidence intervals of a share, of a mean difference, and of the difference of two shares of the same images."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

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
    special = importlib.import_module("scipy.special")  # slow to import, and every command reads this file
    half = float(special.stdtrit(count - 1, 0.5 + confidence / 2)) * stdev(differences) / math.sqrt(count)
    centre = fmean(differences)
    return centre - half, centre + half


def matched(only_first: int, only_second: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of Agresti and Min for the difference of two shares that were counted on the same trials.

    Wald's interval of the difference, once half a trial is added to each cell of the two-by-two table. Trials on which
    both agree cancel, so that it is much narrower than the difference of two separate intervals.

    Args:
        only_first: trials that only the first has succeeded in.
        only_second: those of the second.
        count: all trials, at least 1.
        confidence: in (0, 1).

    Returns:
        Ends of the first share minus the second, in [-1, 1].

    Raises:
        InputError: numbers out of range.

    Source: Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions".

    Example:
        >>> low, high = matched(12, 3, 100)
        >>> round(low, 4), round(high, 4)
        (0.0133, 0.1632)
    """
    if min(only_first, only_second) < 0 or only_first + only_second > count or count < 1 or not 0 < confidence < 1:
        raise InputError(
            f"A matched interval needs two disjoint parts of at least one trial and 0 < confidence < 1, got "
            f"{only_first}, {only_second}, {count}, {confidence}."
        )
    first, second, total = only_first + 0.5, only_second + 0.5, count + 2.0
    centre = (first - second) / total
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    half = z * math.sqrt(first + second - (first - second) ** 2 / total) / total
    return max(-1.0, centre - half), min(1.0, centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test: two shares of the same trials are equal.

    Of the trials on which the two differ each is as likely to go either way, so that the p-value is the binomial
    probability of a split at least as uneven.

    Args:
        only_first, only_second: trials that only one of them has succeeded in.

    Raises:
        InputError: a negative number.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions"; the exact form.

    Example:
        >>> mcnemar(5, 5), mcnemar(6, 0)
        (1.0, 0.03125)
    """
    if min(only_first, only_second) < 0:
        raise InputError(f"McNemar's test needs counts of trials, got {only_first} and {only_second}.")
    trials, tail, ways = only_first + only_second, 0, 1
    for fewer in range(min(only_first, only_second) + 1):
        tail += ways
        ways = ways * (trials - fewer) // (fewer + 1)
    p: float = 2 * tail / 2**trials
    return min(1.0, p)
