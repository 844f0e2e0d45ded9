"""Bounds of rounding errors. The arithmetic that they are about is derived in ``docs/explanation/soundness.md``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightrope.core.bounds import Interval, Lines

FUNCTION_ERROR = 16
"""Of a value of exp, tanh or the logistic sigmoid, in units of roundoff of that value: eight units in the last place.
The libraries that torch calls (SLEEF, MKL, CUDA) promise less than half of that."""


def roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of one operation."""
    return torch.finfo(dtype).eps / 2


def gamma(count: int, dtype: torch.dtype) -> float:
    """Largest error of ``count`` operations in a row, relative to the sum of absolute values; twice Higham's gamma.

    The other half makes up for the rounding of whatever is multiplied by it. Infinite where no bound is known.

    Example:
        >>> gamma(8, torch.float64) == 2.0**-49
        True
    """
    share = count * roundoff(dtype)
    return 2.0 * share if share <= 1 / 16 else math.inf


def tiny(dtype: torch.dtype) -> float:
    """Far more than what an operation loses by underflow: products with it are still no subnormal (slow) numbers."""
    return float(torch.finfo(dtype).tiny / torch.finfo(dtype).eps ** 2)


def below(x: Tensor) -> Tensor:
    """The next number below."""
    return torch.nextafter(x, x.new_tensor(-math.inf))


def above(x: Tensor) -> Tensor:
    """The next number above."""
    return torch.nextafter(x, x.new_tensor(math.inf))


def largest(interval: Interval) -> Tensor:
    """The largest absolute value in an interval; NaN stays NaN."""
    return torch.maximum(interval.lower.abs(), interval.upper.abs())


def moved_apart(pre: Interval, lines: Lines, error: Tensor | float = 0.0, *, lower: bool = True) -> Lines:
    """Lines that bound f for all real numbers of the interval, from lines that do so up to rounding.

    Each moves outwards by 64 roundoffs of ``|slope| * |x| + |bias| + error``. Infinite intervals make them NaN.

    Args:
        pre: the interval.
        lines: of f, of which values are computed with errors of a few roundoffs of these sums.
        error: a further absolute value that goes into the computation of the biases.
        lower: whether lower lines need it too.
    """
    size, share = largest(pre), gamma(32, pre.lower.dtype)
    finite = torch.isfinite(pre.upper - pre.lower)

    def pad(slope: Tensor, bias: Tensor) -> Tensor:
        moved = share * (slope.abs() * size + bias.abs() + error) + tiny(size.dtype)
        return torch.where(finite, moved, math.nan)

    upper_bias = lines.upper_bias + pad(lines.upper_slope, lines.upper_bias)
    if not lower:
        return lines._replace(upper_bias=upper_bias)
    bias = torch.zeros_like(size) if lines.lower_bias is None else lines.lower_bias
    return lines._replace(lower_bias=bias - pad(lines.lower_slope, bias), upper_bias=upper_bias)
