"""Runs beside each other: settings that differ, and differences on the same images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tightrope.records.image import CONFIDENCE
from tightrope.records.intervals import matched, mcnemar
from tightrope.reports.gather import Certification, TrainedRun
from tightrope.reports.results import KINDS, Kind, way
from tightrope.reports.units import radius

ABSENT = "-"


@dataclass(frozen=True)
class Difference:
    """One accuracy of a run minus that of another, on the images that both have certified.

    Attributes:
        images: how many.
        only_one, only_other: images that count for one of them alone; those that count for both cancel.
        low, high: 95 % interval of the difference of the shares.
        p: of McNemar's exact test that the two are equal.
    """

    kind: Kind
    images: int
    only_one: int
    only_other: int
    low: float
    high: float
    p: float

    @property
    def mean(self) -> float:
        """The difference of the shares."""
        return (self.only_one - self.only_other) / self.images

    @property
    def verdict(self) -> str:
        """``above`` or ``below`` only where the interval excludes 0."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "undecided"


@dataclass(frozen=True)
class Pairing:
    """A run against another.

    Attributes:
        one, other: the two certifications that are compared; None if none are of the same images and radius.
        why_not: in that case.
        differences: natural, adversarial, certified.
    """

    one_label: str
    other_label: str
    one: Certification | None
    other: Certification | None
    why_not: str
    differences: tuple[Difference, ...]


def settings(runs: Sequence[TrainedRun]) -> list[tuple[str, tuple[str, ...]]]:
    """Settings in which the runs differ: dotted key, and the value of each run as JSON.

    What a record does not name differs only if it is an option of another plug-in; else the record is of a version that
    did not have the setting.

    Example:
        >>> settings([])
        []
    """
    flat = [{"(preset or file)": run.record.name} | _flat(run.config) for run in runs]
    keys = sorted({key for values in flat for key in values})
    plugins = {key.removesuffix("name") for key in keys if key.endswith(".name") and _differs(flat, key)}
    kept = [key for key in keys if _differs(flat, key) or _is_optional(flat, key, plugins)]
    return [(key, tuple(values.get(key, ABSENT) for values in flat)) for key in kept]


def _differs(flat: Sequence[Mapping[str, str]], key: str) -> bool:
    return len({values[key] for values in flat if key in values}) > 1


def _is_optional(flat: Sequence[Mapping[str, str]], key: str, plugins: Iterable[str]) -> bool:
    return any(key not in values for values in flat) and any(key.startswith(prefix) for prefix in plugins)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def warnings(runs: Iterable[TrainedRun]) -> list[str]:
    """Why accuracies of the runs must not be compared as they stand, in sentences."""
    runs = list(runs)
    mains = [(run, main) for run in runs if (main := run.main)]
    found = [f"{run.label} {_why_uncertified(run)}" for run in runs if run.main is None]
    facts: tuple[tuple[str, Callable[[Certification], str]], ...] = (
        ("of different images", lambda each: each.data),
        ("at different radii", lambda each: radius(each.eps)),
        ("of different numbers of images", lambda each: f"{each.total:,}"),
        ("with complete and with incomplete verification", lambda each: "complete" if each.complete else "incomplete"),
    )
    for what, fact in facts:
        groups: dict[str, list[str]] = {}
        for run, main in mains:
            groups.setdefault(fact(main), []).append(run.label)
        if len(groups) > 1:
            each = "; ".join(f"{value}: {', '.join(labels)}" for value, labels in groups.items())
            found.append(f"The accuracies are {what} ({each}).")
    return found


def _why_uncertified(run: TrainedRun) -> str:
    if run.record.status != "finished":
        return f"is not trained to the end ({run.record.status}). Continue: tightrope train --resume {run.folder.path}"
    begun = [each for each in run.certifications if not each.finished]
    if begun:
        left = f"{len(begun[0].records):,} of {begun[0].total:,} images are decided"
        return f"is not certified to the end: {left}. The command that began it goes on."
    return f"is not certified. Run: tightrope certify {run.folder.path}"


def pairings(runs: Sequence[TrainedRun]) -> list[Pairing]:
    """Every run but the first against the first, or against the one of its own seed that is trained like the first."""
    return [pairing(run, _partner(run, runs)) for run in runs[1:]]


def _partner(run: TrainedRun, runs: Sequence[TrainedRun]) -> TrainedRun:
    same_seed = [other for other in runs if way(other) == way(runs[0]) and other.seed == run.seed and other is not run]
    return same_seed[0] if same_seed else runs[0]


def pairing(one: TrainedRun, other: TrainedRun) -> Pairing:
    """Two runs on the same images at the same radius, if both were certified there."""
    found = max(_comparable(one, other), key=_weight, default=None)
    if found is None:
        return Pairing(one.label, other.label, None, None, _why_not(one, other), ())
    first, second = found
    return Pairing(one.label, other.label, first, second, "", tuple(differences(first, second)))


def differences(one: Certification, other: Certification) -> Iterator[Difference]:
    """Natural, adversarial and certified accuracy of one minus those of the other, on the images of both."""
    theirs = {record.index: record for record in other.records}
    both = [(record, theirs[record.index]) for record in one.records if record.index in theirs]
    for kind in KINDS:
        pairs = [(getattr(a, kind), getattr(b, kind)) for a, b in both]
        only_one, only_other = (sum(pair == side for pair in pairs) for side in ((True, False), (False, True)))
        low, high = matched(only_one, only_other, len(both), CONFIDENCE)
        yield Difference(kind, len(both), only_one, only_other, low, high, mcnemar(only_one, only_other))


def _comparable(one: TrainedRun, other: TrainedRun) -> Iterator[tuple[Certification, Certification]]:
    """Finished certifications of the same images at the same radius with the same kind of verification."""
    for first in one.certifications:
        for second in other.certifications:
            same = first.images == second.images and Fraction(first.eps) == Fraction(second.eps)
            if same and first.complete == second.complete and first.finished and second.finished:
                yield first, second


def _weight(pair: tuple[Certification, Certification]) -> tuple[bool, int]:
    return pair[0].complete, min(each.total for each in pair)


def _why_not(one: TrainedRun, other: TrainedRun) -> str:
    for run in (one, other):
        if run.main is None:
            return f"{run.label} {_why_uncertified(run)}"
    here, there = (
        " and ".join(dict.fromkeys(e.what for e in run.certifications if e.finished)) for run in (one, other)
    )
    return f"No certification of both is of the same images, radius and kind: {here}; but {there}."
