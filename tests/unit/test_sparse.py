"""Sparse DeepPoly: what its bounds are, that they hold, and that they do not depend on how they are computed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from certificates import decided, forged
from helpers import CASES, F64, case, random_points, randomise, relaxation, rows_at
from tightrope.auditor.audit import audit
from tightrope.auditor.bounds import Recipe, Region
from tightrope.auditor.finding import Verdict as Found
from tightrope.auditor.graph import Graph
from tightrope.auditor.lines import Interval as Ends
from tightrope.core.bounds import Bounds, Interval
from tightrope.core.op import ElementwiseOp
from tightrope.core.outcome import Verdict
from tightrope.evaluation.certificates import certificate
from tightrope.frontend.graph import canonical
from tightrope.relaxations import _backward
from tightrope.relaxations._interval import forward_intervals, image
from tightrope.verifiers._problem import Problem
from tightrope.verifiers.one_shot import OneShot

SPARSE = relaxation("deeppoly", sparse=True)
DENSE = relaxation("deeppoly")
BATCH = 4
each_case = pytest.mark.parametrize("name", CASES)
each_radius = pytest.mark.parametrize("eps", [0.01, 0.1])
each_way = pytest.mark.parametrize("share", [0.0, 1e9], ids=["all rows", "chosen rows"])


def problem(name: str, eps: float) -> Problem:
    given = case(name)
    x = given.inputs(BATCH)
    labels = given.net(given.params, x).argmax(1)
    spec = tr.margin_spec(labels, given.net.num_outputs, dtype=F64)
    return Problem(given.net, given.params, tr.linf_box(x, eps), spec)


def bounded(given: Problem) -> Bounds:
    return SPARSE.bounds(*given, rigorous=True)


def close(found: Interval, expected: Interval) -> None:
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def stable(given: Problem, name: str, interval: Interval) -> Tensor:
    """Where all that the node feeds is one line."""
    ops = [node.op for node in given.network.nodes if name in node.inputs]
    return torch.stack([op.stable(interval) for op in ops if isinstance(op, ElementwiseOp)]).all(0)


def interval_of(given: Problem, name: str, known: Mapping[str, Interval]) -> Interval:
    """From a pass in which non-linear ops take the bounds of their inputs."""
    network, params, box, _ = given
    users = [node for node in network.nodes if isinstance(node.op, ElementwiseOp) and node.inputs[0] in known]
    ranges = {node.name: image(node.op, known[node.inputs[0]]) for node in users}  # type: ignore[arg-type]
    return forward_intervals(network, params, box, pre=ranges, rigorous=True).interval(name)


@each_case
@each_radius
@each_way
def test_stable_neurons_keep_their_intervals_and_others_are_substituted(
    name: str, eps: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node by node, on the bounds of those before; the same whichever rows are computed."""
    monkeypatch.setattr(_backward, "_SHARE", share)
    given = problem(name, eps)
    network, params, box, spec = given
    found, earlier = bounded(given), dict[str, Interval]()
    for node in network.pre_activations:
        interval = interval_of(given, node, earlier)
        own = DENSE.bounds(network, params, box, spec, pre=earlier, rigorous=True).pre[node]
        kept = stable(given, node, interval)
        close(found.pre[node], Interval(*(torch.where(kept, *ends) for ends in zip(interval, own, strict=True))))
        earlier[node] = found.pre[node]
    rest = DENSE.bounds(network, params, box, spec, pre=earlier, rigorous=True)
    torch.testing.assert_close(found.margins, rest.margins, rtol=1e-9, atol=1e-9)


@each_case
def test_samples_are_independent(name: str) -> None:
    given = problem(name, 0.05)
    together = bounded(given)
    for i in range(BATCH):
        alone = bounded(given.rows([i]))
        torch.testing.assert_close(alone.margins, together.margins[i : i + 1], rtol=1e-9, atol=1e-9)
        for node, ends in alone.pre.items():
            close(ends, Interval(*(end[i : i + 1] for end in together.pre[node])))


@each_case
def test_bounds_hold(name: str) -> None:
    given = problem(name, 0.05)
    found, points = bounded(given), random_points(given.box, 200, torch.Generator().manual_seed(0))
    values = given.network.values(given.params, points.flatten(0, 1))
    outputs = values[given.network.output].unflatten(0, points.shape[:2])
    assert bool((found.margins <= rows_at(given.spec, outputs).amin(0) + 1e-12).all())
    for node, (lower, upper) in found.pre.items():
        seen = values[node].unflatten(0, points.shape[:2])
        assert bool((lower <= seen.amin(0) + 1e-12).all())
        assert bool((seen.amax(0) <= upper + 1e-12).all())


@each_case
@each_radius
def test_margins_are_those_of_deeppoly_where_intervals_see_no_more(name: str, eps: float) -> None:
    """A stable neuron is the same line on wider bounds, so that all later bounds are the same."""
    given = problem(name, eps)
    found, dense = bounded(given), DENSE.bounds(*given, rigorous=True)
    same = torch.ones(BATCH, dtype=torch.bool)
    for node in given.network.pre_activations:
        more = stable(given, node, found.pre[node]) & ~stable(given, node, dense.pre[node])
        same &= ~more.flatten(1).any(1)
    assert eps > 0.02 or bool(same.any())
    torch.testing.assert_close(found.margins[same], dense.margins[same], rtol=1e-9, atol=1e-9)


