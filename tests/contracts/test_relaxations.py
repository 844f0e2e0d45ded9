"""The contract of a relaxation, for every one in the registry."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from helpers import (
    CASES,
    CLASSES,
    F64,
    TINY,
    assert_bounds_close,
    attacked_points,
    case,
    corner_points,
    evaluate_points,
    margins64,
    member,
    random_points,
    relaxation,
    rows_at,
    stacked,
)
from reference import backward, interval, zonotope
from reference.exact import exact_argmin, linear_pieces, lp_relaxation_min, milp_min
from tightrope.core import registry
from tightrope.core.bounds import Bounds, Interval
from tightrope.core.box import Box
from tightrope.core.protocols import Relaxation
from tightrope.core.spec import MarginSpec, Spec, evaluate, worst_margin

BATCH = 4  # not the number of features of a case: a list of radii would be ambiguous
RADII: dict[str, Callable[[tuple[int, ...]], float | str | list[str] | Tensor]] = {
    "small": lambda shape: "8/255",
    "large": lambda shape: 0.2,
    "per_sample": lambda shape: ["1/20", "0", "0.3", "1/8"],
    "per_feature": lambda shape: torch.linspace(0.0, 0.25, int(np.prod(shape)), dtype=F64).reshape(shape)[None],
}
REFERENCE = {
    "ibp": interval.ibp,
    "hbox": zonotope.hbox,
    "deepz": zonotope.deepz,
    "crown_ibp": backward.crown_ibp,
    "deeppoly": backward.deeppoly,
}

each_relaxation = pytest.mark.parametrize("name", registry.names("relaxations"))
each_case = pytest.mark.parametrize("net", CASES)
each_radius = pytest.mark.parametrize("radius", RADII)


@cache
def problem(net: str, radius: str, batch: int = BATCH) -> tuple[Box, Spec]:
    known = case(net)
    return tr.linf_box(known.inputs(batch), RADII[radius](known.shape)), margins64(batch)


@cache
def bounded(name: str, net: str, radius: str) -> Bounds:
    return relaxation(name).bounds(case(net).net, case(net).params, *problem(net, radius))


@cache
def points_of(net: str, radius: str) -> Tensor:
    """Random, corner and attacked points of each box, (points, batch, *shape)."""
    box, spec = problem(net, radius)
    generator = torch.Generator().manual_seed(1)
    attacked = attacked_points(case(net).net, case(net).params, box, spec)
    return torch.cat([random_points(box, 200, generator), corner_points(box, 64, generator), attacked])


def close(found: np.ndarray | Tensor, expected: np.ndarray | Tensor) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------- soundness


@each_relaxation
@each_case
@each_radius
def test_margins_are_below_every_point(name: str, net: str, radius: str) -> None:
    """The values come from the torch module itself."""
    _, spec = problem(net, radius)
    outputs = evaluate_points(case(net).module, points_of(net, radius)).detach()
    seen = rows_at(spec, outputs).amin(dim=0)
    assert torch.all(bounded(name, net, radius).margins <= seen + 1e-9)


@each_relaxation
@each_case
def test_bounds_for_real_arithmetic_are_the_same_but_for_a_little(name: str, net: str) -> None:
    """Never the computed ones themselves. That they hold is checked in exact arithmetic by the tests of rounding."""
    known, plain = case(net), bounded(name, net, "per_sample")
    found = relaxation(name).bounds(known.net, known.params, *problem(net, "per_sample"), rigorous=True)
    pairs = [(found.margins, plain.margins)]
    for node, (lower, upper) in found.pre.items():
        pairs += [(lower, plain.pre[node].lower), (-upper, -plain.pre[node].upper)]
    for mine, computed in pairs:
        assert torch.all(mine < computed)
        close(mine, computed)


@each_relaxation
@each_case
@each_radius
def test_pre_contains_every_value(name: str, net: str, radius: str) -> None:
    known, pre = case(net), bounded(name, net, radius).pre
    values = known.net.values(known.params, points_of(net, radius).flatten(0, 1))
    assert set(pre) == set(known.net.pre_activations)
    for node, (lower, upper) in pre.items():
        seen = values[node].reshape(-1, *lower.shape)
        assert torch.all(lower <= upper), node
        assert torch.all(lower <= seen.amin(dim=0) + 1e-9), node
        assert torch.all(seen.amax(dim=0) <= upper + 1e-9), node


@each_relaxation
@each_case
def test_exact_at_radius_zero(name: str, net: str) -> None:
    known, spec = case(net), margins64(BATCH)
    x = known.inputs(BATCH)
    bounds = relaxation(name).bounds(known.net, known.params, tr.linf_box(x, 0), spec)
    close(bounds.margins, evaluate(spec, known.net(known.params, x)))
    values = known.net.values(known.params, x)
    for node, (lower, upper) in bounds.pre.items():
        close(lower, values[node])
        close(upper, values[node])


@cache
def exact_margins(net: str, radius: str) -> np.ndarray:
    """The minimum of every row by enumeration of the linear pieces, (batch, rows)."""
    box, spec = problem(net, radius)
    found = []
    for lower, upper, rows in zip(*(t.flatten(1).numpy() for t in box), spec.matrix.numpy(), strict=True):
        pieces = linear_pieces(case(net).oracle, lower, upper)
        found.append([exact_argmin(case(net).oracle, lower, upper, row, pieces=pieces)[0] for row in rows])
    return np.array(found)


@each_relaxation
@pytest.mark.parametrize("net", TINY)
def test_margins_are_below_the_exact_minimum(name: str, net: str) -> None:
    assert np.all(bounded(name, net, "large").margins.numpy() <= exact_margins(net, "large") + 1e-8)


def oracle_pre(pre: dict[str, Interval], net: str, sample: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Bounds by the oracle's node names: the activations come in the same order in both graphs."""
    activations = [n.name for n in case(net).oracle.nodes if hasattr(n.layer, "slope")]
    assert len(activations) == len(pre)
    ends = (tuple(end[sample].flatten().numpy() for end in pre[node]) for node in case(net).net.pre_activations)
    return dict(zip(activations, ends, strict=True))


