"""A process of its own for the contenders of one library, which are set up and timed in it on request.

Settings of the C library's allocator hold for a whole process. Ours are those of a training run, which lets the C
library keep what is freed (:func:`tightrope.runtime.memory.keep_freed_memory`); a library that leaves it as it is must
be timed as its users run it. A worker that is not asked sleeps.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from benchmarks import work
from benchmarks.case import ENDED_BY_SYSTEM, Case, Prepared, Record, failure, synchronise, use_setting
from tightrope.runtime.memory import keep_freed_memory

# A timed sample repeats a step at most this often, however short the step is.
MAX_STEPS = 1000


class Sample(NamedTuple):
    """What a step took: by the clock, and of all cores together (more telling where others use the machine too)."""

    seconds: float
    cpu_seconds: float


class StoppedError(Exception):
    """A contender stopped.

    Attributes:
        outcome: its status and the reason.
    """

    def __init__(self, outcome: Record) -> None:
        super().__init__(outcome["reason"])
        self.outcome = outcome


class Worker:
    """The process of one library's contenders.

    Args:
        setting: threads and device.
        keeps_memory: whether its C library keeps what is freed for the next step.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, setting: Mapping[str, Any], *, keeps_memory: bool, timeout: float) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit the settings and threads of this process
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, dict(setting), keeps_memory), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self._timeout = timeout
        self.alive = True

    def set_up(self, case: Case) -> None:
        """Set a case up and run it once. This and what follows raise :class:`StoppedError` if the contender stops."""
        self._ask("set_up", case)

    def warm_up(self, contender: str, seconds: float) -> int:
        """Run until timings settle; the number of steps that samples of so many seconds will have."""
        steps: int = self._ask("warm_up", contender, seconds)
        return steps

    def sample(self, contender: str) -> Sample:
        """The mean of the steps of one sample."""
        sample: Sample = self._ask("sample", contender)
        return sample

    def count(self, contender: str) -> Record:
        """Operations and bytes of a step."""
        counted: Record = self._ask("count", contender)
        return counted

    def facts(self, contender: str) -> dict[str, NDArray[Any]]:
        """What the contender computes, by name."""
        facts: dict[str, NDArray[Any]] = self._ask("facts", contender)
        return facts

    def close(self) -> None:
        """End the process."""
        self.alive = False
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def _ask(self, task: str, *arguments: object) -> Any:
        try:
            self._pipe.send((task, arguments))
            if not self._pipe.poll(self._timeout):
                self.close()
                raise StoppedError({"status": "too slow", "reason": f"no answer within {self._timeout:g} s"})
            outcome, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise StoppedError(self._obituary()) from None
        if outcome is not None:
            raise StoppedError(outcome)
        return answer

    def _obituary(self) -> Record:
        self._process.join(self._timeout)
        code = self._process.exitcode
        self.close()
        return dict(ENDED_BY_SYSTEM) if code == -9 else {"status": "failed", "reason": f"exit code {code}"}


class _Bench:
    """The contenders of this process; its methods are what a worker may be asked."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self._device = device
        self._ready: dict[str, Prepared] = {}
        self._steps: dict[str, int] = {}

    def set_up(self, case: Case) -> None:
        prepared = case.prepare()
        prepared.run()
        self._ready[case.contender] = prepared

    def warm_up(self, contender: str, seconds: float) -> int:
        best, spent = math.inf, 0.0
        while spent < seconds / 2 or best == math.inf:
            duration = self._time(contender, 1).seconds
            best, spent = min(best, duration), spent + duration
        self._steps[contender] = min(MAX_STEPS, max(1, round(seconds / best)))
        return self._steps[contender]

    def sample(self, contender: str) -> Sample:
        if not self._on_gpu:
            return self._time(contender, self._steps[contender])
        self._ready[contender].run()  # takes from the GPU what the last sample of this process gave back
        sample = self._time(contender, self._steps[contender])
        torch.cuda.empty_cache()  # for the other processes
        return sample

    def count(self, contender: str) -> Record:
        return work.count(self._ready[contender].run)

    def facts(self, contender: str) -> dict[str, NDArray[Any]]:
        return {name: fact.detach().double().cpu().numpy() for name, fact in self._ready[contender].facts().items()}

    def _time(self, contender: str, steps: int) -> Sample:
        run = self._ready[contender].run
        synchronise(self._device)
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(steps):
            run()
        synchronise(self._device)
        return Sample((time.perf_counter() - start) / steps, (time.process_time() - cpu_start) / steps)


def _serve(pipe: Connection, setting: Mapping[str, Any], keeps_memory: bool) -> None:
    """Answer with an outcome, None if all went well, and a result, until the other side hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    warnings.simplefilter("ignore")
    if keeps_memory:
        keep_freed_memory()
    use_setting(setting)
    bench = _Bench(setting["device"])
    known = (bench.set_up, bench.warm_up, bench.sample, bench.count, bench.facts)
    tasks: dict[str, Callable[..., object]] = {method.__name__: method for method in known}
    while True:
        try:
            task, arguments = pipe.recv()
        except EOFError:
            return
        try:
            outcome, answer = None, tasks[task](*arguments)
        except Exception as error:  # whatever went wrong is the outcome of this contender, not of the others
            outcome, answer = failure(error), None
        pipe.send((outcome, answer))
