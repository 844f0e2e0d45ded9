"""Many processes on one run, as ``torchrun`` starts them: gloo between CPUs, nccl between GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tightrope.core.ranks import ALONE, Ranks
from tightrope.errors import InputError, RankLostError

TIMEOUT = timedelta(minutes=10)
"""How long one process waits for the others."""


def number_of_processes() -> int:
    """How many ``torchrun`` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The processes of this run, for as long as the block lasts; alone where ``torchrun`` started no others.

    Args:
        device: of the run; on a GPU each process takes the one of its local number.

    Raises:
        InputError: more processes on a machine than GPUs.
        RankLostError: the others do not come.
    """
    if number_of_processes() == 1:
        yield ALONE
        return
    if device.type == "cuda":
        _take_gpu()
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise _lost(error) from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), lambda values: _sum(values, device))
    finally:
        dist.destroy_process_group()


def _take_gpu() -> None:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise InputError(f"This machine has {torch.cuda.device_count()} GPUs: start as many processes, not more.")
    torch.cuda.set_device(local)


def _sum(values: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """One message per dtype; every process gets the same bits."""
    sums: dict[str, Tensor] = {}
    for dtype in sorted({value.dtype for value in values.values()}, key=str):
        names = [name for name, value in values.items() if value.dtype == dtype]
        flat = torch.cat([values[name].detach().to(device).reshape(-1) for name in names])
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:
            raise _lost(error) from error
        pieces = flat.split([values[name].numel() for name in names])
        sums |= {name: piece.reshape(values[name].shape) for name, piece in zip(names, pieces, strict=True)}
    return {name: sums[name] for name in values}


def _lost(error: Exception) -> RankLostError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return RankLostError(
        f"Another process of this run ended or cannot be reached ({reason}). The run goes on from its last checkpoint, "
        "with any number of processes: torchrun --nproc-per-node N -m tightrope train --resume RUN"
    )
