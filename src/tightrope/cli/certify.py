"""``tightrope certify``: natural, adversarial and certified accuracy of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

import tightrope as tr
from tightrope.cli._console import out, percent, print_hint, progress_bar, summary_table, table
from tightrope.cli._guard import guarded
from tightrope.cli._imported import Theirs, imported, print_published
from tightrope.errors import InputError
from tightrope.evaluation.certify import Progress
from tightrope.evaluation.radius import RadiusProgress
from tightrope.evaluation.shards import Shard
from tightrope.experiments.model_zoo import results_folder
from tightrope.experiments.published import read_published
from tightrope.experiments.source import Source, find_source
from tightrope.records.image import Summary
from tightrope.records.radius import RadiusSummary

VERDICTS = ("verified", "falsified", "unknown")
CLASS_COUNTS = ("images", "natural", "adversarial", "certified", "unknown")


@guarded
def certify(
    network: Annotated[
        Path,
        typer.Argument(help="The folder of a finished run, or a network's file: .onnx, or a checkpoint of PyTorch."),
    ],
    eps: Annotated[
        str | None, typer.Option(help='Radius in input units, such as 0.1 or "8/255". Default: the run\'s.')
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", "--data", help="The dataset. Default: the run's.")] = None,
    arch: Annotated[str | None, typer.Option(help="Of a checkpoint: its architecture, such as cnn7.")] = None,
    normalize: Annotated[
        str | None,
        typer.Option(help="Of a checkpoint without it: none, a dataset's name, or mean,mean,mean/std,std,std."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Of a checkpoint of several networks: the name it is below.")] = "",
    published: Annotated[
        str | None,
        typer.Option(help="Figures to compare with, in percent: natural=..,adversarial=..,certified=.., or a file."),
    ] = None,
    count: Annotated[int | None, typer.Option(help="Only the first so many images of the test split.", min=1)] = None,
    relaxations: Annotated[
        str, typer.Option(help="Tried in this order, separated by commas.")
    ] = "ibp,crown_ibp,deeppoly",
    attack_steps: Annotated[int, typer.Option(help="Steps of the PGD attack.", min=0)] = 40,
    attack_restarts: Annotated[int, typer.Option(help="Starts of the PGD attack.", min=1)] = 2,
    complete: Annotated[
        bool, typer.Option("--complete", help="Branch and bound for what the relaxations leave undecided.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds of branch and bound an image, with --complete.", min=0)
    ] = 60.0,
    radius: Annotated[
        bool, typer.Option("--radius", help="Each image's certified radius up to --eps (default: twice the run's).")
    ] = False,
    tolerance: Annotated[
        str | None, typer.Option(help="Distance of the radii that --radius tries. Default: a 64th of the largest.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes on the CPU, which share its threads.", min=1)] = 1,
    shard: Annotated[
        str | None, typer.Option(help="i/n: only this part of the images. Default under torchrun: the rank's.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Certify nothing: make one file of those of all shards.")
    ] = False,
    memory: Annotated[
        float | None, typer.Option(help="GiB that may be used on top of weights and images (Linux).")
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Show the accuracies of every class.")] = False,
    batch_size: Annotated[int, typer.Option(help="Images bounded together.", min=1)] = 100,
    float32: Annotated[
        bool, typer.Option("--float32", help="Faster; larger rounding errors, more stays unknown.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the attack's starts.", min=0)] = 0,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Keep a certificate of every verdict, for tightrope audit.")
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the dataset lies. Default: $TIGHTROPE_DATA.")
    ] = None,
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The records, one JSON line an image. Default: in the run folder. Of a network's file: the folder to "
            "make for it, by default below runs/.",
        ),
    ] = None,
) -> None:
    """Certify a run or another library's network on the test split. The same command continues what was interrupted."""
    theirs = Theirs(arch, normalize, prefix)
    if network.is_file() or (theirs != Theirs() and not network.is_dir()):
        loaded: Source = imported(network, dataset, eps, theirs, published, out_)
        out_ = None
    else:
        if theirs != Theirs():
            raise InputError("--arch, --normalize and --prefix are for the files of other libraries.")
        loaded = find_source(network)
    figures = read_published(published) or (loaded.record.published if isinstance(loaded, tr.Imported) else None)
    given: dict[str, Any] = {
        "count": count,
        "relaxations": [name.strip() for name in relaxations.split(",")],
        "attack": {"name": "pgd", "steps": attack_steps, "restarts": attack_restarts, "loss": "margin"},
        "complete": complete,
        "timeout": timeout,
        "batch_size": batch_size,
        "float32": float32,
        "device": f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device,
        "seed": seed,
        "data_dir": data_dir,
        "out": out_,
        "workers": workers,
        "memory_gib": memory,
        "shard": shard or _rank(),
        "merge": merge,
    }
    where = f"{loaded.name}, {dataset or loaded.dataset} test"
    if radius:
        with _showing(_facts_of_radii) as on_batch:
            radii = tr.certified_radii(loaded, dataset, eps, tolerance, on_batch=on_batch, evidence=evidence, **given)
        _print_radii(radii, f"{where}, {radii.count} images", out_ or results_folder(loaded.path))
        return
    if tolerance is not None:
        raise InputError("--tolerance is for --radius.")
    with _showing(_facts) as on_batch:
        summary = tr.certify(loaded, dataset, eps, on_batch=on_batch, evidence=evidence, **given)
    _print_summary(summary, f"{where}, eps {eps if eps is not None else loaded.eps}", per_class)
    if figures is not None:
        print_published(summary, figures)
    if float32:
        print_hint("float32: rounding errors are bounded, but 5e8 times larger than in float64: more stays unknown.")
    print_hint(f"{summary.seconds:.0f} s. Records: {out_ or results_folder(loaded.path)}")


