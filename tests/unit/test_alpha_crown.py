"""Optimised slopes, multipliers and weights: what they may reach, and that any of them are sound."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from helpers import CASES, F64, as_oracle, case, random_points, randomise, relaxation, rows_at
from reference.exact import exact_min, lp_relaxation_min
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.spec import Spec
from tightrope.errors import InputError
from tightrope.verifiers._ascent import Ascent, ascend
from tightrope.verifiers._problem import Problem
from tightrope.verifiers._subproblems import Items, Lagrangian, Subproblems, Variables
from tightrope.verifiers.alpha_crown import AlphaCrown


def problem(name: str, eps: float, batch: int = 4) -> Problem:
    given = case(name)
    x = given.inputs(batch)
    labels = given.net(given.params, x).argmax(1)
    return Problem(given.net, given.params, tr.linf_box(x, eps), tr.margin_spec(labels, 3, dtype=F64))


def bounds(given: Problem, steps: int = 100) -> Tensor:
    """Of every clause, all optimised to the end: margins are far below 0, since what is proved is left as it is."""
    away = 10 * relaxation("deeppoly").bounds(*given).margins.abs().amax()
    far = given.spec._replace(offset=given.spec.offset - away)
    items = Items(given._replace(spec=far), relaxation("deeppoly"))
    found = ascend(Lagrangian(items, items.roots()), Ascent(steps)).lower
    return found.reshape(items.margins.shape) + away


def outcomes(given: Problem, verifier: AlphaCrown) -> list[Outcome]:
    return verifier.verify(*given, generator=torch.Generator())


@pytest.mark.parametrize("eps", [0.05, 0.2])
@pytest.mark.parametrize("name", CASES)
def test_it_is_at_least_deeppoly(name: str, eps: float) -> None:
    given = problem(name, eps)
    before = relaxation("deeppoly").bounds(*given).margins
    assert bool((bounds(given, 20) >= before - 1e-9).all())
    found = [outcome.lower for outcome in outcomes(given, AlphaCrown())]
    assert all(low >= float(row) - 1e-9 for low, row in zip(found, before.amin(1), strict=True))


def test_optimised_intermediate_bounds_lose_nothing_and_gain_something() -> None:
    layers = [layer for inputs in (6, 12, 12) for layer in (nn.Linear(inputs, 12), nn.ReLU())]
    module = randomise(nn.Sequential(*layers, nn.Linear(12, 3)), 0)
    net, params = tr.from_module(module, (6,))
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    spec = tr.margin_spec(net(params, x).argmax(1), 3, dtype=F64)
    given = Problem(net, params, tr.linf_box(x, 0.3), spec)
    plain, tight = ([o.lower for o in outcomes(given, AlphaCrown(pre_steps=steps))] for steps in (0, 10))
    assert all(b >= a for a, b in zip(plain, tight, strict=True))
    assert min(plain) < 0 < min(tight)


@pytest.mark.parametrize("seed", range(5))
def test_behind_one_layer_it_attains_the_triangle_relaxation(seed: int) -> None:
    """The dual of that linear program is this maximum (Salman et al. 2019)."""
    module = randomise(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), seed)
    net, params = tr.from_module(module, (3,))
    x = torch.rand(2, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    spec = tr.margin_spec(torch.tensor([0, 1]), 2, dtype=F64)
    given, oracle = Problem(net, params, tr.linf_box(x, 0.3), spec), as_oracle(module, (3,))
    start, found = relaxation("deeppoly").bounds(*given), bounds(given, 300)
    [ends] = start.pre.values()
    for i in range(2):
        pre = {"1": (ends.lower[i].numpy(), ends.upper[i].numpy())}
        box = given.box.lower[i].numpy(), given.box.upper[i].numpy()
        best = lp_relaxation_min(oracle, *box, pre, spec.matrix[i, 0].numpy())
        assert best - 1e-3 <= float(found[i, 0]) <= best + 1e-7


@pytest.mark.parametrize("name", CASES)
def test_any_variables_are_sound(name: str) -> None:
    """Bounds hold at the points of the box with the signs that the subproblem is about."""
    given, generator = problem(name, 0.15), torch.Generator().manual_seed(3)
    items = Items(given, relaxation("deeppoly"))
    roots = items.roots()
    points = random_points(given.box, 500, generator)
    values = given.network.values(given.params, points.flatten(0, 1))
    neurons = items.neurons.of(values, len(points) * 4).reshape(500, 4, -1)[:, items.sample]
    rows = rows_at(given.spec, values[given.network.output].reshape(500, 4, 3)).flatten(1)
    for _ in range(5):
        signs = torch.randint(-1, 2, roots.signs.shape, generator=generator).to(F64)
        part = roots._replace(signs=signs * items.neurons.splittable)
        variables = Variables(
            torch.rand(signs.shape, generator=generator, dtype=F64),
            torch.rand(signs.shape, generator=generator, dtype=F64),
            roots.weights,
        )
        found = Lagrangian(items, part)(variables)
        here = ((part.signs * neurons) >= 0).all(2)
        assert bool((rows >= found - 1e-9)[here].all())


def test_multipliers_prove_what_slopes_cannot() -> None:
    """relu(x) is the line x where x >= 0; that x is not -1 there is known from the sign alone."""
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).to(F64)
    weights = {"0.weight": [[1.0], [-1.0]], "0.bias": [0.0, 0.0], "2.weight": [[1.0, 0.0]], "2.bias": [0.1]}
    net, _ = tr.from_module(module, (1,))
    params = {name: torch.tensor(value, dtype=F64) for name, value in weights.items()}
    box = tr.linf_box(torch.zeros(1, 1, dtype=F64), 1.0, data_range=None)
    spec = Spec(torch.ones(1, 1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64), (0,))
    items = Items(Problem(net, params, box, spec), relaxation("deeppoly"))
    root = items.roots()
    one = torch.tensor([[1.0, 0.0]], dtype=F64)
    split = root._replace(signs=one, pre_lower=root.pre_lower * (1 - one))
    assert float(ascend(Lagrangian(items, split), Ascent(200)).lower) > 0
    free = ascend(Lagrangian(items, split._replace(signs=0 * one)), Ascent(200))
    assert float(free.lower) < 0


@pytest.mark.parametrize("offset", [0.01, 1e-6])
def test_a_disjunction_is_proved_by_weights_of_its_rows(offset: float) -> None:
    """x > -offset or -x > -offset holds everywhere, and neither row does."""
    net, _ = tr.from_module(nn.Linear(1, 2, bias=False).to(F64), (1,))
    params = {"weight": torch.tensor([[1.0], [-1.0]], dtype=F64)}
    box = tr.linf_box(torch.zeros(1, 1, dtype=F64), 1.0, data_range=None)
    spec = Spec(torch.eye(2, dtype=F64)[None], torch.full((1, 2), offset, dtype=F64), (0, 0))
    given = Problem(net, params, box, spec)
    assert outcomes(given, AlphaCrown(steps=200))[0].verdict is Verdict.VERIFIED
    wrong = given._replace(spec=spec._replace(offset=-spec.offset))
    assert outcomes(wrong, AlphaCrown(steps=200))[0].verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_scale_of_the_weights_changes_nothing(scale: float) -> None:
    given = problem("residual", 0.2)
    last = {k: v * scale if k.startswith("head") else v for k, v in given.params.items()}
    plain, scaled = bounds(given), bounds(given._replace(params=last))
    torch.testing.assert_close(scaled, plain * scale, rtol=1e-6, atol=1e-6 * scale)


def test_bounds_that_are_not_finite_improve_nothing() -> None:
    given = problem("mlp", 0.2)
    items = Items(given, relaxation("deeppoly"))
    part = items.roots()

    class Broken(Lagrangian):
        def __call__(self, variables: Variables) -> Tensor:
            value = super().__call__(variables)
            return torch.stack([value[0] * math.nan, value[1] + math.inf, *(value[2:] - math.inf)])

    found: Subproblems = ascend(Broken(items, part), Ascent(3))
    assert torch.equal(found.lower, part.lower)
    assert all(torch.equal(new, old) for new, old in zip(found.variables, part.variables, strict=True))


def test_no_bound_is_above_the_exact_minimum_of_random_networks() -> None:
    for seed in range(30):
        module = randomise(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), seed)
        net, params = tr.from_module(module, (2,))
        x = torch.rand(1, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
        box, spec = tr.linf_box(x, 0.3), tr.margin_spec(net(params, x).argmax(1), 2, dtype=F64)
        [outcome] = outcomes(Problem(net, params, box, spec), AlphaCrown())
        exact = exact_min(
            as_oracle(module, (2,)), box.lower[0].numpy(), box.upper[0].numpy(), spec.matrix[0, 0].numpy()
        )
        assert outcome.lower <= exact + 1e-9


def test_refuses_options_that_make_no_sense() -> None:
    for options in ({"steps": -1}, {"pre_steps": -1}, {"rate": 0.0}, {"rate": math.nan}):
        with pytest.raises(InputError):
            AlphaCrown(**options)
