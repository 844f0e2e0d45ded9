"""A run for other verifiers: the network as ONNX, robustness of test images as VNN-LIB."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import cast

import torch

from tightrope.core import registry
from tightrope.core.box import Box, linf_box
from tightrope.data._loader import Samples, subset, to_unit
from tightrope.errors import InputError
from tightrope.experiments.run import Run
from tightrope.experiments.source import Source, find_source
from tightrope.frontend.onnx_export import to_onnx
from tightrope.frontend.vnnlib import robustness_property
from tightrope.records.files import write_atomic

NETWORK = "network.onnx"


def export(
    source: Source | Path | str,
    out: Path | str | None = None,
    *,
    onnx: bool = True,
    vnnlib: int = 0,
    eps: float | str | Fraction | None = None,
    timeout: float = 60.0,
    data_dir: Path | str | None = None,
) -> list[Path]:
    """Write a run in the formats that other verifiers read.

    The network takes inputs in [0, 1]: normalisation is part of it. Each property says that the label of a test image
    wins over its eps-box, clipped to [0, 1] and rounded outward. ``instances.csv`` lists network, property and seconds.

    Args:
        source: a run, an imported network, or the folder of either.
        out: a folder; by default ``export`` in the run's.
        onnx: write ``network.onnx``.
        vnnlib: number of test images, from the first on, to write as ``image-0.vnnlib`` and so on.
        eps: radius in input units; by default the run's test radius.
        timeout: seconds that ``instances.csv`` gives each.
        data_dir: where the dataset lies.

    Returns:
        The files.

    Raises:
        MissingExtraError: the package onnx is not installed.
        InputError: nothing to write, more images than there are, or a run on data or properties handed in.

    Example:
        >>> tr.export("runs/digits-mlp-ibp", vnnlib=10)  # doctest: +SKIP
    """
    run = find_source(source)
    if not onnx and vnnlib < 1:
        raise InputError("Say what to write: the network (onnx), a number of properties (vnnlib), or both.")
    folder = run.path / "export" if out is None else Path(out)
    files: dict[str, bytes | str] = {NETWORK: to_onnx(run.network, run.params)} if onnx else {}
    if vnnlib > 0:
        properties = _properties(run, vnnlib, run.eps if eps is None else eps, data_dir)
        files |= properties
        files["instances.csv"] = "".join(f"{NETWORK},{name},{timeout:g}\n" for name in properties)
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files]


def _properties(run: Source, count: int, eps: float | str | Fraction, data_dir: Path | str | None) -> dict[str, str]:
    handed_in = {"dataset", "spec"}.intersection(run.record.handed_in) if isinstance(run, Run) else set()
    if handed_in or run.dataset is None:
        raise InputError(f"The run in {run.path} has a {min(handed_in)} handed in; properties need a named dataset.")
    samples = cast(Samples, registry.create("datasets", run.dataset).load(data_dir, "test"))
    if count > samples.size:
        raise InputError(f"{run.dataset} has {samples.size} test images, not {count}.")
    samples = subset(samples, count)
    box = linf_box(to_unit(samples, torch.float64), eps)
    return {
        f"image-{i}.vnnlib": robustness_property(
            Box(box.lower[i], box.upper[i]),
            int(samples.labels[i]),
            run.network.num_outputs,
            f"{run.dataset} test image {i}, label {int(samples.labels[i])}, eps {eps}",
        )
        for i in range(count)
    }
