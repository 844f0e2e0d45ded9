"""``tightrope audit``: re-check certificates with separate code."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

import tightrope as tr
from tightrope.cli._console import err, out, print_hint, progress_bar, table
from tightrope.cli._guard import ExitCode, guarded
from tightrope.experiments.audit import Audited

_SHOWN = 20


@guarded
def audit(
    paths: Annotated[list[Path], typer.Argument(help="Certificates, folders of them, or run folders.")],
    model: Annotated[
        Path | None, typer.Option(help="The network's file, where a certificate neither holds it nor lies beside it.")
    ] = None,
    net: Annotated[
        Path | None,
        typer.Option(help="ONNX file that the certificates must be about; onnxruntime evaluates it as well."),
    ] = None,
    prop: Annotated[
        Path | None, typer.Option("--property", help="VNN-LIB file that the certificates must be about.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the dataset of a run lies. Default: $TIGHTROPE_DATA.")
    ] = None,
) -> ExitCode:
    """Re-check certificates: exit code 0 if all are confirmed, 30 if any is rejected, 20 if any cannot be confirmed."""
    with progress_bar() as bar:
        task = bar.add_task("audit", total=None, facts="")
        found: list[Audited] = []

        def on_certificate(audited: Audited) -> None:
            found.append(audited)
            bar.update(task, completed=len(found), facts=audited.path.name)

        for path in paths:
            tr.audit(path, model=model, net=net, prop=prop, data_dir=data_dir, on_certificate=on_certificate)
    _print(found)
    verdicts = {audited.finding.verdict.value for audited in found}
    return (
        ExitCode.INVARIANT
        if "rejected" in verdicts
        else ExitCode.UNKNOWN
        if verdicts != {"confirmed"}
        else ExitCode.DONE
    )


def _print(found: list[Audited]) -> None:
    claims = list(dict.fromkeys(audited.claim or "not readable" for audited in found))
    counts = Counter((audited.claim or "not readable", audited.finding.verdict.value) for audited in found)
    verdicts = ("confirmed", "rejected", "cannot confirm")
    rows = [[claim, *(str(counts[claim, verdict]) for verdict in verdicts)] for claim in claims]
    out.print(table(["certificates", *verdicts], rows))
    open_ones = [audited for audited in found if not audited.confirmed]
    for audited in open_ones[:_SHOWN]:
        err.print(f"{audited.path}: {audited.finding.verdict}: {audited.finding.reason}", markup=False, soft_wrap=True)
    if len(open_ones) > _SHOWN:
        err.print(f"... and {len(open_ones) - _SHOWN} more", markup=False)
    replayed = sum(audited.replayed for audited in found)
    margins = [audited.finding.margin for audited in found if audited.confirmed and audited.claim == "verified"]
    least = f"  Least proved margin: {min(m for m in margins if m is not None):.3g}." if margins else ""
    print_hint(f"{replayed} of {len(found)} replayed through the original network.{least}")
    part = found[0].part
    if len(found) == 1 and part is not None and part.count > 1 and found[0].claim == "verified":
        print_hint(f"Box {part.number + 1} of the property's {part.count}: audit the folder for all of them.")
