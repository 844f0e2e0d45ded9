"""Compiled equals eager, also on batched weights and with gradients."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import tightrope as tr
from helpers import F64, build, case, margins64, relaxation, stacked
from tightrope.core import registry
from tightrope.core.bounds import Params
from tightrope.core.network import Network
from tightrope.core.protocols import Batch

BATCH = 2
Function = Callable[[Params], Tensor]

each_relaxation = pytest.mark.parametrize("name", registry.names("relaxations"))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No graphs of earlier tests, and none left behind."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def margins_of(name: str, net: str, network: Network | None = None) -> Function:
    known = case(net)
    box, spec, chosen = tr.linf_box(known.inputs(BATCH), 0.1), margins64(BATCH), relaxation(name)
    graph = known.net if network is None else network
    return lambda params: chosen.bounds(graph, params, box, spec).margins


def assert_compiled_is_eager(function: Function, params: Params, backend: str, rtol: float = 1e-9) -> None:
    """The value, and its gradient with respect to every floating point tensor."""
    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend=backend)):
        leaves = {k: v.detach().requires_grad_() if v.is_floating_point() else v for k, v in params.items()}
        value = call(leaves)
        weight = torch.linspace(-1, 1, value.numel(), dtype=F64).reshape(value.shape)
        floats = [leaf for leaf in leaves.values() if leaf.requires_grad]
        results.append((value.detach(), torch.autograd.grad((value * weight).sum(), floats, materialize_grads=True)))
    torch.testing.assert_close(results[1], results[0], rtol=rtol, atol=rtol)


@each_relaxation
def test_relaxations(name: str) -> None:
    assert_compiled_is_eager(margins_of(name, "residual"), case("residual").params, "aot_eager")


@each_relaxation
def test_relaxations_on_batched_weights(name: str) -> None:
    population = stacked(case("conv").params, 3)
    assert_compiled_is_eager(torch.func.vmap(margins_of(name, "conv")), population, "aot_eager")


@pytest.mark.parametrize("net", ["leaky", "grouped", "normed"])
def test_every_layer_on_batched_weights(net: str) -> None:
    population = stacked(case(net).params, 2)
    assert_compiled_is_eager(torch.func.vmap(margins_of("deeppoly", net)), population, "aot_eager")


@pytest.mark.skipif(shutil.which("g++") is None, reason="the default backend needs a C++ compiler")
def test_default_backend_on_batched_weights() -> None:
    population = stacked(case("leaky").params, 2)
    assert_compiled_is_eager(torch.func.vmap(margins_of("crown_ibp", "leaky")), population, "inductor")


def test_first_use_of_a_network_may_be_compiled() -> None:
    """Nothing has to be evaluated before, not even the shapes of the graph."""
    network, params = tr.from_module(case("mlp").module, case("mlp").shape)
    compiled = torch.compile(margins_of("crown_ibp", "mlp", network), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(params), margins_of("crown_ibp", "mlp")(params))


@pytest.mark.parametrize("name", ["standard", "certified", "pgd", "edac", "trades", "staps", "exp_ibp"])
def test_methods(name: str) -> None:
    """A whole training loss of batched weights, attacks included; the methods left out consist of parts of these."""
    attack = registry.create("attacks", "pgd", steps=1)
    options = {"relaxation": relaxation("ibp"), "attack": attack, "search": attack, "split": -2, "steps": 1}
    made, known, eps = build("methods", name, **options), case("leaky"), torch.tensor(0.1, dtype=F64)
    batch = Batch(known.inputs(BATCH), margins64(BATCH))
    draws = made.draws(known.net, batch, eps, torch.Generator().manual_seed(0))

    def loss(params: Params) -> Tensor:
        return made.loss(known.net, params, batch, eps, draws)[0]

    backend = "aot_eager" if name in {"standard", "certified", "pgd"} else "eager"  # which traces alike, but once
    assert_compiled_is_eager(torch.func.vmap(loss), stacked(known.params, 2), backend)
