"""``tightrope train``: a preset or a TOML file to a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tightrope as tr
from tightrope.cli._console import TrainingProgress, out, percent, print_hint, table
from tightrope.cli._guard import guarded
from tightrope.errors import InputError
from tightrope.runtime.distributed import is_first


@guarded
def train(
    source: Annotated[
        str | None, typer.Argument(help="A preset (see: tightrope list presets) or a TOML file.", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: section.key=value. Repeatable.")
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="The run folder. Default: runs/NAME.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Continue the run in this folder.")] = None,
    init_from: Annotated[Path | None, typer.Option("--init-from", help="Start from the weights of this run.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the dataset lies. Default: $TIGHTROPE_DATA.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard logs, into the run folder.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line per epoch.")] = False,
) -> None:
    """Train a network. Ctrl-C leaves a checkpoint; --resume continues it bit for bit."""
    if (source is None) == (resume is None):
        raise InputError("Give a preset or TOML file, or --resume RUN (and not both).")
    if resume is not None and (set_ or out_ or init_from):
        raise InputError("--resume continues a run as it was started: leave out --set, --out and --init-from.")
    with TrainingProgress(source or str(resume), epochs=not quiet and is_first()) as progress:
        run = tr.fit(
            source,
            out=resume or out_,
            overrides=set_ or [],
            init_from=init_from,
            data_dir=data_dir,
            resume=resume is not None,
            watcher=progress if is_first() else None,
            tensorboard=tensorboard,
        )
    if is_first():
        _report(run)
        if tensorboard:
            print_hint(f"Curves: tensorboard --logdir {run.folder.tensorboard}")


def _report(run: tr.Run) -> None:
    final = run.record.final
    assert final is not None
    columns = ["", "natural", "surrogate", "loss"]
    rows = [
        [name, *(percent(m.get(key)) for key in ("natural_accuracy", "surrogate_accuracy")), f"{m.get('loss', 0):.4f}"]
        for name, m in (("training", final.train), ("validation", final.validation))
        if m
    ]
    title = f"{run.record.name}: {run.record.weights:,} weights, {final.epoch} epochs, {run.record.seconds:.0f} s"
    out.print(table(columns, rows, title))
    print_hint(
        f"The surrogate is what training bounds or attacks; it is no certificate. Run: tightrope certify {run.path}"
    )
