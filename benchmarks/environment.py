"""What a figure depends on beside the code: machine, libraries, threads, revision."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

import tightrope
from benchmarks import evolution, peers
from benchmarks.case import Record

# Variables that change how fast PyTorch computes on the CPU.
SETTINGS = (
    "OMP_WAIT_POLICY",
    "THP_MEM_ALLOC_ENABLE",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
)
ROOT = Path(__file__).resolve().parent.parent


def environment(device: str) -> Record:
    """The environment record. It names no host, user or path."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "tightrope": tightrope.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": _uncommitted(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peers": {"auto_LiRPA": peers.VERSION, "evotorch": evolution.VERSION},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "gpu": torch.cuda.get_device_name(0) if device == "cuda" else None,
        "load_average": load_average(),
    }


def load_average() -> float | None:
    """Processes that wanted to run over the last minute: beyond the number of cores, others disturbed the timings."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _uncommitted() -> bool | None:
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks")
    return None if changes is None else bool(changes)
