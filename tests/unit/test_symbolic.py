"""Symbolic intervals: DeepPoly's bounds as far as the second layer, sound ones behind it, and where they are used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from helpers import F64, TINY, case, randomise
from tightrope.core.box import Box
from tightrope.relaxations._symbolic import SymbolicIntervals
from tightrope.verifiers._problem import Problem
from tightrope.verifiers._queue import Queue
from tightrope.verifiers.bab import Bab, _Search


def draws(*shape: int) -> Tensor:
    """Uniform in [0, 1], always the same."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=F64)


def mlp(depth: int, seed: int = 0) -> nn.Module:
    hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(8, 8), nn.ReLU())]
    return randomise(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), *hidden, nn.Linear(8, 3)), seed)


class Shifted(nn.Module):
    """An input that is used as it is, and shifted: ops that hand their input on must not change it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.second(torch.relu(z + 1.0) + torch.relu(z - z.relu()) + z)


def naive(module: nn.Sequential, lower: np.ndarray, upper: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ranges of the pre-activations of one sample: a lower and an upper form each, in the inputs themselves."""
    low = high = np.hstack([np.zeros((len(lower), 1)), np.eye(len(lower))])

    def ends(form: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        up, down = np.maximum(form[:, 1:], 0), np.minimum(form[:, 1:], 0)
        return form[:, 0] + up @ lower + down @ upper, form[:, 0] + up @ upper + down @ lower

    found = []
    for layer in module:
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
            up, down = np.maximum(weight, 0), np.minimum(weight, 0)
            low, high = up @ low + down @ high, up @ high + down @ low
            low[:, 0] += bias
            high[:, 0] += bias
        else:
            least, most = ends(low)[0], ends(high)[1]
            found.append((least, most))
            for j, (u, v) in enumerate(zip(least, most, strict=True)):
                if v <= 0:
                    low[j] = high[j] = 0.0
                elif u < 0:
                    low[j] *= v >= -u
                    high[j] *= v / (v - u)
                    high[j, 0] -= u * v / (v - u)
    return found


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_they_are_those_of_two_forms_a_neuron(depth: int) -> None:
    module = mlp(depth)
    net, params = tr.from_module(module, (3,))
    box = tr.linf_box(draws(6, 3), 0.2, data_range=None)
    spec = tr.margin_spec(torch.zeros(6, dtype=torch.int64), 3, dtype=F64)
    found = SymbolicIntervals().bounds(net, params, box, spec).pre
    for i in range(6):
        expected = naive(module, box.lower[i].numpy(), box.upper[i].numpy())
        for name, (lower, upper) in zip(net.pre_activations, expected, strict=True):
            np.testing.assert_allclose(found[name].lower[i], lower, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(found[name].upper[i], upper, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eps", [0.05, 0.5])
def test_two_layers_have_deeppolys_bounds(eps: float) -> None:
    net, params = tr.from_module(mlp(4), (3,))
    box = tr.linf_box(draws(5, 3), eps, data_range=None)
    spec = tr.margin_spec(torch.zeros(5, dtype=torch.int64), 3, dtype=F64)
    found = SymbolicIntervals().bounds(net, params, box, spec).pre
    expected = tr.relaxation("deeppoly").bounds(net, params, box, spec).pre
    names = list(net.pre_activations)
    for name in names[:2]:
        for mine, theirs in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    third = names[2]
    assert bool((found[third].upper - found[third].lower).sum() > (expected[third].upper - expected[third].lower).sum())


@pytest.mark.parametrize("name", [*TINY, "conv", "shifted"])
def test_they_hold_at_samples(name: str) -> None:
    """Pre-activations and rows, with and without rounding errors, on boxes of every size."""
    if name == "shifted":
        net, params = tr.from_module(randomise(Shifted(), 1), (3,))
        x = draws(4, 3)
    else:
        given = case(name)
        net, params, x = given.net, given.params, given.inputs(4)
    spec = tr.margin_spec(net(params, x).argmax(1), net.num_outputs, dtype=F64)
    for eps in (0.0, 0.02, 0.5):
        box = tr.linf_box(x, eps, data_range=None)
        for rigorous in (False, True):
            bounds = SymbolicIntervals().bounds(net, params, box, spec, rigorous=rigorous)
            assert set(bounds.pre) == set(net.pre_activations)
            for share in draws(40, *x.shape).round(decimals=1):
                values = net.values(params, box.lower + share * (box.upper - box.lower))
                for node, (lower, upper) in bounds.pre.items():
                    assert bool((values[node] >= lower - 1e-9).all() & (values[node] <= upper + 1e-9).all())
                margins = torch.einsum("bro,bo->br", spec.matrix, values[net.output]) + spec.offset
                assert bool((margins >= bounds.margins - 1e-9).all())


def test_numbers_that_are_none_prove_nothing() -> None:
    """NaN weights and overflow leave no neuron stable and no row bounded."""
    for poison in (float("nan"), float("inf"), 1e308):
        net, params = tr.from_module(mlp(2), (3,))
        params = {name: value.double() for name, value in params.items()}
        params[net.trainable[0]] = torch.full_like(params[net.trainable[0]], poison)
        box = Box(-torch.ones(2, 3, dtype=F64), torch.ones(2, 3, dtype=F64))
        spec = tr.margin_spec(torch.zeros(2, dtype=torch.int64), 3, dtype=F64)
        bounds = SymbolicIntervals().bounds(net, params, box, spec, rigorous=True)
        assert not bool((bounds.margins > 0).any())


def test_shallow_networks_are_bounded_by_them_unless_an_audit_recomputes() -> None:
    networks = [tr.from_module(mlp(depth), (3,))[0] for depth in (3, 4)]
    assert [type(Bab().on_parts(network)) is SymbolicIntervals for network in networks] == [True, False]
    assert type(Bab(evidence=True).on_parts(networks[0])) is not SymbolicIntervals


def test_many_inputs_are_cut_only_where_nearly_every_neuron_is_unstable() -> None:
    """Twelve inputs: on a wide box yes, around a point no; both decided, as by neurons."""
    module = randomise(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), 0)
    net, params = tr.from_module(module, (12,))
    x = draws(3, 12)
    spec = tr.margin_spec(net(params, x).argmax(1), 3, dtype=F64)
    for eps, cut in ((5.0, True), (1e-3, False)):
        problem = Problem(net, params, tr.linf_box(x, eps, data_range=None), spec)
        search = _Search(problem, Queue(3, 5.0, 8, 2**30), Bab())
        assert search._cuts_edges is cut
        found, expected = (
            [one.verdict for one in each.verify(*problem, generator=torch.Generator())]
            for each in (Bab(), Bab(edges=0))
        )
        assert found == expected