@each_relaxation
@pytest.mark.parametrize("net", ["leaky", "residual", "normed"])
def test_margins_are_below_the_triangle_lp(name: str, net: str) -> None:
    """With the same pre-activation bounds no lines of single neurons beat the joint triangle relaxation."""
    (box, spec), bounds = problem(net, "large"), bounded(name, net, "large")
    for sample in range(BATCH):
        pre = oracle_pre(bounds.pre, net, sample)
        lower, upper = (end[sample].flatten().numpy() for end in box)
        for row, margin in zip(spec.matrix[sample].numpy(), bounds.margins[sample], strict=True):
            assert margin <= lp_relaxation_min(case(net).oracle, lower, upper, pre, row) + 1e-7


@pytest.mark.parametrize("name", REFERENCE)
@each_case
@each_radius
def test_equals_the_naive_reference(name: str, net: str, radius: str) -> None:
    (box, spec), bounds = problem(net, radius), bounded(name, net, radius)
    for sample in range(BATCH):
        lower, upper = (end[sample].flatten().numpy() for end in box)
        expected = REFERENCE[name](case(net).oracle, lower, upper, spec.matrix[sample].numpy())
        close(bounds.margins[sample], expected.margins)
        for (low, high), node in zip(expected.pre.values(), case(net).net.pre_activations, strict=True):
            close(bounds.pre[node].lower[sample].flatten(), low)
            close(bounds.pre[node].upper[sample].flatten(), high)


@pytest.mark.parametrize("name", ["crown_ibp", "deeppoly"])
@pytest.mark.parametrize("slope", ["adaptive", "soft", "zero", "parallel"])
def test_slope_rules_equal_the_naive_reference(name: str, slope: str) -> None:
    box, spec = problem("leaky", "large")
    bounds = relaxation(name, slope=slope).bounds(case("leaky").net, case("leaky").params, box, spec)
    lower, upper = (end[0].numpy() for end in box)
    rule = "chord" if slope == "parallel" else slope
    expected = REFERENCE[name](case("leaky").oracle, lower, upper, spec.matrix[0].numpy(), rule=rule)
    close(bounds.margins[0], expected.margins)


