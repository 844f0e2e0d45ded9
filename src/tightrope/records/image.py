"""What a certification found about each image: schema, JSON lines, summary.

Three shares of the same images are kept apart by their names and by checks, never by convention:

- **natural**: the property holds at the clean image;
- **adversarial**: it does, and no counterexample was found in the box (an upper bound of the truth);
- **certified**: it does, and it is proved on the whole box (a lower bound of the truth).
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tightrope.errors import CorruptDataError, InputError, InvariantError, MissingDataError
from tightrope.records.files import read_model, write_atomic
from tightrope.records.intervals import wilson

SCHEMA = 1
CONFIDENCE = 0.95
NATURAL = "natural"
"""The ``method`` of images whose clean input already breaks the property."""

_FORMAT = "tightrope-images"


class Values(BaseModel):
    """Facts that are checked when they are built and never change afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Record(Values):
    """What every kind of record says about an image.

    Attributes:
        index: in the images that were given.
        label: class, or None where the property is not about a label.
        natural: the property holds at the clean image.
        claims: fields that are the same in all records of an image.
    """

    claims: ClassVar[tuple[str, ...]] = ("label", "natural")

    index: int = Field(ge=0)
    label: int | None
    natural: bool


R = TypeVar("R", bound=Record)


class ImageRecord(Record):
    """The result of one image. Contradictory ones cannot be built.

    Attributes:
        adversarial: natural, and no counterexample was found.
        certified: natural, and verified over the full box.
        verdict: of the property on the box.
        method: the stage that decided, or the last that tried; ``"natural"`` where the clean image breaks it.
        eps: exact radius as text, in input units, such as ``"8/255"``.
        lower: proved lower bound of the margin over the box; None if none.
        upper: smallest margin seen at an input in the box; None if none.
        seconds: this image's share of the wall time of its batch.
        reason: why it is unknown.

    Raises:
        pydantic.ValidationError: fields of a wrong type, or that contradict each other.
    """

    claims: ClassVar[tuple[str, ...]] = ("label", "natural", "verdict", "eps")

    adversarial: bool
    certified: bool
    verdict: Literal["verified", "falsified", "unknown"]
    method: str
    eps: str
    lower: float | None
    upper: float | None
    seconds: float = Field(ge=0)
    reason: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> ImageRecord:
        problems = [message for holds, message in self._rules() if not holds]
        if problems:
            raise ValueError(f"image {self.index}: {'; '.join(problems)}")
        return self

    def _rules(self) -> list[tuple[bool, str]]:
        verified, falsified = self.verdict == "verified", self.verdict == "falsified"
        lower, upper = self.lower, self.upper
        return [
            (_is_radius(self.eps), f"eps {self.eps!r} is not the text of a finite number >= 0"),
            (self.certified == verified, "certified must be the same as verdict verified"),
            (not self.certified or (self.natural and self.adversarial), "certified needs natural and adversarial"),
            (self.adversarial == (self.natural and not falsified), "adversarial is natural and not falsified"),
            (self.natural == (self.method != NATURAL), "method 'natural' is for images that are not natural"),
            (verified == (lower is not None and lower > 0), "verified needs a lower bound > 0, and has nothing else"),
            (not falsified or (upper is not None and upper <= 0), "falsified needs a margin <= 0"),
            (lower is None or upper is None or lower <= upper, "the lower bound is above a margin that was seen"),
        ]


def _is_radius(text: str) -> bool:
    try:
        return Fraction(text) >= 0
    except (ValueError, ZeroDivisionError):
        return False


# --------------------------------------------------------------------------------------------- JSON lines


def create(path: Path, header: Mapping[str, Any], records: Iterable[Record] = ()) -> None:
    """Write a file of a header line and records, atomically; an old one is replaced.

    Args:
        path: ``*.jsonl``.
        header: what the records are results of; JSON values.
        records: to start with.

    Raises:
        InputError: the header is not JSON.
    """
    write_atomic(path, _header_line(header) + "".join(map(_line, records)), shared=True)


def append(path: Path, records: Iterable[Record]) -> None:
    """Add records at the end in one write and wait until they are on the disk.

    A line that was cut off when a process was killed is removed first.

    Raises:
        OSError: the disk is full, say; the file is as it was.
    """
    lines = "".join(map(_line, records)).encode()
    with path.open("ab+", buffering=0) as file:
        _drop_partial_line(file)
        size = file.seek(0, os.SEEK_END)
        try:
            if file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(size)
            error.filename = str(path)
            raise


