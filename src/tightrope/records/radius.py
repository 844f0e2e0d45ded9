"""The certified radius of each image, and accuracy as a function of the radius."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator

from tightrope.errors import InputError, InvariantError
from tightrope.records.files import read_model, write_atomic
from tightrope.records.image import CONFIDENCE, Record, Values
from tightrope.records.intervals import wilson

QUANTILES = ("0", "1/20", "1/10", "1/4", "1/2", "3/4", "9/10", "19/20", "1")


class RadiusRecord(Record):
    """The radii between which the robustness of one image lies. Contradictory ones cannot be built.

    Attributes:
        verified: the largest radius with a proof, as exact text; ``"0"`` if only the clean image has the property, None
            if not even that.
        falsified: the smallest radius with a counterexample; None if none was found up to ``limit``.
        limit: the largest radius that was tried.
        tolerance: radii that were tried are multiples of it.
        method: what proved the largest radius; ``"natural"`` where it is 0 or none.
        tries: radii at which the image was given to a verifier.
        seconds: this image's share of the wall time of its batches.

    Raises:
        pydantic.ValidationError: fields of a wrong type, or that contradict each other.
    """

    claims: ClassVar[tuple[str, ...]] = ("label", "natural", "limit", "tolerance")

    verified: str | None
    falsified: str | None
    limit: str
    tolerance: str
    method: str
    tries: int = Field(ge=0)
    seconds: float = Field(ge=0)

    @property
    def certified_radius(self) -> Fraction | None:
        """The largest radius with a proof; None if the clean image has not the property."""
        return None if self.verified is None else Fraction(self.verified)

    @property
    def falsified_radius(self) -> Fraction | None:
        """The smallest radius with a counterexample; None if none is known."""
        return None if self.falsified is None else Fraction(self.falsified)

    @model_validator(mode="after")
    def _consistent(self) -> RadiusRecord:
        try:
            low, high, limit = self.certified_radius, self.falsified_radius, Fraction(self.limit)
            fits = Fraction(self.tolerance) > 0 and (low is None or 0 <= low <= limit)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"image {self.index}: a radius is not the text of a finite number") from None
        if not fits or (low is None) == self.natural or (high is not None and high > limit):
            raise ValueError(f"image {self.index}: radii must lie in 0 .. limit, and only natural images have one")
        if low is not None and high is not None and low >= high:
            raise ValueError(f"image {self.index}: verified at {self.verified}, but falsified at {self.falsified}")
        return self


class Point(Values):
    """Accuracy at one radius, with Wilson intervals of 95 %.

    Attributes:
        eps: the radius, as exact text.
        adversarial: images without a known counterexample at this radius.
        certified: images with a proof at this radius.
    """

    eps: str
    adversarial: int = Field(ge=0)
    adversarial_accuracy: float
    adversarial_interval: tuple[float, float]
    certified: int = Field(ge=0)
    certified_accuracy: float
    certified_interval: tuple[float, float]


class RadiusSummary(Values):
    """The distribution of the radii of ``count`` images.

    Attributes:
        count: images.
        natural: those whose clean input has the property.
        tolerance: distance of the radii that were tried.
        curve: accuracy at every one of them, from 0 to the largest.
        quantiles: share of the images -> the certified radius that it does not exceed; None for images that are not
            natural, which have none. Of all images, in ascending order.
        open: images whose two radii are more than the tolerance apart, or that have none above.
        seconds: summed over the images.

    Raises:
        pydantic.ValidationError: a curve that rises, or that is out of order.
    """

    count: int = Field(ge=1)
    natural: int = Field(ge=0)
    tolerance: str
    curve: tuple[Point, ...]
    quantiles: dict[str, str | None]
    open: int = Field(ge=0)
    seconds: float = Field(ge=0)

    @model_validator(mode="after")
    def _monotone(self) -> RadiusSummary:
        for one, other in pairwise(self.curve):
            if other.certified > one.certified or other.adversarial > one.adversarial:
                raise ValueError(f"accuracy rises from eps {one.eps} to {other.eps}")
        if any(not point.certified <= point.adversarial <= self.natural for point in self.curve):
            raise ValueError("certified <= adversarial <= natural must hold at every radius")
        return self


def distribution(records: Sequence[RadiusRecord]) -> RadiusSummary:
    """Curves and quantiles of the radii.

    Raises:
        InputError: there are no records, or they are of different limits or tolerances.
        InvariantError: an image twice.
    """
    scales = {(record.limit, record.tolerance) for record in records}
    if len(scales) != 1:
        raise InputError(
            f"A distribution needs radii of one limit and tolerance, got {sorted(scales) or 'no records'}."
        )
    if len({record.index for record in records}) != len(records):
        raise InvariantError("A distribution must count every image once; some index is there twice.")
    limit, tolerance = map(Fraction, scales.pop())
    return RadiusSummary(
        count=len(records),
        natural=sum(record.natural for record in records),
        tolerance=str(tolerance),
        curve=tuple(_point(records, step * tolerance) for step in range(limit // tolerance + 1)),
        quantiles=_quantiles(records),
        open=sum(_is_open(record) for record in records),
        seconds=sum(record.seconds for record in records),
    )


def _point(records: Sequence[RadiusRecord], eps: Fraction) -> Point:
    count, unbroken, proved = len(records), 0, 0
    for record in records:
        low, high = record.certified_radius, record.falsified_radius
        proved += low is not None and low >= eps
        unbroken += record.natural and (high is None or high > eps)
    return Point(
        eps=str(eps),
        adversarial=unbroken,
        adversarial_accuracy=unbroken / count,
        adversarial_interval=wilson(unbroken, count, CONFIDENCE),
        certified=proved,
        certified_accuracy=proved / count,
        certified_interval=wilson(proved, count, CONFIDENCE),
    )


def _quantiles(records: Iterable[RadiusRecord]) -> dict[str, str | None]:
    """The smallest radius that so large a share of the images does not exceed."""
    radii = sorted((r.certified_radius for r in records), key=lambda radius: Fraction(-1) if radius is None else radius)
    last = len(radii) - 1
    ranks = {share: max(0, -(-Fraction(share) * len(radii) // 1) - 1) for share in QUANTILES}
    return {share: None if (value := radii[min(rank, last)]) is None else str(value) for share, rank in ranks.items()}


def _is_open(record: RadiusRecord) -> bool:
    low, high = record.certified_radius, record.falsified_radius
    if low is None:
        return False
    top = Fraction(record.limit) if high is None else high - Fraction(record.tolerance)
    return low < top


def read_distribution(path: Path) -> RadiusSummary:
    """A summary of radii as it was written.

    Raises:
        MissingDataError: there is no such file.
        CorruptDataError: it is not a summary of radii.
    """
    return read_model(path, RadiusSummary, "a summary of certified radii")


def write_distribution(path: Path, summary: RadiusSummary) -> None:
    """Write ``NAME.summary.json`` and the curve as ``NAME.curve.csv`` beside ``NAME.jsonl``."""
    write_atomic(path.with_suffix(".summary.json"), summary.model_dump_json(indent=2) + "\n", shared=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["eps", "eps_decimal", "adversarial_accuracy", "certified_accuracy", "images"])
    for point in summary.curve:
        shares = (point.adversarial_accuracy, point.certified_accuracy)
        table.writerow([point.eps, float(Fraction(point.eps)), *shares, summary.count])
    write_atomic(path.with_suffix(".curve.csv"), text.getvalue(), shared=True)
