"""Training throughput: one forward and backward pass of the certified loss, for each relaxation.

MNIST shape, eps 0.1, random images in [0, 1] and random weights. The networks are taken without their normalisation
layer, which would be the identity here: auto_LiRPA's patches cannot pass one. Both libraries get the same weights, box,
margin matrix and loss, and their margins are compared in the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import tightrope as tr
from benchmarks import peers
from benchmarks.protocol import Agreement, Case, Group, Prepared
from tightrope.core import registry
from tightrope.core.spec import margin_cross_entropy

SHAPE, CLASSES, EPS, SEED = (1, 28, 28), 10, 0.1, 0


@dataclass(frozen=True)
class Options:
    """Which groups to measure: every network at every batch size."""

    device: str
    threads: int | None = None
    networks: Sequence[str] = ("cnn3", "cnn5")
    batches: Sequence[int] = (32, 4)
    relaxations: Sequence[str] = ("ibp", "hbox", "deepz", "crown_ibp", "deeppoly")
    width: int = 16


class Problem(NamedTuple):
    """A network with a batch to certify."""

    module: nn.Module
    box: tr.Box
    labels: Tensor


def groups(options: Options) -> list[Group]:
    """One group for each network and batch size."""
    return [_group(options, network, batch) for network in options.networks for batch in options.batches]


def prepare(case: Case) -> Prepared:
    """Set one contender up."""
    setting = case.setting
    made = problem(setting["network"], setting["width"], setting["batch"], setting["device"])
    if case.contender.startswith(peers.PREFIX):
        return _peer(made, case.contender.removeprefix(peers.PREFIX))
    return _ours(made, case.contender)


def problem(network: str, width: int, batch: int, device: str) -> Problem:
    """Weights and images are the same on every device, in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = registry.create("models", network, input_shape=SHAPE, num_classes=CLASSES, width=width)
        x, labels = torch.rand(batch, *SHAPE), torch.randint(CLASSES, (batch,))
    return Problem(model.layers.to(device), tr.linf_box(x.to(device), EPS), labels.to(device))


def _group(options: Options, network: str, batch: int) -> Group:
    shared = {name: peers.PREFIX + peers.METHODS[name] for name in options.relaxations if name in peers.METHODS}
    if peers.VERSION is None:
        shared = {}
    libraries: dict[str, str] = {}
    for name in options.relaxations:  # those that are compared run one after the other
        libraries[name] = "tightrope"
        if name in shared:
            libraries[shared[name]] = f"{peers.PREFIX}{peers.VERSION}"
    setting: dict[str, Any] = {"network": network, "width": options.width, "batch": batch, "eps": EPS}
    return Group(
        "training",
        f"{network}, width {options.width}, batch {batch}",
        setting | {"device": options.device, "threads": options.threads},
        libraries,
        batch,
        "images/s",
        tuple(shared.items()),
        tuple(Agreement("margins", name, peer) for name, peer in shared.items()),
    )


def _ours(made: Problem, name: str) -> Prepared:
    net, params = tr.from_module(made.module, SHAPE)
    relaxation = registry.create("relaxations", name)
    loss = tr.certified_loss(net, relaxation, made.box, made.labels)
    spec = tr.margin_spec(made.labels, CLASSES)
    leaves = {key: params[key].requires_grad_() for key in net.trainable}

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss({**params, **leaves})[0], list(leaves.values()))

    @torch.no_grad()
    def facts() -> dict[str, Tensor]:
        return {"margins": relaxation.bounds(net, params, made.box, spec).margins}

    return Prepared(run, facts)


def _peer(made: Problem, method: str) -> Prepared:
    bounded = peers.AutoLirpa(made.module, made.box.lower, made.box.upper, method)
    spec = tr.margin_spec(made.labels, CLASSES)
    weights = bounded.parameters()

    def run() -> tuple[Tensor, ...]:
        loss = margin_cross_entropy(bounded.margins(spec.matrix), spec.clause).mean()
        return torch.autograd.grad(loss, weights)

    @torch.no_grad()
    def facts() -> dict[str, Tensor]:
        return {"margins": bounded.margins(spec.matrix)}

    return Prepared(run, facts)
