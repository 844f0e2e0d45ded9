"""Processes that decide images, for the one process that writes what they find."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch

from tightrope.errors import InputError, TightropeError
from tightrope.runtime.memory import bounded_memory, keep_freed_memory

T = TypeVar("T")
U = TypeVar("U")
TC = TypeVar("TC", contravariant=True)
UC = TypeVar("UC", covariant=True)


class Job(Protocol[TC, UC]):
    """What every worker is given once: how to decide one task after the other."""

    def decide(self, task: TC) -> UC:
        """The result of a task, which must not depend on the tasks before it."""
        ...


class WorkerError(TightropeError, RuntimeError):
    """A worker process ended before its work did."""


@contextmanager
def workers(
    job: Job[T, U], count: int, memory_gib: float | None = None
) -> Iterator[Callable[[Iterable[T]], Iterator[U]]]:
    """Something that decides tasks, in the order in which they are done: this process, or ``count`` others.

    The others share the threads and the memory of this one. They ignore Ctrl-C, which is for this process to handle,
    and end with it, however it ends.

    Args:
        job: pickled if there are others.
        count: of processes.
        memory_gib: for all of them together, beyond what they hold at the start.

    Raises:
        InputError: no workers, or a job that cannot be sent to another process.
    """
    if count < 1:
        raise InputError(f"workers must be at least 1, got {count}.")
    if count == 1:
        keep_freed_memory()
        with bounded_memory(memory_gib):
            yield lambda tasks: map(job.decide, tasks)
        return
    share = None if memory_gib is None else memory_gib / count
    pool: _Pool[T, U] = _Pool(_pickled(job), count, max(1, torch.get_num_threads() // count), share)
    try:
        yield pool.decided
    finally:
        pool.stop()


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection


class _Pool(Generic[T, U]):
    def __init__(self, job: bytes, count: int, threads: int, memory_gib: float | None) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process hangs in OpenMP
        self._workers: list[_Worker] = []
        for number in range(count):
            ours, theirs = context.Pipe()
            arguments = (theirs, threads, memory_gib)
            process = context.Process(target=_work, args=arguments, name=f"certify-{number}", daemon=True)
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours))
        for worker in self._workers:
            self._send(worker, job)

    def decided(self, tasks: Iterable[T]) -> Iterator[U]:
        """Results as they come; every worker has one task at a time."""
        waiting, busy = deque(tasks), dict[Connection, _Worker]()
        for worker in self._workers:
            self._next(worker, waiting, busy)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy.pop(connection)
                found = self._receive(worker)
                self._next(worker, waiting, busy)
                yield found

    def stop(self) -> None:
        """End the processes, whatever they are at: only this process writes."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()

    def _next(self, worker: _Worker, waiting: deque[T], busy: dict[Connection, _Worker]) -> None:
        if waiting:
            self._send(worker, pickle.dumps(waiting.popleft()))
            busy[worker.connection] = worker

    def _send(self, worker: _Worker, content: bytes) -> None:
        try:
            worker.connection.send_bytes(content)
        except OSError:
            raise _ended(worker.process) from None

    def _receive(self, worker: _Worker) -> U:
        try:
            found, error = pickle.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            raise _ended(worker.process) from None
        if error is not None:
            raise error
        result: U = found
        return result


def _ended(process: BaseProcess) -> WorkerError:
    process.join()
    return WorkerError(
        f"The worker {process.name} ended with code {process.exitcode} (-9: killed, as when the memory is used up). "
        "What was finished is saved: run the same command again, with fewer workers or less memory each."
    )


def _pickled(job: object) -> bytes:
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"What is to be certified cannot be sent to other processes ({error}). Use workers=1, or a spec and an "
            "attack that are defined at the top of a module."
        ) from None


# ------------------------------------------------------------------------------------------ in the worker


def _work(connection: Connection, threads: int, memory_gib: float | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        job: Job[object, object] = pickle.loads(connection.recv_bytes())
        with bounded_memory(memory_gib):
            while True:
                connection.send_bytes(_answer(job, pickle.loads(connection.recv_bytes())))
    except (EOFError, OSError):
        return  # the other side is gone


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)  # from this thread, sys.exit would end only the thread


def _answer(job: Job[object, object], task: object) -> bytes:
    try:
        return pickle.dumps((job.decide(task), None))
    except Exception as error:
        return pickle.dumps((None, _sendable(error)))


def _sendable(error: Exception) -> Exception:
    """The error with where it was raised, or its text where it cannot be sent."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        sent: Sequence[Exception] = [pickle.loads(pickle.dumps(error))]
        return sent[0]
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