def read(path: Path) -> list[ImageRecord]:
    """The records of a certification, see :func:`read_all`."""
    return read_all(path, ImageRecord)


def read_all(path: Path, kind: type[R]) -> list[R]:
    """The records of a file in the order of their images, each image once.

    While a certification runs its file is in the order in which images are decided. A last line without its end, left
    by a killed process, is ignored.

    Args:
        path: ``*.jsonl``.
        kind: of the records in it.

    Raises:
        MissingDataError: there is no such file.
        CorruptDataError: any other line that is not a record, named.
        InvariantError: two records of one image with different verdicts.
    """
    known: dict[int, R] = {}
    for number, line in enumerate(_lines(path), start=1):
        if number == 1 and _header_of(line) is not None:
            read_header(path)  # of this schema
            continue
        record = _parse(path, number, line, kind)
        _check_repeated(path, known.setdefault(record.index, record), record)
    return [known[index] for index in sorted(known)]


def read_header(path: Path) -> dict[str, Any]:
    """What the records of a file are results of.

    Raises:
        MissingDataError: there is no such file.
        CorruptDataError: it does not begin with a header of this schema.
    """
    lines = _lines(path)
    content = _header_of(lines[0]) if lines else None
    if content is None or content.get("schema") != SCHEMA or not isinstance(content.get("header"), dict):
        raise CorruptDataError(f"{path}:1 is not the header of image records of schema {SCHEMA}.")
    header: dict[str, Any] = content["header"]
    return header


def is_exactly(path: Path, header: Mapping[str, Any], records: Iterable[Record]) -> bool:
    """Whether a file holds this header and these records and not a byte else."""
    return path.read_bytes() == (_header_line(header) + "".join(map(_line, records))).encode()


