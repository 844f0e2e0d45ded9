"""How long a piece of work takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

SAMPLE_SECONDS = 0.5  # after so long there are no more repetitions than are asked for


def median_seconds(work: Callable[[], object], device: torch.device, repeats: tuple[int, int]) -> float:
    """The median time of some work.

    Args:
        work: what to run.
        device: where it is computed.
        repeats: fewest and most repetitions; quick work gets more of them.
    """
    durations: list[float] = []
    fewest, most = repeats
    while len(durations) < fewest or (len(durations) < most and sum(durations) < SAMPLE_SECONDS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)
