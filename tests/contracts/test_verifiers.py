"""What every verifier promises: it never contradicts brute force, and doubt ends as unknown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from helpers import F64, FULL_PRECISION, TINY, careless_process, case, precision, random_points, rows_at
from reference.exact import exact_min, linear_pieces
from tightrope.attacks.pgd import Pgd
from tightrope.core import registry
from tightrope.core.bounds import Bounds, Interval, Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.protocols import Verifier
from tightrope.core.spec import Spec, evaluate, worst_margin
from tightrope.errors import InputError, InvariantError, UnsupportedLayerError
from tightrope.verifiers.alpha_crown import AlphaCrown
from tightrope.verifiers.attack import AttackVerifier
from tightrope.verifiers.bab import Bab
from tightrope.verifiers.cascade import Cascade
from tightrope.verifiers.one_shot import OneShot

INF = float("inf")
PGD = AttackVerifier(Pgd(steps=15, restarts=2, loss="margin"))
TOLERANCE = 1e-9


def stages() -> tuple[Verifier, ...]:
    return (PGD, *(OneShot(tr.relaxation(name), name) for name in ("ibp", "crown_ibp", "deeppoly")))


def verifiers() -> dict[str, Verifier]:
    """Every verifier of the registry, with every relaxation where it takes one."""
    options: dict[str, Any] = {"attack": PGD.attack, "name": "tested", "stages": stages()}
    found = {}
    for name in registry.names("verifiers"):
        cls = registry.find("verifiers", name)
        takes = {field.name for field in dataclasses.fields(cls)}
        for inner in registry.names("relaxations") if "relaxation" in takes else [""]:
            extra = {"relaxation": tr.relaxation(inner)} if inner else {}
            given = {key: value for key, value in (options | extra).items() if key in takes}
            found[f"{name}{inner and '-'}{inner}"] = cls(**given)
    return found


VERIFIERS = verifiers()


class Watched(dict[str, Tensor]):
    """Weights that note in which precision they are read."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: set[tuple[Any, ...]] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.seen.add(precision())
        return super().__getitem__(key)

    def items(self) -> Any:
        self.seen.add(precision())
        return super().items()


def run(verifier: Verifier, net: Network, params: Params, box: Box, spec: Spec, seed: int = 0) -> list[Outcome]:
    return verifier.verify(net, params, box, spec, generator=torch.Generator().manual_seed(seed))


def problem(name: str, eps: float, batch: int = 6, others: bool = False) -> tuple[Network, Params, Box, Spec]:
    """Boxes around samples labelled as the network says; every other one with another class, if asked."""
    given = case(name)
    x = given.inputs(batch)
    labels = given.net(given.params, x).argmax(1)
    if others:
        labels = (labels + torch.arange(batch) % 2) % 3
    return given.net, given.params, tr.linf_box(x, eps), tr.margin_spec(labels, 3, dtype=F64)


def exact_margins(name: str, box: Box, spec: Spec) -> list[float]:
    """The minimum of the property over each box, by enumeration."""
    oracle, found = case(name).oracle, []
    for lower, upper, rows in zip(box.lower.numpy(), box.upper.numpy(), spec.matrix.numpy(), strict=True):
        pieces = linear_pieces(oracle, lower, upper)
        assert pieces
        found.append(min(exact_min(oracle, lower, upper, row) for row in rows))
    return found


# ------------------------------------------------------------------------------------------- brute force


@pytest.mark.parametrize("eps", [0.0, 0.02, 0.08, 0.25])
@pytest.mark.parametrize("name", TINY)
def test_never_contradicts_exact_enumeration(name: str, eps: float) -> None:
    net, params, box, spec = problem(name, eps, others=True)
    exact = exact_margins(name, box, spec)
    for label, verifier in VERIFIERS.items():
        for i, outcome in enumerate(run(verifier, net, params, box, spec)):
            assert outcome.lower <= exact[i] + TOLERANCE, (label, i)
            assert outcome.upper >= exact[i] - TOLERANCE, (label, i)
            if outcome.verdict is Verdict.VERIFIED:
                assert exact[i] > -TOLERANCE, (label, i)
            if outcome.verdict is Verdict.FALSIFIED:
                assert exact[i] <= TOLERANCE, (label, i)
                assert outcome.counterexample is not None
                assert bool(
                    (outcome.counterexample >= box.lower[i]).all() & (outcome.counterexample <= box.upper[i]).all()
                )


