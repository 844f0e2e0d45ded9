"""The contract of a layer type, for every example of every one in the registry."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from helpers import (
    F64,
    attacked_points,
    corner_points,
    evaluate_points,
    margins64,
    random_points,
    randomise,
    relaxation,
    rows_at,
)
from tightrope.core import registry
from tightrope.core.bounds import Interval, Lines, Params, Shape
from tightrope.core.coef import Dense, Patches, identity
from tightrope.core.frame import Frame, Window
from tightrope.core.network import Network
from tightrope.core.op import AffineOp, ElementwiseOp, Op, Tilt
from tightrope.core.rounding import roundoff
from tightrope.core.spec import evaluate
from tightrope.frontend.graph import from_json, to_json

SCALES = [1e-6, 1e-2, 1.0, 1e3, 1e8]
TILTS = torch.linspace(0, 1, 9, dtype=F64)


class Example(NamedTuple):
    """A module of ``examples()`` as a network, and the op in it that is looked at."""

    net: Network
    params: Params
    op: Op
    shapes: tuple[Shape, ...]


def modules() -> Iterator[tuple[str, nn.Module, Shape]]:
    for name in registry.names("ops"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = registry.find("ops", name).examples()
        for index, (module, shape) in enumerate(found):
            yield f"{name}-{index}", module.to(F64).eval(), shape


MODULES = list(modules())


def examples(family: type[Op]) -> Iterator[pytest.param]:
    for label, module, shape in MODULES:
        cls = registry.find("ops", label.split("-")[0])
        if issubclass(cls, family):
            net, params = tr.from_module(nn.Sequential(module, nn.Flatten()), shape)
            found = [node for node in net.nodes if isinstance(node.op, cls)]
            for index, node in enumerate(found):
                shapes = tuple(net.shapes[i] for i in node.inputs)
                yield pytest.param(Example(net, params, node.op, shapes), id=f"{label}-{index}")


each_module = pytest.mark.parametrize(
    ("module", "shape"), [pytest.param(module, shape, id=label) for label, module, shape in MODULES]
)
each_affine = pytest.mark.parametrize("example", list(examples(AffineOp)))
each_elementwise = pytest.mark.parametrize("example", list(examples(ElementwiseOp)))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(), dtype=F64)


def matrices(example: Example) -> list[Tensor]:
    """A of every input, column by column: (outputs, inputs)."""
    found = []
    for position, shape in enumerate(example.shapes):
        size = math.prod(shape)
        inputs = [torch.zeros((size, *s), dtype=F64) for s in example.shapes]
        inputs[position] = torch.eye(size, dtype=F64).reshape(size, *shape)
        found.append(example.op.linear(example.params, *inputs).flatten(1).T)
    return found


# ---------------------------------------------------------------------------------------------- every layer


@pytest.mark.parametrize("name", registry.names("ops"))
def test_examples_contain_the_op(name: str) -> None:
    cls = registry.find("ops", name)
    assert cls.examples()
    for module, shape in cls.examples():
        net, _ = tr.from_module(nn.Sequential(module, nn.Flatten()), shape)
        assert any(isinstance(node.op, cls) for node in net.nodes)


@each_module
def test_forward_is_the_module(module: nn.Module, shape: Shape) -> None:
    x = normal(3, *shape)
    net, params = tr.from_module(nn.Sequential(module, nn.Flatten()), shape)
    torch.testing.assert_close(net(params, x), module(x).flatten(1), rtol=1e-12, atol=1e-12)


@each_module
def test_output_shape_is_the_shape_of_the_value(module: nn.Module, shape: Shape) -> None:
    net, params = tr.from_module(nn.Sequential(module, nn.Flatten()), shape)
    for name, value in net.values(params, normal(2, *shape)).items():
        assert net.shapes[name] == tuple(value.shape[1:])


@each_module
def test_graph_as_json_and_back(module: nn.Module, shape: Shape) -> None:
    net, _ = tr.from_module(nn.Sequential(module, nn.Flatten()), shape)
    assert from_json(json.loads(json.dumps(to_json(net)))) == net


@each_module
def test_module_is_not_changed_and_weights_are_copied(module: nn.Module, shape: Shape) -> None:
    before = copy.deepcopy(module.state_dict())
    _, params = tr.from_module(nn.Sequential(module, nn.Flatten()), shape)
    for value in params.values():
        value.zero_()
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


def sound_around(module: nn.Module, shape: Shape, name: str) -> None:
    x = normal(2, *shape)
    net, params = tr.from_module(module, shape)
    box, spec = tr.linf_box(x, 0.4, data_range=None), margins64(2)
    exact = relaxation(name).bounds(net, params, tr.linf_box(x, 0, data_range=None), spec)
    torch.testing.assert_close(exact.margins, evaluate(spec, module(x)), rtol=1e-9, atol=1e-9)
    points = torch.cat(
        [
            random_points(box, 100, generator()),
            corner_points(box, 50, generator()),
            attacked_points(net, dict(params), box, spec),
        ]
    )
    seen = rows_at(spec, evaluate_points(module, points))
    found = relaxation(name).bounds(net, params, box, spec)
    assert torch.all(found.margins <= seen.amin(dim=0) + 1e-9)
    for node, values in net.values(params, points.flatten(0, 1)).items():
        if node in found.pre:
            values = values.reshape(-1, *found.pre[node].lower.shape)
            assert torch.all(found.pre[node].lower <= values.amin(dim=0) + 1e-9), node
            assert torch.all(found.pre[node].upper >= values.amax(dim=0) - 1e-9), node


@each_module
@pytest.mark.parametrize("name", registry.names("relaxations"))
def test_every_relaxation_is_sound_on_it(name: str, module: nn.Module, shape: Shape) -> None:
    """The layer first, and the layer between others, where its inputs are bounds already."""
    size, out = math.prod(shape), module(normal(1, *shape)).numel()
    head = randomise(nn.Sequential(nn.Linear(out, 4), nn.ReLU(), nn.Linear(4, 3)), 1)
    sound_around(nn.Sequential(module, nn.Flatten(), head).eval(), shape, name)
    stem = randomise(nn.Sequential(nn.Flatten(), nn.Linear(size, 5), nn.ReLU(), nn.Linear(5, size)), 2)
    sound_around(nn.Sequential(stem, nn.Unflatten(1, shape), module, nn.Flatten(), head).eval(), shape, name)


# --------------------------------------------------------------------------------------------- affine layers


def inner(coef: Tensor, value: Tensor) -> Tensor:
    """(batch or 1, rows, *shape) with (batch, *shape) -> (batch, rows)."""
    return (coef * value[:, None]).flatten(2).sum(-1)


@each_affine
@pytest.mark.parametrize("batch", [1, 3])
def test_adjoint_identity(example: Example, batch: int) -> None:
    """<A x, c> = <x, A^T c>, for every row and with a coefficient that may be shared by the batch."""
    inputs = [normal(3, *shape) for shape in example.shapes]
    value = example.op.linear(example.params, *inputs)
    coef = normal(batch, 4, *value.shape[1:])
    pulled = [part.dense().value for part in example.op.adjoint(example.params, Dense(coef))]
    assert [tuple(p.shape) for p in pulled] == [(batch, 4, *shape) for shape in example.shapes]
    expected = inner(coef, value)
    found = sum(inner(p, x) for x, p in zip(inputs, pulled, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@each_affine
def test_adjoint_is_the_transposed_matrix(example: Example) -> None:
    found = matrices(example)
    shape = example.op.output_shape(*example.shapes)
    rows = Dense(torch.eye(math.prod(shape), dtype=F64).reshape(1, -1, *shape))
    for matrix, pulled in zip(found, example.op.adjoint(example.params, rows), strict=True):
        torch.testing.assert_close(pulled.dense().value[0].flatten(1), matrix, rtol=1e-12, atol=1e-12)


def image_examples() -> list[pytest.param]:
    """Affine examples whose output is an image, of which a coefficient may hold windows only."""
    return [p for p in examples(AffineOp) if len(p.values[0].op.output_shape(*p.values[0].shapes)) == 3]


def windows_of(shape: Shape, kinds: int, batch: int) -> Patches:
    """Rows that see 2 x 3 windows, at steps of 2 and 1, reaching over the border, with random coefficients."""
    kernel, stride, padding = (min(2, shape[1]), min(3, shape[2])), (2, 1), (1, 1)
    grid = Window(kernel, stride, padding).grid(shape)
    value = normal(batch, math.prod(grid), kinds, shape[0] * math.prod(kernel))
    return Patches(value, Frame(shape, kernel, grid, stride, padding), clean=False)


@pytest.mark.parametrize("example", image_examples())
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("form", ["windows", "identity"])
def test_adjoint_of_windows_is_that_of_dense_rows(example: Example, batch: int, form: str) -> None:
    shape = example.op.output_shape(*example.shapes)
    coef = windows_of(shape, 2, batch) if form == "windows" else identity(shape, 0, shape[0], normal(1))
    found = example.op.adjoint(example.params, coef)
    expected = example.op.adjoint(example.params, coef.dense())
    inputs = [normal(3, *s) for s in example.shapes]
    for x, one, two in zip(inputs, found, expected, strict=True):
        torch.testing.assert_close(one.dense().value, two.dense().value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.dot(x), inner(two.dense().value, x), rtol=1e-12, atol=1e-12)


@each_affine
def test_linear_abs_is_the_absolute_matrix(example: Example) -> None:
    radii = [normal(3, *shape).abs() for shape in example.shapes]
    found = example.op.linear_abs(example.params, *radii).flatten(1)
    parts = zip(matrices(example), radii, strict=True)
    torch.testing.assert_close(found, sum(r.flatten(1) @ m.abs().T for m, r in parts), rtol=1e-12, atol=1e-12)


@each_affine
def test_forward_is_linear_plus_bias(example: Example) -> None:
    inputs = [normal(3, *shape) for shape in example.shapes]
    value, bias = example.op.linear(example.params, *inputs), example.op.bias(example.params)
    torch.testing.assert_close(example.op.forward(example.params, *inputs), value if bias is None else value + bias)
    shape = example.op.output_shape(*example.shapes)
    assert value.shape[1:] == shape
    assert bias is None or torch.broadcast_shapes(bias.shape, shape) == shape
    parts = zip(matrices(example), inputs, strict=True)
    torch.testing.assert_close(value.flatten(1), sum(x.flatten(1) @ m.T for m, x in parts), rtol=1e-12, atol=1e-12)


@each_affine
def test_rounding_errors_are_at_most_those_that_are_stated(example: Example) -> None:
    """Float32 against float64: none where the op says 0, else in units of roundoff of the sums of absolute values."""
    op, single = example.op, {k: v.float() if v.is_floating_point() else v for k, v in example.params.items()}
    double = {k: v.double() if v.is_floating_point() else v for k, v in single.items()}
    share = 1.01 * op.roundings(double) * roundoff(torch.float32)
    inputs = [normal(20, *shape).float() for shape in example.shapes]
    error = op.linear(single, *inputs).double() - op.linear(double, *(x.double() for x in inputs))
    assert torch.all(error.abs() <= share * op.linear_abs(double, *(x.abs().double() for x in inputs)))
    rows = normal(1, 20, *op.output_shape(*example.shapes)).float()
    sizes = [matrix.abs() for matrix in matrices(example)]
    pulled = zip(op.adjoint(single, Dense(rows)), op.adjoint(double, Dense(rows.double())), sizes, strict=True)
    for mine, exact, size in pulled:
        error = (mine.dense().value.double() - exact.dense().value)[0].flatten(1)
        assert torch.all(error.abs() <= 1.01 * share * (rows.double()[0].flatten(1).abs() @ size))
    if (bias := op.bias(single)) is not None:
        assert torch.all((bias - op.bias(double)).abs() <= 16 * roundoff(torch.float32) * op.bias_abs(double))


@each_affine
def test_monomial_trait(example: Example) -> None:
    """Flagged monomial: at most one entry in every row and in every column of A."""
    if example.op.monomial:
        assert len(example.shapes) == 1
        nonzero = matrices(example)[0] != 0
        assert nonzero.sum(dim=0).max() <= 1
        assert nonzero.sum(dim=1).max() <= 1


@each_affine
def test_statistics_name_params(example: Example) -> None:
    if example.op.statistics is not None:
        assert example.op.statistics.mean in example.params
        assert example.op.statistics.var in example.params
        assert not {example.op.statistics.mean, example.op.statistics.var} & set(example.net.trainable)


# ---------------------------------------------------------------------------------------- elementwise layers


def apply(example: Example, x: Tensor) -> Tensor:
    return example.op.forward(example.params, x)


def intervals(scale: float, dtype: torch.dtype = F64) -> Interval:
    """Intervals on both sides of 0, across it (evenly and extremely unevenly), touching it and of width 0: (n, 1)."""
    ends = torch.tensor([0.0, 1e-9, 1e-4, 0.3, 1.0], dtype=F64)
    ends = torch.cat([-ends.flip(0)[:-1], ends]) * scale
    pairs = torch.combinations(ends, 2, with_replacement=True)
    return Interval(*(pair[:, None].to(dtype) for pair in pairs.T))


def samples(example: Example, pre: Interval) -> Tensor:
    """Points of every interval: evenly spaced, its ends, and the breakpoints of f in it. (points, n, 1)."""
    share = torch.linspace(0, 1, 201, dtype=pre.lower.dtype)[:, None, None]
    points = [pre.lower + share * (pre.upper - pre.lower), pre.lower[None], pre.upper[None]]
    points += [torch.full_like(pre.lower, b)[None] for b in (*example.op.breakpoints, 0.0)]
    return torch.cat(points).clamp(pre.lower, pre.upper)


def tilt(lower: Tensor | float, upper: Tensor | float, pre: Interval) -> Tilt:
    return Tilt(torch.zeros_like(pre.lower) + lower, torch.zeros_like(pre.lower) + upper)


def lower_line(lines: Lines, x: Tensor) -> Tensor:
    """A missing bias is 0: the line passes through the origin."""
    return lines.lower_slope * x + (0.0 if lines.lower_bias is None else lines.lower_bias)


def upper_line(lines: Lines, x: Tensor) -> Tensor:
    return lines.upper_slope * x + lines.upper_bias


def tolerance(pre: Interval, value: Tensor) -> Tensor:
    """A few units of rounding of the largest number in sight."""
    largest = torch.maximum(torch.maximum(pre.lower.abs(), pre.upper.abs()), value.abs())
    return 8 * torch.finfo(pre.lower.dtype).eps * largest


def assert_valid(example: Example, pre: Interval, lines: Lines) -> None:
    x = samples(example, pre)
    value = apply(example, x)
    slack = tolerance(pre, value)
    assert torch.all(lower_line(lines, x) <= value + slack)
    assert torch.all(upper_line(lines, x) >= value - slack)


NAMED: dict[str, Callable[[ElementwiseOp, Interval], Tilt]] = {
    "chord": lambda op, pre: op.chord(pre),
    "minimum_area": lambda op, pre: op.minimum_area(pre),
    "soft": lambda op, pre: op.soft(pre),
    "zero": lambda op, pre: op.zero(pre),
}


@each_elementwise
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_envelope_is_valid_at_every_tilt(example: Example, scale: float, dtype: torch.dtype) -> None:
    pre = intervals(scale, dtype)
    for below in TILTS.to(dtype):
        for above in TILTS.to(dtype):
            assert_valid(example, pre, example.op.envelope(pre, tilt(below, above, pre)))


@each_elementwise
@pytest.mark.parametrize("choice", NAMED)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_named_tilts_are_valid(example: Example, choice: str, scale: float, dtype: torch.dtype) -> None:
    pre = intervals(scale, dtype)
    chosen = NAMED[choice](example.op, pre)
    for side in (chosen.lower, chosen.upper):
        if side is not None:
            assert torch.all((side >= 0) & (side <= 1))
            assert side.dtype == dtype
    lines = example.op.envelope(pre, chosen)
    somewhere = pre.lower < pre.upper
    whole = chosen._replace(
        settled=False, upper=torch.ones_like(chosen.lower) if chosen.upper is None else chosen.upper
    )
    for one, two in zip(lines, example.op.envelope(pre, whole), strict=True):  # settled is a promise, not a change
        if one is not None:
            torch.testing.assert_close(one[somewhere], two[somewhere], rtol=1e-6, atol=0)
    assert all(part.dtype == dtype for part in lines if part is not None)
    assert_valid(example, pre, lines)


@each_elementwise
@pytest.mark.parametrize("scale", SCALES)
def test_interval_is_the_range(example: Example, scale: float) -> None:
    pre = intervals(scale)
    value, found = apply(example, samples(example, pre)), example.op.interval(pre)
    torch.testing.assert_close(found.lower, value.amin(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.upper, value.amax(dim=0), rtol=1e-12, atol=0)


@each_elementwise
@pytest.mark.parametrize("scale", SCALES)
def test_stable_means_one_line(example: Example, scale: float) -> None:
    """Where stable, both lines are f itself at every tilt; where f leaves its chord, it is not stable."""
    pre = intervals(scale)
    x, stable = samples(example, pre), example.op.stable(pre)
    value = apply(example, x)
    assert stable.dtype == torch.bool
    assert stable.any()
    assert not stable.all()
    for share in TILTS:
        lines = example.op.envelope(pre, tilt(share, 1 - share, pre))
        for line in (lower_line(lines, x), upper_line(lines, x)):
            assert torch.all(((line - value).abs() <= tolerance(pre, value)) | ~stable)
    width = (pre.upper - pre.lower).clamp(min=1e-300)
    ends = apply(example, pre.lower), apply(example, pre.upper)
    line = ends[0] + (ends[1] - ends[0]) * ((x - pre.lower) / width)
    bent = ((line - value).abs() > 1e-9 * scale).any(dim=0)
    assert not torch.any(bent & stable)


@each_elementwise
@pytest.mark.parametrize("scale", SCALES)
def test_chord_lines_are_parallel_to_the_chord(example: Example, scale: float) -> None:
    pre = intervals(scale)
    wide = (pre.upper - pre.lower > 1e-6 * max(scale, 1.0)).squeeze()  # elsewhere the quotient is rounding
    lines = example.op.envelope(pre, example.op.chord(pre))
    slope = (apply(example, pre.upper) - apply(example, pre.lower)) / (pre.upper - pre.lower)
    torch.testing.assert_close(lines.lower_slope, lines.upper_slope, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lines.lower_slope[wide], slope[wide], rtol=1e-9, atol=1e-9)


@each_elementwise
def test_soft_lines_do_not_jump(example: Example) -> None:
    """Along intervals that pass all cases, twenty times smaller steps change the lines twenty times less."""

    def largest_change(steps: int) -> float:
        centre = torch.linspace(-1.5, 1.5, steps + 1, dtype=F64)[:, None]
        pre = Interval(centre - 1, centre + 1)
        lines = example.op.envelope(pre, example.op.soft(pre))
        values = torch.cat([line(lines, x) for line in (lower_line, upper_line) for x in pre], dim=1)
        return float((values[1:] - values[:-1]).abs().max())

    assert largest_change(6000) < 0.06 * largest_change(300)


@each_elementwise
def test_soft_lines_are_those_of_least_area_where_these_are_far_apart(example: Example) -> None:
    """The ends of a crossing interval differ by a factor of two, or f is one line."""
    pre = intervals(1.0)
    far = example.op.stable(pre) | (pre.upper >= -2 * pre.lower) | (2 * pre.upper <= -pre.lower)
    soft, least = (example.op.envelope(pre, tilt) for tilt in (example.op.soft(pre), example.op.minimum_area(pre)))
    for line in (lower_line, upper_line):
        torch.testing.assert_close(line(soft, pre.lower)[far], line(least, pre.lower)[far], rtol=1e-12, atol=1e-12)


@each_elementwise
def test_minimum_area_and_zero(example: Example) -> None:
    """Lines are compared by their value at the centre, which is their area over the interval divided by its width."""
    pre = intervals(1.0)
    centre = (pre.lower + pre.upper) / 2
    best = example.op.envelope(pre, example.op.minimum_area(pre))
    flat = example.op.envelope(pre, example.op.zero(pre))
    for share in TILTS:
        lines = example.op.envelope(pre, tilt(share, share, pre))
        assert torch.all(lower_line(best, centre) >= lower_line(lines, centre) - 1e-12)
        assert torch.all(upper_line(best, centre) <= upper_line(lines, centre) + 1e-12)
        assert torch.all(flat.lower_slope.abs() <= lines.lower_slope.abs() + 1e-12)
    torch.testing.assert_close(upper_line(flat, centre), upper_line(best, centre))


@each_elementwise
@pytest.mark.parametrize("choice", NAMED)
@pytest.mark.parametrize("scale", SCALES)
def test_gradients_are_finite(example: Example, choice: str, scale: float) -> None:
    """At l = 0, u = 0, l = u and everywhere between."""
    pre = Interval(*(end.requires_grad_() for end in intervals(scale)))
    lines = example.op.envelope(pre, NAMED[choice](example.op, pre))
    total = sum(part.sum() for part in (*lines, *example.op.interval(pre)) if part is not None)
    for grad in torch.autograd.grad(total, list(pre), materialize_grads=True):
        assert torch.isfinite(grad).all()


@each_elementwise
@pytest.mark.parametrize("ends", [(torch.nan, 1.0), (-1.0, torch.nan), (torch.nan, torch.nan), (1.0, torch.nan)])
def test_nan_is_never_a_side(example: Example, ends: tuple[float, float]) -> None:
    """A NaN bound is not stable, stays NaN in the interval, and leaves no finite pair of lines."""
    pre = Interval(*(torch.tensor([[end]], dtype=F64) for end in ends))
    assert not example.op.stable(pre).any()
    post = example.op.interval(pre)
    for end, image in zip(pre, post, strict=True):
        assert image.isnan().all() or not end.isnan().any()
    for choice in NAMED.values():
        lines = example.op.envelope(pre, choice(example.op, pre))
        assert sum(part for part in lines if part is not None).isnan().all()


def narrow(scale: float, dtype: torch.dtype) -> Interval:
    """Random intervals of the width of a single unit in the last place, and a little wider: (n, 1)."""
    ends = (torch.randn((500, 1), generator=generator(), dtype=F64) * scale).to(dtype)
    above = torch.nextafter(ends, torch.full_like(ends, torch.inf))
    wider = ends + ends.abs() * 1e-5
    return Interval(torch.cat([ends, ends]), torch.cat([above, wider]))


@each_elementwise
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_envelope_is_valid_on_the_narrowest_intervals(example: Example, scale: float, dtype: torch.dtype) -> None:
    pre = narrow(scale, dtype)
    for share in TILTS.to(dtype):
        assert_valid(example, pre, example.op.envelope(pre, tilt(share, 1 - share, pre)))
    for choice in NAMED.values():
        assert_valid(example, pre, example.op.envelope(pre, choice(example.op, pre)))


@each_elementwise
def test_lines_touch(example: Example) -> None:
    """No line could be moved closer: each meets f somewhere on its interval, up to the spacing of the samples."""
    pre = intervals(1.0)
    x = samples(example, pre)
    value = apply(example, x)
    for share in TILTS:
        lines = example.op.envelope(pre, tilt(share, share, pre))
        assert torch.all((value - lower_line(lines, x)).amin(dim=0) <= 1e-4)
        assert torch.all((upper_line(lines, x) - value).amin(dim=0) <= 1e-4)


@each_elementwise
def test_breakpoints_are_kinks(example: Example) -> None:
    """The slopes on both sides of a breakpoint differ."""
    for point in example.op.breakpoints:
        at = torch.tensor([[point - 1e-3], [point], [point + 1e-3]], dtype=F64)
        value = apply(example, at)
        assert not torch.isclose(value[2] - value[1], value[1] - value[0], rtol=1e-3, atol=0)
