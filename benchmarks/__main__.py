"""``python -m benchmarks SUITE``, run from the repository root: tables, a record and a picture of each suite.

``python -m benchmarks readme`` prints the README's tables from the records.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

# Before PyTorch starts its threads: waiting threads that spin take the cores of those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler prints when it starts and stops

import torch
from rich.console import Console

from benchmarks import evolution, memory, peers, readme, report
from benchmarks.case import Effort, Record, use_setting
from benchmarks.environment import ROOT, environment, load_average
from benchmarks.problem import FUSED
from benchmarks.scaling import AXES
from benchmarks.suites import SUITES, Suite
from tightrope.core import registry

OURS = ("tightrope", "plain PyTorch", "PyTorch")
PEERS = {"auto_LiRPA": peers.VERSION, "evotorch": evolution.VERSION}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run suites: print tables, write records and pictures.

    Returns:
        0; 1 if a contender of ours failed or contenders disagree.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that PyTorch can use; take --device cpu")
    if options.suite == "readme":
        return _readme(options)
    warnings.simplefilter("ignore")
    console = Console()
    for library in (name for name, version in PEERS.items() if version is None):
        console.print(f"{library} is not importable: no figures of it (see benchmarks/README.md).")
    sound = True
    for name in list(SUITES) if options.suite == "all" else [options.suite]:
        for device in [options.device] if options.device else ["cpu"] + ["cuda"] * torch.cuda.is_available():
            record = _run(name, SUITES[name], device, options, console)
            path = options.out / f"{name}{'-quick' if options.quick else ''}-{device}.json"
            report.write(record, path)
            SUITES[name].draw(record["groups"]).savefig(path.with_suffix(".png"), dpi=150)
            console.print(f"Written to {path} and {path.with_suffix('.png').name}\n")
            sound = sound and all(_is_sound(group) for group in record["groups"])
    return 0 if sound else 1


def _readme(options: argparse.Namespace) -> int:
    """Print the README's tables, or put them where they belong."""
    text, path = readme.tables(options.out), ROOT / "README.md"
    if options.write:
        path.write_text(readme.inserted(path.read_text(encoding="utf-8"), text), encoding="utf-8")
    else:
        print(text, end="")
    return 0


def _run(name: str, suite: Suite, device: str, options: argparse.Namespace, console: Console) -> Record:
    effort = _effort(suite, options)
    groups = [group for group in suite.groups(_suite_options(suite, device, options)) if group.timed or options.memory]
    use_setting(groups[0].setting)
    before = environment(device)
    console.rule(f"{name} on {before['gpu'] or before['cpu']}, {before['threads']} threads")
    measured = []
    for group in groups:
        with console.status(group.name):
            measured.append(suite.measure(group, effort))
        suite.show(measured[-1], console)
    return {
        "format": report.FORMAT,
        "name": name,
        "device": device,
        "quick": options.quick,
        "note": options.note,
        "environment": before | {"load_average_after": load_average()},
        "protocol": {
            "order": "interleaved",
            "processes": "one for each library and setting of its allocator",
            "repeats": effort.repeats,
            "sample_seconds": effort.sample_seconds,
            "patience_seconds": effort.patience,
            "group_seconds": effort.group_seconds,
            "memory": "peak of one step in a fresh process beyond its set-up" if effort.memory else None,
            "memory_limit_gib": _limit(effort, device),
        },
        "groups": measured,
    }


def _effort(suite: Suite, options: argparse.Namespace) -> Effort:
    return Effort(
        options.repeats or Effort.repeats,
        0.05 if options.quick else Effort.sample_seconds,
        options.memory and (suite.quick_memory if options.quick else suite.memory),
        options.memory_limit,
        options.patience,
    )


def _limit(effort: Effort, device: str) -> float | None:
    return memory.DEFAULT_LIMIT if effort.memory_limit is None and device == "cpu" else effort.memory_limit


def _suite_options(suite: Suite, device: str, options: argparse.Namespace) -> Any:
    own = {option.name for option in fields(suite.options)} - {"device", "threads"}
    given = {name: value for name, value in vars(options).items() if name in own and value is not None}
    quick = suite.quick if options.quick else {}
    return suite.options(device=device, threads=options.threads, **{**quick, **given})


