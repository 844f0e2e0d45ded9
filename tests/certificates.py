"""Genuine certificates for the tests, and how to change them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

import tightrope as tr
from helpers import F64, randomise
from tightrope.attacks.pgd import Pgd
from tightrope.core.box import inner_box
from tightrope.core.outcome import Outcome
from tightrope.core.protocols import Verifier
from tightrope.core.spec import Spec
from tightrope.evaluation.certificates import certificate
from tightrope.frontend.graph import canonical
from tightrope.records.certificate import Certificate, Model, Origin
from tightrope.verifiers._problem import Problem
from tightrope.verifiers.alpha_crown import AlphaCrown
from tightrope.verifiers.bab import Bab
from tightrope.verifiers.one_shot import OneShot

ATTACK = Pgd(restarts=1, steps=5, loss="margin")
RELAXATIONS = ("ibp", "hbox", "deepz", "crown_ibp", "deeppoly")
VERIFIERS: dict[str, Verifier] = {
    **{name: OneShot(tr.relaxation(name), name, evidence=True) for name in RELAXATIONS},
    "deeppoly-sparse": OneShot(tr.relaxation("deeppoly", sparse=True), "deeppoly", evidence=True),
    "crown_ibp-zero": OneShot(tr.relaxation("crown_ibp", slope="zero"), "crown_ibp", evidence=True),
    "alpha_crown": AlphaCrown(steps=5, evidence=True),
    "alpha_crown-dense": AlphaCrown(tr.relaxation("deeppoly"), steps=5, evidence=True),
    "alpha_crown-deepz": AlphaCrown(tr.relaxation("deepz"), steps=5, evidence=True),
    "neurons": Bab(ATTACK, edges=0, root_steps=3, steps=5, evidence=True),
    "neurons-ibp": Bab(ATTACK, tr.relaxation("ibp"), edges=0, root_steps=3, steps=5, evidence=True),
    "edges": Bab(ATTACK, edges=1000, root_steps=3, steps=5, evidence=True),
}


def decided(verifier: Verifier, given: Problem) -> list[Outcome]:
    return verifier.verify(*given, generator=torch.Generator().manual_seed(0))


def problem(module: torch.nn.Module, shape: tuple[int, ...], eps: str, batch: int, seed: int = 0) -> Problem:
    """Boxes around samples labelled as the network says, but every third one with the next class."""
    net, params = tr.from_module(module, shape)
    x = torch.rand((batch, *shape), generator=torch.Generator().manual_seed(seed), dtype=F64)
    labels = (net(params, x).argmax(1) + (torch.arange(batch) % 3 == 2)) % net.num_outputs
    return Problem(net, params, tr.linf_box(x, eps), tr.margin_spec(labels, net.num_outputs, dtype=F64))


def certificates(given: Problem, verifier: Verifier, eps: str, seed: int = 0) -> tuple[list[Certificate], Model]:
    """Of :func:`problem`, with the images they came from."""
    model = canonical(given.network, given.params)
    shape = (given.size, *given.network.input_shape)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    labels = given.spec.matrix.sum(1).argmax(1).tolist()
    found = []
    least, most = inner_box(x, eps)
    for i, outcome in enumerate(decided(verifier, given)):
        if outcome.counterexample is not None:
            outcome = replace(outcome, counterexample=outcome.counterexample.clamp(least[i], most[i]))
        origin = Origin(x[i].numpy(), eps, ("0", "1"), labels[i], i)
        made = certificate(given, i, outcome, model.sha256, origin)
        found += [] if made is None else [made]
    return found, model


@cache
def genuine(kind: str) -> tuple[Certificate, Model]:
    """A certificate with many leaves, of ``neurons`` with multipliers or of ``boxes``, or a ``falsified`` one."""
    wide = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    given = problem(randomise(wide, 13), (2,), "1/4", 6, seed=13)
    found, model = certificates(given, VERIFIERS["edges" if kind == "boxes" else "neurons"], "1/4", seed=13)
    chosen = max(found, key=lambda made: _size(made) if kind != "falsified" else made.verdict == "falsified")
    assert kind == chosen.verdict or _size(chosen) > 4
    return chosen, model


def _size(given: Certificate) -> int:
    return 0 if given.leaves is None else given.leaves.size


def forged(given: Certificate, leaves: dict[str, Any] | None = None, **changes: Any) -> Certificate:
    """The certificate with other fields, of itself or of its leaves."""
    if leaves is not None:
        assert given.leaves is not None
        changes["leaves"] = replace(given.leaves, **leaves)
    return replace(given, **changes)


def with_ends(given: Certificate, slope: float | None = None) -> Certificate:
    """Every end of every neuron after the first layer bounded once more, with random slopes or one for all."""
    leaves = given.leaves
    assert leaves is not None
    later = np.flatnonzero(leaves.neurons[:, 0] > 0)
    ends = np.array([(neuron, side) for neuron in later for side in (1, -1)])
    slopes = np.random.default_rng(0).random((len(ends), len(leaves.neurons)))
    slopes = slopes if slope is None else np.full_like(slopes, slope)
    if leaves.ends is not None and leaves.end_slopes is not None:  # what the proof rests on is still needed
        ends, slopes = np.vstack([leaves.ends, ends]), np.vstack([leaves.end_slopes, slopes])
    return forged(given, {"ends": ends, "end_slopes": slopes})


def bare_spec(rows: list[list[float]], batch: int, clause: tuple[int, ...]) -> Spec:
    """Rows without offsets for a batch."""
    matrix = torch.tensor(rows, dtype=F64).expand(batch, -1, -1)
    return Spec(matrix, torch.zeros(matrix.shape[:2], dtype=F64), clause)