@each_relaxation
def test_general_rows_and_offsets(name: str) -> None:
    """Rows are bounded as they are: any matrix and offset, the offset being added exactly."""
    generator = torch.Generator().manual_seed(3)
    known, (box, _) = case("residual"), problem("residual", "large")
    matrix = torch.randn((BATCH, 4, CLASSES), generator=generator, dtype=F64)
    offset = torch.randn((BATCH, 4), generator=generator, dtype=F64)
    chosen = relaxation(name)
    found = chosen.bounds(known.net, known.params, box, Spec(matrix, offset, (0, 0, 1, 1))).margins
    plain = chosen.bounds(known.net, known.params, box, Spec(matrix, torch.zeros_like(offset), (0, 1, 2, 3)))
    close(found, plain.margins + offset)
    seen = rows_at(Spec(matrix, offset, ()), evaluate_points(case("residual").module, points_of("residual", "large")))
    assert torch.all(found <= seen.amin(dim=0) + 1e-9)


@pytest.mark.parametrize("batch", [2, 3, 7])
@each_relaxation
def test_rows_that_are_known_to_be_margins_are_bounded_as_any(name: str, batch: int) -> None:
    """Bounds and gradients, whether the labels are told or not, of more classes than samples and fewer, and mapped."""
    known, chosen = case("conv"), tr.relaxation(name)
    labels = torch.arange(batch) % 3
    box, told = tr.linf_box(known.inputs(batch), 0.05), tr.margin_spec(labels, 3, dtype=F64)
    assert isinstance(told, MarginSpec)
    weights = [known.params[key].clone().requires_grad_() for key in known.net.trainable]
    params = {**known.params, **dict(zip(known.net.trainable, weights, strict=True))}
    found = [chosen.bounds(known.net, params, box, spec).margins for spec in (told, Spec(*told))]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(margins.square().sum(), weights) for margins in found]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    members = {key: torch.stack([value, 1.1 * value]) for key, value in known.params.items()}
    mapped = torch.func.vmap(lambda each: chosen.bounds(known.net, each, box, told).margins)(members)
    torch.testing.assert_close(mapped[0], found[1].detach(), rtol=1e-9, atol=1e-12)


@each_relaxation
@each_case
def test_samples_do_not_see_each_other(name: str, net: str) -> None:
    known, (box, spec) = case(net), problem(net, "large")
    alone = relaxation(name).bounds(
        known.net, known.params, Box(*(end[1:2] for end in box)), Spec(spec.matrix[1:2], spec.offset[1:2], spec.clause)
    )
    close(alone.margins[0], bounded(name, net, "large").margins[1])


@each_relaxation
def test_network_without_activations_is_exact(name: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(Scaled(), nn.Flatten(), nn.Linear(4, CLASSES)).to(F64)
    net, params = tr.from_module(module, (2, 2))
    box, spec = tr.linf_box(torch.rand((BATCH, 2, 2), dtype=F64), 0.2), margins64(BATCH)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 4).reshape(16, 1, 2, 2)
    seen = rows_at(spec, evaluate_points(module, box.lower + corners * (box.upper - box.lower)))
    close(relaxation(name).bounds(net, params, box, spec).margins, seen.detach().amin(dim=0))


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1.5 - 2.0 * x


# ------------------------------------------------------------------------------------------------ given pre


@each_relaxation
@each_case
def test_given_pre_is_used_as_it_is(name: str, net: str) -> None:
    """Looser bounds of every node: they come back untouched, and the margins rest on them."""
    known, (box, spec), own = case(net), problem(net, "large"), bounded(name, net, "large")
    given = {node: Interval(i.lower - 0.5, i.upper + 0.25) for node, i in own.pre.items()}
    chosen = relaxation(name)
    found = chosen.bounds(known.net, known.params, box, spec, pre=given)
    for node in given:
        assert torch.equal(found.pre[node].lower, given[node].lower)
        assert torch.equal(found.pre[node].upper, given[node].upper)
    assert not torch.allclose(found.margins, own.margins)
    again = chosen.bounds(known.net, known.params, box, spec, pre=own.pre)
    assert_bounds_close(again, own)


@each_relaxation
@pytest.mark.parametrize("net", ["mlp", "residual"])
def test_partly_given_pre_changes_what_follows_only(name: str, net: str) -> None:
    known, (box, spec), own = case(net), problem(net, "large"), bounded(name, net, "large")
    first, second = known.net.pre_activations[:2]
    given = {second: Interval(own.pre[second].lower - 1.0, own.pre[second].upper + 1.0)}
    found = relaxation(name).bounds(known.net, known.params, box, spec, pre=given)
    assert torch.equal(found.pre[second].lower, given[second].lower)
    close(found.pre[first].lower, own.pre[first].lower)