def _is_sound(group: Record) -> bool:
    failed = [row for row in group.get("contenders", ()) if row["status"] == "failed" and row["library"] in OURS]
    return not failed and all(check["agrees"] for check in group.get("agreements", ()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=[*SUITES, "all", "readme"])
    parser.add_argument("--write", action="store_true", help="readme: into README.md, between its two comments")
    parser.add_argument("--quick", action="store_true", help="tiny networks, about two minutes: to see that it works")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the CPU, then the GPU if there is one")
    parser.add_argument("--threads", type=_positive, help="threads of PyTorch on the CPU")
    out = ROOT / "results" / "benchmarks"
    parser.add_argument("--out", type=Path, default=out, help="folder for the records (default: results/benchmarks)")
    parser.add_argument("--note", default="", help="kept in the record: what its figures do not say of themselves")
    parser.add_argument("--repeats", type=_positive, help=f"timed rounds (default: {Effort.repeats})")
    parser.add_argument("--memory-limit", type=float, metavar="GIB", help="what needs more is recorded as such")
    patience = f"what takes longer a step is recorded as such (default: {Effort.patience:g})"
    parser.add_argument("--patience", type=float, metavar="SECONDS", default=Effort.patience, help=patience)
    alone = "leave out peak memory, and with it the trial run that shows what fits"
    parser.add_argument("--no-memory", dest="memory", action="store_false", help=alone)
    cases = parser.add_argument_group("cases", "Each holds for the suites that have such cases.")
    cases.add_argument("--networks", type=_list_of(_name("models")), metavar="A,B")
    cases.add_argument("--batches", type=_list_of(_positive), metavar="N,M", help="training, limit, profile")
    fused = "a name with _fused at its end has loss fusion"
    cases.add_argument("--relaxations", type=_list_of(_relaxation), metavar="A,B", help=fused)
    cases.add_argument("--width", type=_positive, help="channels of the first convolution")
    people = parser.add_argument_group("population")
    people.add_argument("--pairs", type=_positive)
    people.add_argument("--images", type=_positive)
    people.add_argument("--chunks", type=_list_of(_positive), metavar="N,M", help="pairs at once")
    people.add_argument(
        "--passes", type=_list_of(_positive), metavar="N,M", help="images a pass of the plain contenders"
    )
    people.add_argument("--memory-pairs", type=_few_and_many, metavar="FEW,MANY", help="whose peak memory is compared")
    scales = parser.add_argument_group("scaling")
    scales.add_argument("--axes", type=_list_of(_axis), metavar="A,B", help=f"of {', '.join(AXES)}")
    scales.add_argument("--points", type=_positive, help="values of each axis, the smallest first")
    instances = parser.add_argument_group("verify")
    folders = "each with ONNX, VNN-LIB and a table *instances.csv"
    instances.add_argument("--instances", type=Path, nargs="+", metavar="DIR", help=folders)
    instances.add_argument("--count", type=_positive, help="so many of each, evenly spread")
    instances.add_argument("--timeout", type=float, metavar="SECONDS", help="of an instance (default: 30)")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _axis(text: str) -> str:
    return _one_of(text, tuple(AXES))


def _name(kind: str) -> Callable[[str], str]:
    return lambda text: _one_of(text, registry.names(kind))


def _relaxation(text: str) -> str:
    _one_of(text.removesuffix(FUSED), registry.names("relaxations"))
    return text


def _one_of(text: str, known: Sequence[str]) -> str:
    if text not in known:
        raise argparse.ArgumentTypeError(f"unknown name {text!r}; known: {', '.join(known)}")
    return text


def _few_and_many(text: str) -> tuple[int, ...]:
    values = _list_of(_positive)(text)
    if len(values) != 2 or values[0] == values[1]:
        raise argparse.ArgumentTypeError(f"expected two different numbers such as 16,1024, got {text!r}")
    return values


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part.strip()) for part in text.split(","))

    return parse


if __name__ == "__main__":
    sys.exit(main())
