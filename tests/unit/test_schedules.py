"""Schedules: end points, monotony, the smooth ramp's joint."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.errors import InputError
from tightrope.schedules import Constant, Join, Linear, Piecewise, Smooth

spans = st.tuples(st.floats(-1e3, 1e3), st.floats(1e-1, 1e4)).map(lambda pair: (pair[0], pair[0] + pair[1]))
values = st.floats(-10, 10)


def test_constant_is_constant() -> None:
    assert [Constant(2)(step) for step in (-1, 0, 1e9)] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("ramp", [Linear, Smooth])
@given(start=values, end=values, span=spans)
def test_ramps_meet_their_end_points_exactly_and_stay_there(
    ramp: type[Linear] | type[Smooth], start: float, end: float, span: tuple[float, float]
) -> None:
    schedule = ramp(start, end, *span)
    assert schedule(span[0] - 1) == schedule(span[0]) == start
    assert schedule(span[1]) == schedule(span[1] + 1) == end


@pytest.mark.parametrize("ramp", [Linear, Smooth])
@given(start=values, end=values, span=spans)
def test_ramps_are_monotone(
    ramp: type[Linear] | type[Smooth], start: float, end: float, span: tuple[float, float]
) -> None:
    low, high = sorted((start, end))
    schedule = ramp(low, high, *span)
    steps = [span[0] + (span[1] - span[0]) * i / 50 for i in range(-5, 60)]
    rounding = 1e-12 * max(1.0, abs(low), abs(high))
    assert all(a <= b + rounding for a, b in itertools.pairwise(map(schedule, steps)))


@given(st.floats(0.05, 0.95))
def test_smooth_joins_value_and_slope(mid: float) -> None:
    ramp = Smooth(0.0, 1.0, begin=0.0, finish=1.0, mid=mid)
    h = 1e-6
    before, at, after = ramp(mid - h), ramp(mid), ramp(mid + h)
    assert before == pytest.approx(after, abs=1e-4)
    assert (at - before) / h == pytest.approx((after - at) / h, rel=1e-3)


def test_smooth_starts_as_a_fourth_power_and_ends_as_a_line() -> None:
    ramp = Smooth(0.0, 8.0, begin=0.0, finish=100.0)
    assert ramp(20) / ramp(10) == pytest.approx(16.0)
    assert ramp(50) - ramp(40) == pytest.approx(ramp(90) - ramp(80))
    assert ramp(25) == pytest.approx(8.0 / 13.0)  # m^4 / (m^4 + 4 m^3 (1 - m)) at m = 1/4


def test_smooth_without_a_line_is_the_fourth_power() -> None:
    assert Smooth(0.0, 1.0, 0.0, 1.0, mid=1.0)(0.5) == pytest.approx(0.0625)


@pytest.mark.parametrize("ramp", [Linear, Smooth])
def test_an_empty_span_is_a_jump(ramp: type[Linear] | type[Smooth]) -> None:
    schedule = ramp(0.0, 1.0, 5, 5)
    assert [schedule(step) for step in (4.9, 5, 5.1)] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("ramp", [Linear, Smooth])
@pytest.mark.parametrize("span", [(2.0, 1.0), (float("nan"), 1.0), (0.0, float("nan"))])
def test_a_reversed_span_is_refused(ramp: type[Linear] | type[Smooth], span: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="begin="):
        ramp(0.0, 1.0, *span)


@pytest.mark.parametrize("mid", [0.0, -0.1, 1.1, float("nan")])
def test_a_bad_curved_share_is_refused(mid: float) -> None:
    with pytest.raises(InputError, match="mid="):
        Smooth(0.0, 1.0, 0.0, 1.0, mid=mid)


def test_piecewise_steps_at_its_milestones() -> None:
    rate = Piecewise(5e-4, (50, 60), 0.2)
    assert rate(49.999) == 5e-4
    assert rate(50) == pytest.approx(1e-4)
    assert rate(60) == rate(1e6) == pytest.approx(2e-5)
    assert Piecewise(1.0, (), 0.2)(1e6) == 1.0


def test_join_hands_over_at_its_position() -> None:
    joined = Join(Linear(0.0, 1.0, 0, 10), Piecewise(1.0, (20,), 0.5), at=10)
    assert [joined(step) for step in (5, 10, 19, 20)] == [0.5, 1.0, 1.0, 0.5]


def test_values_are_python_floats() -> None:
    for schedule in (Constant(1), Linear(0, 1, 0, 2), Smooth(0, 1, 0, 2), Piecewise(1, (1,), 2)):
        assert all(type(schedule(step)) is float for step in (-1, 1, 5))
