"""``tightrope export``: a run in the formats that other verifiers read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tightrope as tr
from tightrope.cli._console import print_hint
from tightrope.cli._guard import guarded


@guarded
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write the network as network.onnx.")] = False,
    vnnlib: Annotated[
        int, typer.Option("--vnnlib", help="Write robustness of the first so many test images.", min=0)
    ] = 0,
    eps: Annotated[
        str | None, typer.Option(help='Radius in input units, such as 0.1 or "8/255". Default: the run\'s.')
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that instances.csv gives each property.", min=0)] = 60.0,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the dataset lies. Default: $TIGHTROPE_DATA.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder. Default: export in the run's.")] = None,
) -> None:
    """Write the network as ONNX and robustness properties as VNN-LIB 1.0."""
    files = tr.export(run, out, onnx=onnx, vnnlib=vnnlib, eps=eps, timeout=timeout, data_dir=data_dir)
    print_hint(f"{len(files)} files in {files[0].parent}")
    if onnx and vnnlib:
        print_hint(f"Decide the first with: tightrope verify {files[0]} {files[1]}")
