"""Complete verification: instances decided against time, of files that any verifier reads.

An instance is an ONNX network, a VNN-LIB property and a number of seconds, as in the competition of the field: those
of ``--instances DIR...`` (each with its ``*instances.csv``), or generated ones: fully connected networks of fixed
seeds, and the robustness of their decisions for growing radii. Each verifier gets a process of its own for each
instance, whose start counts. Not a matter of rounds: a verdict is the same every time, and the time limit is what is
measured against.

The peer is alpha-beta-CROWN where the variable ABCROWN names a checkout's folder ``complete_verifier``; ABCROWN_PYTHON
is the Python that runs it, ABCROWN_CONFIG a configuration of its own for the instances, or a folder of them: that of
the instances in ``DIR`` is then ``DIR.yaml``, if there is one.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import tightrope as tr
from benchmarks.case import Effort, Record
from benchmarks.protocol import Contender, Group, ours
from tightrope.frontend.onnx_export import to_onnx
from tightrope.frontend.vnnlib import robustness_property

OURS, PEER = "tightrope", "alpha-beta-CROWN"
DECIDED = ("unsat", "sat")
ERROR = "error"  # of the verifier itself: says nothing about how strong it is
GRACE = 1.5  # times the time limit that a process may take
_INPUTS, _CLASSES = 20, 5
_SHAPES = ((64, 64), (48, 48, 48), (100, 100))
_RADII = (0.02, 0.04, 0.06, 0.08)


class Instance(NamedTuple):
    """A network's file and a property's, of a folder with this name."""

    family: str
    network: Path
    prop: Path


@dataclass(frozen=True)
class Options:
    """Which instances, and how long each may take."""

    device: str
    threads: int | None = None
    instances: Sequence[Path] = ()
    count: int | None = None
    timeout: float = 30.0


def groups(options: Options) -> list[Group]:
    """One group for each folder: all verifiers on all its instances."""
    contenders = {OURS: ours()} if find_spec("onnx") else {}
    if contenders and os.environ.get("ABCROWN"):
        contenders[PEER] = Contender(PEER)
    common = {"device": options.device, "threads": options.threads, "timeout": options.timeout, "count": options.count}
    return [
        Group(__name__, name, common | {"folder": folder}, contenders, options.count or 0, "instances decided")
        for name, folder in [(path.name, str(path)) for path in options.instances] or [("generated networks", "")]
    ]


def measure(group: Group, effort: Effort) -> Record:
    """Every verifier on one instance after the other.

    Returns:
        The group with verdict and seconds of each instance, for each contender, and whether verdicts contradict.
    """
    setting = group.setting
    rows: dict[str, Record] = {
        name: {"name": name, "library": each.library, "status": "ok", "verdicts": [], "seconds": []}
        for name, each in group.contenders.items()
    }
    names = []
    with TemporaryDirectory() as folder:
        source = Path(setting["folder"]) if setting["folder"] else _generated(Path(folder))
        for instance in _some(read(source), setting["count"]):
            names.append(f"{instance.network.name} {instance.prop.name}")
            for name, row in rows.items():
                verdict, seconds = _decide(_COMMANDS[name], instance, setting["timeout"], setting["threads"])
                row["verdicts"].append(verdict)
                row["seconds"].append(seconds)
    return {
        "name": group.name,
        "setting": {key: value for key, value in setting.items() if key != "folder"},
        "unit": group.unit,
        "units_per_step": len(names),
        "instances": names,
        "reason": "" if rows else "the package onnx is not importable",
        "contenders": list(rows.values()),
        "ratios": [],
        "agreements": [_agreement(*rows.values())] if len(rows) == 2 else [],
    }


def show(group: Record, console: Console) -> None:
    """Print how many instances each verifier decided, and in what time."""
    console.print(f"[bold]{group['name']}[/], {group['units_per_step']} instances {group['reason']}", highlight=False)
    table = Table()
    for column in ("verifier", "verified", "falsified", "undecided", "errors", "seconds in all"):
        table.add_column(column, justify="left" if column == "verifier" else "right")
    for row in group["contenders"]:
        counts = [sum(verdict == word for verdict in row["verdicts"]) for word in (*DECIDED, ERROR)]
        errors = counts.pop()
        left = len(row["verdicts"]) - sum(counts) - errors
        table.add_row(row["name"], *map(str, counts), str(left), str(errors), f"{sum(row['seconds']):.1f}")
    console.print(table)
    for check in group["agreements"]:
        console.print("  no contradictions" if check["agrees"] else f"  [red]CONTRADICTIONS[/]: {check['against']}")


def read(folder: Path) -> list[Instance]:
    """The instances that a folder's ``*instances.csv`` lists; files may have been compressed since."""
    [table] = sorted(folder.glob("*instances.csv"))
    with table.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.reader(lines) if row]
    return [Instance(folder.name, *(_file(folder / cell.strip()) for cell in row[:2])) for row in rows]


