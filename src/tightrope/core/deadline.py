"""The time limit of whatever runs inside: set where it is asked for, looked at wherever work goes round a loop.

A scope and not an argument, as it concerns every layer of the program, down to the nodes of one back-substitution, and
most of these serve training too, which has no limit. Scopes nest: inside, the earliest end counts. A time that is up
stays up, so that who catches :class:`TimeUpError` may keep what there is, and the next look outside raises again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter

import torch

from tightrope.errors import TimeUpError

_END: ContextVar[float] = ContextVar("deadline", default=math.inf)


def now() -> float:
    """The clock that all limits go by, in seconds."""
    return perf_counter()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Inside, the time is up after so many seconds, or when it is up outside.

    Example:
        >>> with time_limit(60.0), time_limit(0.0):
        ...     time_is_up()
        True
        >>> seconds_left()
        inf
    """
    token = _END.set(min(_END.get(), now() + seconds))
    try:
        yield
    finally:
        _END.reset(token)


@contextmanager
def unlimited() -> Iterator[None]:
    """Inside there is no limit: for what is short and must come to its end. Also a decorator."""
    token = _END.set(math.inf)
    try:
        yield
    finally:
        _END.reset(token)


def seconds_left() -> float:
    """Until the time is up: not negative, infinite without a limit."""
    end = _END.get()
    return math.inf if end == math.inf else max(0.0, end - now())


def time_is_up() -> bool:
    """Whether to stop, for who can; never in a compiled step."""
    return not torch.compiler.is_compiling() and seconds_left() <= 0


def check_time() -> None:
    """Stop here if the time is up, for who has nothing to hand back.

    Raises:
        TimeUpError: it is.
    """
    if time_is_up():
        raise TimeUpError
