"""A case (one contender at one setting), what it is once set up, and how it fails: the same in every process."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

Record = dict[str, Any]

ENDED_BY_SYSTEM = {"status": "does not fit", "reason": "ended by the system, which does so when memory runs out"}


class Prepared(NamedTuple):
    """A contender, set up and ready to be timed.

    Attributes:
        run: one step of the work.
        facts: results by name, for the agreements of the group.
    """

    run: Callable[[], object]
    facts: Callable[[], dict[str, Tensor]] = dict


@dataclass(frozen=True)
class Case:
    """One contender at one setting, in values that can be written as JSON and rebuilt in another process.

    Attributes:
        suite: module whose ``prepare`` sets the case up.
        contender: name within the group.
        setting: everything that fixes the work; ``device`` is always there, ``threads`` if they are set.
    """

    suite: str
    contender: str
    setting: Mapping[str, Any]

    def prepare(self) -> Prepared:
        """Set the case up in this process."""
        prepared: Prepared = import_module(self.suite).prepare(self)
        return prepared


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
