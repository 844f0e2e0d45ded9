"""Forecasts: exact where costs have the shape that is assumed, and never over the budget."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tightrope.records.run import Trial
from tightrope.runtime.planner import PATIENCE, Forecast, extrapolate, forecast, powers_of_two

Cost = Callable[[int, int, int], float]


class Machine:
    """A machine with known costs of a step, which remembers what was tried."""

    def __init__(self, seconds: Cost, memory: Cost) -> None:
        self._seconds, self._memory = seconds, memory
        self.tried: list[tuple[int, int, int]] = []

    def __call__(self, batch: int, pairs: int, chunk: int) -> Trial:
        self.tried.append((batch, pairs, chunk))
        seconds, peak = self._seconds(batch, pairs, chunk), int(self._memory(batch, pairs, chunk))
        return Trial(batch=batch, pairs=pairs, chunk=chunk, seconds=seconds, peak_memory=peak)


def affine(fixed: float, each: float, per_piece: float = 0.0) -> Cost:
    """``fixed + pieces * per_piece + each * batch * pairs`` seconds."""
    return lambda batch, pairs, chunk: fixed + math.ceil(pairs / chunk) * per_piece + each * batch * pairs


def linear_memory(fixed: int, each: int) -> Cost:
    return lambda batch, pairs, chunk: fixed + each * batch * chunk


def plan(
    machine: Machine, *, batch: int = 64, pairs: int = 1, chunks: tuple[int, ...] = (1,), budget: float = 1e12
) -> Forecast:
    return forecast(machine, batch=batch, pairs=pairs, chunks=chunks, budget=budget)


# ------------------------------------------------------------------------------------------ extrapolation


def test_affine_costs_are_extrapolated_exactly() -> None:
    assert extrapolate({3: 7 + 2 * 3, 10: 7 + 2 * 10}, 1000) == pytest.approx(7 + 2 * 1000)


def test_a_measured_size_is_its_own_forecast() -> None:
    assert extrapolate({2: 5.0, 8: 1.0}, 8) == 1.0


def test_a_line_never_falls() -> None:
    assert extrapolate({2: 5.0, 8: 4.0}, 100) == 4.0


def test_one_size_is_an_upper_bound_of_affine_costs() -> None:
    assert extrapolate({4: 3 + 2 * 4}, 40) >= 3 + 2 * 40


@pytest.mark.parametrize("limit", range(1, 20))
def test_powers_of_two(limit: int) -> None:
    powers = powers_of_two(limit)
    assert all(math.log2(p).is_integer() for p in powers)
    assert powers[-1] <= limit < 2 * powers[-1]


# -------------------------------------------------------------------------------------------------- time


def test_a_quick_step_is_measured_at_full_size() -> None:
    machine = Machine(affine(0.001, 1e-4), linear_memory(100, 10))
    found = plan(machine)
    assert (64, 1, 1) in machine.tried
    assert (found.seconds, found.peak_memory) == (pytest.approx(0.001 + 64e-4), 100 + 640)


@pytest.mark.parametrize("each", [0.02, 0.1, 0.3])
def test_a_slow_step_is_extrapolated_and_never_run(each: float) -> None:
    cost = affine(0.05, each)
    machine = Machine(cost, linear_memory(1000, 10))
    found = plan(machine, batch=500)
    assert found.seconds == pytest.approx(cost(500, 1, 1))
    assert found.peak_memory == pytest.approx(1000 + 5000, abs=2)
    assert max(cost(*size) for size in machine.tried) <= PATIENCE


def test_many_pairs_are_extrapolated_from_few() -> None:
    cost = affine(0.01, 1e-4, per_piece=0.02)
    machine = Machine(cost, linear_memory(0, 1))
    found = plan(machine, pairs=1000, chunks=(4,))
    assert found.seconds == pytest.approx(cost(64, 1000, 4))
    assert max(cost(*size) for size in machine.tried) <= PATIENCE


# ------------------------------------------------------------------------------------------------- chunks


def test_the_fastest_chunk_is_chosen() -> None:
    """Per piece costs shrink with larger chunks, until the cache is too small."""

    def seconds(batch: int, pairs: int, chunk: int) -> float:
        return math.ceil(pairs / chunk) * (0.01 + 1e-5 * batch * chunk * (1 if chunk <= 8 else 3))

    assert plan(Machine(seconds, linear_memory(0, 1)), pairs=64, chunks=powers_of_two(64)).chunk == 8


def test_of_equally_fast_chunks_the_smallest() -> None:
    assert plan(Machine(affine(0, 1e-4), linear_memory(0, 1)), pairs=8, chunks=powers_of_two(8)).chunk == 1


@pytest.mark.parametrize("budget", [6_500, 13_000, 26_000, 1_000_000])
def test_the_largest_chunk_that_fits_where_larger_is_faster(budget: int) -> None:
    machine = Machine(affine(0, 1e-6, per_piece=0.01), linear_memory(0, 100))  # 6400 bytes a pair
    found = plan(machine, pairs=16, chunks=powers_of_two(16), budget=budget)
    assert found.chunk == max(k for k in powers_of_two(16) if 6400 * k <= budget)
    assert found.peak_memory == 6400 * found.chunk
    assert max(100 * batch * chunk for batch, _, chunk in machine.tried) <= budget


@pytest.mark.parametrize("budget", [58_000, 90_000, 130_000])
def test_a_fixed_part_of_the_memory_is_not_taken_twice(budget: int) -> None:
    """Doubling the chunk does not double it, which the first two chunks show."""
    machine = Machine(affine(0, 1e-6, per_piece=0.01), linear_memory(20_000, 100))
    found = plan(machine, pairs=16, chunks=powers_of_two(16), budget=budget)
    assert found.chunk == max(k for k in powers_of_two(16) if 20_000 + 6400 * k <= budget)


def test_no_chunk_over_the_budget_is_tried_at_any_batch_size() -> None:
    """Neither where the full batch is too slow to be run."""
    machine = Machine(affine(0, 0.01, per_piece=0.01), linear_memory(0, 100))
    found = plan(machine, batch=1000, pairs=4, chunks=(1, 2, 4), budget=250_000)
    assert 100 * 1000 * found.chunk == found.peak_memory <= 250_000


def test_what_does_not_fit_is_forecast_not_run() -> None:
    machine = Machine(affine(0, 1e-6), linear_memory(0, 100))
    found = plan(machine, pairs=4, chunks=(1, 2, 4), budget=3000)
    assert (found.chunk, found.peak_memory) == (1, 6400)
    assert max(100 * batch * chunk for batch, _, chunk in machine.tried) <= 3000


def test_each_size_is_measured_once_and_reported() -> None:
    machine = Machine(affine(0.001, 1e-5), linear_memory(0, 1))
    found = plan(machine, pairs=8, chunks=(1, 2, 4, 8))
    assert len(machine.tried) == len(set(machine.tried))
    assert [(t.batch, t.pairs, t.chunk) for t in found.trials] == machine.tried