@each_relaxation
@pytest.mark.parametrize("active", [True, False])
def test_clamped_pre_bounds_the_part_of_the_box_it_describes(name: str, active: bool) -> None:
    """Branch and bound: with one neuron's sign fixed, the margins hold where it has that sign."""
    known, (box, spec), own = case("mlp"), problem("mlp", "large"), bounded(name, "mlp", "large")
    node = known.net.pre_activations[0]
    lower, upper = own.pre[node].lower[0], own.pre[node].upper[0]
    neuron = int(torch.minimum(upper, -lower).argmax())
    assert lower[neuron] < 0 < upper[neuron]
    clamped = Interval(own.pre[node].lower.clone(), own.pre[node].upper.clone())
    (clamped.lower if active else clamped.upper)[0, neuron] = 0.0
    found = relaxation(name).bounds(known.net, known.params, box, spec, pre={node: clamped})
    pre = oracle_pre(found.pre, "mlp", 0)
    ends = (end[0].numpy() for end in box)
    exact = milp_min(known.oracle, *ends, pre, spec.matrix[0, 0].numpy())
    assert found.margins[0, 0] <= exact + 1e-6


# ------------------------------------------------------------------------------ vmap, gradients, continuity


@each_relaxation
@each_case
def test_vmap_over_params_is_a_loop(name: str, net: str) -> None:
    known, (box, spec), chosen = case(net), problem(net, "large"), relaxation(name)
    population = stacked(known.params, 3)
    found = torch.func.vmap(lambda params: chosen.bounds(known.net, params, box, spec))(population)
    for index in range(3):
        one = chosen.bounds(known.net, member(population, index), box, spec)
        assert_bounds_close(
            Bounds(found.margins[index], {k: Interval(*(e[index] for e in i)) for k, i in found.pre.items()}), one
        )


@each_relaxation
def test_vmap_in_chunks_of_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the chunks that rows are treated in changes nothing."""
    monkeypatch.setattr("tightrope.relaxations._backward.chunk_entries", lambda device: 1)
    known, (box, spec) = case("conv"), problem("conv", "large")
    assert_bounds_close(
        relaxation(name).bounds(known.net, known.params, box, spec), bounded(name, "conv", "large"), rtol=1e-12
    )


@each_relaxation
def test_gradients_in_chunks_of_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are computed anew in the backward pass, of a single weight vector and of a population."""
    known, (box, spec), chosen = case("conv"), problem("conv", "large"), relaxation(name)
    names = [key for key, value in known.params.items() if value.is_floating_point()]

    def gradients(population: dict[str, Tensor]) -> list[Tensor]:
        leaves = {key: population[key].detach().requires_grad_() for key in names}
        margins = torch.func.vmap(lambda params: chosen.bounds(known.net, params, box, spec).margins)(leaves)
        single = chosen.bounds(known.net, member(leaves, 0), box, spec).margins
        each = (torch.autograd.grad(m.square().sum(), list(leaves.values())) for m in (margins, single))
        return [grad for grads in each for grad in grads]

    whole = gradients(stacked(known.params, 3))
    monkeypatch.setattr("tightrope.relaxations._backward.keeps", lambda entries, device: False)
    monkeypatch.setattr("tightrope.relaxations._backward.chunk_entries", lambda device: 1)
    for one, two in zip(whole, gradients(stacked(known.params, 3)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@each_relaxation
@pytest.mark.parametrize("net", ["leaky", "residual", "conv", "normed", "tanh", "sigmoid"])
def test_gradient_is_the_derivative(name: str, net: str) -> None:
    """Central differences agree with automatic differentiation at a generic point, batch statistics included."""
    known, (box, spec), chosen = case(net), problem(net, "large"), relaxation(name)
    names = [key for key, value in known.params.items() if value.is_floating_point()]

    def margins(*values: Tensor) -> Tensor:
        params = known.params | dict(zip(names, values, strict=True))
        return chosen.bounds(known.net, params, box, spec).margins

    at = tuple(known.params[key].clone().requires_grad_() for key in names)
    assert torch.autograd.gradcheck(margins, at, eps=1e-7, atol=1e-5, fast_mode=True)


@each_relaxation
def test_gradient_is_finite_where_bounds_touch_zero(name: str) -> None:
    """l = 0, u = 0 and l = u = 0 among the pre-activations."""
    net, params = tr.from_module(nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2)).to(F64), (1,))
    params["0.weight"] = torch.tensor([[1.0], [-1.0], [0.0], [0.0]], dtype=F64)
    params["0.bias"] = torch.tensor([-0.25, 0.25, 0.0, 0.0], dtype=F64)
    params = {key: value.requires_grad_() for key, value in params.items()}
    box = Box(torch.tensor([[0.25]], dtype=F64), torch.tensor([[0.75]], dtype=F64))
    margins = relaxation(name).bounds(net, params, box, margins64(1, 2)).margins
    for grad in torch.autograd.grad(margins.sum(), list(params.values())):
        assert torch.isfinite(grad).all()


