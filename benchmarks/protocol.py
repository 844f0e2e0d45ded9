"""The one protocol that every suite is measured with.

A suite names **groups**; a group names **contenders** that do the same work in different ways. Each contender first
runs once in a fresh process, which gives its peak memory and tells whether it fits at all. Those that fit are then
warmed up and timed in one process, in turn (A B C A B C ...), so that a machine that slows down slows all of them.
Every figure is a median with its extremes, and ratios are taken within a round before their median is.

A contender that does not fit, or whose single step takes longer than anybody wants to wait, is recorded as such.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import work

Record = dict[str, Any]

# A timed sample repeats a step at most this often, however short the step is.
MAX_STEPS = 1000
# Rounds that slow contenders get even if they take longer than a group should.
MIN_ROUNDS = 3


class Prepared(NamedTuple):
    """A contender, set up and ready to be timed.

    Attributes:
        run: one step of the work.
        facts: results by name, for the agreements of the group.
    """

    run: Callable[[], object]
    facts: Callable[[], dict[str, Tensor]] = dict


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


class Contender(NamedTuple):
    """One way to do a group's work.

    Attributes:
        library: that does the work.
        setting: what fixes it beyond the group's setting.
    """

    library: str
    setting: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Group:
    """Contenders that are timed together.

    Attributes:
        suite: module that prepares them.
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


@dataclass(frozen=True)
class Effort:
    """How carefully to measure.

    Attributes:
        repeats: timed rounds.
        sample_seconds: a round repeats a step until it should last this long.
        memory: whether to measure peak memory, each case in a process of its own.
        memory_limit: GiB that a case may use beyond its set-up; None: 12 on the CPU, 90 % of the memory of a GPU.
        patience: seconds that one step may take, its process and set-up included.
        group_seconds: no new round begins after that time, once three are done.
    """

    repeats: int = 5
    sample_seconds: float = 0.4
    memory: bool = True
    memory_limit: float | None = None
    patience: float = 60.0
    group_seconds: float = 90.0


Probe = Callable[[Case, Effort], Record]


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
        name: {"name": name, "library": each.library, "setting": dict(each.setting), "status": "ok"}
        for name, each in group.contenders.items()
    }
    if effort.memory or not group.timed:
        for name, row in rows.items():
            row.update(probe(group.case(name), effort))
    ready = _set_up(group, prepare, rows) if group.timed else {}
    if group.counted:
        for name, prepared in ready.items():
            rows[name]["work"] = work.count(prepared.run)
    steps = {name: _warm_up(case.run, effort.sample_seconds, group) for name, case in ready.items()}
    samples = _rounds(ready, steps, effort, group.setting["device"])
    for name, each in samples.items():
        rows[name] |= _timings(each, steps[name], group.units)
    return {
        "name": group.name,
        "setting": dict(group.setting),
        "unit": group.unit,
        "units_per_step": group.units,
        "contenders": list(rows.values()),
        "ratios": _ratios(group, rows),
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


def synchronise(device: str) -> None:
    """Wait for a GPU."""
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
    synchronise(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(steps):
        run()
    synchronise(device)
    return Sample((time.perf_counter() - start) / steps, (time.process_time() - cpu_start) / steps)


def _rounds(
    ready: Mapping[str, Prepared], steps: Mapping[str, int], effort: Effort, device: str
) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {name: [] for name in ready}
    start = time.perf_counter()
    for done in range(effort.repeats):
        if done >= MIN_ROUNDS and time.perf_counter() - start > effort.group_seconds:
            break
        for name, prepared in ready.items():
            samples[name].append(_sample(prepared.run, steps[name], device))
    return samples


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
