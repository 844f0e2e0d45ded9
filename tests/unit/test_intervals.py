"""Intervals of shares: their defining equations, their ends, published values, how often they hold the truth."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial

from tightrope.errors import InputError
from tightrope.records.intervals import matched, mcnemar, wilson

counts = st.integers(1, 20000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count)))


@given(counts, st.floats(0.5, 0.999))
def test_both_ends_solve_the_score_equation(pair: tuple[int, int], confidence: float) -> None:
    """|p_hat - p| = z sqrt(p (1 - p) / n) at both ends, except those cut off at 0 and 1."""
    successes, count = pair
    z, share = NormalDist().inv_cdf(0.5 + confidence / 2), successes / count
    low, high = wilson(successes, count, confidence)
    assert 0.0 <= low <= share <= high <= 1.0
    for end in (low, high):
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count), rel=1e-6, abs=1e-9)


@given(counts)
def test_failures_are_the_mirror_image(pair: tuple[int, int]) -> None:
    low, high = wilson(*pair)
    mirrored = wilson(pair[1] - pair[0], pair[1])
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_published_values() -> None:
    """Newcombe 1998, table I, method 3."""
    for successes, count, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)]:
        assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_the_ends_are_exact() -> None:
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0


def test_more_images_make_it_narrower() -> None:
    widths = [high - low for low, high in (wilson(count // 2, count) for count in (2, 10, 100, 10000))]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    ("successes", "count", "confidence"), [(1, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 0.0), (1, 5, 1.0)]
)
def test_nonsense_is_refused(successes: int, count: int, confidence: float) -> None:
    with pytest.raises(InputError):
        wilson(successes, count, confidence)


# ------------------------------------------------------------------------------------------------ matched shares

tables = st.integers(1, 500).flatmap(
    lambda count: st.integers(0, count).flatmap(
        lambda first: st.tuples(st.just(first), st.integers(0, count - first), st.just(count))
    )
)


@given(tables)
def test_exchanging_the_two_changes_the_sign(table: tuple[int, int, int]) -> None:
    first, second, count = table
    low, high = matched(first, second, count)
    assert matched(second, first, count) == pytest.approx((-high, -low), abs=1e-12)
    assert -1.0 <= low < high <= 1.0
    assert mcnemar(first, second) == mcnemar(second, first)


@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.3, 0.1), (0.05, 0.0), (0.4, 0.4), (0.02, 0.1)])
@pytest.mark.parametrize("count", [20, 60])
def test_the_matched_interval_holds_the_truth_as_often_as_it_says(shares: tuple[float, float], count: int) -> None:
    """The exact probability, summed over all tables: at least 95 % but for 2 points, the interval being approximate."""
    law = multinomial(count, [*shares, 1 - sum(shares)])
    covered = 0.0
    for first in range(count + 1):
        for second in range(count + 1 - first):
            low, high = matched(first, second, count)
            if low <= shares[0] - shares[1] <= high:
                covered += float(law.pmf([first, second, count - first - second]))
    assert covered >= 0.93


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("table", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_tables_are_refused(table: tuple[int, int, int]) -> None:
    with pytest.raises(InputError):
        matched(*table)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(InputError):
        mcnemar(-1, 2)