def _file(path: Path) -> Path:
    compressed = path.with_name(f"{path.name}.gz")
    return compressed if compressed.exists() and not path.exists() else path


def _some(instances: Sequence[Instance], count: int | None) -> Sequence[Instance]:
    """So many of them, evenly spread."""
    size = min(count or len(instances), len(instances))
    return [instances[i * len(instances) // size] for i in range(size)]


def _generated(folder: Path) -> Path:
    """Random networks and the robustness of their decisions, as files."""
    listed = []
    for seed, widths in enumerate(_SHAPES):
        torch.manual_seed(seed)
        sizes = (_INPUTS, *widths, _CLASSES)
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        net, params = tr.from_module(nn.Sequential(*layers[:-1]), (_INPUTS,))
        (folder / f"network-{seed}.onnx").write_bytes(to_onnx(net, params))
        x = torch.rand(1, _INPUTS)
        label = int(net(params, x).argmax())
        for eps in _RADII:
            box = tr.linf_box(x.double(), eps)
            name = f"property-{seed}-{eps}.vnnlib"
            text = robustness_property(tr.Box(*(end[0] for end in box)), label, _CLASSES)
            (folder / name).write_text(text, encoding="ascii")
            listed.append(f"network-{seed}.onnx,{name},0\n")
    (folder / "instances.csv").write_text("".join(listed), encoding="ascii")
    return folder


Command = Callable[[Instance, float, Path], list[str]]


def _ours(instance: Instance, timeout: float, results: Path) -> list[str]:
    files = [str(instance.network), str(instance.prop)]
    limits = ["--timeout", str(timeout), "--vnncomp", "--results-file", str(results)]
    return [sys.executable, "-c", "from tightrope.cli.main import main; main()", "verify", *files, *limits]


def _peer(instance: Instance, timeout: float, results: Path) -> list[str]:
    python = os.environ.get("ABCROWN_PYTHON", sys.executable)
    config = _peers_config(instance)
    files = ["--onnx_path", str(instance.network), "--vnnlib_path", str(instance.prop)]
    limits = ["--timeout", str(timeout), "--results_file", str(results), "--device", "cpu"]
    chosen = ["--config", str(config)] if config else ["--complete_verifier", "bab"]
    return [python, str(Path(os.environ["ABCROWN"]) / "abcrown.py"), *chosen, *files, *limits]


def _peers_config(instance: Instance) -> Path | None:
    if not (given := os.environ.get("ABCROWN_CONFIG")):
        return None
    if (path := Path(given)).is_dir():
        path /= f"{instance.family}.yaml"
    return path if path.is_file() else None


_COMMANDS: dict[str, Command] = {OURS: _ours, PEER: _peer}


def _decide(command: Command, instance: Instance, timeout: float, threads: int | None) -> tuple[str, float]:
    """The first word of the verdict, and the seconds of the process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else dict(os.environ)
    with TemporaryDirectory() as folder:
        results = Path(folder) / "result.txt"
        begin = time.perf_counter()
        try:
            # Its own folder as the current one: it writes files there.
            subprocess.run(
                command(instance, timeout, results),
                cwd=os.environ["ABCROWN"] if command is _peer else None,
                env=environment,
                capture_output=True,
                timeout=GRACE * timeout + 30,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "timeout", time.perf_counter() - begin
        seconds = time.perf_counter() - begin
        words = results.read_text(encoding="utf-8").split() if results.exists() else []
    return (words[0] if words else ERROR), seconds


def _agreement(first: Record, second: Record) -> Record:
    """Whether nothing is verified by one and falsified by the other."""
    pairs = enumerate(zip(first["verdicts"], second["verdicts"], strict=True))
    against = [place for place, pair in pairs if set(pair) == set(DECIDED)]
    return {
        "fact": "verdicts",
        "first": first["name"],
        "second": second["name"],
        "against": against,
        "agrees": not against,
    }


def solved(row: Record) -> Iterator[float]:
    """The time spent until the first, second ... instance was decided, easy ones first."""
    total = 0.0
    for seconds in sorted(s for s, verdict in zip(row["seconds"], row["verdicts"], strict=True) if verdict in DECIDED):
        total += seconds
        yield total
