"""What the certifications of one run say about the same image must be possible together.

A proof at some radius is one at every smaller radius, and a counterexample is one at every larger radius: so each image
has a largest radius that is verified and a smallest one that is falsified, over all files, and the first is less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from tightrope.errors import CorruptDataError, InvariantError
from tightrope.records import image
from tightrope.records.radius import RadiusRecord


class Claim(NamedTuple):
    """What a file says about an image.

    Attributes:
        verified: the largest radius with a proof, None if none.
        falsified: the smallest radius with a counterexample, None if none.
    """

    verified: Fraction | None
    falsified: Fraction | None
    path: Path


def check_claims(path: Path) -> None:
    """Compare the records of a file with those of the other certifications in its folder.

    Only those of the same weights, images, property and arithmetic are comparable.

    Args:
        path: ``*.jsonl``, with a header.

    Raises:
        InvariantError: an image is verified at a radius and falsified at no larger one, or complete verification lost
            a proof that the incomplete methods it began with have found; the image and the files are named.
        CorruptDataError: another certification in the folder is damaged.
    """
    header = image.read_header(path)
    claims = dict(_claims(path, header))
    for other, theirs in _comparable(path, header):
        for index, claim in _claims(other, theirs):
            if index in claims:
                _check(index, claims[index], claim)
                _check(index, claim, claims[index])
        if _is_included(theirs, header):
            _check_not_below(path, other)


def _comparable(path: Path, header: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The other files of records in the folder that are about the same thing."""
    for other in sorted(path.parent.glob("*.jsonl")):
        if other.name != path.name and (theirs := _header(other)) and _subject(theirs) == _subject(header):
            yield other, theirs


def _header(path: Path) -> dict[str, Any]:
    """Empty for files of other things."""
    try:
        return image.read_header(path)
    except CorruptDataError:
        return {}


def _subject(header: Mapping[str, Any]) -> tuple[Any, ...]:
    run = header.get("run", {})
    named = header.get("dataset", "data"), header.get("split")
    images = run.get("samples") if named[0] == "data" else named  # the first images of a split are the same ones
    return run.get("weights"), run.get("dtype"), images, header.get("spec")


def _claims(path: Path, header: Mapping[str, Any]) -> Iterator[tuple[int, Claim]]:
    if _is_of_radii(header):
        for found in image.read_all(path, RadiusRecord):
            yield found.index, Claim(found.certified_radius, found.falsified_radius, path)
    else:
        for record in image.read(path):
            eps = Fraction(record.eps)
            refuted = eps if record.natural else Fraction(0)
            yield (
                record.index,
                Claim(eps if record.certified else None, refuted if record.verdict == "falsified" else None, path),
            )


def _is_of_radii(header: Mapping[str, Any]) -> bool:
    return "tolerance" in header.get("run", {})


def _is_included(incomplete: Mapping[str, Any], complete: Mapping[str, Any]) -> bool:
    """Whether complete verification began with all that the other one did, at the same radius."""
    return (
        "complete" in complete
        and "complete" not in incomplete
        and not (_is_of_radii(incomplete) or _is_of_radii(complete))
        and set(incomplete.get("relaxations", ())) <= set(complete.get("relaxations", ()))
        and Fraction(incomplete["run"]["eps"]) == Fraction(complete["run"]["eps"])
    )


def _check(index: int, one: Claim, other: Claim) -> None:
    if one.verified is not None and other.falsified is not None and one.verified >= other.falsified:
        raise InvariantError(
            f"Image {index} is verified at eps {one.verified} ({one.path}), but falsified at eps {other.falsified} "
            f"({other.path}). One of the two is wrong. This is a bug in Tightrope or in a plug-in: please report it."
        )


def _check_not_below(complete: Path, incomplete: Path) -> None:
    proved = {record.index for record in image.read(complete) if record.certified}
    decided = {record.index for record in image.read(complete)}
    for record in image.read(incomplete):
        if record.certified and record.index in decided - proved:
            raise InvariantError(
                f"Image {record.index} is verified by {record.method} ({incomplete}), but complete verification, which "
                f"tried that as well, did not verify it ({complete}). This is a bug in Tightrope: please report it."
            )
