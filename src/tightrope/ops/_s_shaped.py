"""Facts shared by tanh and the functions that are tanh up to scale: convex left of 0, concave right of it.

The upper line of slope s is the support line s x + b with b = max of f(x) - s x over the interval, which is attained at
an end or where f'(x) = s on the concave side. So *every* slope s >= 0 gives a valid line, however it was rounded, and
what has to be found is only which slopes are useful: from that at the upper end to that of the steepest line through
the lower end that touches f from above; the chord alone where f has no concave part to touch. Lower lines are those of
the mirrored interval, as f(-x) = -f(x).

Source: Zhang et al. 2018 (CROWN, arXiv 1811.00866), table 2; Singh et al. 2019 (POPL, DeepPoly), section 4, has the two
parallel lines of the smaller end slope, which are looser.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tightrope.core.bounds import Interval, Lines
from tightrope.core.op import Tilt

_STEPS = 5  # to the last place of float64


def stable(pre: Interval) -> Tensor:
    """On a single point only."""
    return pre.lower == pre.upper


def envelope(pre: Interval, tilt: Tilt) -> Lines:
    """Support lines of tanh; the tilt goes from the flattest useful slope to the steepest."""
    low, high = _slopes(_mirrored(pre))
    lower = low + tilt.lower * (high - low)
    low, high = _slopes(pre)
    upper = high if tilt.upper is None else low + tilt.upper * (high - low)
    return Lines(lower, -_support(_mirrored(pre), lower), upper, _support(pre, upper))


def chord(pre: Interval) -> Tilt:
    """The chord's slope is one of the useful slopes on both sides."""
    slope = _chord(pre.lower, pre.upper)
    return Tilt(_share(_mirrored(pre), slope), _share(pre, slope))


def minimum_area(pre: Interval) -> Tilt:
    """The tangents at the middle, where they are useful: of all tangents they are the lowest (highest) there."""
    middle = 0.5 * (pre.lower + pre.upper)
    return Tilt(_share(_mirrored(pre), _derivative((-middle).relu())), _share(pre, _derivative(middle.relu())))


def _mirrored(pre: Interval) -> Interval:
    return Interval(-pre.upper, -pre.lower)


def _derivative(x: Tensor) -> Tensor:
    return 1.0 - torch.tanh(x).square()


def _where_derivative_is(slope: Tensor) -> Tensor:
    """The x >= 0 with f'(x) = slope."""
    slope = slope.clamp(torch.finfo(slope.dtype).tiny, 1.0)
    return torch.log((1.0 + (1.0 - slope).sqrt()) / slope.sqrt())


def _chord(x: Tensor, y: Tensor) -> Tensor:
    """(f(y) - f(x)) / (y - x) by the addition theorem of tanh: no cancellation, and f'(x) where x = y."""
    return _tanh_ratio(y - x) * (1.0 - torch.tanh(x) * torch.tanh(y))


def _tanh_ratio(x: Tensor) -> Tensor:
    """tanh(x) / x, by its series near 0."""
    near = x.abs() < 1e-3
    square, away = torch.where(near, x, 0.0).square(), torch.where(near, 1.0, x)
    return torch.where(near, 1.0 - square / 3.0 + 2.0 / 15.0 * square.square(), torch.tanh(away) / away)


def _touching(lower: Tensor) -> Tensor:
    """Where the steepest line through (l, f(l)), l <= 0, touches the concave side.

    Newton's method for the slope: that of the chord to a point, then the point with that derivative. All slopes are
    chords, so that they stay below the solution, which is the steepest one, and rise to it.
    """
    point = torch.zeros_like(lower)
    for _ in range(_STEPS):
        point = _where_derivative_is(_chord(lower, point))
    return point


def _slopes(pre: Interval) -> tuple[Tensor, Tensor]:
    """The flattest and the steepest useful slope of upper lines."""
    touching = torch.maximum(pre.lower, _touching(pre.lower.detach().clamp(max=0.0)))
    steepest = _chord(pre.lower, torch.minimum(touching, pre.upper))
    return torch.minimum(_derivative(pre.upper), _chord(pre.lower, pre.upper)), steepest


def _share(pre: Interval, slope: Tensor) -> Tensor:
    """Where a slope lies between the flattest and the steepest one of upper lines."""
    low, high = _slopes(pre)
    return ((slope - low) / (high - low).clamp(min=torch.finfo(slope.dtype).eps)).clamp(0.0, 1.0)


def _support(pre: Interval, slope: Tensor) -> Tensor:
    """The least b with s x + b >= f(x) on the interval.

    Its derivative does not see where the maximum is attained, as f(x) - s x is stationary there.
    """
    inside = torch.minimum(torch.maximum(_where_derivative_is(slope.detach()), pre.lower), pre.upper)
    ends = (torch.tanh(x) - slope * x for x in (*pre, inside))
    first, second, third = ends
    return torch.maximum(torch.maximum(first, second), third)
