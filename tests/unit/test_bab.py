"""Branch and bound: it decides what there is to decide, as enumeration does, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import tightrope as tr
from helpers import F64, TINY, Residual, as_oracle, case, randomise
from reference.exact import linear_pieces
from tightrope.core import deadline
from tightrope.core.box import Box
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.spec import Spec, evaluate, worst_margin
from tightrope.errors import InputError
from tightrope.verifiers._problem import Problem
from tightrope.verifiers._queue import Queue
from tightrope.verifiers._subproblems import Items, Lagrangian, Subproblems
from tightrope.verifiers.alpha_crown import AlphaCrown
from tightrope.verifiers.bab import Bab
from tightrope.verifiers.branching.babsr import Babsr
from tightrope.verifiers.branching.filtered import Filtered
from tightrope.verifiers.branching.longest_edge import LongestEdge
from tightrope.verifiers.one_shot import OneShot

BY_NEURONS = Bab(edges=0)
WAYS = {"filtered": BY_NEURONS, "babsr": Bab(edges=0, branching=Babsr()), "edges": Bab(edges=100)}
BATCH = 3
IBP = tr.relaxation("ibp")


def decide(given: Problem, verifier: Bab = BY_NEURONS) -> list[Outcome]:
    return verifier.verify(*given, generator=torch.Generator().manual_seed(0))


def exact(module: nn.Module, given: Problem, i: int) -> float:
    """min over the box of min over clauses of max over rows: a linear program on every linear piece."""
    lower, upper = given.box.lower[i].numpy().ravel(), given.box.upper[i].numpy().ravel()
    matrix, offset, clause = given.spec.matrix[i].numpy(), given.spec.offset[i].numpy(), np.array(given.spec.clause)
    best = math.inf
    for weight, bias, region in linear_pieces(as_oracle(module, given.network.input_shape), lower, upper):
        for c in set(given.spec.clause):
            rows = matrix[clause == c]
            gradient, constant = rows @ weight, rows @ bias + offset[clause == c]
            ones = np.ones((len(rows), 1))
            above = np.vstack([np.hstack([gradient, -ones]), np.pad(region.matrix, ((0, 0), (0, 1)))])
            limits = np.concatenate([-constant, region.vector])
            cost = np.append(np.zeros(len(lower)), 1.0)
            bounds = [*zip(lower, upper, strict=True), (None, None)]
            result = linprog(cost, above, limits, bounds=bounds, method="highs")
            best = min(best, result.fun) if result.status == 0 else best
    return best


def check(module: nn.Module, given: Problem, verifier: Bab, tolerance: float = 1e-7) -> list[Verdict]:
    """Every outcome against the exact minimum; undecided only within the tolerance of a tie."""
    found = decide(given, verifier)
    for i, outcome in enumerate(found):
        least = exact(module, given, i)
        assert outcome.lower <= least + tolerance
        assert outcome.upper >= least - tolerance
        assert outcome.verdict is (Verdict.VERIFIED if least > 0 else Verdict.FALSIFIED) or abs(least) <= tolerance
        if outcome.counterexample is not None:
            x = outcome.counterexample[None]
            assert bool(((x >= given.box.lower[i]) & (x <= given.box.upper[i])).all())
            spec = Spec(given.spec.matrix[i : i + 1], given.spec.offset[i : i + 1], given.spec.clause)
            assert float(worst_margin(evaluate(spec, given.network(given.params, x)), spec.clause)) <= 0
    return [outcome.verdict for outcome in found]


def random_module(seed: int) -> nn.Module:
    """Of various depths, widths and kinds, with dead and duplicate neurons."""
    generator = torch.Generator().manual_seed(seed)
    kind = seed % 4
    if kind == 0:
        module: nn.Module = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
    elif kind == 1:
        module = nn.Sequential(
            nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.LeakyReLU(0.2), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)
        )
    elif kind == 2:
        module = Residual(2, 4, 3)
    else:
        module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    randomise(module, seed)
    first = next(m for m in module.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        if seed % 3 == 0:
            first.weight[1] = first.weight[0]
            first.bias[1] = first.bias[0]
        if seed % 5 == 0:
            first.weight[2] = 0.0
            first.bias[2] = -abs(float(torch.randn((), generator=generator)))
    return module


def random_problem(seed: int, module: nn.Module, eps: float = 0.4) -> Problem:
    """Classification, or a random conjunction of disjunctions near the network's values."""
    generator = torch.Generator().manual_seed(seed)
    net, params = tr.from_module(module, (2,))
    x = torch.rand(BATCH, 2, generator=generator, dtype=F64)
    box = tr.linf_box(x, eps, data_range=None)
    if seed % 2 == 0:
        return Problem(net, params, box, tr.margin_spec(net(params, x).argmax(1), 3, dtype=F64))
    matrix = torch.randn(BATCH, 4, 3, generator=generator, dtype=F64)
    spec = Spec(matrix, torch.zeros(BATCH, 4, dtype=F64), (0, 1, 0, 1))
    values = evaluate(spec, net(params, x))
    offset = 0.3 * values.abs() * torch.rand(values.shape, generator=generator, dtype=F64) - values.clamp(max=0.0)
    return Problem(net, params, box, spec._replace(offset=offset))