def test_every_verdict_occurs() -> None:
    """Or the test above shows nothing."""
    verdicts = {
        outcome.verdict
        for name in TINY
        for eps in (0.02, 0.08, 0.25)
        for outcome in run(Cascade(stages()), *problem(name, eps, 12, others=True))
    }
    assert verdicts == set(Verdict)


@pytest.mark.parametrize("label", list(VERIFIERS))
def test_a_disjunction_is_never_refuted_by_a_sample_or_proved_against_one(label: str) -> None:
    given = case("mlp")
    x = given.inputs(8)
    matrix = torch.tensor([[1.0, -1, 0], [1, 0, -1], [-1, 1, 0]], dtype=F64).expand(8, 3, 3)
    spec = Spec(matrix, torch.tensor([[0.1, 0.1, 0.3]], dtype=F64).expand(8, 3), (0, 1, 1))
    box = tr.linf_box(x, 0.1)
    points = random_points(box, 2000, torch.Generator().manual_seed(1))
    values = rows_at(spec, given.net(given.params, points.flatten(0, 1)).reshape(2000, 8, 3))
    seen = torch.stack([worst_margin(rows, spec.clause) for rows in values]).amin(0)
    for i, outcome in enumerate(run(VERIFIERS[label], given.net, given.params, box, spec)):
        assert outcome.lower <= float(seen[i]) + TOLERANCE
        if outcome.counterexample is not None:
            rows = evaluate(
                Spec(matrix[i : i + 1], spec.offset[i : i + 1], spec.clause),
                given.net(given.params, outcome.counterexample[None]),
            )
            assert float(worst_margin(rows, spec.clause)) <= 0


# ---------------------------------------------------------------------------------------------- contracts


@pytest.mark.parametrize("label", list(VERIFIERS))
class TestEveryVerifier:
    def test_is_a_frozen_dataclass(self, label: str) -> None:
        field = dataclasses.fields(VERIFIERS[label])[0].name  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(VERIFIERS[label], field, None)

    def test_is_a_function_of_its_arguments_and_the_seed(self, label: str) -> None:
        first, again = (run(VERIFIERS[label], *problem("mlp", 0.1)) for _ in range(2))
        assert [(o.verdict, o.lower, o.upper, o.method) for o in first] == [
            (o.verdict, o.lower, o.upper, o.method) for o in again
        ]

    def test_a_batch_of_one_and_an_empty_one(self, label: str) -> None:
        net, params, box, spec = problem("mlp", 0.1)
        for count in (1, 0):
            part = Spec(spec.matrix[:count], spec.offset[:count], spec.clause)
            found = run(VERIFIERS[label], net, params, Box(box.lower[:count], box.upper[:count]), part)
            assert len(found) == count

    def test_eps_zero_agrees_with_the_network(self, label: str) -> None:
        net, params, box, spec = problem("conv", 0.0)
        margins = worst_margin(evaluate(spec, net(params, box.lower)), spec.clause)
        for outcome, margin in zip(run(VERIFIERS[label], net, params, box, spec), margins.tolist(), strict=True):
            assert outcome.lower <= margin + TOLERANCE
            assert outcome.upper >= margin - TOLERANCE
            assert outcome.verdict is not Verdict.FALSIFIED  # the labels are the network's own

    @pytest.mark.parametrize("bad", [math.nan, INF, -INF])
    @pytest.mark.parametrize("key", ["0.weight", "6.bias"])
    def test_weights_that_are_not_finite_decide_nothing(self, label: str, bad: float, key: str) -> None:
        net, weights, box, spec = problem("mlp", 0.05)
        params = {**weights, key: weights[key].clone()}
        params[key].view(-1)[0] = bad
        found = run(VERIFIERS[label], net, params, box, spec)
        labels = {o.verdict for o in found}
        if math.isnan(bad) or key == "0.weight":
            assert labels == {Verdict.UNKNOWN}
        assert all(o.verdict is not Verdict.VERIFIED or math.isfinite(o.lower) for o in found)
        assert all(o.verdict is not Verdict.FALSIFIED or math.isfinite(o.upper) for o in found)

    def test_computes_in_full_precision_whatever_the_process_is_set_to(self, label: str) -> None:
        """Also in float32, where it would matter; and it leaves the settings of the process as they are."""
        net, weights, wide, spec64 = problem("conv", 0.02)
        params = Watched((name, value.float()) for name, value in weights.items())
        box = tr.linf_box(((wide.lower + wide.upper) / 2).float(), 0.02)
        spec = Spec(spec64.matrix.float(), spec64.offset.float(), spec64.clause)
        expected = run(VERIFIERS[label], net, params, box, spec)
        params.seen.clear()
        with careless_process():
            found = run(VERIFIERS[label], net, params, box, spec)
        assert params.seen == {FULL_PRECISION}
        assert [(o.verdict, o.lower, o.upper) for o in found] == [(o.verdict, o.lower, o.upper) for o in expected]

    def test_refuses_what_does_not_fit(self, label: str) -> None:
        net, params, box, spec = problem("mlp", 0.1)
        for wrong in (
            Box(box.upper + 0.1, box.lower),
            Box(box.lower * math.nan, box.upper),
            Box(box.lower[:, :2], box.upper[:, :2]),
            Box(box.lower[:3], box.upper[:3]),
        ):
            with pytest.raises(InputError):
                run(VERIFIERS[label], net, params, wrong, spec)


