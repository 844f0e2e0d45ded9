"""Mixed-integer programs of networks: right to their tolerance, and never more than a claim."""

from __future__ import annotations

import math
from threading import Event

import pytest
import torch

import tightrope as tr
from fuzz import instance, minimum
from helpers import F64, TINY, case
from tightrope.core import deadline
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.spec import Spec, clause_margins, evaluate
from tightrope.errors import InputError, UnsupportedLayerError
from tightrope.relaxations.deeppoly import Deeppoly
from tightrope.verifiers import _program
from tightrope.verifiers._problem import Problem
from tightrope.verifiers._program import Answer, Program
from tightrope.verifiers.milp import Milp


def decide(given: Problem, verifier: Milp | None = None) -> list[Outcome]:
    return (verifier or Milp()).verify(*given, generator=torch.Generator().manual_seed(0))


def problem(name: str, eps: float, batch: int = 4) -> Problem:
    known = case(name)
    x = known.inputs(batch)
    labels = (known.net(known.params, x).argmax(1) + torch.arange(batch) % 2) % 3
    return Problem(known.net, known.params, tr.linf_box(x, eps), tr.margin_spec(labels, 3, dtype=F64))


def program_of(given: Problem) -> Program:
    with torch.no_grad():
        return Program(given, Deeppoly().bounds(*given).pre)


def test_what_the_solver_raises_is_not_taken_for_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("the solver is broken")

    monkeypatch.setattr(_program, "milp", broken)
    with pytest.raises(ValueError, match="the solver is broken"):
        program_of(problem("mlp", 0.1, 1)).minimum(0, 60.0)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", TINY)
def test_the_least_margin_is_that_of_enumeration(name: str, eps: float) -> None:
    given = problem(name, eps)
    for i in range(given.size):
        one = given.rows([i])
        answers = [program_of(one).minimum(clause, 60.0) for clause in range(2)]
        assert all(answer.complete for answer in answers)
        assert min(a.lower for a in answers) == pytest.approx(minimum(case(name).oracle, given, i).value, abs=1e-5)
        for clause, answer in enumerate(answers):
            assert answer.x is not None
            rows = evaluate(one.spec, one.network(one.params, answer.x[None]))
            assert float(clause_margins(rows, one.spec.clause)[0, clause]) == pytest.approx(answer.lower, abs=1e-5)


@pytest.mark.parametrize("seed", range(9000, 9011))
def test_the_least_margin_of_every_kind_of_network(seed: int) -> None:
    """Max-pooling, batch normalisation, disjunctions, and units of 1e-6 and 1e6."""
    given = instance(seed)
    for i, least in enumerate(given.least):
        program = program_of(given.scaled.rows([i]))
        found = min(program.minimum(clause, 60.0).lower for clause in set(given.scaled.spec.clause))
        size = 1.0 + float(given.problem.spec.offset[i].abs().max())
        assert found / given.margins == pytest.approx(least.value, abs=1e-4 * size)


def test_a_claim_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a solver that is wrong says, verdicts are right: its claims are proved, its inputs evaluated."""
    given = problem("residual", 0.2, 4)
    expected = [outcome.verdict for outcome in decide(given)]
    assert {Verdict.VERIFIED, Verdict.FALSIFIED} <= set(expected)
    far = torch.full(case("residual").shape, 1e6, dtype=F64)
    for answer in (Answer(5.0, None, True), Answer(-5.0, far, True), Answer(-5.0, far * math.nan, True)):
        monkeypatch.setattr(Program, "minimum", lambda self, clause, timeout, said=answer: said)
        assert [outcome.verdict for outcome in decide(given)] == expected


def test_a_claim_that_there_is_no_time_to_prove_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(deadline, "perf_counter", lambda: now[0])

    def claim(self: Program, clause: int, timeout: float) -> Answer:
        now[0] += 1e3
        return Answer(5.0, None, True)

    monkeypatch.setattr(Program, "minimum", claim)
    given = problem("residual", 0.25, 1)
    spec = Spec(given.spec.matrix[:, :1], torch.full((1, 1), -9.0, dtype=F64), (0,))
    [outcome] = decide(given._replace(spec=spec), Milp(timeout=9.0))
    assert outcome.verdict is Verdict.UNKNOWN
    assert "no proof" in outcome.reason


def test_time_that_is_up_leaves_both_bounds_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    now, minimum = [0.0], Program.minimum
    monkeypatch.setattr(deadline, "perf_counter", lambda: now[0])

    def slow(self: Program, clause: int, timeout: float) -> Answer:
        now[0] += 1e3
        return minimum(self, clause, timeout)

    monkeypatch.setattr(Program, "minimum", slow)
    found = decide(problem("conv", 0.15, 6), Milp(timeout=20.0))
    unknown = [outcome for outcome in found if outcome.verdict is Verdict.UNKNOWN]
    assert unknown
    for outcome in unknown:
        assert "timeout of 20 s" in outcome.reason
        assert -math.inf < outcome.lower <= 0 < outcome.upper


def test_the_program_and_the_proof_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, left = [0.0], []
    monkeypatch.setattr(deadline, "perf_counter", lambda: now[0])

    def spend(self: Program, clause: int, timeout: float) -> Answer:
        left.append(timeout)
        now[0] += 4.0
        return Answer(1.0, None, True)

    monkeypatch.setattr(Program, "minimum", spend)
    given = problem("residual", 0.25, 1)
    spec = Spec(given.spec.matrix[:, :1].repeat(1, 2, 1), torch.full((1, 2), -9.0, dtype=F64), (0, 1))
    decide(given._replace(spec=spec), Milp(timeout=10.0))
    assert left == [10.0, 6.0]


def test_a_solver_that_does_not_look_at_the_clock_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Event()
    monkeypatch.setattr(_program, "milp", lambda *args, **kwargs: end.wait())
    found = decide(problem("conv", 0.15, 1), Milp(timeout=0.05))
    end.set()
    assert [outcome.verdict for outcome in found] == [Verdict.UNKNOWN]


def test_too_many_neurons_are_left_undecided_with_a_bound() -> None:
    for outcome in decide(problem("conv", 0.3), Milp(neurons=3)):
        assert outcome.verdict is Verdict.UNKNOWN
        assert "unstable neurons, more than 3" in outcome.reason
        assert math.isfinite(outcome.lower)


def test_a_network_that_is_no_program_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"Tanh.*Use bab"):
        decide(problem("tanh", 0.1))


@pytest.mark.parametrize("options", [{"timeout": -1.0}, {"timeout": math.nan}, {"neurons": -1}])
def test_refuses_options_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Milp(**options)  # type: ignore[arg-type]
