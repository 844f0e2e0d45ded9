"""Measured properties of relaxations on one network: what was measured, how, and the numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tightrope.records.files import read_model, write_atomic


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Settings(_Values):
    """What the numbers depend on, the network aside.

    Attributes:
        data, split, images: the first so many images of a split.
        images_sha256: of them and their labels.
        eps: radius, as exact text.
        segments: random segments through the weights, from -1 to 1 in units of ``std[-1]`` times normal noise.
        steps: of every segment.
        std: of the weight noise of Gaussian smoothing, ascending, in units of ``std_unit``.
        std_unit: ``absolute``, ``weight`` or ``fan_in``, see the settings of runs.
        draws: of that noise; common to all relaxations, segments, points and stds.
        jump: the smallest jump that is looked for, as a share of the loss at the weights.
        tolerance: width at which the bracket of a worst margin is narrow enough.
        timeout: seconds of the verifier for a question about an image.
    """

    data: str
    split: str
    images: int
    images_sha256: str
    eps: str
    segments: int
    steps: int
    std: tuple[float, ...]
    std_unit: str
    draws: int
    jump: float
    tolerance: float
    timeout: float
    seed: int


class WorstMargin(_Values):
    """Where the worst margin of an image over the box lies: above a proof, below the margin of an input."""

    index: int
    lower: float
    upper: float


class Tightness(_Values):
    """How far bounds of the worst margin are from it; means over the images.

    Attributes:
        margin: the bound of the worst margin.
        gap: from the bound up to the worst margin that an input shows: at least the true gap.
        proved: from the bound up to what the verifier proves: at most the true gap.
        radius: the mean certified radius by this relaxation alone up to 4 eps, which is the area under the curve of
            certified accuracy over the radius; without bounds of rounding errors.
        loss: the certified loss.
        certified: share of the images.
    """

    margin: float
    gap: float
    proved: float
    radius: float
    loss: float
    certified: float


class Jump(_Values):
    """A discontinuity on a segment: its position and the loss right of it minus that left of it."""

    segment: int
    at: float
    size: float


class Change(_Values):
    """The largest change of the loss seen over so small a step of any segment."""

    step: float
    largest: float


class Continuity(_Values):
    """Jumps of the certified loss along the segments.

    Attributes:
        jumps: all that are not smaller than ``Settings.jump``.
        rate: of them, for a unit of length: that of one draw of the largest noise, which moves every weight.
        largest: the size of the largest; 0 if there is none.
        share: of the loss's total variation on the segments' points that jumps are.
        changes: from the widest step to the narrowest: where there are jumps they level off.
        complete: whether every suspicious interval was followed to the end.
    """

    jumps: tuple[Jump, ...]
    rate: float
    largest: float
    share: float
    changes: tuple[Change, ...]
    complete: bool


class Sensitivity(_Values):
    """How bound and loss move with the weights, jumps aside; means over weights drawn with the largest std.

    Attributes:
        bound_gradient: norm of the gradient of the bound of the worst margin (mean over the images) with respect to
            all weights: its local Lipschitz constant.
        loss_gradient: the same of the certified loss.
        agreement: cosine of the loss's gradient at the drawn weights with that at the weights themselves.
        degree: no larger is the degree of the bound as a rational function along a line of weights, on a piece without
            changes of sign or rule; counted from the formula and the neurons that cross 0 at the weights, for the image
            with most. None where the count is not known.
        crossing: neurons that cross 0 by these bounds, mean over the images.
    """

    bound_gradient: float
    loss_gradient: float
    agreement: float
    degree: int | None
    crossing: float


class Smoothness(_Values):
    """The loss along the segments after Gaussian smoothing, estimated with common draws.

    The unit of length in weight space is one standard deviation of the largest noise. The bounds are Cauchy and
    Schwarz's: in units of its own noise, the k-th derivative of the smoothed loss along any line is at most sqrt(k!)
    times the standard deviation of the loss under the noise. That of the draws stands in for it here.

    Attributes:
        std: of the noise; 0 without smoothing.
        loss, error: at the weights, and its standard error.
        slope: largest change of a step by its length.
        slope_bound: by the formula; None without smoothing.
        curvature: largest second difference by the step's length squared.
        curvature_bound: by the formula; None without smoothing.
        order: log2 of by how much the root mean square of second differences shrinks when the step is halved: 2 where
            the loss is smooth, 1.5 with kinks, 0.5 with jumps.
        deviation: from convexity on the segments: how far the loss rises above a chord.
        deviation_drawn: the largest of the shifted segments of all draws, which ``deviation`` cannot exceed.
        curve: the loss on the first segment.
    """

    std: float
    loss: float
    error: float
    slope: float
    slope_bound: float | None
    curvature: float
    curvature_bound: float | None
    order: float | None
    deviation: float
    deviation_drawn: float
    curve: tuple[float, ...]


class RelaxationProperties(_Values):
    """All of one relaxation.

    Attributes:
        name: with its slope rule, if it is not the default.
        continuous: whether it is, in theory.
        evaluations: of the loss, each of one weight vector on all images.
    """

    name: str
    continuous: bool
    tightness: Tightness
    continuity: Continuity
    sensitivity: Sensitivity
    smoothness: tuple[Smoothness, ...]
    evaluations: int
    seconds: float


class PropertiesRecord(_Values):
    """Properties of relaxations on one network.

    Attributes:
        network: the run or the configuration it comes from.
        trained: whether the weights are those of a run, or initial ones.
        weights: how many there are.
        weights_sha256: fingerprint of the params.
        worst: of every image, once they are known.
        relaxations: as far as they are finished.
    """

    schema_version: Literal[1] = 1
    network: str
    trained: bool
    weights: int
    weights_sha256: str
    settings: Settings
    worst: tuple[WorstMargin, ...] = ()
    relaxations: tuple[RelaxationProperties, ...] = ()

    @property
    def exact(self) -> int:
        """Images whose worst margin is known up to the tolerance."""
        return sum(each.upper - each.lower <= 1.001 * self.settings.tolerance for each in self.worst)

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_atomic(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> PropertiesRecord:
        """Read from JSON.

        Raises:
            MissingDataError: there is no such file.
            CorruptDataError: it is not a record of properties.
        """
        return read_model(path, cls, "a record of properties of relaxations")

    def csv(self) -> str:
        """Every number as a line: relaxation, property, quantity, at (a step, a std, a position), value."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["relaxation", "property", "quantity", "at", "value"])
        for each in self.relaxations:
            table.writerows((each.name, *line) for line in _lines(each))
        return text.getvalue()


def _lines(each: RelaxationProperties) -> Iterator[tuple[str, str, float | str, float | None]]:
    for part in (each.tightness, each.continuity, each.sensitivity):
        for name, value in part.model_dump().items():
            if not isinstance(value, tuple):
                yield type(part).__name__.lower(), name, "", value
    for change in each.continuity.changes:
        yield "continuity", "largest change", change.step, change.largest
    for jump in each.continuity.jumps:
        yield "continuity", f"jump on segment {jump.segment}", jump.at, jump.size
    for smooth in each.smoothness:
        for name, value in smooth.model_dump(exclude={"std", "curve"}).items():
            yield "smoothness", name, smooth.std, value
