"""``tightrope plan``: what a training run will take on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tightrope as tr
from tightrope.cli._console import out, print_hint, table
from tightrope.cli._guard import guarded
from tightrope.experiments.plan import check_fits
from tightrope.records.run import Plan
from tightrope.reports.units import UNKNOWN, duration


@guarded
def plan(
    source: Annotated[str, typer.Argument(help="A preset (see: tightrope list presets) or a TOML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: section.key=value. Repeatable.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the dataset lies. Default: $TIGHTROPE_DATA.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The plan as JSON, trials included.")] = False,
) -> None:
    """Predict memory and time of a training run from a few steps, and choose how many pairs to evaluate at once."""
    found = tr.plan(source, overrides=set_ or [], data_dir=data_dir)
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        out.print(table(["", source], _rows(found), numbers=False))
        _hints(found)
    check_fits(found)


def _rows(found: Plan) -> list[list[str]]:
    rows = [
        ["device", found.device if found.device != "cpu" else f"cpu, threads: {found.threads}"],
        ["weights", f"{found.weights:,}"],
        ["images, batch", f"{UNKNOWN if found.images is None else f'{found.images:,}'}, {found.batch_size}"],
        ["steps per epoch", UNKNOWN if found.steps_per_epoch is None else f"{found.steps_per_epoch:,}"],
        ["time per step", duration(found.seconds_per_step)],
        ["time per epoch", duration(found.seconds_per_epoch)],
        [f"time of {found.epochs} epochs", duration(found.seconds)],
        ["peak memory of a step", f"{_size(found.peak_memory)} of {_size(found.memory_budget)} that may be used"],
    ]
    if found.chunk is not None:
        rows.append(["pairs, at once (chunk)", f"{found.pairs}, {found.chunk}"])
    return [*rows, ["measured", _measured(found)]]


def _measured(found: Plan) -> str:
    """The largest of what was run."""
    batch, chunks = max(trial.batch for trial in found.trials), sorted({trial.chunk for trial in found.trials})
    steps = f"steps of up to {batch} images"
    return steps if found.chunk is None else f"{steps}, chunks of {', '.join(map(str, chunks))}"


def _hints(found: Plan) -> None:
    if found.images is None:
        print_hint(
            "The data are not here, so that random images were used and the number of steps is not known: name their "
            "folder with --data-dir or $TIGHTROPE_DATA, or the number of images with --set data.train=N."
        )
    if found.chunk is not None and len({trial.chunk for trial in found.trials}) == 1 and found.pairs != 1:
        print_hint("Only the configured chunk was measured; --set smoother.chunk=auto looks for the fastest that fits.")


def _size(count: int) -> str:
    """Bytes for people.

    Example:
        >>> _size(3 * 2**20), _size(5 * 2**30)
        ('3 MiB', '5 GiB')
    """
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
