"""Values that change during training, as functions of the position (a step or a fractional epoch, a float).

Every schedule is a frozen dataclass that is called with the position and returns a Python float. It keeps no
state, so that a resumed run sees exactly the values of an uninterrupted one. Whoever builds a schedule
chooses the unit of the position; all positions of one schedule share it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from tightrope.errors import InputError


class Schedule(Protocol):
    """Anything that maps a position to a value."""

    def __call__(self, step: float, /) -> float:
        """The value at a position."""


def _check_span(begin: float, finish: float) -> None:
    if not begin <= finish:  # written so that NaN is refused as well
        raise InputError(f"A schedule must not finish before it begins, got begin={begin}, finish={finish}.")


def _progress(step: float, begin: float, finish: float) -> float:
    """The part of the span that lies behind `step`, in [0, 1]; an empty span is a jump."""
    if step >= finish:
        return 1.0
    return max(0.0, (step - begin) / (finish - begin)) if begin < finish else 0.0


def _blend(start: float, end: float, share: float) -> float:
    """Between the end points; both are met exactly, which `start + (end - start)` would not do in floats."""
    return float(end if share >= 1.0 else start + (end - start) * share)


@dataclass(frozen=True)
class Constant:
    """The same value everywhere.

    Example:
        >>> Constant(0.1)(7)
        0.1
    """

    value: float

    def __call__(self, step: float, /) -> float:
        """The value at a position."""
        return float(self.value)


@dataclass(frozen=True)
class Linear:
    """A straight line from `start` at `begin` to `end` at `finish`, constant outside.

    Args:
        start: value up to `begin`.
        end: value from `finish` on, met exactly.
        begin: position at which the value starts to move.
        finish: position at which it has arrived; equal to `begin` means a jump.

    Raises:
        InputError: `finish` lies before `begin`.

    Example:
        >>> ramp = Linear(0.0, 1.0, begin=10, finish=20)
        >>> [ramp(step) for step in (0, 15, 30)]
        [0.0, 0.5, 1.0]
    """

    start: float
    end: float
    begin: float
    finish: float

    def __post_init__(self) -> None:
        _check_span(self.begin, self.finish)

    def __call__(self, step: float, /) -> float:
        """The value at a position."""
        return _blend(self.start, self.end, _progress(step, self.begin, self.finish))


@dataclass(frozen=True)
class Smooth:
    """A ramp that starts gently: a fourth power first, then its tangent.

    With the share u of the span behind and m = `mid`, the value is start + (end - start) f(u) with
    f(u) = a u^4 for u < m and f(u) = a m^4 + 4 a m^3 (u - m) for u >= m. From f(1) = 1 follows
    a = 1 / (m^4 + 4 m^3 (1 - m)); value and slope are continuous. This is the ramp of eps that certified
    training uses: bounds of an untrained network blow up with eps, and the flat start leaves the weights time
    to adapt.

    Args:
        start: value up to `begin`.
        end: value from `finish` on, met exactly.
        begin: position at which the value starts to move.
        finish: position at which it has arrived; equal to `begin` means a jump.
        mid: share of the span that follows the fourth power, in (0, 1].

    Raises:
        InputError: `finish` lies before `begin`, or `mid` outside (0, 1].

    Example:
        >>> ramp = Smooth(0.0, 0.3, begin=0, finish=100)
        >>> [round(ramp(step), 4) for step in (0, 10, 25, 100, 200)]
        [0.0, 0.0006, 0.0231, 0.3, 0.3]
    """

    start: float
    end: float
    begin: float
    finish: float
    mid: float = 0.25

    def __post_init__(self) -> None:
        _check_span(self.begin, self.finish)
        if not 0.0 < self.mid <= 1.0:
            raise InputError(f"The curved share of a smooth ramp must lie in (0, 1], got mid={self.mid}.")

    def __call__(self, step: float, /) -> float:
        """The value at a position."""
        return _blend(self.start, self.end, self._shape(_progress(step, self.begin, self.finish)))

    def _shape(self, share: float) -> float:
        knee = self.mid**4
        tangent = 4.0 * self.mid**3
        unscaled = share**4 if share < self.mid else knee + tangent * (share - self.mid)
        return unscaled / (knee + tangent * (1.0 - self.mid))


@dataclass(frozen=True)
class Piecewise:
    """A staircase: `value` times `factor` for every milestone at or before the position.

    Args:
        value: value before the first milestone.
        milestones: positions of the steps, in any order.
        factor: what each milestone multiplies the value by.

    Example:
        >>> rate = Piecewise(1.0, milestones=(50, 60), factor=0.5)
        >>> [rate(step) for step in (49, 50, 60)]
        [1.0, 0.5, 0.25]
    """

    value: float
    milestones: tuple[float, ...]
    factor: float

    def __call__(self, step: float, /) -> float:
        """The value at a position."""
        return float(self.value * self.factor ** sum(milestone <= step for milestone in self.milestones))


@dataclass(frozen=True)
class Join:
    """One schedule before a position, another from it on. Both see the absolute position.

    Args:
        first: schedule of the positions before `at`.
        second: schedule of the positions from `at` on.
        at: where the second takes over.

    Example:
        >>> warm = Join(Linear(0.0, 1.0, begin=0, finish=10), Constant(0.5), at=10)
        >>> [warm(step) for step in (5, 10)]
        [0.5, 0.5]
    """

    first: Schedule
    second: Schedule
    at: float

    def __call__(self, step: float, /) -> float:
        """The value at a position."""
        return self.first(step) if step < self.at else self.second(step)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine wave from `start` at `begin` to `end` at `finish`, constant outside.

    Args:
        start: value up to `begin`.
        end: value from `finish` on, met exactly.
        begin: position at which the value starts to move.
        finish: position at which it has arrived; equal to `begin` means a jump.

    Raises:
        InputError: `finish` lies before `begin`.

    Example:
        >>> fade = Cosine(1.0, 0.0, begin=0, finish=10)
        >>> [round(fade(step), 3) for step in (0, 5, 10)]
        [1.0, 0.5, 0.0]
    """

    start: float
    end: float
    begin: float
    finish: float

    def __post_init__(self) -> None:
        _check_span(self.begin, self.finish)

    def __call__(self, step: float, /) -> float:
        """The value at a position."""
        share = _progress(step, self.begin, self.finish)
        return _blend(self.start, self.end, share if share >= 1.0 else (1.0 - math.cos(math.pi * share)) / 2.0)


@dataclass(frozen=True)
class Proportional:
    """Follows another schedule: `value` times its share of `reference`, and of that share at least `floor`.

    Args:
        value: where the other schedule is at `reference`.
        schedule: what is followed.
        reference: its value that counts as 1.
        floor: smallest share.

    Raises:
        InputError: a reference of 0 or below.

    Example:
        >>> follow = Proportional(0.1, Linear(0.0, 8.0, begin=0, finish=4), reference=8.0, floor=0.25)
        >>> [follow(step) for step in (0, 2, 4)]
        [0.025, 0.05, 0.1]
    """

    value: float
    schedule: Schedule
    reference: float
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not self.reference > 0.0:
            raise InputError(f"What a schedule follows must have a reference > 0, got {self.reference}.")

    def __call__(self, step: float, /) -> float:
        """The value at a position."""
        return float(self.value * max(self.floor, self.schedule(step) / self.reference))
