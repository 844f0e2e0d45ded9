"""A population of weight vectors inside ``torch.func.vmap`` is a loop over its members."""

from __future__ import annotations

import pytest
import torch

import tightrope as tr
from helpers import CASES, F64, case, labels_for, member, relaxation, stacked
from tightrope.core import registry
from tightrope.core.bounds import Params

BATCH, MEMBERS = 4, 3


@pytest.mark.parametrize("name", registry.names("relaxations"))
@pytest.mark.parametrize("net", ["residual", "conv", "normed"])
def test_gradients_of_the_certified_loss(name: str, net: str) -> None:
    """vmap of grad, and the gradient of the sum over members outside vmap, are both the members' own gradients."""
    known = case(net)
    box = tr.linf_box(known.inputs(BATCH), 0.1)
    loss = tr.certified_loss(known.net, relaxation(name), box, labels_for(BATCH))
    population = stacked(known.params, MEMBERS)
    names = known.net.trainable
    fixed = {key: value for key, value in known.params.items() if key not in names}
    own = {key: population[key] for key in names}

    def value(p: Params) -> torch.Tensor:
        return loss({**fixed, **p})[0]

    mapped = torch.func.vmap(torch.func.grad(value))(own)
    leaves = {key: own[key].clone().requires_grad_() for key in names}
    outside = dict(
        zip(names, torch.autograd.grad(torch.func.vmap(value)(leaves).sum(), list(leaves.values())), strict=True)
    )
    for index in range(MEMBERS):
        alone = torch.func.grad(value)(member(own, index))
        for key in names:
            torch.testing.assert_close(mapped[key][index], alone[key], rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(outside[key][index], alone[key], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("net", CASES)
def test_networks(net: str) -> None:
    known, x = case(net), case(net).inputs(BATCH)
    population = stacked(known.params, MEMBERS)
    found = torch.func.vmap(lambda params: known.net(params, x))(population)
    for index in range(MEMBERS):
        torch.testing.assert_close(found[index], known.net(member(population, index), x), rtol=1e-10, atol=1e-10)


def test_statistics_of_the_clean_batch_per_member() -> None:
    """Calibrated per member, and bounded with its own statistics, gradients flowing through them."""
    known, x = case("normed"), case("normed").inputs(8)
    box, spec = tr.linf_box(x, 0.05), tr.margin_spec(labels_for(8), 3, dtype=F64)
    trainable = known.net.trainable
    population = {key: value for key, value in stacked(known.params, MEMBERS).items() if key in trainable}

    def margins(own: Params) -> torch.Tensor:
        params = known.net.calibrate({**known.params, **own}, x)
        return relaxation("ibp").bounds(known.net, params, box, spec).margins.sum()

    found = torch.func.vmap(torch.func.grad(margins))(population)
    for index in range(MEMBERS):
        alone = torch.func.grad(margins)(member(population, index))
        for key in trainable:
            torch.testing.assert_close(found[key][index], alone[key], rtol=1e-8, atol=1e-9)