# ---------------------------------------------------------------------------------------------- forgeries


@dataclass(frozen=True)
class Claim:
    """A relaxation that returns a constant, or fails."""

    value: float | Exception
    at_most: int = 10**9
    """Raises for larger batches, whatever the value."""

    continuous: ClassVar[bool] = True

    def bounds(
        self,
        network: Network,
        params: Params,
        box: Box,
        spec: Spec,
        *,
        pre: Mapping[str, Interval] | None = None,
        rigorous: bool = False,
    ) -> Bounds:
        if isinstance(self.value, Exception):
            raise self.value
        if box.lower.shape[0] > self.at_most:
            raise RuntimeError("not enough memory")
        return Bounds(torch.full_like(spec.offset, self.value), {})


@dataclass(frozen=True)
class Point:
    """An attack that returns the box's lower corner, shifted."""

    shift: float = 0.0
    at_most: int = 10**9

    def noise(self, box: Box, generator: torch.Generator) -> Tensor:
        return torch.rand((1, *box.lower.shape), generator=generator, dtype=box.lower.dtype)

    def perturb(self, network: Network, params: Params, box: Box, spec: Spec, noise: Tensor) -> Tensor:
        if box.lower.shape[0] > self.at_most:
            raise RuntimeError("not enough memory")
        return box.lower + self.shift


@dataclass(frozen=True)
class Said:
    """A verifier that returns what it was given."""

    outcomes: tuple[Outcome, ...]

    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        return list(self.outcomes)


@pytest.mark.parametrize("value", [math.nan, INF, -INF, 0.0, -1.0])
def test_a_bound_that_is_not_finite_and_positive_proves_nothing(value: float) -> None:
    outcomes = run(OneShot(Claim(value), "claim"), *problem("mlp", 0.1))
    assert all(o.verdict is Verdict.UNKNOWN and o.reason for o in outcomes)
    assert all(o.lower == (value if math.isfinite(value) else -INF) for o in outcomes)


def test_one_nan_row_is_enough() -> None:
    @dataclass(frozen=True)
    class Partly(Claim):
        def bounds(self, network: Network, params: Params, box: Box, spec: Spec, **_: Any) -> Bounds:
            margins = torch.ones_like(spec.offset)
            margins[1, 0] = math.nan
            return Bounds(margins, {})

    verdicts = [o.verdict for o in run(OneShot(Partly(1.0), "partly"), *problem("mlp", 0.1, 3))]
    assert verdicts == [Verdict.VERIFIED, Verdict.UNKNOWN, Verdict.VERIFIED]


