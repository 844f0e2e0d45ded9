"""Joining what several verifiers found about the same samples, and refusing what cannot be true together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from tightrope.core.box import Box
from tightrope.core.outcome import Outcome, Verdict
from tightrope.errors import InvariantError
from tightrope.verifiers._problem import NEAR_TIE, Problem, inside, margin_bounds, undecided


class ContradictionError(InvariantError):
    """Two claims about one sample that cannot both be true.

    Attributes:
        position: of the sample.
        detail: what contradicts what.
    """

    def __init__(self, position: int, detail: str) -> None:
        self.position, self.detail = position, detail
        super().__init__(
            f"Sample {position}: {detail} One of the two is wrong, so that no result of this kind can be trusted. "
            "This is a bug in Tightrope or in a plug-in: please report it."
        )

    def __reduce__(self) -> tuple[type[ContradictionError], tuple[int, str], dict[str, Any]]:
        return ContradictionError, (self.position, self.detail), vars(self)  # as it is sent from process to process


@contextmanager
def numbered(positions: Sequence[int]) -> Iterator[None]:
    """Contradictions inside are about rows of a batch; outside they name those rows' own positions."""
    try:
        yield
    except ContradictionError as error:
        raise ContradictionError(positions[error.position], error.detail) from error


def merge(problem: Problem, earlier: Sequence[Outcome], later: Sequence[Outcome]) -> list[Outcome]:
    """What is known after a further verifier: the larger lower bound, the smaller upper bound.

    Args:
        problem: what both are about.
        earlier: undecided so far.
        later: of the verifier that came after.

    Raises:
        ContradictionError: a lower bound above the margin at a concrete input (both hold for real arithmetic), or a
            counterexample that is outside the box or none. InvariantError: not one outcome a sample.
    """
    if len(later) != problem.size:
        raise InvariantError(f"A verifier returned {len(later)} outcomes for {problem.size} samples.")
    later = [_confirmed(problem, position, outcome) for position, outcome in enumerate(later)]
    for position, (before, after) in enumerate(zip(earlier, later, strict=True)):
        _check_order(position, before, after)
    return [_join(before, after) for before, after in zip(earlier, later, strict=True)]


def within(problem: Problem, inner: Box, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with counterexamples in smaller boxes; undecided where those break nothing any more.

    Args:
        problem: what they are about; its boxes are the exact ones, rounded outwards.
        inner: inside the exact boxes.
        outcomes: one a sample.
    """
    return [_moved(problem.rows([i]), Box(*(end[i] for end in inner)), each) for i, each in enumerate(outcomes)]


def _moved(problem: Problem, inner: Box, outcome: Outcome) -> Outcome:
    if outcome.counterexample is None or inside(inner, outcome.counterexample):
        return outcome
    x = torch.minimum(torch.maximum(outcome.counterexample, inner.lower), inner.upper)
    [margin] = margin_bounds(problem, x[None])
    if margin.upper <= 0:
        return replace(outcome, upper=margin.upper, counterexample=x)
    return undecided(outcome.method, "the counterexample is outside the exact box by rounding", margin.upper)


def _join(before: Outcome, after: Outcome) -> Outcome:
    lower, upper = max(before.lower, after.lower), min(before.upper, after.upper)
    reasons = (part for reason in (before.reason, after.reason) for part in reason.split("; ") if part)
    reason = "; ".join(dict.fromkeys(reasons))
    if after.verdict is Verdict.FALSIFIED:
        return Outcome(Verdict.FALSIFIED, lower, upper, after.method, after.counterexample)
    if lower > 0:
        return Outcome(Verdict.VERIFIED, lower, upper, after.method, evidence=after.evidence)
    return Outcome(Verdict.UNKNOWN, lower, upper, after.method, reason=reason)


def _check_order(position: int, before: Outcome, after: Outcome) -> None:
    lower, upper = max(before.lower, after.lower), min(before.upper, after.upper)
    if lower > upper:
        claims = before.method if before.lower >= after.lower else after.method
        found = before.method if before.upper <= after.upper else after.method
        raise ContradictionError(
            position,
            f"{claims} claims a margin of at least {lower:g}, but {found} found an input in the box with {upper:g}.",
        )


def _confirmed(problem: Problem, position: int, outcome: Outcome) -> Outcome:
    """The outcome; undecided where its counterexample breaks the property only up to rounding."""
    if outcome.counterexample is None:
        return outcome
    one, x = problem.rows([position]), outcome.counterexample[None]
    if not inside(one.box, x):
        raise ContradictionError(position, f"the counterexample of {outcome.method} is not in the box.")
    lower, upper = margin_bounds(one, x)[0]
    if not lower <= 0:  # NaN is no counterexample either
        raise ContradictionError(position, f"{outcome.method} claims a counterexample; the margin there is {lower:g}.")
    if upper <= 0:
        return outcome
    return undecided(outcome.method, NEAR_TIE, upper)