# --------------------------------------------------------------------------------------------- completeness


@pytest.mark.parametrize("way", list(WAYS))
def test_it_decides_as_enumeration_does(way: str) -> None:
    verdicts: list[Verdict] = []
    for seed in range(12):
        module = random_module(seed)
        verdicts += check(module, random_problem(seed, module), replace(WAYS[way], timeout=20))
    assert {Verdict.VERIFIED, Verdict.FALSIFIED} <= set(verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("way", list(WAYS))
def test_it_decides_thousands_of_networks_as_enumeration_does(way: str) -> None:
    for seed in range(100, 700):
        module = random_module(seed)
        check(module, random_problem(seed, module, [0.0, 0.1, 0.4, 1.0][seed // 4 % 4]), WAYS[way])


@pytest.mark.parametrize(("inputs", "outputs"), list(product([1e-6, 1.0, 1e6], [1e-6, 1.0, 1e6])))
def test_scales_change_no_verdict(inputs: float, outputs: float) -> None:
    """Inputs in other units and margins in other units: the same problem."""
    module = random_module(3)
    plain = random_problem(4, module)
    scaled = dict(plain.params)
    first, last = min(k for k in scaled if k.endswith("weight")), max(k for k in scaled if k.endswith("weight"))
    scaled[first] = scaled[first] / inputs
    scaled[last] = scaled[last] * outputs
    scaled[last.replace("weight", "bias")] = scaled[last.replace("weight", "bias")] * outputs
    box = Box(plain.box.lower * inputs, plain.box.upper * inputs)
    expected, found = decide(plain), decide(plain._replace(params=scaled, box=box))
    assert [o.verdict for o in found] == [o.verdict for o in expected]


def test_a_counterexample_that_no_gradient_points_to() -> None:
    """A narrow spike: margin 1 everywhere, but -1 at one point of four dimensions."""
    inputs = 4
    peak = torch.tensor([0.31, 0.72, 0.13, 0.64], dtype=F64)
    module = nn.Sequential(
        nn.Linear(inputs, 2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, 1), nn.ReLU(), nn.Linear(1, 1)
    )
    net, _ = tr.from_module(module.to(F64), (inputs,))
    eye = torch.eye(inputs, dtype=F64)
    params = {
        "0.weight": torch.cat([eye, -eye]),
        "0.bias": torch.cat([-peak, peak]),
        "2.weight": torch.full((1, 2 * inputs), -50.0, dtype=F64),
        "2.bias": torch.ones(1, dtype=F64),
        "4.weight": torch.full((1, 1), -2.0, dtype=F64),
        "4.bias": torch.ones(1, dtype=F64),
    }
    box = tr.linf_box(torch.full((1, inputs), 0.5, dtype=F64), 0.5)
    spec = Spec(torch.ones(1, 1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64), (0,))
    for verifier in WAYS.values():
        assert decide(Problem(net, params, box, spec), verifier)[0].verdict is Verdict.FALSIFIED
        lifted = params | {"4.bias": torch.full((1,), 2.001, dtype=F64)}
        assert decide(Problem(net, lifted, box, spec), verifier)[0].verdict is Verdict.VERIFIED


def test_a_tie_is_never_verified() -> None:
    """|x| >= 0, with equality at a point that no floating point number need hit."""
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).to(F64)
    net, _ = tr.from_module(module, (1,))
    for kink in (0.1, 1 / 3, 0.7):
        params = {
            "0.weight": torch.tensor([[3.0], [-3.0]], dtype=F64),
            "0.bias": torch.tensor([-3 * kink, 3 * kink], dtype=F64),
            "2.weight": torch.ones(1, 2, dtype=F64),
            "2.bias": torch.zeros(1, dtype=F64),
        }
        box = tr.linf_box(torch.full((1, 1), 0.5, dtype=F64), 0.5)
        spec = Spec(torch.ones(1, 1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64), (0,))
        for verifier in (BY_NEURONS, Bab(edges=1, timeout=0.5)):
            assert decide(Problem(net, params, box, spec), verifier)[0].verdict is not Verdict.VERIFIED


def test_a_network_without_activations() -> None:
    net, _ = tr.from_module(nn.Linear(2, 2, bias=False).to(F64), (2,))
    params = {"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=F64)}
    box = tr.linf_box(torch.tensor([[0.8, 0.2], [0.51, 0.5]], dtype=F64), 0.1)
    given = Problem(net, params, box, tr.margin_spec(torch.tensor([0, 0]), 2, dtype=F64))
    assert [o.verdict for o in decide(given)] == [Verdict.VERIFIED, Verdict.FALSIFIED]


# -------------------------------------------------------------------------------------------------- bounds


def tiny(name: str = "residual", eps: float = 0.25, batch: int = 6) -> Problem:
    given = case(name)
    x = given.inputs(batch)
    labels = given.net(given.params, x).argmax(1)
    return Problem(given.net, given.params, tr.linf_box(x, eps), tr.margin_spec(labels, 3, dtype=F64))


@pytest.mark.parametrize("name", [*TINY, "conv"])
def test_bounds_get_better_from_verifier_to_verifier(name: str) -> None:
    given, generator = tiny(name), torch.Generator()
    once = OneShot(tr.relaxation("deeppoly"), "deeppoly").verify(*given, generator=generator)
    alpha = AlphaCrown(steps=5).verify(*given, generator=generator)
    bab = decide(given, replace(BY_NEURONS, root_steps=5, timeout=1.0))
    for first, second, third in zip(once, alpha, bab, strict=True):
        assert first.lower <= second.lower + 1e-9
        # branch and bound stops at the first bound above 0
        assert second.lower <= third.lower + 1e-9 or third.verdict is not Verdict.UNKNOWN


@pytest.mark.parametrize("branching", [Babsr(), Filtered()])
def test_children_cover_their_parent(branching: Babsr | Filtered) -> None:
    given = tiny("conv", 0.15)
    items = Items(given, tr.relaxation("deeppoly"))
    part = items.roots()
    part = part.rows(items.neurons.unstable(part.pre).any(1))
    above, below = (
        branching.children(Lagrangian(items, part)).rows(half)
        for half in (slice(part.size), slice(part.size, 2 * part.size))
    )
    changed = above.signs != part.signs
    assert bool((changed.sum(1) == 1).all())
    assert torch.equal(above.signs, -below.signs)
    assert bool((above.pre_lower[changed] == 0).all() & (below.pre_upper[changed] == 0).all())
    assert torch.equal(above.pre_upper, part.pre_upper)
    assert torch.equal(below.pre_lower, part.pre_lower)


def test_each_half_of_a_box_has_the_row_that_is_best_there() -> None:
    """max(x, -x) on [-1, 1]: neither row bounds both halves, whatever the weights of the whole were."""
    net, params = tr.from_module(nn.Linear(1, 2, bias=False), (1,))
    params = {"weight": torch.tensor([[1.0], [-1.0]], dtype=F64)}
    spec = Spec(torch.eye(2, dtype=F64)[None], torch.zeros(1, 2, dtype=F64), (0, 0))
    items = Items(Problem(net, params, Box(-torch.ones(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)), spec), IBP)
    halves = LongestEdge().children(Lagrangian(items, items.roots()))
    assert halves.box_lower.flatten().tolist() == [-1.0, 0.0]
    assert halves.weights.tolist() == [[0.0, 1.0], [1.0, 0.0]]


# -------------------------------------------------------------------------------------------------- limits


def hard() -> Problem:
    """One that takes some splits."""
    return tiny("conv", 0.15, 4)


def test_time_that_is_up_leaves_both_bounds_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(deadline, "perf_counter", lambda: now[0])

    def slow(self: Filtered, bound: Lagrangian) -> Subproblems:
        now[0] += 1e3
        return children(self, bound)

    children = Filtered.children
    monkeypatch.setattr(Filtered, "children", slow)
    found = decide(hard(), replace(BY_NEURONS, timeout=20.0))
    assert Verdict.UNKNOWN in {outcome.verdict for outcome in found}
    for outcome in found:
        if outcome.verdict is Verdict.UNKNOWN:
            assert outcome.reason == "bab: timeout of 20 s"
            assert -math.inf < outcome.lower <= 0 < outcome.upper < math.inf


def test_without_any_time_nothing_is_claimed() -> None:
    for outcome in decide(hard(), replace(BY_NEURONS, timeout=0.0)):
        assert outcome.verdict is not Verdict.VERIFIED
        assert outcome.lower <= 0


def test_time_is_shared_by_subproblems(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(deadline, "perf_counter", lambda: now[0])
    queue = Queue(2, timeout=3.0, batch_size=4, memory=2**20)
    with queue.charged(torch.tensor([0, 0, 0, 1])):
        now[0] = 3.9
        assert not deadline.time_is_up()
        now[0] = 4.0
        assert deadline.time_is_up()
    assert [progress.seconds for progress in queue.samples] == [3.0, 1.0]


def test_limits_change_no_verdict() -> None:
    given = tiny("residual", 0.25, 12)
    expected = [o.verdict for o in decide(given)]
    for change in ({"batch_size": 1}, {"batch_size": 7}, {"memory_gib": 1e-9}, {"steps": 0}, {"root_steps": 0}):
        assert [o.verdict for o in decide(given, replace(BY_NEURONS, **change))] == expected  # type: ignore[arg-type]


@dataclass(frozen=True)
class Failing:
    """Splits few at once."""

    at_most: int
    sizes: list[int] = field(default_factory=list)

    def children(self, bound: Lagrangian) -> Subproblems:
        self.sizes.append(bound.part.size)
        if bound.part.size > self.at_most:
            raise RuntimeError("not enough memory")
        return Babsr().children(bound)


def test_what_does_not_fit_the_memory_is_done_in_smaller_batches() -> None:
    given = tiny("residual", 0.25, 12)
    by_splits = replace(BY_NEURONS, root_steps=0, pre_steps=0, branching=Babsr())
    expected = [o.verdict for o in decide(given, by_splits)]
    failing = Failing(at_most=2)
    assert [o.verdict for o in decide(given, replace(by_splits, branching=failing))] == expected
    assert max(failing.sizes) > 2


def test_what_fails_by_itself_is_unknown_with_the_reason_and_both_bounds() -> None:
    found = decide(hard(), replace(BY_NEURONS, branching=Failing(at_most=0)))
    unknown = [o for o in found if o.verdict is Verdict.UNKNOWN]
    assert unknown
    assert all("RuntimeError: not enough memory" in o.reason for o in unknown)
    assert all(-math.inf < o.lower <= 0 < o.upper < math.inf for o in unknown)


@pytest.mark.parametrize(
    "options", [{"timeout": -1.0}, {"timeout": math.nan}, {"batch_size": 0}, {"steps": -1}, {"memory_gib": 0.0}]
)
def test_refuses_options_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Bab(**options)  # type: ignore[arg-type]


LAYERS = {
    "pooled": lambda: [nn.Conv2d(1, 3, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)],
    "overlapping": lambda: [nn.Conv2d(1, 2, 3, 1, 1), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)],
    "tanh": lambda: [nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3)],
    "sigmoid": lambda: [nn.Flatten(), nn.Linear(16, 5), nn.Sigmoid(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)],
}


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("eps", [0.02, 0.1, 0.3])
def test_no_point_contradicts_what_is_said_of_other_layers(layers: str, eps: float) -> None:
    """Joins and S-shaped functions, which enumeration does not cover: random points and corners of the boxes."""
    for seed in range(2):
        torch.manual_seed(seed)
        module, x = nn.Sequential(*LAYERS[layers]()).to(F64), torch.rand(3, 1, 4, 4, dtype=F64)
        net, params = tr.from_module(module, (1, 4, 4))
        spec = tr.margin_spec(net(params, x).argmax(1), 3, dtype=F64)
        box = tr.linf_box(x, eps)
        share = torch.rand(1000, *x.shape, dtype=F64)
        share[500:] = share[500:].round()
        points = (box.lower + share * (box.upper - box.lower)).flatten(0, 1)
        rows = torch.einsum("bro,nbo->nbr", spec.matrix, net(params, points).unflatten(0, (1000, 3)))
        least = rows.amin(2).amin(0).tolist()
        for outcome, margin in zip(decide(Problem(net, params, box, spec), Bab(timeout=0.5)), least, strict=True):
            assert margin > 0 or outcome.verdict is not Verdict.VERIFIED
            assert outcome.lower <= margin + 1e-9 or outcome.verdict is Verdict.FALSIFIED