@pytest.mark.parametrize(
    "error", [RuntimeError("no memory"), torch.OutOfMemoryError("no"), MemoryError(), OverflowError()]
)
def test_a_relaxation_that_fails_leaves_all_unknown_with_the_reason(error: Exception) -> None:
    outcomes = run(OneShot(Claim(error), "claim"), *problem("mlp", 0.1))
    assert all(o.verdict is Verdict.UNKNOWN and type(error).__name__ in o.reason for o in outcomes)


def test_an_unsupported_layer_is_not_hidden_as_unknown() -> None:
    with pytest.raises(UnsupportedLayerError):
        run(OneShot(Claim(UnsupportedLayerError("max-pooling")), "claim"), *problem("mlp", 0.1))


def test_margins_of_a_wrong_shape_are_refused() -> None:
    @dataclass(frozen=True)
    class Short(Claim):
        def bounds(self, network: Network, params: Params, box: Box, spec: Spec, **_: Any) -> Bounds:
            return Bounds(torch.ones(1, 2, dtype=F64), {})

    with pytest.raises(InvariantError, match="shape"):
        run(OneShot(Short(1.0), "short"), *problem("mlp", 0.1))


@pytest.mark.parametrize("at_most", [1, 2, 5])
def test_what_does_not_fit_the_memory_is_decided_in_parts(at_most: int) -> None:
    given = problem("mlp", 0.1, 7)
    assert all(o.lower == 2.0 for o in run(OneShot(Claim(2.0, at_most), "claim"), *given))
    whole, parts = (run(AttackVerifier(Point(0.01, n)), *given) for n in (100, at_most))
    assert [o.upper for o in whole] == [o.upper for o in parts]


def test_an_attack_that_leaves_the_box_is_brought_back() -> None:
    net, params, box, spec = problem("mlp", 0.01)
    for outcome, upper in zip(run(AttackVerifier(Point(5.0)), net, params, box, spec), box.upper, strict=True):
        margins = worst_margin(evaluate(spec, net(params, upper.expand(6, -1))), spec.clause)
        assert min(abs(float(m) - outcome.upper) for m in margins) < TOLERANCE


def test_nan_at_a_concrete_input_is_no_counterexample() -> None:
    outcomes = run(AttackVerifier(Point(math.nan)), *problem("mlp", 0.1))
    assert all(o.verdict is Verdict.UNKNOWN and o.reason.endswith("NaN or infinite output") for o in outcomes)


def test_a_margin_of_exactly_zero_is_never_decided() -> None:
    """A bound of the rounding errors tells it from neither side."""
    net, params = tr.from_module(nn.Linear(1, 2, bias=False).to(F64), (1,))
    params["weight"] = torch.ones(2, 1, dtype=F64)
    x = torch.full((1, 1), 0.5, dtype=F64)
    given = net, params, tr.linf_box(x, 0.1), tr.margin_spec(torch.tensor([0]), 2, dtype=F64)
    for verifier in (PGD, OneShot(tr.relaxation("deeppoly"), "deeppoly"), AlphaCrown(), Bab(timeout=1)):
        [outcome] = run(verifier, *given)
        assert outcome.verdict is Verdict.UNKNOWN
        assert -1e-12 < outcome.lower <= 0 or outcome.lower == -math.inf


# ------------------------------------------------------------------------------------------------ cascade


def test_a_cascade_shows_each_stage_only_what_is_undecided() -> None:
    seen: list[int] = []

    @dataclass(frozen=True)
    class Counted:
        inner: Verifier

        def verify(
            self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
        ) -> list[Outcome]:
            found = self.inner.verify(network, params, box, spec, generator=generator)
            seen.extend([len(found), sum(o.verdict is Verdict.UNKNOWN for o in found)])
            return found

    run(Cascade(tuple(map(Counted, stages()))), *problem("mlp", 0.1, 12))
    assert seen[0] == 12
    assert all(left == given for left, given in zip(seen[1::2], seen[2::2], strict=False))