@each_case
def test_plain_bounds_do_not_change(name: str) -> None:
    """To the last bit: training never looks at values."""
    given = problem(name, 0.1)
    found, dense = SPARSE.bounds(*given), DENSE.bounds(*given)
    assert torch.equal(found.margins, dense.margins)
    for node, ends in dense.pre.items():
        assert all(map(torch.equal, found.pre[node], ends))


@pytest.mark.parametrize("shape", [(6,), (2, 5, 5)], ids=str)
def test_only_unstable_rows_are_substituted(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the sample with most of them has; none at a point."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 2, 2) if len(shape) == 3 else nn.Linear(36, 30)
    second = nn.Conv2d(2, 2, 1) if len(shape) == 3 else nn.Linear(30, 6)
    size = shape[0] * (25 if len(shape) == 3 else 1)
    module = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(size, 3)).to(F64)
    inputs = (1, 6, 6) if len(shape) == 3 else (36,)
    net, params = tr.from_module(module, inputs)
    x, counts = torch.rand(BATCH, *inputs, dtype=F64), list[int]()
    ordinary = _backward.Engine._some_bounds

    def counted(engine: _backward.Engine, name: str, index: Tensor) -> Interval:
        counts.append(index.shape[1])
        return ordinary(engine, name, index)

    monkeypatch.setattr(_backward, "_SHARE", 1e9)
    monkeypatch.setattr(_backward.Engine, "_some_bounds", counted)
    spec = tr.margin_spec(torch.zeros(BATCH, dtype=torch.int64), 3, dtype=F64)
    given = Problem(net, params, tr.linf_box(x, 0.01), spec)
    found = bounded(given)
    last = net.pre_activations[-1]
    earlier = {name: ends for name, ends in found.pre.items() if name != last}
    interval = interval_of(given, last, earlier)
    most = int((~stable(given, last, interval)).flatten(1).sum(1).max())
    assert counts == [most]
    assert 0 < most < size
    counts.clear()
    bounded(given._replace(box=tr.linf_box(x, 0.0)))
    assert counts == []


def test_an_infinite_interval_makes_nothing_stable() -> None:
    ends = torch.tensor([[1.0, -torch.inf, 1.0, -1.0]]), torch.tensor([[2.0, -1.0, torch.inf, torch.nan]])
    network, _ = tr.from_module(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (4,))
    found = _backward._stable_on(network, network.pre_activations[0], Interval(*ends))
    assert found.tolist() == [[True, False, False, False]]


# ---------------------------------------------------------------------------------------------------- the auditor


def seen_by_intervals() -> Problem:
    """h = relu(relu(z) + 1/2) on -1 <= z <= 1: intervals show that it is stable, the steep line z <= relu(z) does not.

    The margin, relu(relu(z) + 2) - h - 1.3, is 0.2 everywhere.
    """
    layers = [nn.Linear(1, 1), nn.Linear(1, 2), nn.Linear(2, 2)]
    weights = [[[2.0]], [[1.0], [1.0]], [[1.0, -1.0], [0.0, 0.0]]]
    for layer, weight, bias in zip(layers, weights, [[-1.0], [2.0, 0.5], [-1.3, 0.0]], strict=True):
        layer.weight, layer.bias = (nn.Parameter(torch.tensor(value, dtype=F64)) for value in (weight, bias))
    module = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    net, params = tr.from_module(module, (1,))
    x = torch.full((1, 1), 0.5, dtype=F64)
    return Problem(net, params, tr.linf_box(x, "1/2"), tr.margin_spec(torch.tensor([0]), 2, dtype=F64))


def test_what_intervals_win_is_audited_by_the_same_rule() -> None:
    """The certificate says by which; under the other one its bound is not positive."""
    given = seen_by_intervals()
    [dense] = decided(OneShot(DENSE, "deeppoly", evidence=True), given)
    assert dense.verdict is Verdict.UNKNOWN
    [outcome] = decided(OneShot(SPARSE, "deeppoly", evidence=True), given)
    assert outcome.verdict is Verdict.VERIFIED
    assert outcome.lower == pytest.approx(0.2)
    model = canonical(given.network, given.params)
    made = certificate(given, 0, outcome, model.sha256, None)
    assert made is not None
    assert audit(made, model).verdict is Found.CONFIRMED
    other = forged(made, {"relaxation": {"name": "deeppoly", "slope": "adaptive", "sparse": False}})
    assert audit(other, model).verdict is Found.REJECTED


class Skip(nn.Module):
    """A pre-activation that goes around its own activation: the way around is counted by its interval."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        around = 0.5 * x
        return self.last((self.third(x.relu()) + around).relu())


def skip(eps: float) -> Problem:
    net, params = tr.from_module(randomise(Skip(), 9), (3,))
    x = torch.rand(BATCH, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    spec = tr.margin_spec(net(params, x).argmax(1), 3, dtype=F64)
    return Problem(net, params, tr.linf_box(x, eps), spec)


@pytest.mark.parametrize("name", [*CASES, "skip"])
def test_the_auditor_recomputes_the_same_bounds(name: str) -> None:
    given = (skip(0.1) if name == "skip" else problem(name, 0.05)).rows([0])
    model = canonical(given.network, given.params)
    graph = Graph(model.graph, model.weights)
    box = Ends(*(end[0].numpy().ravel() for end in given.box))
    region = Region(graph, box, Recipe.of({"name": "deeppoly", "slope": "adaptive", "sparse": True}))
    for node, interval in bounded(given).pre.items():
        close(Interval(*map(torch.from_numpy, region.plain[node])), Interval(*(end[0].flatten() for end in interval)))
