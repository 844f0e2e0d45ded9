"""How much memory a piece of work needs, and how much there is."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import platform
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tightrope.errors import InputError

GIB = 2**30

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is active, for as long as they live.

    It sees every operation below autograd and ``vmap``, hence saved tensors and batched intermediate results as well. A
    storage counts once, however many views there are of it, until the last of them dies. What a kernel allocates and
    frees within itself is not seen.

    Attributes:
        current: bytes alive now.
        peak: most bytes that were alive at once.

    Example:
        >>> with LiveBytes() as count:
        ...     x = torch.zeros(256)
        ...     y = (x + 1).sum()
        >>> count.current, count.peak
        (1028, 2052)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and id(storage := leaf.untyped_storage()) not in given:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, partial(self._forget, key, size))
            self.current += size
            self.peak = max(self.peak, self.current)

    def _forget(self, key: int, size: int, _: object) -> None:
        del self._alive[key]
        self.current -= size


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next step, process-wide (glibc; elsewhere nothing is done).

    A step allocates the same blocks as the one before. By default glibc returns the larger ones to the system and
    fetches them anew, page by page: a step of a small network is up to 1.9 times slower then, its peak about the same.
    """
    if _has_glibc():
        library = ctypes.CDLL(None)
        if not library.mallopt(_MMAP_THRESHOLD, 2**30):
            library.mallopt(_MMAP_THRESHOLD, 2**25)  # the largest that older versions take
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Return now what the C library has kept (glibc; elsewhere nothing is done)."""
    gc.collect()
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def bounded_memory(gib: float | None) -> Iterator[None]:
    """Inside, allocations fail that would take the process so much beyond what it holds now (Linux; not on a GPU).

    What fails raises, so that work that halves its batches then goes on with smaller ones.

    Args:
        gib: None for no bound.

    Raises:
        InputError: it is not positive, or this system knows no such limit.
    """
    if gib is None:
        yield
        return
    held = _status("/proc/self/status", "VmData")
    if not gib > 0 or not held:
        raise InputError(f"A bound of {gib:g} GiB cannot be kept: give a positive one, on Linux.")
    resource = importlib.import_module("resource")
    old = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = held + int(gib * GIB)
    limits = [limit for limit in (wanted, *old) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, old)


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that some work needs at its peak, beyond what is held before it.

    On a GPU what the allocator handed out. On the CPU the bytes of live tensors, or the growth of the resident memory
    where the system tells (Linux) and it is more: the C library's allocator leaves gaps, up to as much again as the
    tensors themselves, and may have room left from work before.

    Args:
        work: what to run.
        device: where its tensors are.
    """
    if device.type == "cuda":
        return _peak_on_gpu(work, device)
    count = LiveBytes()
    with count:
        resident = _peak_resident(work)
    return max(count.peak, resident)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device.

    Raises:
        InputError: the system does not tell.
    """
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + idle)
    if available := _status("/proc/meminfo", "MemAvailable"):
        return int(min(available, _left_in_container()))
    if platform.system() == "Darwin":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    raise InputError("This system does not tell how much memory is free: set memory_gib.")


def _peak_on_gpu(work: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_resident(work: Callable[[], object]) -> int:
    """0 where the system does not tell."""
    return_freed_memory()  # what is kept would hide what the work needs
    before = _status("/proc/self/status", "VmRSS")
    known = _forget_high_water()
    work()
    return max(0, _status("/proc/self/status", "VmHWM") - before) if known else 0


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _forget_high_water() -> bool:
    """Start the high-water mark of the resident memory anew; whether the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _left_in_container() -> float:
    """Bytes to the limit of the control group, infinity where there is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else max(0, int(limit) - int(used))


def _status(path: str, field: str) -> int:
    """A field of a Linux status file in bytes, 0 where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
