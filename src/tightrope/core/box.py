"""Input boxes and exact perturbation radii.

A radius is a rational number: ``"8/255"`` means exactly 8/255. It becomes floating point only here, and only upwards,
so that the box that is bounded always contains the box that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from tightrope.errors import InputError

Eps = float | int | str | Fraction | Sequence[float | str | Fraction] | Tensor
"""A radius, one per sample (a sequence or a (batch,) tensor), or one per feature (a tensor of the input's shape)."""


class Box(NamedTuple):
    """Elementwise input bounds, each (batch, *input shape), lower <= upper."""

    lower: Tensor
    upper: Tensor


def parse_eps(eps: float | int | str | Fraction) -> Fraction:
    """The exact value of a radius.

    Args:
        eps: in input units, before normalisation; a number, or a string such as ``"8/255"`` or ``"0.1"``.

    Raises:
        InputError: not a number, negative, NaN, infinite, or divided by zero.

    Example:
        >>> parse_eps("8/255")
        Fraction(8, 255)
        >>> parse_eps("0.1")
        Fraction(1, 10)
    """
    advice = 'Give a finite number >= 0 in input units, such as 0.1 or "8/255".'
    try:
        value = Fraction(eps)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        raise InputError(f"eps = {eps!r} is not a finite number. {advice}") from None
    if value < 0:
        raise InputError(f"eps = {eps!r} is negative. {advice}")
    return value


def round_up(value: Fraction) -> float:
    """The smallest float64 that is not below ``value``.

    Example:
        >>> Fraction(round_up(Fraction(8, 255))) >= Fraction(8, 255)
        True
    """
    nearest = float(value)
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def linf_box(x: Tensor, eps: Eps, data_range: tuple[float, float] | None = (0.0, 1.0)) -> Box:
    """The l-infinity ball around each sample, clipped to the data range and rounded outward.

    Args:
        x: samples, (batch, *input shape), inside the data range.
        eps: radius in input units (before normalisation): one for all, one per sample, or one per feature.
        data_range: smallest and largest valid input value, or None for no clipping.

    Returns:
        A box in the dtype of ``x`` that contains the exact one; degenerate (lower = upper = x) where eps is 0.

    Raises:
        InputError: x is not finite or outside the range, or eps is negative, NaN, of a wrong shape, or larger than
            the data range.

    Example:
        >>> box = linf_box(torch.tensor([[0.0, 0.5]]), "1/4")
        >>> box.lower, box.upper
        (tensor([[0.0000, 0.2500]]), tensor([[0.2500, 0.7500]]))
    """
    return ball(x, _checked_radius(x, eps, data_range), data_range)


def inner_box(x: Tensor, eps: Eps, data_range: tuple[float, float] | None = (0.0, 1.0)) -> Box:
    """:func:`linf_box` rounded inwards: inside the exact ball and the range, where counterexamples count.

    ``fl(x - r)`` is the number nearest to ``x - r``, so that the next one above is not below it; and r, rounded down,
    is at most eps.

    Args:
        x: samples, (batch, *input shape), inside the data range.
        eps: as for :func:`linf_box`.
        data_range: as for :func:`linf_box`.

    Raises:
        InputError: as for :func:`linf_box`.

    Example:
        >>> from fractions import Fraction
        >>> lower, _ = inner_box(torch.tensor([0.5], dtype=torch.float64), "1/3")
        >>> Fraction(float(lower)) >= Fraction(1, 2) - Fraction(1, 3)
        True
    """
    wide, radius = x.double(), _checked_radius(x, eps, data_range)
    radius = torch.where(radius > 0, torch.nextafter(radius, torch.zeros_like(radius)), radius)
    lower = _round_towards(torch.nextafter(wide - radius, wide), x.dtype, math.inf)
    upper = _round_towards(torch.nextafter(wide + radius, wide), x.dtype, -math.inf)
    if data_range is not None:
        low, high = (torch.tensor(end, dtype=torch.float64, device=x.device) for end in data_range)
        lower = torch.maximum(lower, _round_towards(low, x.dtype, math.inf))
        upper = torch.minimum(upper, _round_towards(high, x.dtype, -math.inf))
    return Box(torch.minimum(lower, x), torch.maximum(upper, x))


def ball(x: Tensor, radius: Tensor, data_range: tuple[float, float] | None = (0.0, 1.0)) -> Box:
    """:func:`linf_box` without its checks, for use inside compiled and mapped code.

    ``radius`` broadcasts against ``x``. The subtraction is done in float64 and rounded one step outward, except where
    the radius is 0.
    """
    wide, r = x.double(), radius.double()
    lower = _outward(wide - r, r, x.dtype, -math.inf)
    upper = _outward(wide + r, r, x.dtype, math.inf)
    if data_range is not None:
        # Clipped to the outward-rounded range, where its ends are no numbers of this dtype.
        low, high = (torch.tensor(end, dtype=torch.float64, device=x.device) for end in data_range)
        lower = torch.maximum(lower, _round_towards(low, x.dtype, -math.inf))
        upper = torch.minimum(upper, _round_towards(high, x.dtype, math.inf))
    return Box(torch.minimum(lower, x), torch.maximum(upper, x))


def _outward(value: Tensor, radius: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    cast = value.to(dtype)
    return torch.where(radius == 0, cast, torch.nextafter(cast, torch.full_like(cast, towards)))


def _round_towards(value: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    """The nearest number of another dtype that lies on the given side, or the value itself."""
    cast = value.to(dtype)
    wrong = cast.double() > value if towards < 0 else cast.double() < value
    return torch.where(wrong, torch.nextafter(cast, torch.full_like(cast, towards)), cast)


def _checked_radius(x: Tensor, eps: Eps, data_range: tuple[float, float] | None) -> Tensor:
    """See :func:`_radius`."""
    if not x.is_floating_point():
        raise InputError(f"Images must be floating point in the data range, got {x.dtype}. Divide by 255 first.")
    if not bool(torch.isfinite(x).all()):
        raise InputError("The input has NaN or infinite values.")
    if data_range is not None:
        _check_range(x, data_range)
    radius = _radius(eps, x)
    if data_range is not None and float(radius.max()) > data_range[1] - data_range[0]:
        raise InputError(
            f"eps = {float(radius.max()):g} is larger than the data range [{data_range[0]:g}, {data_range[1]:g}]. "
            'eps is in input units before normalisation: for 8-bit steps write "8/255", not 8.'
        )
    return radius


def _check_range(x: Tensor, data_range: tuple[float, float]) -> None:
    low, high = data_range
    if x.numel() and (float(x.min()) < low or float(x.max()) > high):
        raise InputError(
            f"Inputs must lie in [{low:g}, {high:g}], got values from {float(x.min()):g} to {float(x.max()):g}. "
            "Scale the images to that range (normalisation belongs inside the network), or pass data_range."
        )


def _radius(eps: Eps, x: Tensor) -> Tensor:
    """The radius as a float64 tensor that broadcasts against ``x``, rounded up from its exact value."""
    if isinstance(eps, Tensor):
        radius = _aligned(eps.detach().to(device=x.device, dtype=torch.float64), x)
    elif isinstance(eps, str | float | int | Fraction):
        radius = torch.tensor(round_up(parse_eps(eps)), dtype=torch.float64, device=x.device)
    else:
        values = torch.tensor([round_up(parse_eps(e)) for e in eps], dtype=torch.float64, device=x.device)
        radius = _aligned(values, x)
    if not bool((torch.isfinite(radius) & (radius >= 0)).all()):
        raise InputError("eps must be finite and >= 0 everywhere; got a negative, NaN or infinite value.")
    return radius


def _aligned(eps: Tensor, x: Tensor) -> Tensor:
    batch, features = x.shape[0], tuple(x.shape[1:])
    per_sample, per_feature = tuple(eps.shape) == (batch,), tuple(eps.shape) == features
    if per_sample and per_feature:
        raise InputError(
            f"eps of shape {tuple(eps.shape)} could be per sample or per feature here (both are {batch}). "
            f"Write eps[:, None] for one radius per sample or eps[None] for one per feature."
        )
    if per_sample:
        return eps.reshape(batch, *[1] * len(features))
    try:
        fits = torch.broadcast_shapes(eps.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(
            f"eps of shape {tuple(eps.shape)} fits neither ({batch},), one per sample, nor {features}, one per "
            f"feature, nor the whole input {tuple(x.shape)}."
        )
    return eps
