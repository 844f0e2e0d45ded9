"""A few of the random problems with every trouble there is; ``python tests/fuzz.py`` goes through thousands."""

from __future__ import annotations

import pytest
import torch

from fuzz import KINDS, SPECS, instance, one_by_one, problems_with, size_of, verifiers
from tightrope.core.outcome import Outcome, Verdict

CHOSEN = ("hbox", "alpha_crown", "apgd", "neurons")
FEW = range(3 * len(KINDS))


@pytest.mark.parametrize("seed", FEW)
def test_no_verdict_contradicts_enumeration(seed: int) -> None:
    given = instance(seed)
    for name in CHOSEN:
        outcomes = verifiers()[name].verify(*given.scaled, generator=torch.Generator().manual_seed(seed))
        assert not [text for text in problems_with(given, name, outcomes) if text.startswith("WRONG")]


@pytest.mark.slow
@pytest.mark.parametrize("name", verifiers())
def test_no_verdict_contradicts_enumeration_or_that_of_another_batch(name: str) -> None:
    for seed in range(500, 800):
        given, verifier = instance(seed), verifiers()[name]
        outcomes = verifier.verify(*given.scaled, generator=torch.Generator().manual_seed(seed))
        found = [*problems_with(given, name, outcomes), *one_by_one(given, verifier, outcomes)]
        assert not [text for text in found if text.startswith("WRONG")], given.name


def test_the_few_have_all_kinds_of_trouble() -> None:
    names = " ".join(instance(seed).name for seed in FEW)
    assert all(word in names for word in (*KINDS, *SPECS, "flat", "gap 0 ", "x1.04858e+06", "y9.53674e-07"))


@pytest.mark.parametrize("seed", FEW)
def test_wrong_verdicts_are_found(seed: int) -> None:
    """Or the tests above show nothing: a bound a little above the truth, a counterexample that is none."""
    given, infinite = instance(seed), float("inf")
    above = [max(least.value, 0.0) + 1e-3 * size_of(given, i) for i, least in enumerate(given.least)]
    claims = [Outcome(Verdict.VERIFIED, value * given.margins, infinite, "x") for value in above]
    assert any(text.startswith("WRONG lower") for text in problems_with(given, "x", claims))
    forged = [Outcome(Verdict.FALSIFIED, -infinite, -1.0, "x", counterexample=x + 1e9) for x in given.scaled.box.upper]
    assert "WRONG counterexample outside the box" in [*problems_with(given, "x", forged)]
    if all(least.value > 1e-3 for least in given.least):
        forged = [Outcome(Verdict.FALSIFIED, -infinite, 0.0, "x", counterexample=x) for x in given.scaled.box.upper]
        found = [*problems_with(given, "x", forged)]
        assert any(text.startswith("WRONG counterexample with exact margin") for text in found)
