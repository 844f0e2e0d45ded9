"""A loss surface: losses of several relaxations on a line or a plane in weight space, plain and smoothed."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tightrope.records.files import read_model, write_atomic
from tightrope.records.intervals import paired
from tightrope.records.run import Number

Point = tuple[float, ...]
"""A place on the line or plane: one coordinate for each axis."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Axis(_Record):
    """A direction in weight space, and where on it.

    Attributes:
        name: what it is, in words: ``random``, ``gradient of ibp``, ``towards NAME``, ``principal component 1``.
        positions: coordinates of the points, ascending.
        length: Euclidean norm of the direction: weights are ``centre + coordinate * direction``.
        sha256: of the direction.
        share: of the trajectory's variance that a principal component explains.
    """

    name: str
    positions: tuple[float, ...] = Field(min_length=2)
    length: float
    sha256: str
    share: float | None = None


class Jump(_Record):
    """Where a plain loss is discontinuous: between ``before`` and ``after`` there is no distance to speak of.

    Attributes:
        position: on the line.
        before, after: the loss on either side.
    """

    position: float
    before: Number
    after: Number

    @property
    def size(self) -> float:
        """How high it is."""
        return abs(self.after - self.before)


class Curve(_Record):
    """The loss of one relaxation, smoothed by weight noise of one std.

    Attributes:
        relaxation: the name.
        std: of the noise, 0 for the loss itself.
        samples: one row for each antithetic pair of draws, the mean of its two losses at every point; a single row of
            losses where ``std`` is 0. Pairs are the same at all points, for all std and relaxations. Points of a plane
            are in the order of :attr:`Surface.points`.
        jumps: of a plain loss on a line, at most one for each pair of neighbouring points; None if not looked for.
    """

    relaxation: str
    std: float = Field(ge=0)
    samples: tuple[tuple[Number, ...], ...] = ()
    jumps: tuple[Jump, ...] | None = None

    @property
    def mean(self) -> tuple[float, ...]:
        """The estimate of the loss at every point, NaN where a sample is not finite; empty before there are samples."""
        return tuple(fmean(column) if all(map(math.isfinite, column)) else math.nan for column in self._columns())

    @property
    def interval(self) -> tuple[tuple[float, float], ...]:
        """At every point Student's 95 % interval of the mean over pairs; the loss itself where ``std`` is 0."""
        if self.std == 0:
            return tuple((value, value) for value in self.mean)
        return tuple(
            paired(column) if all(map(math.isfinite, column)) else (math.nan, math.nan) for column in self._columns()
        )

    def _columns(self) -> Iterator[tuple[float, ...]]:
        return zip(*self.samples, strict=True)


class Cost(_Record):
    """What the curves of one relaxation were expected to take, from a short calibration.

    Attributes:
        evaluations: losses of all images at one weight vector.
        chunk: weight vectors evaluated at once.
        seconds: for all of them.
        peak_memory: bytes, of one chunk.
    """

    relaxation: str
    evaluations: int
    chunk: int
    seconds: float
    peak_memory: int


class Surface(_Record):
    """Losses on a line or a plane in weight space. Unfinished ones have fewer samples than ``pairs``.

    Attributes:
        name: of the run or the preset.
        trained: whether the centre is a trained network.
        weights_sha256: of the weights in the centre.
        dataset, split, images: the first so many images of a split.
        images_sha256: of them and their labels.
        eps: radius, as exact text.
        dtype: of the computation.
        seed: of noise and random directions.
        pairs: antithetic pairs of draws behind each point of a smoothed curve.
        std_unit: of the noise: ``absolute``, ``weight`` or ``fan_in``, see the run's settings.
        axes: one for a line, two for a plane.
        curves: plain and smoothed, relaxation by relaxation.
        costs: one for each relaxation.
        marks: networks by name, and where they are.
        path: where the checkpoints of the trajectory are, projected, in the order of their epochs.
    """

    schema_version: Literal[1] = 1
    tightrope: str
    name: str
    trained: bool
    weights_sha256: str
    dataset: str
    split: str
    images: int
    images_sha256: str
    eps: str
    dtype: str
    seed: int
    pairs: int
    std_unit: str
    axes: tuple[Axis, ...] = Field(min_length=1, max_length=2)
    curves: tuple[Curve, ...]
    costs: tuple[Cost, ...] = ()
    marks: dict[str, Point] = {}
    path: tuple[Point, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Surface:
        points = len(self.points)
        if any(len(row) != points for curve in self.curves for row in curve.samples):
            raise ValueError(f"every sample must have a value for each of the {points} points")
        return self

    @property
    def points(self) -> tuple[Point, ...]:
        """Where losses are evaluated; in a plane the coordinate of the second axis changes fastest."""
        return tuple(product(*(axis.positions for axis in self.axes)))

    @property
    def relaxations(self) -> tuple[str, ...]:
        """Their names, each once."""
        return tuple(dict.fromkeys(curve.relaxation for curve in self.curves))

    @property
    def stds(self) -> tuple[float, ...]:
        """Of the noise, each once."""
        return tuple(dict.fromkeys(curve.std for curve in self.curves))

    @property
    def finished(self) -> bool:
        """Whether all samples are there."""
        return all(len(curve.samples) == rows_of(curve, self.pairs) for curve in self.curves)

    def curve(self, relaxation: str, std: float) -> Curve:
        """One of the curves.

        Raises:
            KeyError: there is no such curve.
        """
        return {(curve.relaxation, curve.std): curve for curve in self.curves}[relaxation, std]

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_atomic(path, self.model_dump_json() + "\n")


def rows_of(curve: Curve, pairs: int) -> int:
    """Rows of samples that a finished curve has."""
    return 1 if curve.std == 0 else pairs


def read_surface(path: Path) -> Surface:
    """A surface as it was written.

    Raises:
        MissingDataError: there is no such file.
        CorruptDataError: it is not the record of a surface.
    """
    return read_model(path, Surface, "the record of a loss surface")


def write_table(surface: Surface, path: Path) -> None:
    """Write a CSV file: a row for each curve and point, with the mean and the ends of its 95 % interval."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["relaxation", "std", *_columns(surface.axes), "loss", "low", "high"])
    for curve in surface.curves:
        for point, mean, ends in zip(surface.points, curve.mean, curve.interval, strict=True):
            table.writerow([curve.relaxation, curve.std, *point, mean, *ends])
    write_atomic(path, text.getvalue())


def _columns(axes: Sequence[Axis]) -> list[str]:
    return ["position"] if len(axes) == 1 else ["first", "second"]
