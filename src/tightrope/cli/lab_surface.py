"""``tightrope lab surface``: the certified loss along directions in weight space."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import tightrope as tr
from tightrope.cli._console import out, print_hint, progress_bar, table
from tightrope.cli._guard import guarded
from tightrope.errors import InputError
from tightrope.evaluation.landscape import evaluations_left
from tightrope.records.surface import Surface
from tightrope.reports.units import duration


class Along(StrEnum):
    """Directions by name."""

    RANDOM = "random"
    GRADIENT = "gradient"
    PCA = "pca"


@guarded
def lab_surface(
    source: Annotated[
        str,
        typer.Argument(
            help="A run folder; or a preset (see: tightrope list presets) or TOML file, for its untrained network."
        ),
    ],
    relaxation: Annotated[
        list[str] | None,
        typer.Option(
            "--relaxation",
            help="Repeatable; options as deeppoly:slope=zero. Default: ibp, deepz, crown_ibp, deeppoly.",
        ),
    ] = None,
    std: Annotated[
        str, typer.Option(help="Std of the weight noise, separated by commas; 0 is the loss itself.")
    ] = "0,0.01,0.03",
    direction: Annotated[
        Along | None,
        typer.Option(help="random: filter-normalised; gradient: of the first relaxation; pca: of the trajectory."),
    ] = None,
    towards: Annotated[
        Path | None, typer.Option(help="Towards another run of the same network, which is at 1.")
    ] = None,
    plane: Annotated[bool, typer.Option("--plane", help="Two directions: heat maps.")] = False,
    points: Annotated[int | None, typer.Option(help="For each axis. Default: 51, of a plane 21.")] = None,
    range_: Annotated[
        list[str] | None, typer.Option("--range", help="Ends of an axis, such as -0.5,0.5; repeat for the second.")
    ] = None,
    images: Annotated[int, typer.Option(help="The first so many of the split.")] = 16,
    draws: Annotated[int, typer.Option(help="Losses behind each smoothed point, in antithetic pairs.")] = 32,
    eps: Annotated[
        str | None, typer.Option(help='Radius in input units, such as 0.1 or "8/255". Default: the run\'s.')
    ] = None,
    seed: Annotated[int, typer.Option(help="Of noise and random directions.", min=0)] = 0,
    dataset: Annotated[str | None, typer.Option(help="The dataset. Default: the run's.")] = None,
    split: Annotated[str, typer.Option(help="Of the dataset.")] = "train",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of a preset: section.key=value. Repeatable.")
    ] = None,
    float32: Annotated[
        bool, typer.Option("--float32", help="Faster; jumps below 1e-4 are not told from rounding.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    memory: Annotated[
        float | None, typer.Option(help="GiB that may be used at once. Default: 80 % of what is free.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the dataset lies. Default: $TIGHTROPE_DATA.")
    ] = None,
    out_: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results. Default: in the run's folder, or surfaces/.")
    ] = None,
) -> None:
    """Draw certified losses of relaxations along directions in weight space, before and after smoothing.

    The planned cost comes first. The same command goes on where it was stopped.
    """
    given: dict[str, Any] = {} if relaxation is None else {"relaxations": relaxation}
    with progress_bar() as bar:
        task = bar.add_task("surface", total=None, facts="calibrating")
        folders: list[Path] = []

        def on_plan(planned: Surface, folder: Path) -> None:
            folders.append(folder)
            bar.stop()  # it must not run while something else is printed
            _print_plan(planned)
            bar.start()
            bar.update(task, total=sum(evaluations_left(planned, name) for name in planned.relaxations), facts="")

        found = tr.surface(
            source,
            **given,
            std=_numbers(std, "--std"),
            direction=None if direction is None else direction.value,
            towards=towards,
            plane=plane,
            points=points,
            ranges=[_ends(text) for text in range_ or []],
            images=images,
            draws=draws,
            eps=eps,
            seed=seed,
            dataset=dataset,
            split=split,
            overrides=set_ or [],
            out=out_,
            data_dir=data_dir,
            float32=float32,
            device=device,
            memory_gib=memory,
            on_plan=on_plan,
            on_row=lambda _, took: bar.advance(task, took),
        )
    _print_found(found)
    folder = folders[0]
    print_hint(
        f"Picture: {folder / 'surface.png'} (and .svg)   data: {folder / 'surface.csv'}, {folder / 'surface.json'}"
    )


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: give numbers separated by commas.") from None


def _ends(text: str) -> tuple[float, float]:
    found = _numbers(text, "--range")
    if len(found) != 2:
        raise InputError(f"--range {text}: give two ends, such as -0.5,0.5.")
    return found[0], found[1]


def _print_plan(planned: Surface) -> None:
    rows, total = [], 0.0
    for cost in planned.costs:
        left = evaluations_left(planned, cost.relaxation)
        seconds = cost.seconds * left / cost.evaluations
        rows.append(
            [
                cost.relaxation,
                f"{left:,}",
                str(cost.chunk),
                duration(cost.seconds / cost.evaluations),
                duration(seconds),
            ]
        )
        total += seconds
    points = " x ".join(str(len(axis.positions)) for axis in planned.axes)
    stds = ", ".join(f"{std:g}" for std in planned.stds)
    title = f"{points} points, std {stds}, {2 * planned.pairs} draws, {planned.images} images"
    out.print(table(["relaxation", "losses to evaluate", "at once", "each", "in all"], rows, title))
    out.print(f"About {duration(total)} in all on this machine. Ctrl-C keeps what is computed.\n", markup=False)


def _print_found(found: Surface) -> None:
    """The loss where it is smallest on each curve, and the jumps."""
    columns = ["relaxation", *(f"std {std:g}" for std in found.stds), "jumps", "largest"]
    rows = [
        [name, *(_least(found, name, std) for std in found.stds), *_jumps(found, name)] for name in found.relaxations
    ]
    out.print(table(columns, rows, "Smallest loss, with half of its 95 % interval"))


def _least(found: Surface, name: str, std: float) -> str:
    curve = found.curve(name, std)
    finite = [(mean, high - mean) for mean, (_, high) in zip(curve.mean, curve.interval, strict=True) if mean == mean]
    if not finite:
        return "not finite"
    mean, half = min(finite)
    return f"{mean:.4f}" if std == 0 else f"{mean:.4f} ± {half:.4f}"


def _jumps(found: Surface, name: str) -> list[str]:
    jumps = found.curve(name, 0.0).jumps if 0.0 in found.stds else None
    if jumps is None:
        return ["", ""]
    return [str(len(jumps)), f"{max(jump.size for jump in jumps):.3g}" if jumps else ""]
