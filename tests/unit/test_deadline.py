"""Time limits: every verifier stops soon after its time is up, at whichever look at the clock that is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tightrope as tr
from helpers import F64, case
from tightrope.attacks.apgd import Apgd
from tightrope.attacks.pgd import Pgd
from tightrope.core import deadline
from tightrope.core.deadline import check_time, seconds_left, time_is_up, time_limit, unlimited
from tightrope.core.outcome import Verdict
from tightrope.core.protocols import Verifier
from tightrope.errors import TimeUpError
from tightrope.verifiers._problem import Problem
from tightrope.verifiers.alpha_crown import AlphaCrown
from tightrope.verifiers.attack import AttackVerifier
from tightrope.verifiers.bab import Bab
from tightrope.verifiers.cascade import Cascade
from tightrope.verifiers.milp import Milp
from tightrope.verifiers.one_shot import OneShot

BAB = Bab(edges=0, timeout=math.inf, evidence=True)
VERIFIERS: dict[str, Verifier] = {
    "pgd": AttackVerifier(Pgd(steps=20, loss="margin")),
    "apgd": AttackVerifier(Apgd(steps=20)),
    "deeppoly": OneShot(tr.relaxation("deeppoly"), "deeppoly"),
    "alpha_crown": AlphaCrown(),
    "neurons": BAB,
    "milp": Milp(proof=Bab(edges=0), timeout=math.inf),
    "cascade": Cascade((AttackVerifier(Pgd(steps=20)), OneShot(tr.relaxation("deeppoly"), "deeppoly"), BAB)),
}


class Work(TorchDispatchMode):
    """Counts tensor operations, and is a clock that stands still until the look at which the time is up."""

    def __init__(self, last: float) -> None:
        super().__init__()
        self.looks, self.last, self.total, self.late = 0, last, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += 1
        self.late += self.looks >= self.last
        return func(*args, **(kwargs or {}))

    def __call__(self) -> float:
        self.looks += 1
        return 1e9 if self.looks >= self.last else 0.0


def problem() -> Problem:
    """Two samples that take some splits."""
    given = case("residual")
    x = given.inputs(2)
    box, spec = tr.linf_box(x, 0.25), tr.margin_spec(given.net(given.params, x).argmax(1), 3, dtype=F64)
    return Problem(given.net, given.params, box, spec)


def run(verifier: Verifier, work: Work, monkeypatch: pytest.MonkeyPatch) -> set[Verdict]:
    """The verdicts where a limit of a second is set at the first look."""
    monkeypatch.setattr(deadline, "perf_counter", work)
    with time_limit(1.0), work:
        found = verifier.verify(*problem(), generator=torch.Generator().manual_seed(0))
    return {outcome.verdict for outcome in found}


@pytest.mark.parametrize("name", VERIFIERS)
def test_little_is_done_after_the_time_is_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most what two bounds of the network take, for each stage of a cascade: a step with the tries of its inputs."""
    whole = Work(math.inf)
    expected = run(VERIFIERS[name], whole, monkeypatch)
    one_pass, stages = Work(math.inf), 3 if name == "cascade" else 1
    with one_pass:
        tr.relaxation("deeppoly").bounds(*problem(), rigorous=True)
    for last in range(2, whole.looks, max(1, whole.looks // 4)):
        part = Work(last)
        found = run(VERIFIERS[name], part, monkeypatch)
        assert found <= expected | {Verdict.UNKNOWN}
        assert part.late <= 2 * stages * one_pass.total


def test_inside_limits_only_get_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(deadline, "perf_counter", lambda: now[0])
    with time_limit(2.0):
        with time_limit(5.0):
            assert seconds_left() == 2.0
        with time_limit(1.0):
            now[0] = 1.0
            with pytest.raises(TimeUpError):
                check_time()
        check_time()
        now[0] = 3.0
        assert time_is_up()
        with unlimited():
            check_time()
    assert seconds_left() == math.inf