def _print_summary(summary: Summary, title: str, per_class: bool) -> None:
    out.print(summary_table(summary, title))
    out.print(table(["decided by", *VERDICTS], _by_method(summary)))
    if per_class:
        out.print(table(["class", *CLASS_COUNTS], _by_class(summary)))


def _print_radii(found: RadiusSummary, title: str, records: Path) -> None:
    out.print(table(["radius", "adversarial", "certified"], _curve(found), title))
    out.print(table(["share of the images", "certified radius at most"], _quantiles(found)))
    left = f"Proof and counterexample of {found.open} images are further apart than the tolerance."
    print_hint(f"{found.seconds:.0f} s. {left} Records: {records}")


@contextmanager
def _showing(facts: Callable[[Any], str]) -> Iterator[Callable[[Any], None]]:
    """A bar; it is silent where standard error is no terminal."""
    with progress_bar() as bar:
        task = bar.add_task("certify", total=None, facts="")
        yield lambda state: bar.update(task, completed=state.done, total=state.total, facts=facts(state))


def _facts(state: Progress) -> str:
    shares = {"natural": state.natural, "adversarial": state.adversarial, "certified": state.certified}
    told = [f"{name} {percent(count / max(1, state.done))}" for name, count in shares.items()]
    counts = {"unknown": state.unknown, "open": state.open}
    return "  ".join([*told, *(f"{name} {count}" for name, count in counts.items() if count)])


def _facts_of_radii(state: RadiusProgress) -> str:
    return f"open {state.open}" if state.open else ""


def _curve(found: RadiusSummary) -> list[list[str]]:
    """A few points of it, the last one included."""
    shown = found.curve[:: max(1, (len(found.curve) - 1) // 8)]
    shown = shown if shown[-1] is found.curve[-1] else (*shown, found.curve[-1])
    return [[p.eps, percent(p.adversarial_accuracy), percent(p.certified_accuracy)] for p in shown]


def _quantiles(found: RadiusSummary) -> list[list[str]]:
    return [[percent(float(Fraction(share))), value or "not natural"] for share, value in found.quantiles.items()]


def _rank() -> str | None:
    """The shard of a process that torchrun started beside others."""
    shard = Shard.of_rank(os.environ)
    return None if shard is None else f"{shard.number}/{shard.count}"


def _by_class(summary: Summary) -> list[list[str]]:
    return [
        [
            str(found.label),
            str(found.count),
            *(percent(getattr(found, kind) / found.count) for kind in CLASS_COUNTS[1:]),
        ]
        for found in summary.classes
    ]


def _by_method(summary: Summary) -> list[list[str]]:
    methods = dict.fromkeys(method for counts in summary.verdicts.values() for method in counts)
    return [[m, *(str(summary.verdicts.get(v, {}).get(m, 0)) for v in VERDICTS)] for m in methods]
