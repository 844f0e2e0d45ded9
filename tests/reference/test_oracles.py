"""The oracles against each other, against brute force, and (the layers as matrices) against torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from reference.backward import crown_ibp, deeppoly, lines, lower_bounds, smooth_lines
from reference.exact import exact_argmin, exact_min, linear_pieces, lp_relaxation_min, milp_min
from reference.interval import affine_interval, ibp, node_intervals
from reference.network import (
    INPUT,
    Activation,
    Add,
    Affine,
    Array,
    Bounds,
    LeakyRelu,
    Net,
    Relu,
    SShaped,
    avgpool_matrix,
    batchnorm_affine,
    conv_matrix,
    conv_transpose_matrix,
    evaluate,
    graph,
    output,
    sequential,
)
from reference.sampling import corners, random_points, sampled_min
from reference.zonotope import deepz, hbox

RELAXATIONS = {"ibp": ibp, "hbox": hbox, "deepz": deepz, "crown_ibp": crown_ibp, "deeppoly": deeppoly}
SEEDS = range(3)


def affine(rng: np.random.Generator, out: int, into: int) -> Affine:
    return Affine(rng.normal(size=(out, into)) / np.sqrt(into), 0.3 * rng.normal(size=out))


def plain(rng: np.random.Generator, act: Activation) -> Net:
    layers = (affine(rng, 4, 2), act, affine(rng, 3, 4), act, affine(rng, 3, 3), act, affine(rng, 3, 3))
    return sequential(layers)


def residual(rng: np.random.Generator, act: Activation) -> Net:
    """Two skips: one around a block, one into the output; "stem" feeds three nodes."""
    return graph(
        [
            ("stem", affine(rng, 3, 2), (INPUT,)),
            ("act0", act, ("stem",)),
            ("branch", affine(rng, 3, 3), ("act0",)),
            ("join", Add(), ("branch", "stem")),
            ("act1", act, ("join",)),
            ("mix", affine(rng, 3, 3), ("act1",)),
            ("act2", act, ("mix",)),
            ("out", Add(), ("act2", "stem")),
        ]
    )


def convolutional(rng: np.random.Generator, act: Activation) -> Net:
    """Two inputs spread over a 4 x 4 image, then convolution, batch normalisation, pooling."""
    norm = batchnorm_affine(rng.normal(size=1), rng.normal(size=1), rng.normal(size=1), np.ones(1), 1e-5, (1, 3, 3))
    return sequential(
        (
            affine(rng, 16, 2),
            conv_matrix(rng.normal(size=(1, 1, 2, 2)), rng.normal(size=1), (1, 4, 4)),
            norm,
            act,
            avgpool_matrix((1, 3, 3), 2, 1),
            act,
            affine(rng, 3, 4),
        )
    )


CASES = [
    pytest.param(build, act, seed, id=f"{build.__name__}-{type(act).__name__}-{seed}")
    for build in (plain, residual, convolutional)
    for act in (Relu(), LeakyRelu(0.1))
    for seed in SEEDS
]
each_case = pytest.mark.parametrize(("build", "act", "seed"), CASES)


def problem(
    build: Callable[[np.random.Generator, Activation], Net], act: Activation, seed: int, radius: float = 1.0
) -> tuple[Net, Array, Array, Array, Array]:
    """A random net, a box with sides of different lengths, three specification rows and offsets."""
    rng = np.random.default_rng(seed)
    net, centre = build(rng, act), rng.normal(size=2)
    sides = radius * np.array([1.0, 0.6])
    return net, centre - sides, centre + sides, rng.normal(size=(3, 3)), rng.normal(size=3)


def relaxations(net: Net, lower: Array, upper: Array, rows: Array, offset: Array) -> dict[str, Bounds]:
    return {name: bound(net, lower, upper, rows, offset) for name, bound in RELAXATIONS.items()}


def exact_minima(net: Net, lower: Array, upper: Array, rows: Array, offset: Array) -> Array:
    pieces = linear_pieces(net, lower, upper)
    pairs = zip(rows, offset, strict=True)
    return np.array([exact_argmin(net, lower, upper, row, constant, pieces)[0] for row, constant in pairs])


def sensitivity(net: Net) -> Array:
    """Entry (i, j) bounds |d f_i / d x_j|: products of absolute matrices, activations being 1-Lipschitz."""
    found = {INPUT: np.eye(2)}
    for name, layer, inputs in net.nodes:
        if isinstance(layer, Affine):
            found[name] = np.abs(layer.weight) @ found[inputs[0]]
        else:
            found[name] = sum(found[i] for i in inputs)
    return found[net.output]


def assert_same(one: Bounds, other: Bounds) -> None:
    np.testing.assert_allclose(one.margins, other.margins, rtol=1e-9, atol=1e-12)
    assert one.pre.keys() == other.pre.keys()
    for name in one.pre:
        np.testing.assert_allclose(one.pre[name], other.pre[name], rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------ the exact minimum


@each_case
def test_exact_minimum_is_attained_and_equals_a_grid_up_to_its_spacing(build, act, seed):
    net, lower, upper, rows, offset = problem(build, act, seed)
    axes = [np.linspace(low, high, 201) for low, high in zip(lower, upper, strict=True)]
    values = output(net, np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2))
    slack = np.abs(rows) @ sensitivity(net) @ ((upper - lower) / 200 / 2)
    pieces = linear_pieces(net, lower, upper)
    for row, constant, gap in zip(rows, offset, slack, strict=True):
        exact, x = exact_argmin(net, lower, upper, row, constant, pieces)
        grid = (values @ row + constant).min()
        assert grid - gap <= exact <= grid + 1e-9
        assert np.all((lower <= x) & (x <= upper))
        assert exact == pytest.approx(output(net, x) @ row + constant, abs=1e-12)


@each_case
def test_exact_minimum_equals_the_mixed_integer_program(build, act, seed):
    net, lower, upper, rows, offset = problem(build, act, seed)
    pre = ibp(net, lower, upper, rows).pre
    found = [milp_min(net, lower, upper, pre, row, c) for row, c in zip(rows, offset, strict=True)]
    np.testing.assert_allclose(found, exact_minima(net, lower, upper, rows, offset), rtol=1e-6, atol=1e-6)


@each_case
def test_pieces_cover_the_box_and_agree_with_the_net(build, act, seed):
    net, lower, upper, _, _ = problem(build, act, seed)
    pieces = linear_pieces(net, lower, upper)
    for x in random_points(lower, upper, 50, np.random.default_rng(seed)):
        home = [p for p in pieces if np.all(p.region.matrix @ x <= p.region.vector + 1e-9)]
        assert home
        for piece in home:
            np.testing.assert_allclose(piece.weight @ x + piece.bias, output(net, x), atol=1e-7)


def test_exact_minimum_of_a_known_function():
    """f(x) = relu(x) + relu(-x) = |x| on [-1, 2], and 1 - |x|."""
    net = sequential((Affine(np.array([[1.0], [-1.0]]), np.zeros(2)), Relu(), Affine(np.ones((1, 2)), np.zeros(1))))
    lower, upper = np.array([-1.0]), np.array([2.0])
    assert exact_min(net, lower, upper, np.array([1.0])) == pytest.approx(0.0, abs=1e-9)
    assert exact_min(net, lower, upper, np.array([-1.0]), 1.0) == pytest.approx(-1.0, abs=1e-9)


def test_programs_respect_clamped_bounds_and_report_an_empty_set():
    """relu(x) on [-1, 1]: clamped to x >= 1/2 the minimum is 1/2; clamped to x >= 2 there is none."""
    net, row = sequential((Affine(np.eye(1), np.zeros(1)), Relu())), np.ones(1)
    for solve in (lp_relaxation_min, milp_min):
        clamped = {"1": (np.array([0.5]), np.array([1.0]))}
        assert solve(net, -row, row, clamped, row) == pytest.approx(0.5)
        assert solve(net, -row, row, {"1": (np.array([2.0]), np.array([3.0]))}, row) == np.inf


# ------------------------------------------------------------------------------------------------ relaxations


@each_case
def test_relaxation_below_lp_below_exact_below_samples(build, act, seed):
    net, lower, upper, rows, offset = problem(build, act, seed)
    found = relaxations(net, lower, upper, rows, offset)
    exact_values = exact_minima(net, lower, upper, rows, offset)
    for k, (row, constant, exact) in enumerate(zip(rows, offset, exact_values, strict=True)):
        seen, x = sampled_min(net, lower, upper, row, constant, rng=np.random.default_rng(seed))
        assert exact <= seen + 1e-9
        assert np.all((lower <= x) & (x <= upper))
        for name, bounds in found.items():
            triangle = lp_relaxation_min(net, lower, upper, bounds.pre, row, constant)
            assert bounds.margins[k] <= triangle + 1e-8, name
            assert triangle <= exact + 1e-8, name


@each_case
def test_pre_activation_bounds_hold_at_points_of_the_box(build, act, seed):
    net, lower, upper, rows, offset = problem(build, act, seed)
    rng = np.random.default_rng(seed)
    points = np.concatenate([corners(lower, upper, rng), random_points(lower, upper, 300, rng)])
    values, source = evaluate(net, points), {node.name: node.inputs[0] for node in net.nodes}
    for name, bounds in relaxations(net, lower, upper, rows, offset).items():
        assert bounds.pre, name
        for node, (low, high) in bounds.pre.items():
            assert np.all(low - 1e-9 <= values[source[node]]), (name, node)
            assert np.all(values[source[node]] <= high + 1e-9), (name, node)


@each_case
@pytest.mark.parametrize(("forward", "rule"), [(deepz, "chord"), (hbox, "box")])
def test_zonotope_equals_back_substitution_of_the_same_lines(build, act, seed, forward, rule):
    net, lower, upper, rows, offset = problem(build, act, seed)
    assert_same(forward(net, lower, upper, rows, offset), deeppoly(net, lower, upper, rows, offset, rule=rule))


@each_case
def test_every_lower_slope_is_sound_and_named_rules_are_slopes(build, act, seed):
    net, lower, upper, rows, offset = problem(build, act, seed)
    pre = ibp(net, lower, upper, rows).pre
    exact = exact_minima(net, lower, upper, rows, offset)
    rng = np.random.default_rng(seed)
    slopes = {name: act.slope + (1 - act.slope) * rng.random(low.size) for name, (low, _) in pre.items()}
    for rule in ("adaptive", "zero", "one", "chord", "box", slopes):
        assert np.all(lower_bounds(net, lower, upper, pre, rows, offset, rule=rule) <= exact + 1e-9)
    ones = {name: np.ones(low.size) for name, (low, _) in pre.items()}
    same = [lower_bounds(net, lower, upper, pre, rows, offset, rule=rule) for rule in ("one", ones)]
    np.testing.assert_allclose(*same, rtol=1e-12)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("rule", ["adaptive", "zero", "one", "chord", "box"])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (-2.0, 1.0), (-1.0, 1.0), (0.0, 1.0), (-1.0, 0.0)])
def test_lines_enclose_the_activation(slope, rule, low, high):
    line, x = lines(slope, low, high, rule), np.linspace(low, high, 101)
    y = np.maximum(x, slope * x)
    assert np.all(line.lower_slope * x + line.lower_constant <= y + 1e-12)
    assert np.all(y <= line.upper_slope * x + line.upper_constant + 1e-12)


@pytest.mark.parametrize("layer", [SShaped("tanh"), SShaped("sigmoid")])
@pytest.mark.parametrize("rule", ["adaptive", "chord", "box"])
@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 2.0), (-6.0, 0.5), (-3.0, 3.0), (0.5, 4.0), (-2.0, -1.0), (-1.0, 0.0)]
)
def test_lines_enclose_s_shaped_functions_and_touch_them(layer, rule, low, high):
    line, x = smooth_lines(layer, low, high, rule), np.linspace(low, high, 1001)
    below = layer(x) - (line.lower_slope * x + line.lower_constant)
    above = line.upper_slope * x + line.upper_constant - layer(x)
    for gap in (below, above):
        assert -1e-12 <= gap.min() <= 1e-5


@pytest.mark.parametrize("act", [SShaped("tanh"), SShaped("sigmoid")])
@pytest.mark.parametrize("build", [plain, residual, convolutional])
@pytest.mark.parametrize("seed", SEEDS)
def test_relaxations_of_s_shaped_nets_are_below_samples(build, act, seed):
    net, lower, upper, rows, offset = problem(build, act, seed)
    for name, bounds in relaxations(net, lower, upper, rows, offset).items():
        for row, constant, margin in zip(rows, offset, bounds.margins, strict=True):
            seen, _ = sampled_min(net, lower, upper, row, constant, rng=np.random.default_rng(seed))
            assert margin <= seen + 1e-9, name


def test_adaptive_slope_is_one_on_the_tie():
    assert lines(0.1, -1.0, 1.0, "adaptive").lower_slope == 1.0
    assert lines(0.1, -1.0, 0.999, "adaptive").lower_slope == 0.1
    assert lines(0.0, -2.0, 1.0, "adaptive").upper_slope == pytest.approx(1.0 / 3.0)


@each_case
def test_a_point_is_bounded_by_its_value(build, act, seed):
    net, lower, upper, rows, offset = problem(build, act, seed, radius=0.0)
    value = rows @ output(net, lower) + offset
    for name, bounds in relaxations(net, lower, upper, rows, offset).items():
        np.testing.assert_allclose(bounds.margins, value, rtol=1e-9, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(exact_min(net, lower, upper, rows[0], offset[0]), value[0], atol=1e-9)


@pytest.mark.parametrize("act", [Relu(), LeakyRelu(0.1)])
@pytest.mark.parametrize("shift", [50.0, -50.0])
def test_stable_nets_are_affine_so_linear_relaxations_are_exact(act, shift):
    rng = np.random.default_rng(0)
    first, second, last = affine(rng, 4, 2), affine(rng, 4, 4), affine(rng, 3, 4)
    scale = 1.0 if shift > 0 else act.slope
    nodes = [("a", Affine(first.weight, first.bias + shift), (INPUT,)), ("r", act, ("a",))]
    nodes += [("b", second, ("r",)), ("s", Add(), ("b", "r")), ("c", last, ("s",))]
    net, lower, upper, rows = graph(nodes), -np.ones(2), np.ones(2), rng.normal(size=(3, 3))
    slope = rows @ last.weight @ (second.weight + np.eye(4)) * scale @ first.weight
    exact = rows @ output(net, np.zeros(2)) - np.abs(slope).sum(axis=1)
    for bound in (deepz, hbox, deeppoly, crown_ibp):
        np.testing.assert_allclose(bound(net, lower, upper, rows).margins, exact, rtol=1e-10)
    np.testing.assert_allclose([exact_min(net, lower, upper, row) for row in rows], exact, rtol=1e-10)


@each_case
def test_first_pre_activations_are_exact_and_ibp_merges_the_last_layer(build, act, seed):
    net, lower, upper, rows, offset = problem(build, act, seed)
    found = relaxations(net, lower, upper, rows, offset)
    if build is not convolutional:  # there two affine nodes precede the first activation
        first = next(iter(found["ibp"].pre))
        for bounds in found.values():
            np.testing.assert_allclose(bounds.pre[first], found["ibp"].pre[first], rtol=1e-9, atol=1e-12)
    unmerged, _ = affine_interval(rows, offset, *node_intervals(net, lower, upper)[net.output])
    assert np.all(unmerged <= found["ibp"].margins + 1e-12)


# ------------------------------------------------------------------------------------------------ the helpers


@pytest.mark.parametrize(
    ("shape", "weight_shape", "options"),
    [
        ((1, 5, 5), (2, 1, 3, 3), {}),
        ((3, 6, 5), (2, 3, 3, 2), {"stride": 2, "padding": 1}),
        ((2, 7, 8), (3, 2, 2, 3), {"stride": (2, 1), "padding": (1, 2), "dilation": (2, 1)}),
        ((4, 5, 6), (6, 2, 3, 3), {"padding": 1, "dilation": 2, "groups": 2}),
    ],
)
def test_conv_matrix_is_conv2d(shape, weight_shape, options):
    rng = np.random.default_rng(0)
    weight, bias, x = rng.normal(size=weight_shape), rng.normal(size=weight_shape[0]), rng.normal(size=shape)
    layer = conv_matrix(weight, bias, shape, **options)
    expected = torch.nn.functional.conv2d(*map(torch.from_numpy, (x[None], weight, bias)), **options)
    np.testing.assert_allclose(layer.weight @ x.ravel() + layer.bias, expected.numpy().ravel(), rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "weight_shape", "options"),
    [
        ((3, 2, 4), (3, 2, 3, 2), {}),
        ((2, 3, 3), (2, 3, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
        ((4, 3, 2), (4, 1, 2, 3), {"stride": (1, 3), "padding": (1, 2), "dilation": (2, 1), "groups": 2}),
    ],
)
def test_conv_transpose_matrix_is_conv_transpose2d(shape, weight_shape, options):
    rng = np.random.default_rng(0)
    channels = weight_shape[1] * options.get("groups", 1)
    weight, bias, x = rng.normal(size=weight_shape), rng.normal(size=channels), rng.normal(size=shape)
    layer = conv_transpose_matrix(weight, bias, shape, **options)
    expected = torch.nn.functional.conv_transpose2d(*map(torch.from_numpy, (x[None], weight, bias)), **options)
    np.testing.assert_allclose(layer.weight @ x.ravel() + layer.bias, expected.numpy().ravel(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"stride": (2, 1), "padding": 1}])
def test_avgpool_matrix_is_avg_pool2d(options):
    x = np.random.default_rng(0).normal(size=(2, 5, 6))
    layer = avgpool_matrix((2, 5, 6), (2, 3), **options)
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(x[None]), (2, 3), **options)
    np.testing.assert_allclose(layer.weight @ x.ravel() + layer.bias, expected.numpy().ravel(), rtol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4)])
def test_batchnorm_affine_is_batch_norm(shape):
    rng = np.random.default_rng(0)
    weight, bias, mean, var = *rng.normal(size=(3, 3)), rng.random(3)
    layer, x = batchnorm_affine(weight, bias, mean, var, 1e-3, shape), rng.normal(size=shape)
    tensors = map(torch.from_numpy, (x[None], mean, var, weight, bias))
    expected = torch.nn.functional.batch_norm(*tensors, training=False, eps=1e-3)
    np.testing.assert_allclose(layer.weight @ x.ravel() + layer.bias, expected.numpy().ravel(), rtol=1e-12)


def test_samples_stay_in_the_box_and_corners_are_all_there():
    rng, lower, upper = np.random.default_rng(0), np.array([-1.0, 0.0, 2.0]), np.array([1.0, 0.5, 2.0])
    assert {tuple(c) for c in corners(lower, upper, rng)} == {(a, b, 2.0) for a in (-1.0, 1.0) for b in (0.0, 0.5)}
    many = corners(-np.ones(30), np.ones(30), rng, limit=16)
    assert many.shape == (16, 30)
    assert np.all(np.abs(many) == 1.0)
    points = random_points(lower, upper, 100, rng)
    assert np.all((lower <= points) & (points <= upper))
