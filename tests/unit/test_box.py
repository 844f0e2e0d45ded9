"""Exact radii, outward rounding (checked with rational arithmetic) and every bad input."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tightrope as tr
from tightrope.core.box import Box, ball, parse_eps, round_up
from tightrope.errors import InputError, TightropeError

DTYPES = [torch.float32, torch.float64]
quick = settings(max_examples=60, deadline=None)
rationals = st.fractions(min_value=0, max_value=1, max_denominator=10**6)
unit_floats = st.floats(0, 1, width=32)


def exact(value: Tensor) -> Fraction:
    return Fraction(float(value))


def clipped(value: Fraction, low: Fraction = Fraction(0), high: Fraction = Fraction(1)) -> Fraction:
    return min(max(value, low), high)


# ------------------------------------------------------------------------------------------------ parse_eps


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", Fraction(8, 255)),
        ("0.1", Fraction(1, 10)),
        ("1e-3", Fraction(1, 1000)),
        (" 2/255 ", Fraction(2, 255)),
        (0, Fraction(0)),
        (0.1, Fraction(0.1)),
        (Fraction(1, 3), Fraction(1, 3)),
    ],
)
def test_parse_eps_is_exact(text: float | str | Fraction, value: Fraction) -> None:
    assert parse_eps(text) == value


@pytest.mark.parametrize(
    "bad", [-0.1, "-1/255", "2/0", "nan", math.nan, math.inf, -math.inf, "inf", "", "8 255", "a/b"]
)
def test_parse_eps_refuses(bad: float | str) -> None:
    with pytest.raises(InputError, match="eps = ") as caught:
        parse_eps(bad)
    assert isinstance(caught.value, ValueError)
    assert repr(bad) in str(caught.value)


@pytest.mark.parametrize("bad", [None, [0.1], object()])
def test_parse_eps_refuses_other_types(bad: object) -> None:
    with pytest.raises(InputError, match="eps = "):
        parse_eps(bad)  # type: ignore[arg-type]


@quick
@given(rationals)
def test_round_up_is_the_least_float_above(value: Fraction) -> None:
    found = round_up(value)
    assert Fraction(found) >= value
    assert Fraction(math.nextafter(found, -math.inf)) < value


# ----------------------------------------------------------------------------------------- outward rounding


def assert_contains(
    box: Box, x: Tensor, eps: Fraction, low: Fraction = Fraction(0), high: Fraction = Fraction(1)
) -> None:
    """The box contains the exact one, and is wider than it by a few units in the last place at most."""
    slack = 3 * Fraction(torch.finfo(x.dtype).eps)
    for value, lower, upper in zip(x.flatten(), box.lower.flatten(), box.upper.flatten(), strict=True):
        below, above = (clipped(exact(value) + sign * eps, low, high) for sign in (-1, 1))
        assert exact(lower) <= below
        assert exact(upper) >= above
        assert below - exact(lower) <= slack
        assert exact(upper) - above <= slack
        assert low - slack <= exact(lower) <= exact(upper) <= high + slack


@pytest.mark.parametrize("dtype", DTYPES)
@quick
@given(eps=rationals, values=st.lists(unit_floats, min_size=1, max_size=6))
def test_box_contains_the_exact_one(dtype: torch.dtype, eps: Fraction, values: list[float]) -> None:
    x = torch.tensor([values], dtype=dtype)
    for form in (eps, f"{eps.numerator}/{eps.denominator}"):
        box = tr.linf_box(x, form)
        assert box.lower.dtype == box.upper.dtype == dtype
        assert_contains(box, x, eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", ["1/255", "2/255", "8/255", "0.1", "0.3", "1/3", "1e-12"])
def test_box_contains_the_exact_one_around_8_bit_images(dtype: torch.dtype, eps: str) -> None:
    x = (torch.arange(256, dtype=dtype) / 255)[None]
    assert_contains(tr.linf_box(x, eps), x, Fraction(eps))


@pytest.mark.parametrize("dtype", DTYPES)
@quick
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5),
    eps=st.fractions(min_value=0, max_value=1000, max_denominator=999),
)
def test_unclipped_box_contains_the_exact_one(dtype: torch.dtype, values: list[float], eps: Fraction) -> None:
    x = torch.tensor([values], dtype=dtype)
    box = tr.linf_box(x, eps, data_range=None)
    for value, lower, upper in zip(x[0], box.lower[0], box.upper[0], strict=True):
        assert exact(lower) <= exact(value) - eps
        assert exact(upper) >= exact(value) + eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_at_a_range_that_is_no_float_is_outward(dtype: torch.dtype) -> None:
    """0.1 and 0.9 are not float32 numbers; the clipped box still contains all of the range that the ball contains."""
    low, high = 0.1, 0.9
    x = torch.tensor([[0.5, 0.2, 0.8]], dtype=dtype)
    box = tr.linf_box(x, "0.7", data_range=(low, high))
    assert_contains(box, x, Fraction("0.7"), Fraction(low), Fraction(high))


@pytest.mark.parametrize("dtype", DTYPES)
def test_radius_zero_is_the_point(dtype: torch.dtype) -> None:
    x = torch.rand((3, 4), dtype=dtype)
    for box in (tr.linf_box(x, 0), tr.linf_box(x, "0/7", data_range=None), ball(x, torch.zeros(()))):
        assert torch.equal(box.lower, x)
        assert torch.equal(box.upper, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_radius_is_not_lost(dtype: torch.dtype) -> None:
    """Far below the spacing of floats around x the box still has an inside."""
    x = torch.full((1, 2), 0.5, dtype=dtype)
    box = tr.linf_box(x, "1e-300")
    assert torch.all(box.lower < x)
    assert torch.all(x < box.upper)


def test_box_is_the_checked_form_of_ball() -> None:
    x = torch.rand((3, 4))
    radius = torch.tensor(round_up(Fraction(8, 255)), dtype=torch.float64)
    for checked, plain in zip(tr.linf_box(x, "8/255"), ball(x, radius), strict=True):
        assert torch.equal(checked, plain)


# ---------------------------------------------------------------------------------- per sample, per feature


def test_radius_per_sample() -> None:
    x = torch.full((3, 2, 2), 0.5, dtype=torch.float64)
    radii = ["0", "1/255", Fraction(1, 3)]
    box = tr.linf_box(x, radii)
    for index, eps in enumerate(radii):
        assert_contains(Box(box.lower[index], box.upper[index]), x[index], Fraction(eps))
    tensor = torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64)
    torch.testing.assert_close(tr.linf_box(x, tensor).upper[:, 0, 0], 0.5 + tensor)


def test_radius_per_feature() -> None:
    x = torch.full((3, 2, 2), 0.5, dtype=torch.float64)
    eps = torch.tensor([[0.0, 0.1], [0.2, 0.3]], dtype=torch.float64)
    for form in (eps, eps[None], eps.expand(3, 2, 2)):
        torch.testing.assert_close(tr.linf_box(x, form).lower, (0.5 - eps).expand(3, 2, 2))
    both = torch.rand((3, 2, 2), dtype=torch.float64)
    torch.testing.assert_close(tr.linf_box(x, both).upper, (0.5 + both).clamp(max=1))
    channel = torch.tensor([0.1, 0.2], dtype=torch.float64).reshape(2, 1)
    torch.testing.assert_close(tr.linf_box(x, channel).upper, (0.5 + channel).expand(3, 2, 2))


def test_ambiguous_radius_is_refused() -> None:
    """Three samples of three features: one radius per what?"""
    x = torch.full((3, 3), 0.5)
    with pytest.raises(InputError, match=r"per sample or per feature.*eps\[:, None\].*eps\[None\]"):
        tr.linf_box(x, torch.full((3,), 0.1))
    with pytest.raises(InputError, match="per sample or per feature"):
        tr.linf_box(x, [0.1, 0.1, 0.1])
    tr.linf_box(x, torch.full((3, 1), 0.1))
    tr.linf_box(x, torch.full((1, 3), 0.1))


@pytest.mark.parametrize("shape", [(4,), (2, 3), (5, 2, 2), (1, 3, 2, 2)])
def test_radius_of_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="eps"):
        tr.linf_box(torch.full((3, 2, 2), 0.5), torch.full(shape, 0.1))


def test_radius_does_not_enlarge_the_input() -> None:
    """Five radii for one sample are not five samples."""
    with pytest.raises(InputError, match="eps"):
        tr.linf_box(torch.full((1, 4), 0.5), torch.full((5, 4), 0.1))


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("eps", [-0.1, "-1/255", math.nan, math.inf, "2/0", "eight", [0.1, -0.1], [0.1, math.nan]])
def test_bad_radius_is_refused(eps: float | str | list[float]) -> None:
    with pytest.raises(InputError, match="eps"):
        tr.linf_box(torch.full((2, 3), 0.5), eps)


@pytest.mark.parametrize("entry", [-1e-9, math.nan, math.inf])
def test_bad_entry_of_a_radius_tensor_is_refused(entry: float) -> None:
    with pytest.raises(InputError, match="eps must be finite and >= 0"):
        tr.linf_box(torch.full((2, 3), 0.5), torch.tensor([0.1, entry]))


@pytest.mark.parametrize("eps", [8, 1.01, "256/255", [0.1, 2.0]])
def test_radius_larger_than_the_data_range_is_refused(eps: float | str | list[float]) -> None:
    with pytest.raises(InputError, match=r"larger than the data range \[0, 1\].*8/255"):
        tr.linf_box(torch.full((2, 3), 0.5), eps)


def test_radius_may_be_the_whole_range() -> None:
    box = tr.linf_box(torch.full((1, 3), 0.3), 1)
    assert torch.equal(box.lower, torch.zeros((1, 3)))
    assert torch.equal(box.upper, torch.ones((1, 3)))
    tr.linf_box(torch.full((1, 3), 100.0), 8, data_range=(0, 255))
    tr.linf_box(torch.full((1, 3), 100.0), 8, data_range=None)


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0])
def test_images_outside_the_range_are_refused(value: float) -> None:
    x = torch.tensor([[0.5, value]])
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        tr.linf_box(x, 0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("data_range", [(0.0, 1.0), None])
def test_images_that_are_not_finite_are_refused(value: float, data_range: tuple[float, float] | None) -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        tr.linf_box(torch.tensor([[0.5, value]]), 0.1, data_range=data_range)


def test_integer_images_are_refused() -> None:
    with pytest.raises(InputError, match="floating point"):
        tr.linf_box(torch.zeros((2, 3), dtype=torch.uint8), 0.1)


def test_errors_are_ours_and_the_built_in() -> None:
    with pytest.raises(TightropeError):
        tr.linf_box(torch.zeros((2, 3)), -1)
    with pytest.raises(ValueError, match="eps"):
        tr.linf_box(torch.zeros((2, 3)), -1)


def test_empty_batch() -> None:
    box = tr.linf_box(torch.zeros((0, 3)), 0.1)
    assert box.lower.shape == (0, 3)
