"""A suite for the tests of the protocol: contenders that work, and some that stop in each way there is."""

from __future__ import annotations

import os
import signal
import time

import torch
from benchmarks.case import Case, Prepared
from torch import Tensor


def prepare(case: Case) -> Prepared:
    """Set one contender up: its name says what it does, and its setting in which step."""
    if case.contender == "raises":
        raise ValueError(f"no {case.setting['size']}")
    remaining = case.setting.get("steps", 0)

    def run() -> None:
        nonlocal remaining
        remaining -= 1
        if remaining < 0:
            _stop(case.contender)

    def facts() -> dict[str, Tensor]:
        return {"process": torch.tensor([float(os.getpid())], requires_grad=True)}

    return Prepared(run, facts)


def _stop(contender: str) -> None:
    if contender == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if contender == "exits":
        os._exit(3)
    if contender == "hangs":
        time.sleep(600)
