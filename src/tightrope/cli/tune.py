"""``tightrope tune``: search the ranges that a configuration marks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tightrope.cli._console import TrainingProgress, out, percent, print_hint, table
from tightrope.cli._guard import guarded
from tightrope.experiments.load import read_values
from tightrope.experiments.tuning import tune as search


@guarded
def tune(
    source: Annotated[
        str, typer.Argument(help="A TOML file with ranges: lr = { low = 1e-4, high = 1e-2, log = true }.")
    ],
    trials: Annotated[int, typer.Option("--trials", min=1, help="In all, those of earlier calls included.")] = 20,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting or mark a range: section.key=value.")
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Folder of the study. Default: tuning/NAME.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Validation images that are certified.")] = 200,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds of branch and bound an image.")] = 5.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the search.")] = 0,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the dataset lies. Default: $TIGHTROPE_DATA.")
    ] = None,
) -> None:
    """Search settings by certified accuracy on held-out training images. The same command goes on where it stopped."""
    name, values = read_values(source, set_ or [])
    folder = out_ or Path("tuning") / name.replace("/", "-")
    with TrainingProgress(name, epochs=False) as progress:
        found = search(
            name,
            values,
            trials=trials,
            out=folder,
            data_dir=data_dir,
            count=count,
            timeout=timeout,
            seed=seed,
            watch=progress.named,
        )
    rows = [
        [str(t.number), t.state, *map(percent, (t.natural, t.certified)), "*" if t.best else "", _shown(t.values)]
        for t in found
    ]
    out.print(table(["trial", "", "natural", "certified", "best", "values"], rows, f"{name}: validation images"))
    print_hint(f"* no other is better in both. The best certified one is {folder / 'best.toml'}.")


def _shown(values: dict[str, object]) -> str:
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )
