"""The auditor's own theorems: its bounds hold in exact arithmetic, its lines are valid, covers cover."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import tightrope as tr
from certificates import RELAXATIONS
from helpers import F64
from tightrope.auditor.bounds import Recipe, Region, lower_bounds
from tightrope.auditor.cover import Cell, Leaf, NoCover, cells
from tightrope.auditor.graph import Activation, Array, Graph
from tightrope.auditor.lines import Interval, image, lines
from tightrope.core import registry
from tightrope.frontend.graph import canonical

ACTIVATIONS = [Activation("relu"), Activation("relu", 0.2), Activation("tanh"), Activation("sigmoid")]
RULES = ("adaptive", "soft", "zero", "parallel", "constant")


def examples() -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Every example of every op, with a head."""
    for name in registry.names("ops"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for number, (module, shape) in enumerate(registry.find("ops", name).examples()):
                outputs = module.eval()(torch.zeros((1, *shape))).flatten(1).shape[1]
                head = nn.Sequential(nn.Linear(outputs, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
                yield f"{name}-{number}", nn.Sequential(module, nn.Flatten(), head).to(F64).eval(), shape


EXAMPLES = list(examples())


@pytest.mark.parametrize(("name", "module", "shape"), EXAMPLES, ids=[name for name, _, _ in EXAMPLES])
def test_it_computes_what_the_library_computes(name: str, module: nn.Module, shape: tuple[int, ...]) -> None:
    """The network's values, and the bounds of every relaxation, with code of its own, up to rounding."""
    net, params = tr.from_module(module, shape)
    model = canonical(net, params)
    graph = Graph(model.graph, model.weights)
    x = torch.rand((1, *shape), generator=torch.Generator().manual_seed(1), dtype=F64)
    point = x.numpy().ravel()
    lower, upper = Region(graph, Interval(point, point), Recipe("intervals", "intervals")).ranges[graph.output]
    with torch.no_grad():
        outputs = module(x)[0].numpy()
    assert ((lower <= outputs + 1e-12) & (outputs - 1e-12 <= upper) & (upper - lower < 1e-10)).all()
    box, spec = tr.linf_box(x, 0.02), tr.margin_spec(torch.tensor([0]), 3, dtype=F64)
    flat = Interval(*(end.numpy().ravel() for end in box))
    variants = [(name, "adaptive") for name in RELAXATIONS] + [("deeppoly", "soft"), ("crown_ibp", "zero")]
    for relaxation, slope in variants:
        options = {"slope": slope} if relaxation in ("deeppoly", "crown_ibp") else {}
        with torch.no_grad():
            expected = tr.relaxation(relaxation, **options).bounds(net, params, box, spec)
        region = Region(graph, flat, Recipe.of({"name": relaxation, "slope": slope}))
        found = lower_bounds(region, {graph.output: spec.matrix[0].numpy()}, region.lines)
        assert np.allclose(found.rigorous, expected.margins[0].numpy(), rtol=0, atol=1e-8), relaxation
        for node, interval in expected.pre.items():
            for end, own in zip(interval, region.pre[node], strict=True):
                assert np.allclose(own, end[0].numpy().ravel(), rtol=0, atol=1e-8), (relaxation, node)


# ---------------------------------------------------------------------------------------------------- rounding


def exact_range(weights: list[Array], biases: list[Array], lower: Array, upper: Array) -> tuple[Fraction, Fraction]:
    """Of the sum of the outputs of an affine network, in rational numbers."""
    coef, constant = [Fraction(1)] * len(biases[-1]), Fraction(0)
    for weight, bias in zip(reversed(weights), reversed(biases), strict=True):
        constant += sum((c * Fraction(b) for c, b in zip(coef, bias, strict=True)), Fraction(0))
        columns = zip(*weight, strict=True)
        coef = [sum((c * Fraction(w) for c, w in zip(coef, column, strict=True)), Fraction(0)) for column in columns]
    ends = [(c * Fraction(low), c * Fraction(high)) for c, low, high in zip(coef, lower, upper, strict=True)]
    return constant + sum(map(min, ends)), constant + sum(map(max, ends))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(5))
def test_bounds_hold_in_exact_arithmetic_though_everything_cancels(seed: int, scale: float) -> None:
    """Affine networks whose last layers nearly undo the first ones: what is left is rounding, and it is bounded."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((4, 4)) * scale
    weights = [first, rng.standard_normal((4, 4)), np.ones((1, 4))]
    weights[2] = np.linalg.lstsq((weights[1] @ first).T, 1e-14 * rng.standard_normal((4, 1)), rcond=None)[0].T
    biases = [rng.standard_normal(4) * scale, rng.standard_normal(4), np.zeros(1)]
    linear = [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)]
    for layer, weight, bias in zip(linear, weights, biases, strict=True):
        layer.weight, layer.bias = (nn.Parameter(torch.from_numpy(value)) for value in (weight, bias))
    model = canonical(*tr.from_module(nn.Sequential(*linear).to(F64), (4,)))
    graph = Graph(model.graph, model.weights)
    lower = rng.standard_normal(4)
    upper = lower + rng.random(4)
    low, high = exact_range(weights, biases, lower, upper)
    for recipe in (Recipe("intervals", "intervals"), Recipe("substitution", "adaptive")):
        region = Region(graph, Interval(lower, upper), recipe)
        ends = [lower_bounds(region, {graph.output: np.array([[sign]])}, {}).rigorous[0] for sign in (1.0, -1.0)]
        assert Fraction(ends[0]) <= low
        assert -Fraction(ends[1]) >= high
        interval = region.ranges[graph.output]
        assert Fraction(interval.lower[0]) <= low
        assert Fraction(interval.upper[0]) >= high


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("op", ACTIVATIONS, ids=str)
def test_lines_are_valid_in_wider_arithmetic(op: Activation, rule: str) -> None:
    """On intervals of all sizes and places, with any tilt, at their ends, at 0 and inside; in 80-bit numbers."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal(600) * 10.0 ** rng.integers(-9, 2, 600)
    radius = rng.random(600) * 10.0 ** rng.integers(-12, 2, 600)
    pre = Interval(centre - radius, centre + radius)
    inside = [pre.lower + share * (pre.upper - pre.lower) for share in np.linspace(0, 1, 41)]
    x = np.clip(np.stack([*inside, np.zeros(600)]), *pre).astype(np.longdouble)
    range_ = image(op, pre)
    for tilt in (None, rng.random(600), np.zeros(600), np.ones(600)):
        low, low_offset, high, high_offset = (value.astype(np.longdouble) for value in lines(op, pre, rule, tilt))
        value = exact_value(op, x)
        assert (low * x + low_offset <= value).all()
        assert (high * x + high_offset >= value).all()
        assert (range_.lower <= value).all()
        assert (range_.upper >= value).all()


def exact_value(op: Activation, x: np.ndarray) -> np.ndarray:
    if op.function == "relu":
        return np.maximum(x, np.longdouble(op.slope) * x)
    return np.tanh(x) if op.function == "tanh" else (1 + np.tanh(x / 2)) / 2


def test_lines_are_as_tight_as_the_library_s() -> None:
    """At the middle of the interval, where lines of least area are closest."""
    rng = np.random.default_rng(1)
    lower = rng.standard_normal(200) * 2
    upper = lower + rng.random(200) * 3
    for name, op in (("relu", ACTIVATIONS[0]), ("tanh", ACTIVATIONS[2]), ("sigmoid", ACTIVATIONS[3])):
        theirs = registry.create("ops", name)
        pre = tr.Interval(torch.from_numpy(lower), torch.from_numpy(upper))
        expected = theirs.envelope(pre, theirs.minimum_area(pre))
        found, middle = lines(op, Interval(lower, upper), "adaptive"), (lower + upper) / 2
        for slope, offset, other, bias in (
            (found.lower_slope, found.lower_offset, expected.lower_slope, expected.lower_bias),
            (found.upper_slope, found.upper_offset, expected.upper_slope, expected.upper_bias),
        ):
            other_offset = 0.0 if bias is None else bias.numpy()
            assert np.allclose(slope * middle + offset, other.numpy() * middle + other_offset, rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------------------------ covers


UNIT_SQUARE = Cell(np.zeros(2), np.ones(2))


def leaf(
    number: int, signs: dict[int, int], lower: tuple[float, float] = (0, 0), upper: tuple[float, float] = (1, 1)
) -> Leaf:
    return Leaf(number, np.array(lower, dtype=float), np.array(upper, dtype=float), signs)


def covers(leaves: list[Leaf]) -> bool:
    try:
        return len(list(cells(leaves, UNIT_SQUARE))) == len(leaves)
    except NoCover:
        return False


def grown(rng: np.random.Generator, cuts: int) -> list[Leaf]:
    """A random tree of splits of neurons and boxes."""
    leaves = [leaf(0, {})]
    for _ in range(cuts):
        old = leaves.pop(rng.integers(len(leaves)))
        free = [n for n in range(6) if n not in old.signs]
        if rng.random() < 0.5 and free:
            neuron = int(rng.choice(free))
            leaves += [Leaf(0, old.lower, old.upper, {**old.signs, neuron: sign}) for sign in (1, -1)]
        else:
            axis = int(rng.integers(2))
            place = old.lower[axis] + rng.random() * (old.upper[axis] - old.lower[axis])
            low, high = old.upper.copy(), old.lower.copy()
            low[axis] = high[axis] = place
            leaves += [Leaf(0, old.lower, low, old.signs), Leaf(0, high, old.upper, old.signs)]
    return [Leaf(number, old.lower, old.upper, old.signs) for number, old in enumerate(leaves)]


@pytest.mark.parametrize("seed", range(20))
def test_every_tree_covers_and_no_tree_without_a_leaf_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    leaves = grown(rng, 12)
    rng.shuffle(leaves)  # type: ignore[arg-type]
    assert covers(leaves)
    for missing in range(len(leaves)):
        assert not covers(leaves[:missing] + leaves[missing + 1 :])
        assert not covers([*leaves, leaves[missing]])


@pytest.mark.parametrize("seed", range(20))
def test_a_changed_sign_or_edge_is_no_cover(seed: int) -> None:
    rng = np.random.default_rng(seed)
    leaves = grown(rng, 12)
    for number, old in enumerate(leaves):
        for neuron, sign in old.signs.items():
            other = Leaf(number, old.lower, old.upper, {**old.signs, neuron: -sign})
            assert not covers([*leaves[:number], other, *leaves[number + 1 :]])
            other = Leaf(number, old.lower, old.upper, {n: s for n, s in old.signs.items() if n != neuron})
            assert not covers([*leaves[:number], other, *leaves[number + 1 :]])
        for axis, by in product((0, 1), (1e-12, 0.1)):
            upper = old.upper.copy()
            upper[axis] -= by * (upper[axis] - old.lower[axis])
            assert not covers([*leaves[:number], Leaf(number, old.lower, upper, old.signs), *leaves[number + 1 :]])


def test_covers_by_hand() -> None:
    assert covers([leaf(0, {})])
    assert covers([leaf(0, {3: 1}), leaf(1, {3: -1})])
    assert not covers([])
    assert not covers([leaf(0, {3: 1})])
    assert not covers([leaf(0, {3: 1}), leaf(1, {4: -1})])
    assert not covers([leaf(0, {}, upper=(0.5, 1))])
    assert covers([leaf(0, {}, upper=(0.5, 1)), leaf(1, {}, lower=(0.5, 0))])
    assert not covers([leaf(0, {}, upper=(0.5, 1)), leaf(1, {}, lower=(0.500001, 0))])
