"""Peak memory of one case, run once in a fresh process (``python -m benchmarks.memory``, a case as JSON on its input).

On the CPU it is the high-water mark of the resident memory minus the resident memory after imports and set-up; the
process is limited to the memory that a case may use, so that a case that does not fit ends with an error instead of
taking the machine down. The C library is told to give freed blocks back at once: what it would keep for later differs
from run to run by more than what is measured here. On a GPU it is what the allocator handed out beyond the set-up.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.case import ENDED_BY_SYSTEM, Case, Effort, Record, brief, failure, use_setting

try:
    import resource
except ImportError:  # not on Windows: no limit and no peak there
    resource = None  # type: ignore[assignment]

GIB, MIB = 2**30, 2**20
DEFAULT_LIMIT = 12.0  # GiB, on the CPU
GPU_SHARE = 0.9
MARK = "benchmark result: "
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}  # glibc; bytes


def probe(case: Case, effort: Effort) -> Record:
    """Run one step of a case in a fresh process.

    Args:
        case: what to run.
        effort: its memory limit and its patience count here.

    Returns:
        ``status`` ("ok", "does not fit", "too slow" or "failed"), ``peak_memory_mib`` if it ran, ``reason`` if not.
    """
    order = json.dumps(asdict(case) | {"limit": effort.memory_limit})
    root, settings = Path(__file__).resolve().parent.parent, {**os.environ, **GIVE_BACK}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory"]
    try:
        done = subprocess.run(
            command,
            input=order,
            capture_output=True,
            text=True,
            cwd=root,
            env=settings,
            timeout=effort.patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"status": "too slow", "reason": f"one step takes more than {effort.patience:g} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(MARK):
            result: Record = json.loads(line.removeprefix(MARK))
            return result
    if done.returncode == -9:
        return dict(ENDED_BY_SYSTEM)
    return {"status": "failed", "reason": brief(f"exit code {done.returncode}: {done.stderr[-300:]}")}


def main() -> None:
    """Run the case that stands on the standard input and print what it took."""
    order = json.loads(sys.stdin.read())
    case = Case(order["suite"], order["contender"], order["setting"])
    print(MARK + json.dumps(_attempt(case, order["limit"])))


def _attempt(case: Case, limit: float | None) -> Record:
    on_gpu = case.setting["device"] == "cuda"
    use_setting(case.setting)
    _wake(case.setting["device"])
    allowed = _allowed_on_gpu(limit) if on_gpu else _allowed_on_cpu(limit)
    try:
        prepared = case.prepare()
        gc.collect()
        peak = _peak_on_gpu(prepared.run, allowed) if on_gpu else _peak_on_cpu(prepared.run, allowed)
    except Exception as error:  # whatever went wrong is the result of this process
        result = failure(error)
        if result["status"] == "does not fit":
            result["reason"] = f"needs more than {allowed / GIB:.2g} GiB beyond its set-up"
        return result
    return {"status": "ok", "peak_memory_mib": None if peak is None else round(peak / MIB, 1)}


def _wake(device: str) -> None:
    """Load and start what PyTorch does on first use (threads, kernels, vmap), so that it counts as set-up."""
    torch.ones(2**22).mul_(2.0)  # long enough for every thread to get a part
    x = torch.rand(2, 1, 8, 8, device=device)
    weight = torch.rand(2, 1, 3, 3, device=device, requires_grad=True)
    y = torch.nn.functional.conv2d(x, weight)
    z = torch.nn.functional.conv_transpose2d(y, weight).flatten(1)
    torch.autograd.grad((z @ z.T).sum(), weight)
    with torch.no_grad():
        torch.func.vmap(lambda w: torch.nn.functional.conv2d(x, w))(torch.stack([weight, weight]))


def _allowed_on_gpu(limit: float | None) -> int:
    total = torch.cuda.get_device_properties(0).total_memory
    return int(GPU_SHARE * total if limit is None else min(limit * GIB, total))


def _allowed_on_cpu(limit: float | None) -> int:
    """The limit, or 90 % of the memory that is free if that is less."""
    wanted = int((DEFAULT_LIMIT if limit is None else limit) * GIB)
    return min(wanted, int(0.9 * _proc("/proc/meminfo", "MemAvailable")) or wanted)


def _peak_on_gpu(run: Callable[[], object], allowed: int) -> int:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (allowed + torch.cuda.memory_reserved()) / total))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(run: Callable[[], object], allowed: int) -> int | None:
    _restrict(allowed)
    _forget_peak()
    before = _resident()
    run()
    peak = _peak()
    return max(0, peak - before) if peak else None


def _restrict(allowed: int) -> None:
    """Let this process allocate that many bytes more, where the system can hold it to that (Linux)."""
    held = _proc("/proc/self/status", "VmData")
    if resource is None or not held:
        return
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = held + allowed
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _forget_peak() -> None:
    """Start the high-water mark anew where the system can (Linux), so that set-up does not hide a small step."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _resident() -> int:
    """Bytes resident now; the high-water mark where the system does not tell."""
    return _proc("/proc/self/status", "VmRSS") or _peak()


def _peak() -> int:
    """Most bytes ever resident: ``VmHWM`` where there is one, since Linux hands ``ru_maxrss`` down to a new process."""
    if high_water := _proc("/proc/self/status", "VmHWM"):
        return high_water
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _proc(path: str, field: str) -> int:
    """A field of a Linux status file in bytes, 0 where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


if __name__ == "__main__":
    main()
