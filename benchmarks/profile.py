"""Profile of the hot step: which operations take the time of a training step, and of which kind they are.

Not a comparison: a group is one network, relaxation and batch, run under PyTorch's profiler. Times are the operations'
own (without those they call), on the CPU or, where there is one, on the GPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.case import Effort, Record, synchronise, use_setting
from benchmarks.problem import EPS, problem, training_step, width_of
from benchmarks.protocol import Group, ours
from tightrope.runtime.memory import keep_freed_memory

TOP = 12  # operations listed
STEP = "step"

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot"}
MOVES = {"copy_", "cat", "fill_", "zero_", "index", "index_select", "gather", "clone", "constant_pad_nd", "flip"}


@dataclass(frozen=True)
class Options:
    """Which steps to profile: every combination."""

    device: str
    threads: int | None = None
    networks: Sequence[str] = ("cnn3",)
    batches: Sequence[int] = (32,)
    relaxations: Sequence[str] = ("ibp", "crown_ibp", "deeppoly")
    width: int | None = None


def groups(options: Options) -> list[Group]:
    """One for each network, relaxation and batch."""
    return [
        _group(options, network, relaxation, batch)
        for network in options.networks
        for batch in options.batches
        for relaxation in options.relaxations
    ]


def measure(group: Group, effort: Effort) -> Record:
    """Profile as many steps as a sample takes.

    Returns:
        The group with ``seconds_per_step`` (profiled, hence a little slower than timed), ``shares`` of the kinds of
        operations and the ``top`` operations: name, kind, calls and milliseconds a step, share of all operations' time.
    """
    setting = group.setting
    use_setting(setting)
    keep_freed_memory()  # as training does
    run = training_step(problem(setting, setting["batch"]), setting["relaxation"])
    run()
    on_gpu = setting["device"] == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        steps, start = 0, time.perf_counter()
        while steps == 0 or time.perf_counter() - start < effort.sample_seconds:
            run()
            synchronise(setting["device"])
            steps += 1
        seconds = (time.perf_counter() - start) / steps
    # on a GPU the time of a kernel is also booked on the operation that launched it
    events = [event for event in profiler.key_averages() if event.device_type.name == "CPU"]
    taken = {event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) for event in events}
    calls = {event.key: event.count for event in events}
    return {
        "name": group.name,
        "setting": dict(setting),
        "steps": steps,
        "seconds_per_step": seconds,
        **_shares(taken, calls, steps),
    }


def kind_of(name: str) -> str:
    """Of an operation by its name in a profile: product, convolution, elementwise, reduction, movement or other.

    Example:
        >>> [kind_of(name) for name in ("aten::bmm", "aten::mkldnn_convolution", "aten::mul_", "aten::copy_")]
        ['product', 'convolution', 'elementwise', 'movement']
    """
    short = name.removeprefix("aten::")
    if "conv" in short:
        return "convolution"
    if short in PRODUCTS:
        return "product"
    if short in MOVES or "pad" in short:
        return "movement"
    tags = _tags(short) if name.startswith("aten::") else set()
    if torch.Tag.pointwise in tags:
        return "elementwise"
    return "reduction" if torch.Tag.reduction in tags else "other"


def show(group: Record, console: Console) -> None:
    """Print the table of a profiled step."""
    step = f"{1000 * group['seconds_per_step']:,.1f} ms a step, profiled"
    console.print(f"[bold]{group['name']}[/] ({step})", highlight=False)
    table = Table()
    table.add_column("operation", no_wrap=True)
    table.add_column("kind")
    for column in ("calls a step", "ms a step", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in group["top"]:
        figures = (f"{row['calls']:,.0f}", f"{row['milliseconds']:,.2f}", f"{row['share']:.1%}")
        table.add_row(row["name"], row["kind"], *figures)
    console.print(table)
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in group["shares"].items())
    console.print(f"  {shares}\n", highlight=False)


def _group(options: Options, network: str, relaxation: str, batch: int) -> Group:
    width = width_of(network, options.width)
    setting: dict[str, Any] = {"network": network, "width": width, "batch": batch, "eps": EPS}
    setting |= {"relaxation": relaxation, "device": options.device, "threads": options.threads}
    name = f"{network}, width {width}, batch {batch}, {relaxation}"
    return Group(__name__, name, setting, {STEP: ours()}, batch, "images/s")


def _shares(taken: dict[str, float], calls: dict[str, int], steps: int) -> Record:
    total = sum(taken.values())
    by_time = sorted(taken, key=lambda name: -taken[name])
    kinds: dict[str, float] = {}
    for name in by_time:
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + taken[name] / total
    top = [
        {
            "name": name.removeprefix("aten::"),
            "kind": kind_of(name),
            "calls": calls[name] / steps,
            "milliseconds": taken[name] / steps / 1000,
            "share": taken[name] / total,
        }
        for name in by_time[:TOP]
    ]
    return {"shares": dict(sorted(kinds.items(), key=lambda item: -item[1])), "top": top}


def _tags(short: str) -> set[Any]:
    packet = getattr(torch.ops.aten, short, None)
    return set() if packet is None else {tag for name in packet.overloads() for tag in getattr(packet, name).tags}
