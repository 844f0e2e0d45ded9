"""The certified radius of each image, by bisection on a grid of exact radii.

Two searches share their tries: for the largest radius that is verified, and for the smallest that is falsified. What a
verifier leaves unknown counts as not verified for the first and as not falsified for the second. A proof holds at every
smaller radius and a counterexample at every larger one, so that each try moves both ends as far as it can; a
counterexample counts from its own distance on, not from the radius at which it was looked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tightrope.core.box import parse_eps
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.precision import full_precision
from tightrope.core.protocols import Verifier
from tightrope.errors import InputError, InvariantError
from tightrope.evaluation._inputs import Inputs, is_natural
from tightrope.evaluation._rounds import Effort, Found, Rounds, State
from tightrope.evaluation.certificates import CertificateFolder, radius_name
from tightrope.evaluation.certify import EFFORT, TOGETHER, eps_text
from tightrope.evaluation.consistency import check_claims
from tightrope.records.image import NATURAL
from tightrope.records.radius import RadiusRecord, RadiusSummary, distribution, write_distribution

MOST = 10_000  # radii of a grid


class RadiusProgress(NamedTuple):
    """How far a search is.

    Attributes:
        done: images with a record.
        total: images in all.
        open: images that the first verifier left to the second.
    """

    done: int
    total: int
    open: int


class Grid(NamedTuple):
    """The radii ``0, tolerance, 2 tolerance ... steps tolerance``."""

    tolerance: Fraction
    steps: int

    @staticmethod
    def up_to(limit: float | str | Fraction, tolerance: float | str | Fraction | None) -> Grid:
        """Those up to a limit, 64 by default.

        Raises:
            InputError: not 0 < tolerance <= limit, or more than 10,000 radii.
        """
        top = parse_eps(eps_text(limit))
        step = top / 64 if tolerance is None else parse_eps(eps_text(tolerance))
        if not 0 < step <= top <= MOST * step:
            raise InputError(
                f"A search for radii needs 0 < tolerance <= eps <= {MOST} tolerance, got {step} for the tolerance and "
                f"eps {top}."
            )
        return Grid(step, int(top // step))

    @property
    def limit(self) -> Fraction:
        """The largest radius."""
        return self.steps * self.tolerance


def certify_radii(
    inputs: Inputs,
    grid: Grid,
    *,
    verifier: Verifier,
    path: Path,
    header: Mapping[str, object],
    complete: Verifier | None = None,
    together: int = TOGETHER,
    effort: Effort = EFFORT,
    on_batch: Callable[[RadiusProgress], None] | None = None,
    certificates: CertificateFolder | None = None,
) -> RadiusSummary:
    """Find the radii of every image and record them; skip those that ``path`` already has.

    Args:
        inputs: network and images.
        grid: the radii that are tried.
        verifier: bisects first, block by block.
        path: ``*.jsonl``. The distribution goes beside it, ``*.summary.json`` and ``*.curve.csv``.
        header: what else the results depend on; JSON values.
        complete: bisects what the verifier leaves open, after all blocks.
        together: open images that it sees at once, at most.
        effort: processes, memory and shards.
        on_batch: called after every block and every group.
        certificates: where the proof at the largest verified radius of an image goes, and the counterexample at the
            smallest falsified one.

    Returns:
        The distribution over all images, or those of the shard while other shards are missing.

    Raises:
        InputError, NumericalError, CorruptDataError, InvariantError, OSError: as in certification.

    Cost: about ``2 log2(grid.steps)`` calls of the verifier for every block.
    """
    inputs = inputs.checked(grid.limit)
    radii = {"limit": str(grid.limit), "tolerance": str(grid.tolerance)}
    facts = inputs.facts() | radii | ({"together": together} if complete else {})
    job, labels = _Job(inputs, grid, verifier, complete, certificates), inputs.labels.tolist()
    rounds = Rounds(job, RadiusRecord, labels, inputs.blocks(), path, {**header, "run": facts}, together)

    def report(state: State[RadiusRecord]) -> None:
        if on_batch is not None:
            on_batch(RadiusProgress(len(state.decided), state.total, state.open))

    if certificates is not None:
        certificates.begin()
    finished, records = rounds.run(effort, report)
    check_claims(finished)
    found = distribution(records)
    write_distribution(finished, found)
    return found


@dataclass
class _Bracket:
    """What is known about the radii of one image, in steps of the grid.

    Attributes:
        index: of the image.
        verified: largest step with a proof.
        falsified: smallest step with a counterexample; one more than there are if none.
        unproved: smallest step above ``verified`` that is known not to be provable with this verifier.
        unbroken: largest step below ``falsified`` that is known not to be falsifiable with it.
    """

    index: int
    verified: int
    falsified: int
    unproved: int
    unbroken: int
    method: str
    seconds: float
    tries: int = 0

    def next(self) -> int | None:
        """The step to try: half-way between what is proved and what is not, then between unbroken and falsified."""
        if self.unproved - self.verified > 1:
            return (self.verified + self.unproved) // 2
        if self.falsified - self.unbroken > 1:
            return (self.unbroken + self.falsified) // 2
        return None

    def learn(self, step: int, outcome: Outcome, distance: int) -> None:
        """Move the ends by the outcome at a step; a counterexample is ``distance`` steps away."""
        self.tries += 1
        if outcome.verdict is Verdict.VERIFIED:
            self.verified, self.method = max(self.verified, step), outcome.method
            self.unbroken = max(self.unbroken, step)
        elif outcome.verdict is Verdict.FALSIFIED:
            self.falsified = min(self.falsified, distance)
            self.unproved = min(self.unproved, distance)
        else:
            self.unproved, self.unbroken = min(self.unproved, step), max(self.unbroken, step)
        if self.verified >= self.falsified:
            raise InvariantError(
                f"Image {self.index} is verified by {self.method} at step {self.verified} of the radii, but has a "
                f"counterexample of {outcome.method} at step {self.falsified}. This is a bug in Tightrope or in a "
                "plug-in: please report it."
            )
        self.unbroken = min(self.unbroken, self.falsified - 1)
        if self.unproved <= self.verified:  # bounds need not be monotone in the radius
            self.unproved = self.falsified


@dataclass(frozen=True)
class _Job:
    inputs: Inputs
    grid: Grid
    verifier: Verifier
    complete: Verifier | None
    certificates: CertificateFolder | None

    @full_precision()
    def decide(self, task: range | tuple[RadiusRecord, ...]) -> Found[RadiusRecord]:
        """A block of images, or a group of those that were left open."""
        return self._block(task) if isinstance(task, range) else self._group(task)

    def _block(self, block: range) -> Found[RadiusRecord]:
        begin = time.perf_counter()
        clean = self.inputs.clean(block)
        share = (time.perf_counter() - begin) / len(block)
        brackets = [self._bracket(i, NATURAL, share) for i, o in zip(block, clean, strict=True) if is_natural(o)]
        self._bisect(self.verifier, brackets, ("radius", block.start))
        natural = {bracket.index: self._record(bracket) for bracket in brackets}
        records = [natural.get(i) or self._not_natural(i, o, share) for i, o in zip(block, clean, strict=True)]
        is_open = [self.complete is not None and self._is_open(record) for record in records]
        return Found(
            decided=[record for record, left in zip(records, is_open, strict=True) if not left],
            open=[record for record, left in zip(records, is_open, strict=True) if left],
        )

    def _group(self, group: tuple[RadiusRecord, ...]) -> Found[RadiusRecord]:
        assert self.complete is not None
        brackets = [self._reopened(record) for record in group]
        self._bisect(self.complete, brackets, ("complete radius", group[0].index))
        return Found([self._record(bracket) for bracket in brackets], [])

    def _bisect(self, verifier: Verifier, brackets: Sequence[_Bracket], draw: tuple[str, int]) -> None:
        """Try one radius of every image at a time, until no try would say more."""
        while tries := [(bracket, step) for bracket in brackets if (step := bracket.next()) is not None]:
            begin, images = time.perf_counter(), [bracket.index for bracket, _ in tries]
            eps = [step * self.grid.tolerance for _, step in tries]
            number = max(bracket.tries for bracket in brackets)
            found = self.inputs.verify(verifier, images, eps, self.inputs.clean(images), (*draw, number))
            for (bracket, step), outcome in zip(tries, found, strict=True):
                before = (bracket.verified, bracket.falsified)
                bracket.learn(step, outcome, self._distance(bracket.index, step, outcome))
                if bracket.verified > before[0]:
                    self._keep(bracket.index, bracket.verified, outcome)
                if bracket.falsified < before[1]:
                    self._keep(bracket.index, bracket.falsified, outcome)
                bracket.seconds += (time.perf_counter() - begin) / len(tries)

    def _keep(self, index: int, step: int, outcome: Outcome) -> None:
        """Write a certificate in the place of that of a worse radius."""
        if self.certificates is not None:
            eps, label = step * self.grid.tolerance, int(self.inputs.labels[index])
            problem, name = self.inputs.problem([index], [eps]), radius_name(index, outcome.verdict)
            self.certificates.keep(index, str(eps), self.inputs.x[index], label, problem, outcome, name)

    def _distance(self, index: int, step: int, outcome: Outcome) -> int:
        """Steps from the image to its counterexample, rounded up; those of the try where there is none."""
        if outcome.counterexample is None:
            return step
        far = _distance(self.inputs.x[index], outcome.counterexample)
        return max(1, min(step, -(-far // self.grid.tolerance)))  # the box of a step is rounded outward

    def _bracket(self, index: int, method: str, seconds: float) -> _Bracket:
        top = self.grid.steps + 1
        return _Bracket(index, 0, top, unproved=top, unbroken=0, method=method, seconds=seconds)

    def _reopened(self, record: RadiusRecord) -> _Bracket:
        bracket = self._bracket(record.index, record.method, record.seconds)
        bracket.verified = bracket.unbroken = int(Fraction(record.verified or 0) / self.grid.tolerance)
        if record.falsified is not None:
            bracket.falsified = bracket.unproved = int(Fraction(record.falsified) / self.grid.tolerance)
        bracket.tries = record.tries
        return bracket

    def _is_open(self, record: RadiusRecord) -> bool:
        bracket = self._reopened(record)
        return record.natural and bracket.falsified - bracket.verified > 1

    def _record(self, bracket: _Bracket) -> RadiusRecord:
        broken = bracket.falsified <= self.grid.steps
        return RadiusRecord(
            index=bracket.index,
            label=int(self.inputs.labels[bracket.index]),
            natural=True,
            verified=str(bracket.verified * self.grid.tolerance),
            falsified=str(bracket.falsified * self.grid.tolerance) if broken else None,
            limit=str(self.grid.limit),
            tolerance=str(self.grid.tolerance),
            method=bracket.method,
            tries=bracket.tries,
            seconds=bracket.seconds,
        )

    def _not_natural(self, index: int, clean: Outcome, seconds: float) -> RadiusRecord:
        if clean.verdict is Verdict.FALSIFIED:
            self._keep(index, 0, clean)
        return RadiusRecord(
            index=index,
            label=int(self.inputs.labels[index]),
            natural=False,
            verified=None,
            falsified="0" if clean.verdict is Verdict.FALSIFIED else None,
            limit=str(self.grid.limit),
            tolerance=str(self.grid.tolerance),
            method=NATURAL,
            tries=0,
            seconds=seconds,
        )


def _distance(x: Tensor, other: Tensor) -> Fraction:
    """The l-infinity distance, rounded up."""
    return Fraction(math.nextafter(float((x.double() - other.double()).abs().max()), math.inf))
