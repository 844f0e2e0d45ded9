"""``python -m benchmarks training|population|plan|all``, run from the repository root."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before PyTorch starts its threads: waiting threads that spin take the cores of those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rich.console import Console

from benchmarks import memory, peers, plan, population, report, training
from benchmarks.environment import ROOT, environment, load_average
from benchmarks.protocol import Effort, Group, Record, measure, use_setting
from tightrope.core import registry

SUITES = {"training": training, "population": population, "plan": plan}
QUICK: dict[str, dict[str, Any]] = {
    "training": {"networks": ("cnn3",), "batches": (4,), "width": 4},
    "population": {"pairs": 4, "images": 16, "chunks": (1, 4), "width": 4},
    "plan": {"networks": ("cnn3_tiny",), "batches": (4,), "relaxations": ("ibp",)},
}
# Options of the command line that belong to one suite.
OWN = {
    "training": ("networks", "batches", "relaxations", "width"),
    "population": ("pairs", "images", "chunks", "width"),
    "plan": ("networks", "batches", "relaxations"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run suites, print tables, write records.

    Returns:
        0; 1 if a contender of ours failed or contenders disagree.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that PyTorch can use; take --device cpu")
    warnings.simplefilter("ignore")
    console = Console()
    suites = list(SUITES) if options.suite == "all" else [options.suite]
    devices = [options.device] if options.device else ["cpu"] + ["cuda"] * torch.cuda.is_available()
    if peers.VERSION is None and "training" in suites:
        console.print("auto_LiRPA is not importable: no figures of peers (see benchmarks/README.md).")
    sound = True
    for suite in suites:
        for device in devices:
            record = _run(suite, device, options, console)
            name = f"{suite}-quick" if options.quick else suite
            path = options.out / f"{name}-{device}.json"
            report.write(record, path)
            console.print(f"Written to {path}\n")
            sound = sound and all(_is_sound(group) for group in record["groups"])
    return 0 if sound else 1


def _run(suite: str, device: str, options: argparse.Namespace, console: Console) -> Record:
    effort = _effort(options)
    module = SUITES[suite]
    groups: list[Group] = module.groups(_suite_options(suite, device, options))
    use_setting(groups[0].setting)
    before = environment(device)
    console.rule(f"{suite} on {before['gpu'] or before['cpu']}, {before['threads']} threads")
    measured = []
    for group in groups:
        with console.status(group.name):
            found = measure(group, module.prepare, effort, memory.probe)
        measured.append(plan.compare(found) if suite == "plan" else found)
        report.show(measured[-1], console)
    return {
        "format": report.FORMAT,
        "name": suite,
        "device": device,
        "quick": options.quick,
        "environment": before | {"load_average_after": load_average()},
        "protocol": {
            "order": "interleaved",
            "repeats": effort.repeats,
            "sample_seconds": effort.sample_seconds,
            "memory": "peak of one step in a fresh process beyond its set-up" if effort.memory else None,
            "memory_limit_gib": _limit(effort, device),
        },
        "groups": measured,
    }


def _effort(options: argparse.Namespace) -> Effort:
    repeats = options.repeats or (5 if options.quick else Effort.repeats)
    seconds = 0.05 if options.quick else Effort.sample_seconds
    return Effort(repeats, seconds, options.memory, options.memory_limit)


def _limit(effort: Effort, device: str) -> float | None:
    return memory.DEFAULT_LIMIT if effort.memory_limit is None and device == "cpu" else effort.memory_limit


def _suite_options(suite: str, device: str, options: argparse.Namespace) -> Any:
    given = {key: getattr(options, key) for key in OWN[suite] if getattr(options, key) is not None}
    quick = QUICK[suite] if options.quick else {}
    return SUITES[suite].Options(device=device, threads=options.threads, **(quick | given))


def _is_sound(group: Record) -> bool:
    ours_ran = all(row["status"] != "failed" for row in group["contenders"] if peers.PREFIX not in row["name"])
    return ours_ran and all(check["agrees"] for check in group["agreements"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=[*SUITES, "all"])
    parser.add_argument("--quick", action="store_true", help="tiny networks, about a minute: to see that it works")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the CPU, then the GPU if there is one")
    parser.add_argument("--threads", type=_positive, help="threads of PyTorch on the CPU")
    out = ROOT / "results" / "benchmarks"
    parser.add_argument("--out", type=Path, default=out, help="folder for the records (default: results/benchmarks)")
    parser.add_argument("--repeats", type=_positive, help=f"timed rounds (default: {Effort.repeats})")
    parser.add_argument("--memory-limit", type=float, metavar="GIB", help="what needs more is recorded as such")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave peak memory out (faster)")
    parser.add_argument("--width", type=_positive, help="channels of the first convolution")
    cases = parser.add_argument_group("training")
    cases.add_argument("--networks", type=_list_of(_name("models")), metavar="A,B")
    cases.add_argument("--batches", type=_list_of(_positive), metavar="N,M")
    cases.add_argument("--relaxations", type=_list_of(_name("relaxations")), metavar="A,B")
    people = parser.add_argument_group("population")
    people.add_argument("--pairs", type=_positive)
    people.add_argument("--images", type=_positive)
    people.add_argument("--chunks", type=_list_of(_positive), metavar="N,M")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _name(kind: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in registry.names(kind):
            raise argparse.ArgumentTypeError(f"unknown name {text!r}; known: {', '.join(registry.names(kind))}")
        return text

    return parse


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part.strip()) for part in text.split(","))

    return parse


if __name__ == "__main__":
    sys.exit(main())
