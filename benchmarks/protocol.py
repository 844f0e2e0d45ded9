"""The one protocol that every suite is measured with.

A suite names **groups**; a group names **contenders** that do the same work in different ways. Each contender first
runs once in a fresh process, which gives its peak memory and tells whether it fits at all. Those that fit are then
warmed up and timed in turn (A B C A B C ...), so that a machine that slows down slows all of them; the contenders of a
library share a worker process, which sleeps while those of another are timed. Every figure is a median with its
extremes, and ratios are taken within a round before their median is.

A contender that does not fit, or whose single step takes longer than anybody wants to wait, is recorded as such.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks import memory
from benchmarks.case import Case, Effort, Record
from benchmarks.worker import Sample, StoppedError, Worker

# Rounds that slow contenders get even if they take longer than a group should.
MIN_ROUNDS = 3
# Seconds beyond the patience after which a worker that does not answer is given up.
GRACE = 60.0

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Agreement:
    """Two contenders whose fact must be the same up to ``tolerance`` (mean difference over mean magnitude)."""

    fact: str
    first: str
    second: str
    tolerance: float = 1e-4


class Contender(NamedTuple):
    """One way to do a group's work.

    Attributes:
        library: that does the work.
        setting: what fixes it beyond the group's setting.
        keeps_memory: whether the C library of its process keeps freed memory for the next step, as training has it.
    """

    library: str
    setting: Mapping[str, Any] = {}
    keeps_memory: bool = False


def ours(setting: Mapping[str, Any] | None = None) -> Contender:
    """A contender that is timed as training runs."""
    return Contender("tightrope", setting or {}, keeps_memory=True)


@dataclass(frozen=True)
class Group:
    """Contenders that are timed together.

    Attributes:
        suite: module whose ``prepare`` sets them up.
        name: of the group, for people.
        setting: shared by all contenders.
        contenders: by name.
        units: items that one step processes.
        unit: what is counted per second.
        ratios: pairs (of, over) of contenders or families whose throughputs are divided.
        families: names that stand for the fastest of several contenders in this run.
        agreements: what must hold for the comparison to be one.
        timed: False if only the peak memory is wanted.
        counted: whether to count the operations and bytes of a step.
    """

    suite: str
    name: str
    setting: Mapping[str, Any]
    contenders: Mapping[str, Contender]
    units: int
    unit: str
    ratios: tuple[tuple[str, str], ...] = ()
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    agreements: tuple[Agreement, ...] = ()
    timed: bool = True
    counted: bool = False

    def case(self, contender: str) -> Case:
        """One contender of the group."""
        return Case(self.suite, contender, {**self.setting, **self.contenders[contender].setting})


def measure(group: Group, effort: Effort) -> Record:
    """Measure a group: its part of the record."""
    rows: dict[str, Record] = {
        name: {"name": name, "library": each.library, "keeps_memory": each.keeps_memory}
        | {"setting": dict(each.setting), "status": "ok"}
        for name, each in group.contenders.items()
    }
    if effort.memory or not group.timed:
        for name, row in rows.items():
            row.update(memory.probe(group.case(name), effort))
    agreements = _time(group, rows, effort) if group.timed else []
    return {
        "name": group.name,
        "setting": dict(group.setting),
        "unit": group.unit,
        "units_per_step": group.units,
        "contenders": list(rows.values()),
        "ratios": _ratios(group, rows),
        "agreements": agreements,
    }


def summary(values: Sequence[float]) -> Record:
    """Median and extremes.

    Example:
        >>> summary([3.0, 1.0, 2.0])
        {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


class _Crew:
    """The contenders that run, each with its worker; those that stop leave, and their rows say why."""

    def __init__(self, workers: Mapping[str, Worker], rows: Mapping[str, Record]) -> None:
        self._workers, self._rows = dict(workers), rows

    def ask(self, task: Callable[[Worker, str], Answer], names: Sequence[str] | None = None) -> dict[str, Answer]:
        """The answers of all who are left, or of the named ones, asked in turn."""
        answers = {}
        for name in list(self._workers) if names is None else names:
            if name in self._workers:  # it may have shared a process that has just ended
                try:
                    answers[name] = task(self._workers[name], name)
                except StoppedError as stop:
                    self._dismiss(name, stop.outcome)
        return {name: answer for name, answer in answers.items() if name in self._workers}

    def _dismiss(self, name: str, outcome: Record) -> None:
        self._rows[name].update(outcome)
        worker = self._workers.pop(name)
        fellows = [other for other, its in self._workers.items() if its is worker and not worker.alive]
        for other in fellows:
            self._rows[other].update({"status": "failed", "reason": f"its process ended in a step of {name}"})
            del self._workers[other]


def _time(group: Group, rows: Mapping[str, Record], effort: Effort) -> list[Record]:
    """Write the timings of all contenders that run to their rows, and compare their facts."""
    with ExitStack() as stack:
        crew = _crew(group, rows, effort, stack)
        counts = crew.ask(Worker.count) if group.counted else {}
        steps = crew.ask(lambda worker, name: worker.warm_up(name, effort.sample_seconds))
        rounds = _rounds(crew, effort)
        for name in rounds[-1]:  # who is there in the last round was there in all of them
            rows[name] |= _timings([samples[name] for samples in rounds], steps[name], group.units)
            rows[name] |= {"work": counts[name]} if group.counted else {}
        return _agreements(group, crew)


def _crew(group: Group, rows: Mapping[str, Record], effort: Effort, stack: ExitStack) -> _Crew:
    """The contenders that fit, set up and run once, with one worker for those of a library."""
    fit = [name for name, row in rows.items() if row["status"] == "ok"]
    workers: dict[str, Worker] = {}
    for names in _by_process(group, fit):
        workers |= _set_up(group, names, rows, effort, stack)
    return _Crew({name: workers[name] for name in fit if name in workers}, rows)


def _by_process(group: Group, names: Sequence[str]) -> list[list[str]]:
    def process(name: str) -> tuple[str, bool]:
        return group.contenders[name].library, group.contenders[name].keeps_memory

    return [list(shared) for _, shared in groupby(sorted(names, key=process), process)]


def _set_up(
    group: Group, names: Sequence[str], rows: Mapping[str, Record], effort: Effort, stack: ExitStack
) -> dict[str, Worker]:
    """A worker in which the named contenders are set up; if one ends it, another worker begins with the rest."""
    if not names:
        return {}
    keeps_memory = group.contenders[names[0]].keeps_memory
    worker = Worker(group.setting, keeps_memory=keeps_memory, timeout=effort.patience + GRACE)
    stack.callback(worker.close)
    for name in names:
        try:
            worker.set_up(group.case(name))
        except StoppedError as stop:
            rows[name].update(stop.outcome)
            if not worker.alive:
                rest = [other for other in names if rows[other]["status"] == "ok"]
                return _set_up(group, rest, rows, effort, stack)
    return {name: worker for name in names if rows[name]["status"] == "ok"}


def _rounds(crew: _Crew, effort: Effort) -> list[dict[str, Sample]]:
    """Samples by name, round by round."""
    start = time.perf_counter()
    rounds: list[dict[str, Sample]] = []
    while len(rounds) < effort.repeats:
        if len(rounds) >= MIN_ROUNDS and time.perf_counter() - start > effort.group_seconds:
            break
        rounds.append(crew.ask(Worker.sample))
    return rounds


def _timings(samples: Sequence[Sample], steps: int, units: int) -> Record:
    seconds = [sample.seconds for sample in samples]
    return {
        "steps_per_sample": steps,
        "seconds_per_step": {**summary(seconds), "samples": seconds},
        "cpu_seconds_per_step": summary([sample.cpu_seconds for sample in samples]),
        "throughput": summary([units / s for s in seconds]),
    }


def _ratios(group: Group, rows: Mapping[str, Record]) -> list[Record]:
    """Throughput of one contender over that of another, round by round, and peak memory over peak memory."""
    ratios = []
    for of, over in group.ratios:
        first, second = _stand_in(group, of, rows), _stand_in(group, over, rows)
        if first is not None and second is not None:
            names = {"of": of, "over": over, "contenders": [first["name"], second["name"]]}
            ratios.append(names | _speed_ratio(first, second) | {"memory": _memory_ratio(first, second)})
    return ratios


def _stand_in(group: Group, name: str, rows: Mapping[str, Record]) -> Record | None:
    """The row of a contender, or of the fastest of a family; None if none of them ran."""
    ran = [rows[member] for member in group.families.get(name, (name,)) if rows[member]["status"] == "ok"]
    return min(ran, key=median_seconds, default=None)


def median_seconds(row: Record) -> float:
    """Of one step; 0 where only memory was measured."""
    return float(row["seconds_per_step"]["median"]) if "seconds_per_step" in row else 0.0


def _speed_ratio(first: Record, second: Record) -> Record:
    if "seconds_per_step" not in first:
        return {}
    a, b = first["seconds_per_step"]["samples"], second["seconds_per_step"]["samples"]
    return summary([theirs / ours for ours, theirs in zip(a, b, strict=True)])


def _memory_ratio(first: Record, second: Record) -> float | None:
    a, b = first.get("peak_memory_mib"), second.get("peak_memory_mib")
    return a / b if a and b else None


def _agreements(group: Group, crew: _Crew) -> list[Record]:
    facts = crew.ask(Worker.facts, list(dict.fromkeys(n for a in group.agreements for n in (a.first, a.second))))
    wanted = [a for a in group.agreements if a.first in facts and a.second in facts]
    return [_compare(a, facts[a.first][a.fact], facts[a.second][a.fact]) for a in wanted]


def _compare(agreement: Agreement, first: NDArray[Any], second: NDArray[Any]) -> Record:
    difference = float(np.abs(first - second).mean() / max(np.abs(first).mean(), 1e-30))
    return {
        "fact": agreement.fact,
        "first": agreement.first,
        "second": agreement.second,
        "mean_first": float(first.mean()),
        "mean_second": float(second.mean()),
        "largest_difference": float(np.abs(first - second).max()),
        "relative_difference": difference,
        "tolerance": agreement.tolerance,
        "agrees": difference <= agreement.tolerance,  # False for NaN
    }
