"""Predict what a training step costs from a few small ones, and choose how many pairs to evaluate at once.

A step of n pairs in chunks of k costs ``fixed + n / k * piece(k)`` seconds, and both parts are affine in the batch
size; its memory is that of one piece, affine in the batch size too, since noise is regenerated and gradients are
summed. Trials grow until they last about a second or reach the full size, so that little is left to extrapolate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from tightrope.records.run import Trial

Measure = Callable[[int, int, int], Trial]
"""From (batch, pairs, chunk) to what one step of that size takes."""

PATIENCE = 1.0  # seconds: a longer step fills the device, and a larger one would teach nothing
SAME = 1.05  # chunks whose speed differs by less are taken as equally fast


class Forecast(NamedTuple):
    """What a step of the full size will take.

    Attributes:
        chunk: pairs evaluated at once.
        seconds: per step.
        peak_memory: bytes beyond weights and data.
        trials: what was measured.
    """

    chunk: int
    seconds: float
    peak_memory: int
    trials: tuple[Trial, ...]


def powers_of_two(limit: int) -> tuple[int, ...]:
    """1, 2, 4 ... up to ``limit``.

    Example:
        >>> powers_of_two(12)
        (1, 2, 4, 8)
    """
    return tuple(2**k for k in range(limit.bit_length()))


def forecast(measure: Measure, *, batch: int, pairs: int, chunks: Sequence[int], budget: float) -> Forecast:
    """Measure small steps, choose the fastest chunk that fits, and extrapolate to the full step.

    Args:
        measure: runs a step of some size.
        batch: images of a full step.
        pairs: pairs of a full step; 1 without a population.
        chunks: to choose from, in increasing order.
        budget: bytes that a step may need. No trial is made that is likely to need more.

    Returns:
        The forecast of the fastest chunk within the budget; where chunks are about equally fast, of the smallest. If
        not even the first one fits, its forecast.

    Example:
        >>> cost = lambda batch, pairs, chunk: 0.001 + 1e-5 * batch * pairs * (1 + 1 / chunk)
        >>> trial = lambda b, p, k: Trial(batch=b, pairs=p, chunk=k, seconds=cost(b, p, k), peak_memory=100 * b * k)
        >>> found = forecast(trial, batch=1000, pairs=8, chunks=(1, 2, 4, 8), budget=450_000)
        >>> found.chunk, round(found.seconds, 6), found.peak_memory
        (4, 0.101, 400000)
    """
    trials: dict[tuple[int, int, int], Trial] = {}

    def tried(size: int, members: int, chunk: int) -> Trial:
        key = (size, members, chunk)
        trials[key] = trials[key] if key in trials else measure(*key)
        return trials[key]

    sizes = _batches(lambda size: tried(size, chunks[0], chunks[0]), batch, budget)
    pieces = _pieces(tried, sizes, batch, chunks, budget)
    chunk = _fastest(pieces)
    steps = {size: _step(tried, size, pairs, chunk) for size in sizes}
    seconds = extrapolate({size: step.seconds for size, step in steps.items()}, batch)
    peak = extrapolate({size: step.peak_memory for size, step in steps.items()}, batch)
    return Forecast(chunk, seconds, round(peak), tuple(trials.values()))


def extrapolate(points: Mapping[int, float], at: int) -> float:
    """The value at a size from those at one or two others.

    A size that was measured is its own value; two sizes give the line through them, which never falls; one alone is
    taken as proportional, an upper bound where costs have a fixed part.

    Example:
        >>> extrapolate({2: 5.0, 4: 9.0}, 10), extrapolate({4: 2.0}, 8), extrapolate({4: 2.0, 8: 3.0}, 8)
        (21.0, 4.0, 3.0)
    """
    if at in points:
        return points[at]
    (first, low), (last, high) = min(points.items()), max(points.items())
    if first == last:
        return low * at / first
    return high + max(0.0, (high - low) / (last - first)) * (at - last)


def _batches(tried: Callable[[int], Trial], batch: int, budget: float) -> tuple[int, ...]:
    """The batch sizes to measure: the full one if it is quick and fits, else the two largest that are and do."""
    sizes = [min(2, batch)]
    while sizes[-1] < batch:
        trial = tried(sizes[-1])
        growth = min(PATIENCE / trial.seconds, budget / max(1, trial.peak_memory))
        size = min(batch, int(sizes[-1] * growth))
        if size < min(batch, 1.5 * sizes[-1]):
            break
        sizes.append(size)
    return (batch,) if sizes[-1] == batch else tuple(sizes[-2:])


def _pieces(tried: Measure, sizes: Iterable[int], batch: int, chunks: Sequence[int], budget: float) -> dict[int, float]:
    """Seconds per pair of the chunks that fit; at least that of the first one."""
    found: dict[int, float] = {}
    peaks: dict[int, float] = {}
    for chunk in chunks:
        if peaks and extrapolate(peaks, chunk) > budget:
            break
        each = {size: tried(size, chunk, chunk) for size in sizes}
        peaks[chunk] = extrapolate({size: trial.peak_memory for size, trial in each.items()}, batch)
        if found and peaks[chunk] > budget:
            break
        seconds = each[max(each)].seconds
        found[chunk] = seconds / chunk
        if seconds > PATIENCE:
            break
    return found


def _fastest(seconds: Mapping[int, float]) -> int:
    return min(chunk for chunk, each in seconds.items() if each <= SAME * min(seconds.values()))


def _step(tried: Measure, size: int, pairs: int, chunk: int) -> Trial:
    """A step of all pairs at one batch size, extrapolated from one piece and from as many as patience allows."""
    one = tried(size, chunk, chunk)
    count = min(pairs, chunk * max(1, int(PATIENCE / one.seconds)))
    several = tried(size, count, chunk) if count > chunk else one
    seconds = extrapolate({one.pairs: one.seconds, several.pairs: several.seconds}, pairs)
    peak = max(one.peak_memory, several.peak_memory)
    return Trial(batch=size, pairs=pairs, chunk=chunk, seconds=seconds, peak_memory=peak)
