"""The one protocol that every suite is measured with.

A suite names **groups**; a group names **contenders** that do the same work in different ways. Each contender first
runs once in a fresh process, which gives its peak memory and tells whether it fits at all. Those that fit are then
warmed up and timed in one process, in turn (A B C A B C ...), so that a machine that slows down slows all of them.
Every figure is a median with its extremes, and ratios are taken within a round before their median is.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Record = dict[str, Any]

# A timed sample repeats a step at most this often, however short the step is.
MAX_STEPS = 1000


class Prepared(NamedTuple):
    """A contender, set up and ready to be timed.

    Attributes:
        run: one step of the work.
        facts: results by name, for the agreements of the group.
    """

    run: Callable[[], object]
    facts: Callable[[], dict[str, Tensor]]


class Sample(NamedTuple):
    """What a step took: by the clock, and of all cores together (more telling where others use the machine too)."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Case:
    """One contender at one setting, in values that can be written as JSON and rebuilt in another process.

    Attributes:
        suite: module of this package whose ``prepare`` sets the case up.
        contender: name within the group.
        setting: everything that fixes the work; ``device`` is always there, ``threads`` if they are set.
    """

    suite: str
    contender: str
    setting: Mapping[str, Any]


@dataclass(frozen=True)
class Agreement:
    """Two contenders whose fact must be the same up to ``tolerance`` (mean difference over mean magnitude)."""

    fact: str
    first: str
    second: str
    tolerance: float = 1e-4


@dataclass(frozen=True)
class Group:
    """Contenders that are timed together.

    Attributes:
        suite: module that prepares them.
        name: of the group, for people.
        setting: shared by all contenders.
        contenders: library that does the work, by contender.
        units: items that one step processes.
        unit: what is counted per second.
        ratios: pairs (of, over) of contenders whose throughputs are divided.
        agreements: what must hold for the comparison to be one.
    """

    suite: str
    name: str
    setting: Mapping[str, Any]
    contenders: Mapping[str, str]
    units: int
    unit: str
    ratios: tuple[tuple[str, str], ...] = ()
    agreements: tuple[Agreement, ...] = ()

    def case(self, contender: str) -> Case:
        """One contender of the group."""
        return Case(self.suite, contender, self.setting)


@dataclass(frozen=True)
class Effort:
    """How carefully to measure.

    Attributes:
        repeats: timed rounds.
        sample_seconds: a round repeats a step until it should last this long.
        memory: whether to measure peak memory, each case in a process of its own.
        memory_limit: GiB that a case may use beyond its set-up; None: 12 on the CPU, 90 % of the memory of a GPU.
    """

    repeats: int = 5
    sample_seconds: float = 0.4
    memory: bool = True
    memory_limit: float | None = None


Probe = Callable[[Case, float | None], Record]


def measure(group: Group, prepare: Callable[[Case], Prepared], effort: Effort, probe: Probe) -> Record:
    """Measure a group.

    Args:
        group: what to measure.
        prepare: sets a case up in this process.
        effort: how carefully.
        probe: runs a case once in a fresh process: status, peak memory and, if it did not run, the reason.

    Returns:
        The group's part of the record.
    """
    rows: dict[str, Record] = {
        name: {"name": name, "library": library, "status": "ok"} for name, library in group.contenders.items()
    }
    if effort.memory:
        for name, row in rows.items():
            row.update(probe(group.case(name), effort.memory_limit))
    ready = _set_up(group, prepare, rows)
    steps = {name: _warm_up(case.run, effort.sample_seconds, group) for name, case in ready.items()}
    samples = _rounds(ready, steps, effort.repeats, group.setting["device"])
    seconds = {name: [sample.seconds for sample in each] for name, each in samples.items()}
    for name, each in samples.items():
        rows[name]["steps_per_sample"] = steps[name]
        rows[name]["seconds_per_step"] = {**summary(seconds[name]), "samples": seconds[name]}
        rows[name]["cpu_seconds_per_step"] = summary([sample.cpu_seconds for sample in each])
        rows[name]["throughput"] = summary([group.units / s for s in seconds[name]])
    return {
        "name": group.name,
        "setting": dict(group.setting),
        "unit": group.unit,
        "units_per_step": group.units,
        "contenders": list(rows.values()),
        "ratios": _ratios(group, seconds),
        "agreements": _agreements(group, ready),
    }


