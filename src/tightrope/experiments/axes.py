"""The axes of a loss surface: from the name of a direction to a direction in weight space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import linf_box
from tightrope.core.digest import tensor_digest
from tightrope.core.network import Network
from tightrope.core.protocols import LossFn, Relaxation
from tightrope.errors import InputError, MissingDataError
from tightrope.evaluation.directions import (
    Direction,
    difference,
    gradient_direction,
    length,
    principal_components,
    random_direction,
)
from tightrope.evaluation.landscape import batch_loss
from tightrope.experiments.certification import Subject
from tightrope.experiments.source import Source
from tightrope.records.surface import Axis
from tightrope.training.state import load_tensors

Along = Literal["random", "gradient", "pca"]
Range = tuple[float, float]

RANGES: Mapping[str, Range] = {"random": (-0.25, 0.25), "gradient": (-0.05, 0.05), "towards": (-0.5, 1.5)}
MARGIN = 0.2  # of a trajectory's extent, on either side of it


@dataclass(frozen=True)
class Sight:
    """A batch of images, and the relaxations that bound it, in the type of the computation."""

    subject: Subject
    relaxations: Mapping[str, Relaxation]

    @property
    def network(self) -> Network:
        """The graph."""
        return self.subject.network

    @cached_property
    def params(self) -> dict[str, Tensor]:
        """The weights."""
        return self.cast(self.subject.params)

    def cast(self, params: Params) -> dict[str, Tensor]:
        """Weights of the same network, where and as what is computed."""
        x = self.subject.x
        return {n: v.to(x.device, x.dtype if v.is_floating_point() else v.dtype) for n, v in params.items()}

    def loss(self, name: str, count: int | None = None) -> LossFn:
        """The loss of the first so many images."""
        x, labels = self.subject.x[:count], self.subject.labels[:count]
        box, spec = linf_box(x, self.subject.eps), self.subject.make_spec(labels)
        return batch_loss(self.network, self.relaxations[name], x, box, spec)

    def losses(self) -> dict[str, LossFn]:
        """Of all images, by the name of the relaxation."""
        return {name: self.loss(name) for name in self.relaxations}


@dataclass(frozen=True)
class Heading:
    """A direction, and what is known of it.

    Attributes:
        kind: of the direction, for names of folders.
        name, unit: in words, see :class:`tightrope.records.surface.Axis`.
        range: by default.
        marks: networks on it.
        path: of the trajectory, if the axes are its principal components.
    """

    kind: str
    name: str
    unit: str
    direction: Direction
    range: Range
    marks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    share: float | None = None
    path: tuple[tuple[float, ...], ...] = ()

    def record(self, positions: tuple[float, ...]) -> Axis:
        return Axis(
            name=self.name,
            unit=self.unit,
            positions=positions,
            length=length(self.direction),
            sha256=tensor_digest(self.direction),
            share=self.share,
        )


def find_axes(sight: Sight, direction: Along | None, other: Source | None, plane: bool, seed: int) -> list[Heading]:
    """One direction, or the two of a plane.

    Raises:
        InputError: directions that do not go together, or of length 0.
        MissingDataError: no weights of the trajectory were kept.
        CheckpointError: weights of another network.
    """
    if direction not in (None, "random", "gradient", "pca"):
        raise InputError(f"direction = {direction!r}: choose random, gradient, pca, or another run (towards).")
    if other is not None and direction is not None and not plane:
        raise InputError("Two directions, towards a run and another, make a plane: ask for one (plane).")
    if direction == "pca":
        if other is not None:
            raise InputError("The second axis of a plane towards a run is random or gradient, not pca.")
        return _principal(sight, 2 if plane else 1)
    first = _axis(sight, direction or "random", seed, 0) if other is None else _towards(sight, other)
    if not plane:
        return [first]
    return [first, _axis(sight, "random" if other is None else direction or "random", seed, 1)]


def _axis(sight: Sight, kind: str, seed: int, index: int) -> Heading:
    params, trainable = sight.params, sight.network.trainable
    if kind == "random":
        found = random_direction(params, trainable, seed, index)
        name = "second random direction" if index else "random direction"
        return Heading(kind, name, "1 = length of each filter", found, RANGES[kind])
    first = next(iter(sight.relaxations))
    found = gradient_direction(sight.loss(first), params, trainable)
    return Heading(kind, f"gradient of {first}", "1 = length of the weights", found, RANGES[kind])


def _towards(sight: Sight, other: Source) -> Heading:
    sight.network.check_params(other.params, reference=sight.subject.params)
    found = difference(sight.params, sight.cast(other.params), sight.network.trainable)
    name = other.name
    return Heading("towards", f"towards {name}", "1 = there", found, RANGES["towards"], {f"{name} (other)": (1.0, 0.0)})


def _principal(sight: Sight, count: int) -> list[Heading]:
    source = sight.subject.source
    files = {} if source is None else source.folder.trajectory
    if len(files) <= count:
        raise MissingDataError(
            f"{count} principal components need the weights after {count + 1} epochs of a run, and "
            f"{len(files) or 'none'} were kept: train with --set train.keep_every=1."
        )
    kept = [load_tensors(path)[0] for path in files.values()]
    for each in kept:
        sight.network.check_params(each, reference=sight.subject.params)
    found = principal_components(sight.params, [sight.cast(each) for each in kept], sight.network.trainable, count)
    path = tuple(tuple(row) for row in found.path.tolist())
    parts = zip(found.directions, found.shares, zip(*path, strict=True), strict=True)
    return [
        Heading(
            "pca",
            f"principal component {index}",
            "Euclidean",
            direction,
            _around(coordinates),
            {},
            share,
            path,
        )
        for index, (direction, share, coordinates) in enumerate(parts, start=1)
    ]


def _around(coordinates: Sequence[float]) -> Range:
    """All of them and the centre, and a bit more."""
    low, high = min(0.0, *coordinates), max(0.0, *coordinates)
    return low - MARGIN * (high - low), high + MARGIN * (high - low)


def find_ranges(axes: Sequence[Heading], given: Sequence[Range]) -> list[Range]:
    """Those that were given, or else those of the directions.

    Raises:
        InputError: too many, or ends that are not in order.
    """
    if given and len(given) not in (1, len(axes)):
        raise InputError(f"{len(given)} ranges for {len(axes)} axes: give one for each, or one for all.")
    found = list(given) * (len(axes) if len(given) == 1 else 1) or [axis.range for axis in axes]
    for low, high in found:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"The range {low:g} .. {high:g} must go from a finite number to a larger one.")
    return found


def positions_between(ends: Range, points: int) -> tuple[float, ...]:
    """Evenly spaced; the one next to 0 is 0 where only rounding keeps them apart."""
    low, high = ends
    found = [low + (high - low) * index / (points - 1) for index in range(points)]
    return tuple(0.0 if abs(each) < 1e-12 * (high - low) else each for each in found)
