"""``tightrope lab properties``: tightness, continuity, sensitivity and smoothness of relaxations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import TaskID

import tightrope as tr
from tightrope.cli._console import out, print_hint, progress_bar, table
from tightrope.cli._guard import guarded
from tightrope.errors import InputError
from tightrope.experiments.properties import RELAXATIONS, STD, Planned
from tightrope.records.properties import PropertiesRecord
from tightrope.reports.properties import beside_published, measured, smoothed, worst_margins_told
from tightrope.reports.units import duration


@guarded
def lab_properties(
    source: Annotated[str, typer.Argument(help="A run folder, a preset (see: tightrope list presets) or a TOML file.")],
    relaxation: Annotated[
        list[str] | None,
        typer.Option("--relaxation", help=f"{', '.join(RELAXATIONS)}, or deeppoly:slope=zero. Repeatable."),
    ] = None,
    images: Annotated[int, typer.Option(help="The first so many of the split.", min=1)] = 8,
    segments: Annotated[int, typer.Option(help="Random segments through the weights.", min=1)] = 4,
    steps: Annotated[int, typer.Option(help="Steps of a segment, before any is halved; even.", min=8)] = 16,
    std: Annotated[
        str,
        typer.Option(help="Of the noise of smoothing, separated by commas; segments reach one draw of the largest."),
    ] = ",".join(map(str, STD)),
    draws: Annotated[int, typer.Option(help="Of that noise.", min=2)] = 16,
    eps: Annotated[
        str | None, typer.Option(help='Radius in input units, such as 0.1 or "8/255". Default: the run\'s.')
    ] = None,
    jump: Annotated[float, typer.Option(help="The smallest jump to look for, as a share of the loss.")] = 1e-3,
    tolerance: Annotated[float, typer.Option(help="Up to which worst margins are to be exact.")] = 0.01,
    timeout: Annotated[float, typer.Option(help="Seconds of branch and bound for a question about an image.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of segments, noise and attack.", min=0)] = 0,
    dataset: Annotated[str | None, typer.Option(help="The dataset. Default: the run's.")] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of a preset: section.key=value. Repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the dataset lies. Default: $TIGHTROPE_DATA.")
    ] = None,
    out_: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results. Default: in the run, or properties/NAME.")
    ] = None,
) -> None:
    """Measure how tight, continuous, sensitive and, smoothed, smooth relaxations are on one network.

    The same command continues what was interrupted; more relaxations are added to those that are there.
    """
    folders: list[Path] = []
    with progress_bar() as bar:
        show = _Progress(bar.add_task("plan", total=None, facts=""), bar.update)

        def on_plan(planned: Planned) -> None:
            folders.append(planned.folder)
            show.total = sum(cost.evaluations for cost in planned.costs)
            _print_plan(planned)

        found = tr.properties(
            source,
            relaxations=relaxation or RELAXATIONS,
            std=_numbers(std),
            segments=segments,
            steps=steps,
            draws=draws,
            images=images,
            eps=eps,
            jump=jump,
            tolerance=tolerance,
            timeout=timeout,
            seed=seed,
            dataset=dataset,
            split=split,
            overrides=set_ or [],
            out=out_,
            data_dir=data_dir,
            device=device,
            on_plan=on_plan,
            on_part=show.part,
        )
    _print_tables(found)
    print_hint(f"The numbers are in {folders[0]}/properties.json and .csv, the picture in .png and .svg.")


class _Progress:
    """The bar counts evaluations of the loss; jumps that are followed may take more than was planned."""

    def __init__(self, task: TaskID, update: Callable[..., Any]) -> None:
        self._task, self._update = task, update
        self.total, self._done = 0, 0

    def part(self, name: str, evaluations: int) -> None:
        """Move the bar."""
        self._done += evaluations
        self._update(self._task, description=name, completed=self._done, total=max(self.total, self._done))


def _numbers(text: str) -> list[float]:
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        raise InputError(f"--std {text!r}: give numbers separated by commas, such as 0.01,0.02.") from None


def _print_plan(planned: Planned) -> None:
    if not planned.costs:
        return
    rows = [[c.relaxation, f"{c.evaluations:,}", duration(c.seconds)] for c in planned.costs]
    total = sum(cost.seconds for cost in planned.costs)
    title = f"Planned: about {duration(total)}, and more where there are many jumps to follow"
    out.print(table(["relaxation", "loss evaluations", "time"], rows, title))
    if planned.verifier_seconds:
        print_hint(
            f"Before that worst margins, at most {duration(planned.verifier_seconds)} a question, a few questions."
        )


def _print_tables(found: PropertiesRecord) -> None:
    settings, state = found.settings, "trained" if found.trained else "untrained"
    where = f"{found.network} ({state}), {settings.images} {settings.data} {settings.split} images, eps {settings.eps}"
    out.print(table(*measured(found), where))
    print_hint(worst_margins_told(found))
    out.print(table(*beside_published(found), "Beside Jovanovic et al. (TMLR 2022): their column, then this network's"))
    print_hint("Their tightness is larger where tighter; a gap is smaller. Slope rules other than theirs are left out.")
    out.print(
        table(*smoothed(found), f"Smoothing by {settings.draws} common draws; lengths in std {settings.std[-1]:g}")
    )
    print_hint(
        "order: 2 where smooth, 1.5 with kinks, 0.5 with jumps. deviation: from convexity, and its largest draw."
    )