def summary(values: Sequence[float]) -> Record:
    """Median and extremes.

    Example:
        >>> summary([3.0, 1.0, 2.0])
        {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or the GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    signs = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "Cannot allocate memory")
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error) for sign in signs)


def failure(error: BaseException) -> Record:
    """Status and reason of a case that did not run; the reason names no folder of this machine."""
    if is_out_of_memory(error):
        return {"status": "does not fit", "reason": "memory ran out"}
    return {"status": "failed", "reason": brief(f"{type(error).__name__}: {error}")}


def brief(text: str) -> str:
    """The first 300 characters on one line, without folders."""
    return re.sub(r"(?<![\w.])/[^\s\"':]*/", "", " ".join(text.split()))[:300]


def use_setting(setting: Mapping[str, Any]) -> None:
    """Make this process compute as the setting says: threads, and full float32 on a GPU."""
    if setting.get("threads"):
        torch.set_num_threads(setting["threads"])
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _set_up(group: Group, prepare: Callable[[Case], Prepared], rows: dict[str, Record]) -> dict[str, Prepared]:
    """The contenders that run, each after one step; the status of the others is written to their rows."""
    use_setting(group.setting)
    ready = {}
    for name, row in rows.items():
        if row["status"] != "ok":
            continue
        try:
            prepared = prepare(group.case(name))
            prepared.run()
        except Exception as error:  # a contender that fails must not end the run of the others
            row.update(failure(error))
        else:
            ready[name] = prepared
    return ready


def _warm_up(run: Callable[[], object], sample_seconds: float, group: Group) -> int:
    """Run until timings settle; the number of steps that a sample needs."""
    best, spent = math.inf, 0.0
    while spent < sample_seconds / 2 or best == math.inf:
        duration = _sample(run, 1, group.setting["device"]).seconds
        best, spent = min(best, duration), spent + duration
    return min(MAX_STEPS, max(1, round(sample_seconds / best)))


def _sample(run: Callable[[], object], steps: int, device: str) -> Sample:
    """The mean of ``steps`` steps."""
    _synchronise(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(steps):
        run()
    _synchronise(device)
    return Sample((time.perf_counter() - start) / steps, (time.process_time() - cpu_start) / steps)


def _rounds(
    ready: Mapping[str, Prepared], steps: Mapping[str, int], repeats: int, device: str
) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {name: [] for name in ready}
    for _ in range(repeats):
        for name, prepared in ready.items():
            samples[name].append(_sample(prepared.run, steps[name], device))
    return samples


def _ratios(group: Group, seconds: Mapping[str, list[float]]) -> list[Record]:
    """Throughput of one contender over that of another, round by round."""
    return [
        {"of": of, "over": over} | summary([b / a for a, b in zip(seconds[of], seconds[over], strict=True)])
        for of, over in group.ratios
        if of in seconds and over in seconds
    ]


def _agreements(group: Group, ready: Mapping[str, Prepared]) -> list[Record]:
    wanted = [a for a in group.agreements if a.first in ready and a.second in ready]
    facts = {name: ready[name].facts() for name in {n for a in wanted for n in (a.first, a.second)}}
    return [_compare(a, facts[a.first][a.fact], facts[a.second][a.fact]) for a in wanted]


def _compare(agreement: Agreement, first: Tensor, second: Tensor) -> Record:
    a, b = first.double().cpu(), second.double().cpu()
    difference = float((a - b).abs().mean() / a.abs().mean().clamp(min=1e-30))
    return {
        "fact": agreement.fact,
        "first": agreement.first,
        "second": agreement.second,
        "mean_first": float(a.mean()),
        "mean_second": float(b.mean()),
        "largest_difference": float((a - b).abs().max()),
        "relative_difference": difference,
        "tolerance": agreement.tolerance,
        "agrees": difference <= agreement.tolerance,  # False for NaN
    }