def test_a_cascade_joins_the_best_bounds_of_its_stages() -> None:
    given = problem("mlp", 0.12, 12)
    alone = [run(stage, *given) for stage in stages()]
    for i, outcome in enumerate(run(Cascade(stages()), *given)):
        if outcome.verdict is Verdict.UNKNOWN:
            assert outcome.lower == pytest.approx(max(found[i].lower for found in alone))
            assert outcome.upper == pytest.approx(min(found[i].upper for found in alone))
            assert outcome.method == "deeppoly"
            assert outcome.reason == "no counterexample found; the lower bound is not positive"
        if outcome.verdict is Verdict.VERIFIED:
            assert outcome.upper < INF


def test_a_proof_of_more_than_the_attack_refuted_is_an_error_that_names_the_sample() -> None:
    net, params, box, spec = problem("mlp", 0.1)
    settled = run(PGD, net, params, box, spec)
    worst = next(i for i, o in enumerate(settled) if o.verdict is Verdict.UNKNOWN)
    with pytest.raises(InvariantError, match=rf"Sample {worst}: claim claims a margin of at least 1e\+06"):
        run(Cascade((PGD, OneShot(Claim(1e6), "claim"))), net, params, box, spec)
    nested = Cascade((PGD, Cascade((PGD, OneShot(Claim(1e6), "claim")))))
    with pytest.raises(InvariantError, match=rf"Sample {worst}: "):
        run(nested, net, params, box, spec)


def test_the_last_bits_are_no_contradiction() -> None:
    """At eps 0 the bound and the margin are the same number, rounded differently."""
    net, params, box, _ = problem("conv", 0.0, 12)
    for dtype in (torch.float64, torch.float32):
        cast = {name: (value * 1e3).to(dtype) if value.is_floating_point() else value for name, value in params.items()}
        x = box.lower.to(dtype)
        spec = tr.margin_spec(net(cast, x).argmax(1), 3, dtype=dtype)
        outcomes = run(Cascade(stages()), net, cast, tr.linf_box(x, 0.0), spec)
        assert {o.verdict for o in outcomes} == {Verdict.VERIFIED}


@pytest.mark.parametrize(
    ("shift", "message"), [(9.0, "not in the box"), (math.nan, "not in the box"), (0.0, "the margin there is")]
)
def test_a_forged_counterexample_is_found_out(shift: float, message: str) -> None:
    net, params, box, spec = problem("mlp", 0.0, 1)  # with the network's own label: the margin is positive
    forged = Outcome(Verdict.FALSIFIED, -INF, -1.0, "forger", counterexample=box.lower[0] + shift)
    with pytest.raises(InvariantError, match=f"Sample 0: .*{message}"):
        run(Cascade((Said((forged,)),)), net, params, box, spec)


def test_outcomes_for_other_samples_are_refused() -> None:
    with pytest.raises(InvariantError, match="2 outcomes for 6"):
        run(Cascade((Said((Outcome(Verdict.UNKNOWN, -INF, INF, "x"),) * 2),)), *problem("mlp", 0.1))


def test_a_cascade_needs_a_stage() -> None:
    with pytest.raises(InputError):
        Cascade(())


@pytest.mark.parametrize(
    ("verdict", "lower", "upper"),
    [
        (Verdict.VERIFIED, 0.0, INF),
        (Verdict.VERIFIED, -1.0, INF),
        (Verdict.VERIFIED, math.nan, INF),
        (Verdict.VERIFIED, 2.0, 1.0),
        (Verdict.FALSIFIED, -INF, -1.0),  # without a counterexample
        (Verdict.UNKNOWN, 1.0, INF),
        (Verdict.UNKNOWN, -INF, math.nan),
    ],
)
def test_an_inconsistent_outcome_cannot_be_built(verdict: Verdict, lower: float, upper: float) -> None:
    with pytest.raises(InvariantError):
        Outcome(verdict, lower, upper, "forger")
