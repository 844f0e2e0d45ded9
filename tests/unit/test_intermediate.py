"""Optimised pre-activation bounds: sound, never looser, and reproducible from what is kept of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tightrope as tr
from helpers import F64, Residual, randomise
from tightrope.core.bounds import Interval
from tightrope.core.box import Box
from tightrope.core.op import Tilt
from tightrope.verifiers._ascent import Ascent
from tightrope.verifiers._intermediate import Ends, tightened
from tightrope.verifiers._problem import Problem
from tightrope.verifiers._subproblems import Items

BATCH, POINTS = 3, 2000
MODULES = {
    "deep": lambda: nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    ),
    "residual": lambda: Residual(4, 8, 3),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 6), nn.ReLU(),
        nn.Linear(6, 3),
    ),
}  # fmt: skip


def problem(name: str) -> Problem:
    module = MODULES[name]()
    randomise(module, 5)
    net, params = tr.from_module(module, (4,))
    params = {key: value.double() if value.is_floating_point() else value for key, value in params.items()}
    x = torch.rand(BATCH, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    return Problem(net, params, tr.linf_box(x, 0.3), tr.margin_spec(net(params, x).argmax(1), 3, dtype=F64))


def neurons_at(items: Items, share: torch.Tensor) -> torch.Tensor:
    """The neurons' values at points of every box, (points, batch, neurons)."""
    network, params, box, _ = items.problem
    values = (network.values(params, box.lower + part * (box.upper - box.lower)) for part in share)
    return torch.stack([items.neurons.of(value, BATCH) for value in values])


@pytest.mark.parametrize("name", MODULES)
def test_tightened_bounds_hold_and_are_never_looser(name: str) -> None:
    given = problem(name)
    items = Items(given, tr.relaxation("deeppoly"))
    share = torch.rand(POINTS, BATCH, 4, generator=torch.Generator().manual_seed(2), dtype=F64)
    values = neurons_at(items, torch.cat([share, share.round()]))
    (lower, upper), ends = tightened(items, torch.arange(BATCH), Ascent(20))
    before = items.neurons.pre()
    assert bool((lower >= before.lower).all() & (upper <= before.upper).all())
    assert bool((upper - lower < 0.999 * (before.upper - before.lower)).any())
    assert bool(((values >= lower) & (values <= upper)).all())
    assert ends


def test_samples_are_independent() -> None:
    items = Items(problem("deep"), tr.relaxation("deeppoly"))
    together, _ = tightened(items, torch.arange(BATCH), Ascent(5))
    for i in range(BATCH):
        alone, _ = tightened(items, torch.tensor([i]), Ascent(5))
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], many[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODULES)
def test_what_is_kept_proves_the_ends(name: str) -> None:
    """The slopes and the intervals of the layers before give the same bounds, by a forward pass at the minimiser."""
    given = problem(name)
    items = Items(given, tr.relaxation("deeppoly"))
    _, found = tightened(items, torch.arange(BATCH), Ascent(10))
    pre = items.neurons.intervals(torch.arange(BATCH), items.neurons.pre())
    for ends in found:
        bound = lower_bound(given, pre, ends)
        torch.testing.assert_close(bound, ends.lower, rtol=1e-6, atol=1e-6)
        pre[ends.node] = with_ends(pre[ends.node], ends)


def lower_bound(given: Problem, pre: dict[str, Interval], ends: Ends) -> torch.Tensor:
    """side * entry from below: every row pulled back by autograd through the lines that its coefficients choose."""
    net = given.network.up_to(ends.node)
    box = Box(*(end[ends.sample] for end in given.box))
    centre, radius = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2
    lines = {}
    for node in net.nodes:
        if node.op.kind != "affine":
            name = node.inputs[0]
            interval = Interval(*(end[ends.sample] for end in pre[name]))
            tilt = Tilt(ends.slopes[name], node.op.minimum_area(interval).upper)  # type: ignore[attr-defined]
            lines[node.name] = node.op.envelope(interval, tilt)  # type: ignore[attr-defined]
    # Which line an entry takes depends on the coefficient behind it: found from the output backwards, layer by layer.
    signs = {name: torch.ones_like(line.upper_slope) for name, line in lines.items()}
    for target in [*reversed(list(lines)), "input"]:
        x = {"input": centre.clone().requires_grad_()}
        post = {}
        for node in net.nodes:
            inputs = [x[name] for name in node.inputs]
            if node.name in lines:
                slope, offset, top, shift = lines[node.name]
                low = slope * inputs[0] + (0.0 if offset is None else offset)
                value = torch.where(signs[node.name] >= 0, low, top * inputs[0] + shift)
                post[node.name] = value.detach().requires_grad_() if node.name == target else value
                x[node.name] = post[node.name]
            else:
                x[node.name] = node.op.forward(given.params, *inputs)
        rows = ends.side * x[ends.node][torch.arange(len(ends.entry)), ends.entry]
        where = x["input"] if target == "input" else post[target]
        [coef] = torch.autograd.grad(rows.sum(), [where])
        if target == "input":
            return (rows - (coef.abs() * radius).flatten(1).sum(1)).detach()
        signs[target] = coef
    raise AssertionError


def with_ends(pre: Interval, ends: Ends) -> Interval:
    lower, upper = pre.lower.clone(), pre.upper.clone()
    for sample, entry, side, value in zip(*ends[1:5], strict=True):
        if side > 0:
            lower[sample, entry] = max(lower[sample, entry], value)
        else:
            upper[sample, entry] = min(upper[sample, entry], -value)
    return Interval(lower, upper)
