"""An outcome that contradicts itself cannot be built."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tightrope.core.outcome import Outcome, Verdict
from tightrope.errors import InvariantError

POINT = torch.tensor([0.5])
INF = math.inf


def test_the_three_verdicts() -> None:
    Outcome(Verdict.VERIFIED, 0.1, 0.3, "ibp")
    Outcome(Verdict.VERIFIED, 0.1, INF, "ibp")
    Outcome(Verdict.FALSIFIED, -1.0, 0.0, "pgd", counterexample=POINT)
    Outcome(Verdict.FALSIFIED, -INF, -0.5, "pgd", counterexample=POINT)
    Outcome(Verdict.UNKNOWN, -0.1, 0.3, "ibp", reason="no method left")
    Outcome(Verdict.UNKNOWN, -INF, INF, "ibp", reason="NaN bounds")
    Outcome(Verdict.UNKNOWN, 0.0, 0.3, "ibp", reason="a margin of 0 is no win")


@pytest.mark.parametrize(
    ("verdict", "lower", "upper", "counterexample"),
    [
        (Verdict.VERIFIED, 0.0, 0.3, None),
        (Verdict.VERIFIED, -0.1, 0.3, None),
        (Verdict.VERIFIED, -INF, INF, None),
        (Verdict.VERIFIED, 0.2, 0.3, POINT),
        (Verdict.VERIFIED, -0.1, -0.05, POINT),
        (Verdict.FALSIFIED, -0.1, 0.3, None),
        (Verdict.FALSIFIED, -0.1, -0.05, None),
        (Verdict.FALSIFIED, -0.1, 0.3, POINT),
        (Verdict.FALSIFIED, 0.1, 0.3, POINT),
        (Verdict.UNKNOWN, 0.1, 0.3, None),
        (Verdict.UNKNOWN, -0.2, -0.1, POINT),
        (Verdict.UNKNOWN, -0.2, 0.1, POINT),
    ],
)
def test_verdicts_that_do_not_follow_are_refused(
    verdict: Verdict, lower: float, upper: float, counterexample: torch.Tensor | None
) -> None:
    with pytest.raises(InvariantError):
        Outcome(verdict, lower, upper, "any", counterexample, "because")


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize(("lower", "upper"), [(math.nan, 1.0), (-1.0, math.nan), (math.nan, math.nan)])
def test_nan_is_never_a_bound(verdict: Verdict, lower: float, upper: float) -> None:
    with pytest.raises(InvariantError, match="NaN"):
        Outcome(verdict, lower, upper, "ibp", POINT if verdict is Verdict.FALSIFIED else None)


@pytest.mark.parametrize("verdict", Verdict)
def test_a_proof_and_a_counterexample_contradict(verdict: Verdict) -> None:
    with pytest.raises(InvariantError, match=r"at least 0\.2.*margin 0\.1"):
        Outcome(verdict, 0.2, 0.1, "deeppoly")


def test_contradictions_have_their_exit_code() -> None:
    assert InvariantError.exit_code == 30
    assert issubclass(InvariantError, AssertionError)


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, -1.0])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(Verdict), numbers, numbers, st.booleans())
def test_every_outcome_that_exists_is_consistent(verdict: Verdict, lower: float, upper: float, point: bool) -> None:
    try:
        outcome = Outcome(verdict, lower, upper, "any", POINT if point else None, "because")
    except InvariantError:
        return
    assert outcome.lower <= outcome.upper
    assert (outcome.verdict is Verdict.VERIFIED) == (outcome.lower > 0)
    assert (outcome.verdict is Verdict.FALSIFIED) == (outcome.counterexample is not None)
    assert outcome.verdict is not Verdict.FALSIFIED or outcome.upper <= 0


def test_outcomes_are_frozen() -> None:
    outcome = Outcome(Verdict.UNKNOWN, -1.0, 1.0, "ibp", reason="because")
    with pytest.raises(AttributeError):
        outcome.lower = 1.0  # type: ignore[misc]
