"""``tightrope certify``: natural, adversarial and certified accuracy of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tightrope as tr
from tightrope.cli._console import out, percent, print_hint, progress_bar, summary_table, table
from tightrope.cli._guard import guarded
from tightrope.evaluation.certify import Progress
from tightrope.records.image import Summary

VERDICTS = ("verified", "falsified", "unknown")


@guarded
def certify(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    eps: Annotated[
        str | None, typer.Option(help='Radius in input units, such as 0.1 or "8/255". Default: the run\'s.')
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="The dataset. Default: the run's.")] = None,
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
    batch_size: Annotated[int, typer.Option(help="Images bounded together.", min=1)] = 100,
    float32: Annotated[
        bool, typer.Option("--float32", help="Faster; larger rounding errors, more stays unknown.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the attack's starts.", min=0)] = 0,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the dataset lies. Default: $TIGHTROPE_DATA.")
    ] = None,
    out_: Annotated[
        Path | None, typer.Option("--out", help="The records, one JSON line an image. Default: in the run folder.")
    ] = None,
) -> None:
    """Certify a run on the test split. The same command continues what was interrupted."""
    loaded = tr.load(run)
    with progress_bar() as bar:
        task = bar.add_task("certify", total=None, facts="")

        def on_batch(state: Progress) -> None:
            shares = {"natural": state.natural, "adversarial": state.adversarial, "certified": state.certified}
            facts = "  ".join(f"{name} {percent(count / state.done)}" for name, count in shares.items())
            bar.update(task, completed=state.done, total=state.total, facts=facts)

        summary = tr.certify(
            loaded,
            dataset,
            eps,
            count=count,
            relaxations=[name.strip() for name in relaxations.split(",")],
            attack={"name": "pgd", "steps": attack_steps, "restarts": attack_restarts, "loss": "margin"},
            complete=complete,
            timeout=timeout,
            batch_size=batch_size,
            float32=float32,
            device=device,
            seed=seed,
            data_dir=data_dir,
            out=out_,
            on_batch=on_batch,
        )
    radius = eps if eps is not None else loaded.config.eps.target
    out.print(summary_table(summary, f"{loaded.record.name}, {dataset or loaded.config.data.name} test, eps {radius}"))
    out.print(table(["decided by", *VERDICTS], _by_method(summary)))
    if float32:
        print_hint("float32: rounding errors are bounded, but 5e8 times larger than in float64: more stays unknown.")
    print_hint(f"{summary.seconds:.0f} s. Records: {run}")


def _by_method(summary: Summary) -> list[list[str]]:
    methods = dict.fromkeys(method for counts in summary.verdicts.values() for method in counts)
    return [[m, *(str(summary.verdicts.get(v, {}).get(m, 0)) for v in VERDICTS)] for m in methods]
