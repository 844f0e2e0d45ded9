"""Cascades by name: every stage that there is, its options, and what is refused."""

from __future__ import annotations

import pytest
import torch

import tightrope as tr
from helpers import F64, case
from tightrope.core.outcome import Verdict
from tightrope.errors import ConfigError, InputError, UnknownNameError
from tightrope.experiments.stages import stage_names
from tightrope.verifiers.bab import Bab


def test_every_stage_can_be_named_and_says_its_name_in_outcomes() -> None:
    known = case("mlp")
    x = known.inputs(2)
    spec = tr.margin_spec(known.net(known.params, x).argmax(1), 3, dtype=F64)
    for name in stage_names():
        outcomes = tr.cascade(name).verify(
            known.net, known.params, tr.linf_box(x, 0.01), spec, generator=torch.Generator()
        )
        assert {outcome.method for outcome in outcomes} == {name}
        assert Verdict.FALSIFIED not in {outcome.verdict for outcome in outcomes}


def test_stages_take_options_and_objects() -> None:
    own = Bab(timeout=3.0)
    found = tr.cascade({"name": "apgd", "steps": 3}, {"name": "bab", "attack": {"name": "pgd", "steps": 2}}, own)
    assert found.stages[0].attack.steps == 3  # type: ignore[attr-defined]
    assert found.stages[1].attack.steps == 2  # type: ignore[attr-defined]
    assert found.stages[2] is own


def test_deeppoly_proves_sparsely_unless_told_otherwise() -> None:
    plain, sparse, dense = tr.cascade("deeppoly", {"name": "deeppoly"}, {"name": "deeppoly", "sparse": False}).stages
    assert [stage.relaxation.sparse for stage in (plain, sparse, dense)] == [True, True, False]  # type: ignore[attr-defined]


def test_what_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'deeppoly'"):
        tr.cascade("deepoly")
    with pytest.raises(UnknownNameError):
        tr.cascade({"steps": 3})
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        tr.cascade({"name": "apgd", "stepps": 3})
    with pytest.raises(InputError):
        tr.cascade()
