"""``tightrope demo``: the first minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tightrope.cli._console import TrainingProgress, out, percent, print_hint, table
from tightrope.cli._guard import guarded
from tightrope.experiments.demo import run_demo


@guarded
def demo(
    out_: Annotated[Path, typer.Option("--out", help="Where the runs, the picture and the figures go.")] = Path("demo"),
) -> None:
    """Train one small network in four ways on scikit-learn's digits, and certify each: no download, about a minute."""
    out.print("Training one network of 32-32 units on 8x8 digits in four ways, then certifying each at eps 0.1.\n")
    with TrainingProgress("starting", epochs=False) as progress:
        rows = run_demo(out_, progress.named)
    columns = ["trained with", "natural", "adversarial", "certified", "seconds"]
    cells = [
        [
            row.name,
            percent(row.summary.natural_accuracy),
            percent(row.summary.adversarial_accuracy),
            percent(row.summary.certified_accuracy),
            f"{row.seconds:.1f}",
        ]
        for row in rows
    ]
    out.print(table(columns, cells, "360 test images, eps 0.1"))
    print_hint(
        "Certified: proved for every input within eps. At this size the relaxations come out about level: this shows\n"
        "the road. PGPE sees loss values only; its noise grows with weights / pairs, and in this time it does not get\n"
        "as far.\n"
        f"Picture: {out_ / 'demo.png'}   records: {out_}/*/   next: tightrope list presets"
    )
