"""From what a user names to a loss surface in a folder: record, table and pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from tightrope._version import __version__
from tightrope.core.digest import tensor_digest
from tightrope.core.protocols import LossFn, Relaxation
from tightrope.errors import InputError, OutOfMemoryError
from tightrope.evaluation._ledger import check_same
from tightrope.evaluation.certify import eps_text
from tightrope.evaluation.landscape import Scene, calibrated, complete, evaluations
from tightrope.experiments.axes import Along, Heading, Range, Sight, find_axes, find_ranges, positions_between
from tightrope.experiments.certification import Dataset, Subject
from tightrope.experiments.lab import lab_subject, noise_policy, relaxation_of
from tightrope.experiments.load import ConfigSource
from tightrope.experiments.model_zoo import results_folder
from tightrope.experiments.plan import SAFE_SHARE
from tightrope.experiments.source import Source, find_source
from tightrope.records.surface import Axis, Cost, Curve, Surface, read_surface, write_table
from tightrope.reports.surfaces import draw
from tightrope.runtime.memory import GIB, free_memory, keep_freed_memory
from tightrope.smoothers._population import check_std

RELAXATIONS = ("ibp", "deepz", "crown_ibp", "deeppoly")
STD = (0.0, 0.01, 0.03)
POINTS = {1: 51, 2: 21}  # by the number of axes
SAVE_SECONDS = 2.0
_NO_SETTING = {"tightrope", "axes", "curves", "costs", "pairs", "marks", "path"}  # fields that samples do not depend on


def surface(
    source: nn.Module | Source | ConfigSource,
    *,
    relaxations: Iterable[str] = RELAXATIONS,
    std: Iterable[float] = STD,
    direction: Along | None = None,
    towards: Source | Path | str | None = None,
    plane: bool = False,
    points: int | None = None,
    ranges: Sequence[Range] = (),
    images: int = 16,
    draws: int = 32,
    eps: float | str | Fraction | None = None,
    seed: int = 0,
    dataset: Dataset | None = None,
    split: str = "train",
    overrides: Iterable[str] = (),
    out: Path | str | None = None,
    data_dir: Path | str | None = None,
    float32: bool = False,
    device: str = "cpu",
    memory_gib: float | None = None,
    on_plan: Callable[[Surface, Path], None] | None = None,
    on_row: Callable[[Surface, int], None] | None = None,
) -> Surface:
    """Certified losses along one or two directions in weight space, plain and smoothed; resumes where interrupted.

    The smoothed loss is the mean over weight noise: ``E L(w + std z)``, z standard normal. It is estimated with the
    same draws at every point, for every std and relaxation. On a line the jumps of the plain losses are found by
    bisection.

    Args:
        source: a run or its folder, whose trained weights are the centre; a preset, TOML file or settings, whose
            untrained network is; or a module.
        relaxations: names; with options as ``"deeppoly:slope=zero"``.
        std: of the weight noise, in units of the run's ``smoother.std_mode``, on the tensors that get noise in it; 0
            for the loss itself.
        direction: ``random``, filter-normalised; ``gradient`` of the first relaxation's loss; ``pca``, the principal
            components of the trajectory (see ``train.keep_every``). By default random.
        towards: another run of the same network, which is at 1 on the first axis.
        plane: a second axis: the second principal component, or with ``towards`` the ``direction``, else random.
        points: for each axis; by default 51 on a line, 21 in a plane.
        ranges: of the coordinates, one for each axis or one for all; by default it depends on the direction.
        images: the first so many of the split.
        draws: losses behind each point of a smoothed curve, in antithetic pairs: even, at least 4.
        eps: radius in input units; by default the run's test radius.
        seed: of noise and random directions.
        dataset: a name, or images in [0, 1] with labels; by default that of the run.
        split: of a named dataset.
        overrides: ``section.key=value`` each, of settings.
        out: folder of the results; by default ``surface-DIRECTION`` in the run's folder, otherwise
            ``surfaces/NAME-DIRECTION``.
        data_dir: where the dataset lies.
        float32: about twice as fast; jumps below 1e-4 are then not told from rounding.
        device: where to compute.
        memory_gib: that one chunk of weight vectors may need; by default 80 % of what is free.
        on_plan: called before the work with the surface as far as it is there, costs included, and its folder.
        on_row: called with the surface and the evaluations just made, every second or so.

    Returns:
        The record. It is in ``out`` as ``surface.json``, with ``surface.csv``, ``.png`` and ``.svg``. What ``out``
        holds already is kept: more relaxations, std or draws may be asked for later.

    Raises:
        InputError, ConfigError, MissingDataError: what cannot be drawn, before any work; results of other settings in
            ``out``.
        OutOfMemoryError: not even one weight vector fits.
        KeyboardInterrupt: after Ctrl-C; what was computed is saved.

    Example:
        >>> found = tr.surface("runs/digits-mlp-ibp", relaxations=["ibp", "deeppoly"])  # doctest: +SKIP
        >>> found.curve("deeppoly", 0.0).jumps  # doctest: +SKIP
    """
    chosen = {name: relaxation_of(name) for name in relaxations}
    levels = _checked(chosen, tuple(std), draws, points)
    found, name, config = lab_subject(
        source, overrides, dataset, eps, split=split, count=images, data_dir=data_dir, float32=float32, device=device
    )
    sight = Sight(found, chosen)
    axes = find_axes(sight, direction, None if towards is None else find_source(towards), plane, seed)
    grid = [positions_between(end, points or POINTS[len(axes)]) for end in find_ranges(axes, ranges)]
    folder = _folder(found, name, axes, out)
    policy = noise_policy(config)
    wanted = Surface(
        tightrope=__version__,
        name=name,
        trained=found.source is not None,
        weights_sha256=tensor_digest(found.params),
        dataset=found.data,
        split=split,
        images=len(found.labels),
        images_sha256=tensor_digest({"x": found.x, "labels": found.labels}),
        eps=eps_text(found.eps),
        dtype=str(found.x.dtype).removeprefix("torch."),
        seed=seed,
        pairs=draws // 2,
        std_unit=policy.unit,
        axes=tuple(axis.record(positions) for axis, positions in zip(axes, grid, strict=True)),
        curves=tuple(Curve(relaxation=each, std=level) for each in chosen for level in levels),
        marks={name: (0.0,) * len(axes)} | {k: p[: len(axes)] for axis in axes for k, p in axis.marks.items()},
        path=axes[0].path,
    )
    noise = check_std(policy.std(1.0, sight.network, sight.params), sight.network.trainable, needs_noise=False)
    scene = Scene.of(sight.params, [axis.direction for axis in axes], wanted.points, noise, seed)
    keep_freed_memory()
    started = _continued(wanted, folder / "surface.json")
    started = started.model_copy(update={"costs": _costs(started, sight, scene, _budget(memory_gib, scene))})
    if on_plan is not None:
        on_plan(started, folder)
    finished = _compute(started, scene, sight.losses(), folder, on_row)
    write_table(finished, folder / "surface.csv")
    draw(finished, folder / "surface.png", folder / "surface.svg")
    return finished


def _checked(chosen: Mapping[str, Relaxation], std: tuple[float, ...], draws: int, points: int | None) -> list[float]:
    """The std, ascending.

    Raises:
        InputError: anything that cannot be drawn.
    """
    if not chosen:
        raise InputError("Name at least one relaxation.")
    if not std or any(not (math.isfinite(each) and each >= 0) for each in std):
        raise InputError(
            f"std = {', '.join(map(str, std)) or 'nothing'}: give finite numbers >= 0, 0 for the loss itself."
        )
    if draws < 4 or draws % 2:
        raise InputError(f"draws = {draws}: they are antithetic pairs, and an interval needs two: give 4, 6, 8 ...")
    if points is not None and points < 2:
        raise InputError(f"points = {points}: a line needs at least 2.")
    return sorted(set(std))


# ------------------------------------------------------------------------------------------------ the work


def _folder(subject: Subject, name: str, axes: Sequence[Heading], out: Path | str | None) -> Path:
    if out is not None:
        return Path(out)
    kinds = "-".join([axes[0].kind, *["plane"] * (len(axes) - 1)])
    if subject.source is not None:
        return results_folder(subject.source.path) / f"surface-{kinds}"
    return Path("surfaces") / f"{name.replace('/', '-')}-{kinds}"


def _continued(wanted: Surface, path: Path) -> Surface:
    """What is wanted, with what there is of it.

    Raises:
        InputError: results of other settings, or of more than is wanted now.
        CorruptDataError: a damaged file.
    """
    if not path.exists():
        return wanted
    old = read_surface(path)
    check_same(path, _settings(old), _settings(wanted))
    known = {(curve.relaxation, curve.std): curve for curve in old.curves}
    lost = known.keys() - {(curve.relaxation, curve.std) for curve in wanted.curves}
    if lost or old.pairs > wanted.pairs:
        raise InputError(
            f"{path} holds more than was asked for now: {', '.join(old.relaxations)} at std "
            f"{', '.join(map(str, old.stds))} with {2 * old.pairs} draws. Ask for all of that too, or choose another "
            "folder (out); nothing was changed."
        )
    curves = tuple(known.get((curve.relaxation, curve.std), curve) for curve in wanted.curves)
    return wanted.model_copy(update={"curves": curves, "costs": old.costs})


def _settings(surface: Surface) -> dict[str, Any]:
    """What samples depend on."""
    settings = surface.model_dump(mode="json", exclude=_NO_SETTING)
    axes = [
        {"direction": axis.name, "sha256": axis.sha256, "points": len(axis.positions), "range": _ends(axis)}
        for axis in surface.axes
    ]
    return settings | {f"axis {number}": axis for number, axis in enumerate(axes, start=1)}


def _ends(axis: Axis) -> str:
    return f"{axis.positions[0]:g} .. {axis.positions[-1]:g}"


def _costs(surface: Surface, sight: Sight, scene: Scene, budget: float) -> tuple[Cost, ...]:
    """Of all relaxations; what a file says of one is kept, so that it goes on in the same chunks."""
    known = {cost.relaxation: cost for cost in surface.costs}
    found = []
    for name in surface.relaxations:
        count = sum(evaluations(surface, curve) for curve in surface.curves if curve.relaxation == name)
        if (old := known.get(name)) is not None:
            share = count / old.evaluations
            found.append(old.model_copy(update={"evaluations": count, "seconds": old.seconds * share}))
            continue
        cost = calibrated(name, partial(sight.loss, name), scene, surface.images, count, budget)
        if cost.peak_memory > budget:
            raise OutOfMemoryError(
                f"One loss of {surface.images} images with {name} needs about {cost.peak_memory / GIB:.3g} GiB, and "
                f"{budget / GIB:.3g} GiB may be used. Take fewer images, or a looser relaxation."
            )
        found.append(cost)
    return tuple(found)


def _budget(memory_gib: float | None, scene: Scene) -> float:
    if memory_gib is not None and not 0 < memory_gib < math.inf:
        raise InputError(f"The memory must be positive and finite, got {memory_gib} GiB.")
    return SAFE_SHARE * free_memory(scene.points.device) if memory_gib is None else memory_gib * GIB


def _compute(
    surface: Surface,
    scene: Scene,
    losses: Mapping[str, LossFn],
    folder: Path,
    on_row: Callable[[Surface, int], None] | None,
) -> Surface:
    path, current, saved = folder / "surface.json", surface, -math.inf

    def keep(grown: Surface, took: int) -> None:
        nonlocal current, saved
        current = grown
        if time.monotonic() - saved > SAVE_SECONDS:
            current.write(path)
            saved = time.monotonic()
        if on_row is not None:
            on_row(current, took)

    try:
        return complete(surface, scene, losses, on_row=keep)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"What was computed is in {path}. The same command goes on.") from None
    finally:
        current.write(path)