def as_json(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header as it is read back (tuples become lists).

    Raises:
        InputError: it holds something that JSON cannot.
    """
    try:
        content: dict[str, Any] = json.loads(json.dumps(dict(header), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"The header of a certification must be plain JSON values: {error}.") from None
    return content


def _header_line(header: Mapping[str, Any]) -> str:
    return json.dumps({"format": _FORMAT, "schema": SCHEMA, "header": as_json(header)}) + "\n"


def _line(record: Record) -> str:
    return record.model_dump_json() + "\n"


def _drop_partial_line(file: IO[bytes]) -> None:
    if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
        file.seek(0)
        file.truncate(len(_whole_lines(file.read())))


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _lines(path: Path) -> list[bytes]:
    try:
        return _whole_lines(path.read_bytes()).split(b"\n")[:-1]
    except FileNotFoundError:
        raise MissingDataError(f"{path} does not exist.") from None


def _header_of(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) and content.get("format") == _FORMAT else None


def _parse(path: Path, number: int, line: bytes, kind: type[R]) -> R:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise CorruptDataError(
            f"{path}:{number} is not an image record: {where}{': ' if where else ''}{problem['msg']}. The file was "
            "changed or damaged; remove it to certify again."
        ) from None


def _check_repeated(path: Path, first: Record, again: Record) -> None:
    if differences := disagreement(first, again):
        raise InvariantError(f"{path} has image {again.index} twice, with {differences}.")


def disagreement(one: Record, other: Record) -> str:
    """What two records of the same image say differently, in words; empty if nothing that both claim."""
    pairs = {field: (getattr(one, field), getattr(other, field)) for field in one.claims}
    return ", ".join(f"{field} {a!r} and {b!r}" for field, (a, b) in pairs.items() if a != b)


def contradiction(one: Record, other: Record) -> str:
    """What of two records of the same image cannot both be true, in words; unknown contradicts nothing."""
    unknown = any(isinstance(record, ImageRecord) and record.verdict == "unknown" for record in (one, other))
    return "" if unknown and one.natural == other.natural else disagreement(one, other)


# ------------------------------------------------------------------------------------------------ summary


class ClassCounts(Values):
    """The counts of a :class:`Summary` over the images of one class.

    Attributes:
        label: the class.
        count: its images.
    """

    label: int
    count: int = Field(ge=1)
    natural: int = Field(ge=0)
    adversarial: int = Field(ge=0)
    certified: int = Field(ge=0)
    unknown: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> ClassCounts:
        _check_order(self.natural, self.adversarial, self.certified, self.count)
        return self


class Summary(Values):
    """Counts and shares over ``count`` images, with Wilson intervals of 95 %.

    Attributes:
        count: images that the summary is about. Shares are of these images, not of a dataset.
        eps: exact radius as text, the same for all.
        natural: images whose clean input has the property.
        adversarial: those of them without a known counterexample.
        certified: those of them with a proof over the full box.
        unknown: neither verified nor falsified.
        verdicts: verdict -> method -> images.
        seconds: summed over the images.
        classes: the same counts class by class, in ascending order; empty in older summaries.

    Raises:
        pydantic.ValidationError: more certified than adversarial or more adversarial than natural images, or counts
            that do not add up.
    """

    count: int = Field(ge=1)
    eps: str
    natural: int = Field(ge=0)
    natural_accuracy: float
    natural_interval: tuple[float, float]
    adversarial: int = Field(ge=0)
    adversarial_accuracy: float
    adversarial_interval: tuple[float, float]
    certified: int = Field(ge=0)
    certified_accuracy: float
    certified_interval: tuple[float, float]
    unknown: int = Field(ge=0)
    verdicts: dict[str, dict[str, int]]
    seconds: float = Field(ge=0)
    classes: tuple[ClassCounts, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Summary:
        _check_order(self.natural, self.adversarial, self.certified, self.count)
        by_verdict = {verdict: sum(methods.values()) for verdict, methods in self.verdicts.items()}
        if sum(by_verdict.values()) != self.count or by_verdict.get("unknown", 0) != self.unknown:
            raise ValueError(f"the verdicts {by_verdict} do not add up to {self.count} images, {self.unknown} unknown")
        if by_verdict.get("verified", 0) != self.certified:
            raise ValueError(
                f"{self.certified} certified images, but {by_verdict.get('verified', 0)} verdicts verified"
            )
        return self


def summarise(records: Sequence[ImageRecord]) -> Summary:
    """Counts and shares of the records, with confidence intervals.

    Raises:
        InputError: there are none, or they are of more than one radius.
        InvariantError: an index twice, or more certified than adversarial or more adversarial than natural images.
    """
    radii = {record.eps for record in records}
    if len(radii) != 1:
        raise InputError(f"A summary needs records of exactly one radius, got {sorted(radii) or 'no records'}.")
    count = len(records)
    if len({record.index for record in records}) != count:
        raise InvariantError("A summary must count every image once; some index is there twice.")
    natural, adversarial, certified = (
        sum(getattr(record, field) for record in records) for field in ("natural", "adversarial", "certified")
    )
    _check_order(natural, adversarial, certified, count)
    return Summary(
        count=count,
        eps=radii.pop(),
        natural=natural,
        natural_accuracy=natural / count,
        natural_interval=wilson(natural, count, CONFIDENCE),
        adversarial=adversarial,
        adversarial_accuracy=adversarial / count,
        adversarial_interval=wilson(adversarial, count, CONFIDENCE),
        certified=certified,
        certified_accuracy=certified / count,
        certified_interval=wilson(certified, count, CONFIDENCE),
        unknown=sum(record.verdict == "unknown" for record in records),
        verdicts=_by_verdict(records),
        seconds=sum(record.seconds for record in records),
        classes=tuple(_by_class(records)),
    )


def read_summary(path: Path) -> Summary:
    """A summary as :func:`write_summary` wrote it.

    Raises:
        MissingDataError: there is no such file.
        CorruptDataError: it is not a summary.
    """
    return read_model(path, Summary, "a summary of a certification")


def write_summary(path: Path, summary: Summary) -> None:
    """Write as JSON, atomically."""
    write_atomic(path, summary.model_dump_json(indent=2) + "\n", shared=True)


def _by_class(records: Iterable[ImageRecord]) -> Iterator[ClassCounts]:
    members: dict[int, list[ImageRecord]] = {}
    for record in records:
        if record.label is not None:
            members.setdefault(record.label, []).append(record)
    for label, group in sorted(members.items()):
        counts = {
            field: sum(getattr(record, field) for record in group) for field in ("natural", "adversarial", "certified")
        }
        unknown = sum(record.verdict == "unknown" for record in group)
        yield ClassCounts(label=label, count=len(group), unknown=unknown, **counts)


def _by_verdict(records: Iterable[ImageRecord]) -> dict[str, dict[str, int]]:
    counts = Counter((record.verdict, record.method) for record in records)
    verdicts: dict[str, dict[str, int]] = {}
    for (verdict, method), number in sorted(counts.items()):
        verdicts.setdefault(verdict, {})[method] = number
    return verdicts


def _check_order(natural: int, adversarial: int, certified: int, count: int) -> None:
    if not certified <= adversarial <= natural <= count:
        raise InvariantError(
            f"certified <= adversarial <= natural <= images must hold, got {certified}, {adversarial}, {natural}, "
            f"{count}. This is a bug in Tightrope: please report it."
        )