Segment = Callable[[Tensor], Tensor]
"""From positions in [0, 1], (n,), to margins, (n, rows)."""


def _along(module: nn.Module, box: Box, spec: Spec, change: dict[str, Tensor], chosen: Relaxation) -> Segment:
    """Margins at the module's weights plus t times ``change``."""
    net, params = tr.from_module(module.to(F64), tuple(box.lower.shape[1:]))

    def margins(position: Tensor) -> Tensor:
        moved = {k: v + position * change[k] if k in change else v for k, v in params.items()}
        return chosen.bounds(net, moved, box, spec).margins.flatten()

    return torch.func.vmap(margins)


def neuron_segment(chosen: Relaxation) -> Segment:
    """One input in [-1, 1] and one neuron relu(x + b), b from 1.2 to -1.2, beside a linear path.

    The neuron's bounds b - 1 and b + 1 pass l = 0, l = -u and u = 0. The margin is relu(x + b) - x / 2: a line below
    the neuron counts, and which line that is matters because x is there as well.
    """
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        module[0].bias.copy_(torch.tensor([1.2, 5.0]))
        module[2].weight.copy_(torch.tensor([[1.0, -0.5], [0.0, 0.0]]))
    one = torch.ones((1, 1), dtype=F64)
    change = {"0.bias": torch.tensor([-2.4, 0.0], dtype=F64)}
    return _along(module, Box(-one, one), margins64(1, 2), change, chosen)


def random_segment(chosen: Relaxation) -> Segment:
    """Between two random networks of two hidden layers."""
    known = case("mlp")
    box, spec = problem("mlp", "large")
    generator = torch.Generator().manual_seed(5)
    change = {k: torch.randn(v.shape, generator=generator, dtype=F64) for k, v in known.params.items()}
    return _along(known.module, box, spec, change, chosen)


SEGMENTS = [neuron_segment, random_segment]


def largest_change(segment: Segment, start: float, stop: float, steps: int) -> tuple[float, float]:
    """The largest change of a margin over one of ``steps`` equal steps, and where that step begins."""
    values = segment(torch.linspace(start, stop, steps + 1, dtype=F64))
    changes = (values[1:] - values[:-1]).abs().amax(dim=1)
    return float(changes.max()), start + (stop - start) * int(changes.argmax()) / steps


def remaining_jump(segment: Segment) -> float:
    """Follow the largest change into ever finer steps, down to a width of about 1e-11."""
    start, width, jump = 0.0, 1.0, 0.0
    while width > 1e-11:
        steps = 200 if width == 1.0 else 10
        jump, start = largest_change(segment, start, start + width, steps)
        width /= steps
    return jump


VARIANTS = {name: relaxation(name) for name in registry.names("relaxations")} | {
    f"{name}-{slope}": relaxation(name, slope=slope)
    for name in ("crown_ibp", "deeppoly")
    for slope in ("soft", "parallel", "zero")
}


@pytest.mark.parametrize("chosen", VARIANTS.values(), ids=VARIANTS)
def test_continuity_trait(chosen: Relaxation) -> None:
    """Flagged not continuous: a jump is exhibited that no step size removes. Flagged continuous: none is found, and the
    largest change over a step shrinks in proportion to the step."""
    segments = [build(chosen) for build in SEGMENTS]
    jumps = [remaining_jump(segment) for segment in segments]
    if not chosen.continuous:
        assert max(jumps) > 1e-3
        return
    assert max(jumps) < 1e-8
    for segment in segments:
        coarse, _ = largest_change(segment, 0.0, 1.0, 200)
        fine, _ = largest_change(segment, 0.0, 1.0, 2000)
        assert 0 < fine < 0.15 * coarse


