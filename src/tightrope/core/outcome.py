"""Verdicts that cannot be inconsistent."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor

from tightrope.errors import InvariantError
from tightrope.records.certificate import Leaves


class Verdict(StrEnum):
    """What is known about one property on one box."""

    VERIFIED = "verified"
    FALSIFIED = "falsified"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Outcome:
    """The verdict on one sample with what it rests on.

    Attributes:
        verdict: VERIFIED needs ``lower > 0``, FALSIFIED a counterexample with ``upper <= 0``.
        lower: best lower bound of the property's margin over the box; -inf if none.
        upper: smallest margin seen at a concrete input, rounded up; +inf if none.
        method: name of what decided, or of the last that tried.
        counterexample: an input inside the box, (*input shape), for FALSIFIED only.
        reason: why it stopped, for UNKNOWN only.
        evidence: leaves that cover the box, for VERIFIED and where the verifier was asked to keep them.

    Raises:
        InvariantError: fields that contradict each other. NaN is never a bound.
    """

    verdict: Verdict
    lower: float
    upper: float
    method: str
    counterexample: Tensor | None = None
    reason: str = ""
    evidence: Leaves | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if math.isnan(self.lower) or math.isnan(self.upper):
            raise InvariantError(f"NaN is not a bound (from {self.method}).")
        if self.lower > self.upper:
            raise InvariantError(
                f"{self.method} claims a margin of at least {self.lower:g}, but an input with margin {self.upper:g} is "
                "in the box. This is a bug in Tightrope: please report it."
            )
        if self.counterexample is not None and self.verdict is not Verdict.FALSIFIED:
            raise InvariantError(f"{self.verdict} with a counterexample ({self.method}).")
        if self.evidence is not None and self.verdict is not Verdict.VERIFIED:
            raise InvariantError(f"{self.verdict} with evidence of a proof ({self.method}).")
        proved, refuted = self.lower > 0, self.counterexample is not None and self.upper <= 0
        if (self.verdict is Verdict.VERIFIED) != proved or (self.verdict is Verdict.FALSIFIED) != refuted:
            raise InvariantError(
                f"{self.verdict} does not follow from lower {self.lower:g}, upper {self.upper:g} ({self.method})."
            )
