"""Training throughput: one forward and backward pass of the certified loss, for each relaxation.

Both libraries get the same weights, box, margin matrix and loss, and differentiate the same weights, those of batch
normalisation included; their margins are compared in the same run. The other library is timed twice: as it is, and in a
process that keeps freed memory as ours does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tightrope as tr
from benchmarks import peers
from benchmarks.case import Case, Prepared
from benchmarks.problem import CLASSES, COMPILED, EPS, FUSED, SHAPE, Problem, problem, training_step, width_of
from benchmarks.protocol import Agreement, Contender, Group, ours
from tightrope.core import registry
from tightrope.core.spec import margin_cross_entropy

RELAXATIONS = ("ibp", "hbox", "deepz", "crown_ibp", "crown_ibp_fused", "deeppoly")

# Unless others are asked for: DeepPoly takes a quarter of a minute a step of 32 images of cnn5.
BATCHES = {"cnn3": (32, 8)}

# After the name of another library's contender: its process keeps freed memory.
KEPT = ", kept memory"

# Compiled beside eager: relaxations and networks for which that takes less than half a minute.
COMPILES = {"cnn3": ("ibp", "crown_ibp", "deeppoly")}

SMALLEST_COMPILED = 16  # width

# Loss fusion beside the same relaxation without it.
FUSION = ("crown_ibp_fused", "crown_ibp")


@dataclass(frozen=True)
class Options:
    """Which groups to measure: every network at every batch size."""

    device: str
    threads: int | None = None
    networks: Sequence[str] = ("cnn3", "cnn5", "cnn7")
    batches: Sequence[int] | None = None
    relaxations: Sequence[str] = RELAXATIONS
    width: int | None = None


def groups(options: Options) -> list[Group]:
    """One group for each network and batch size."""
    chosen = [(network, options.batches or BATCHES.get(network, (8,))) for network in options.networks]
    return [_group(options, network, batch) for network, batches in chosen for batch in batches]


def prepare(case: Case) -> Prepared:
    """Set one contender up."""
    made = problem(case.setting, case.setting["batch"])
    if case.contender.startswith(peers.PREFIX):
        return _peer(made, case.contender.removeprefix(peers.PREFIX).removesuffix(KEPT))
    return _ours(made, case.contender)


def _group(options: Options, network: str, batch: int) -> Group:
    shared = {name: peers.PREFIX + peers.METHODS[name] for name in options.relaxations if name in peers.METHODS}
    if peers.VERSION is None:
        shared = {}
    contenders: dict[str, Contender] = {}
    width = width_of(network, options.width)
    for name in options.relaxations:  # those that are compared run one after the other
        contenders[name] = ours()
        if name in COMPILES.get(network, ()) and width >= SMALLEST_COMPILED:
            contenders[name + COMPILED] = ours()
        if name in shared:
            library = f"{peers.PREFIX}{peers.VERSION}"
            contenders[shared[name]] = Contender(library)
            contenders[shared[name] + KEPT] = Contender(library, keeps_memory=True)
    fusion = (FUSION,) if set(FUSION) <= set(options.relaxations) else ()
    compiled = tuple(
        (name + COMPILED, over)
        for name, peer in shared.items()
        if name + COMPILED in contenders
        for over in (name, peer)
    )
    setting: dict[str, Any] = {"network": network, "width": width, "batch": batch, "eps": EPS}
    return Group(
        __name__,
        f"{network}, width {width}, batch {batch}",
        setting | {"device": options.device, "threads": options.threads},
        contenders,
        batch,
        "images/s",
        tuple((name, peer + suffix) for name, peer in shared.items() for suffix in ("", KEPT)) + compiled + fusion,
        agreements=tuple(Agreement("margins", name, peer) for name, peer in shared.items()),
    )


def _ours(made: Problem, name: str) -> Prepared:
    net, params = tr.from_module(made.module, SHAPE)
    step = training_step(made, name)
    if name.endswith(COMPILED):
        step()  # so that compiling counts as set-up
    if name.endswith((FUSED, COMPILED)):
        return Prepared(step)  # fused losses have no margins, compiled ones those of the eager step
    relaxation = registry.create("relaxations", name)
    spec = tr.margin_spec(made.labels, CLASSES)

    @torch.no_grad()
    def facts() -> dict[str, Tensor]:
        return {"margins": relaxation.bounds(net, params, made.box, spec).margins}

    return Prepared(step, facts)


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