# -------------------------------------------------------------------------------------------- NaN, infinity


def poisoned(params: dict[str, Tensor], key: str, value: float) -> dict[str, Tensor]:
    changed = params[key].clone()
    changed.view(-1)[0] = value
    return params | {key: changed}


def floating_keys(net: str) -> list[str]:
    return [key for key, value in case(net).params.items() if value.is_floating_point()]


@each_relaxation
@pytest.mark.parametrize("net", ["leaky", "residual", "conv", "normed", "tanh", "sigmoid"])
def test_nan_weights_prove_nothing(name: str, net: str) -> None:
    """One NaN in any tensor: no margin is above 0, and none that rests on it is finite."""
    known, (box, spec) = case(net), problem(net, "small")
    for key in floating_keys(net):
        params = poisoned(known.params, key, torch.nan)
        margins = relaxation(name).bounds(known.net, params, box, spec).margins
        lost = evaluate(spec, known.net(params, box.lower)).isnan()
        assert lost.any(), key
        assert not torch.any(worst_margin(margins, spec.clause) > 0), key
        assert not torch.any(margins[lost].isfinite()), key


@each_relaxation
@pytest.mark.parametrize("net", ["leaky", "residual", "conv", "normed"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinite_weights_give_no_finite_margin(name: str, net: str, value: float) -> None:
    known, (box, spec) = case(net), problem(net, "small")
    for key in floating_keys(net):
        params = poisoned(known.params, key, value)
        margins = relaxation(name).bounds(known.net, params, box, spec).margins
        lost = ~evaluate(spec, known.net(params, box.lower)).isfinite()
        assert not torch.any(margins[lost].isfinite()), key


@each_relaxation
def test_infinite_weights_prove_nothing(name: str) -> None:
    """A network whose output is not a number never gets a finite positive margin; verifiers refuse infinite ones."""
    proved = []
    for net in ("leaky", "residual", "conv", "normed"):
        known, (box, spec) = case(net), problem(net, "small")
        for key in floating_keys(net):
            for value in (torch.inf, -torch.inf):
                params = poisoned(known.params, key, value)
                margins = relaxation(name).bounds(known.net, params, box, spec).margins
                lost = ~evaluate(spec, known.net(params, box.lower)).isfinite()
                finite = margins[lost].isfinite()
                proved += [f"{net}: {key} = {value}"] if torch.any(finite & (margins[lost] > 0)) else []
    assert not proved


@each_relaxation
@pytest.mark.parametrize("side", ["lower", "upper"])
@each_case
def test_nan_box_proves_nothing(name: str, side: str, net: str) -> None:
    """One NaN entry in one sample's box: nothing is known there, and the other samples keep their margins."""
    known, (box, spec) = case(net), problem(net, "small")
    ends = {"lower": box.lower.clone(), "upper": box.upper.clone()}
    ends[side][1].view(-1)[-1] = torch.nan
    margins = relaxation(name).bounds(known.net, known.params, Box(**ends), spec).margins
    assert not margins[1].isfinite().any()
    assert not torch.any(margins[1] > 0)
    close(margins[[0, 2, 3]], bounded(name, net, "small").margins[[0, 2, 3]])


@each_relaxation
def test_nan_pre_proves_nothing(name: str) -> None:
    """NaN in bounds that are handed in never turns into a stable neuron."""
    known, (box, spec), own = case("leaky"), problem("leaky", "small"), bounded(name, "leaky", "small")
    node = known.net.pre_activations[0]
    for side in range(2):
        ends = [end.clone() for end in own.pre[node]]
        ends[side][0, 0] = torch.nan
        margins = relaxation(name).bounds(known.net, known.params, box, spec, pre={node: Interval(*ends)}).margins
        assert not margins[0].isfinite().any()


@each_relaxation
def test_float32_bounds_stay_near_float64(name: str) -> None:
    """The dtype of the box and the params is kept, and costs no more than rounding."""
    known, (box, spec) = case("normed"), problem("normed", "large")
    single = {k: v.float() if v.is_floating_point() else v for k, v in known.params.items()}
    spec32 = Spec(spec.matrix.float(), spec.offset.float(), spec.clause)
    found = relaxation(name).bounds(known.net, single, Box(*(end.float() for end in box)), spec32).margins
    assert found.dtype == torch.float32
    expected = bounded(name, "normed", "large").margins
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
