"""Forged certificates are rejected, each for its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tightrope as tr
from certificates import RELAXATIONS, VERIFIERS, certificates, decided, forged, genuine, problem, with_ends
from helpers import F64, case
from tightrope.auditor.audit import audit
from tightrope.auditor.finding import Verdict
from tightrope.core import outcome as core
from tightrope.evaluation.certificates import certificate
from tightrope.frontend.graph import canonical
from tightrope.records.certificate import Certificate, Model
from tightrope.verifiers._problem import Problem


def leaf_without(given: Certificate, leaf: int) -> dict[str, Any]:
    """All leaves but one."""
    leaves = given.leaves
    assert leaves is not None
    kept, rows = np.arange(leaves.size) != leaf, leaves.splits[:, 0] != leaf
    splits = leaves.splits[rows] - [1, 0, 0] * (leaves.splits[rows, :1] > leaf)
    return {
        **{name: getattr(leaves, name)[kept] for name in ("clause", "weights", "slopes")},
        "splits": splits,
        "multipliers": leaves.multipliers[rows],
        "boxes": None if leaves.boxes is None else leaves.boxes[kept],
    }


def changed(array: np.ndarray, index: Any, value: float) -> np.ndarray:
    copy = array.copy()
    copy[index] = value
    return copy


def a_split_leaf(given: Certificate) -> int:
    assert given.leaves is not None
    return int(given.leaves.splits[-1, 0])


def in_place_of_sibling(given: Certificate) -> Certificate:
    """Two leaves that differ in one sign: the second becomes a copy of the first."""
    leaves = given.leaves
    assert leaves is not None
    signs = {n: {tuple(row[1:]) for row in leaves.splits.tolist() if row[0] == n} for n in range(leaves.size)}
    first, second = next(
        (a, b)
        for a in signs
        for b in signs
        if a < b and leaves.clause[a] == leaves.clause[b] and len(signs[a] ^ signs[b]) == 2 and signs[a]
    )
    splits = leaves.splits[leaves.splits[:, 0] != second]
    copy = leaves.splits[leaves.splits[:, 0] == first]
    copy = np.column_stack([np.full(len(copy), second), copy[:, 1:]])
    return forged(given, {"splits": np.vstack([splits, copy]), "multipliers": np.zeros(len(splits) + len(copy))})


def other_weights(given: Certificate, model: Model) -> Certificate:
    """A network without the property, with its own hash: the proof is one of the old network."""
    assert given.origin is not None
    assert given.origin.label is not None
    bias = changed(model.weights["4.bias"], given.origin.label, -100.0)
    other = Model(model.graph, {**model.weights, "4.bias": bias})
    return replace(given, model=other, model_sha256=other.sha256)


Forgery = Callable[[Certificate, Model], Certificate]
VERIFIED: dict[str, tuple[Forgery, str]] = {
    "missing leaf": (lambda c, m: forged(c, leaf_without(c, a_split_leaf(c))), "cover"),
    "missing clause": (
        lambda c, m: forged(c, {"clause": np.zeros_like(c.leaves.clause)}),
        "other clauses' rows",
    ),
    "wrong sign": (
        lambda c, m: forged(c, {"splits": c.leaves.splits * [1, 1, -1] * (c.leaves.splits[:, :1] >= 0)}),
        "bound of leaf|cover",
    ),
    "one wrong sign": (
        lambda c, m: forged(c, {"splits": changed(c.leaves.splits, (-1, 2), -c.leaves.splits[-1, 2])}),
        "cover",
    ),
    "a sign that is none": (lambda c, m: forged(c, {"splits": changed(c.leaves.splits, (0, 2), 0)}), "no sign"),
    "removed split": (
        lambda c, m: forged(c, {"splits": c.leaves.splits[:-1], "multipliers": c.leaves.multipliers[:-1]}),
        "cover",
    ),
    "split twice": (
        lambda c, m: forged(
            c,
            {
                "splits": np.vstack([c.leaves.splits, c.leaves.splits[-1:]]),
                "multipliers": np.append(c.leaves.multipliers, 0.0),
            },
        ),
        "split twice",
    ),
    "a leaf in place of its sibling": (lambda c, m: in_place_of_sibling(c), "cover"),
    "smaller box than eps": (
        lambda c, m: replace(c, lower=np.maximum(c.origin.image - 0.1, 0), upper=np.minimum(c.origin.image + 0.1, 1)),
        "does not contain all inputs",
    ),
    "larger eps": (lambda c, m: replace(c, origin=replace(c.origin, eps="1/3")), "does not contain all inputs"),
    "smaller eps": (lambda c, m: replace(c, origin=replace(c.origin, eps="1/5")), "larger than eps"),
    "negative eps": (lambda c, m: replace(c, origin=replace(c.origin, eps="-1/4")), "negative"),
    "endless eps": (lambda c, m: replace(c, origin=replace(c.origin, eps="1e999999999")), "not a rational"),
    "other image": (
        lambda c, m: replace(c, origin=replace(c.origin, image=1 - c.origin.image)),
        "does not contain all inputs",
    ),
    "empty box": (lambda c, m: replace(c, lower=c.upper, upper=c.lower), "empty"),
    "other label": (lambda c, m: replace(c, origin=replace(c.origin, label=(c.origin.label + 1) % 3)), "of label"),
    "no such label": (lambda c, m: replace(c, origin=replace(c.origin, label=3)), "no class"),
    "other row": (lambda c, m: replace(c, matrix=-c.matrix), "of label"),
    "easier offset": (lambda c, m: replace(c, offset=c.offset + 1), "of label"),
    "one clause for two": (lambda c, m: replace(c, clause=(0, 0)), "of label"),
    "harder property": (
        lambda c, m: replace(c, origin=None, offset=c.offset - 100),
        "bound of leaf",
    ),
    "other weights": (other_weights, "bound of leaf"),
    "other weights under the old hash": (
        lambda c, m: replace(other_weights(c, m), model_sha256=m.sha256),
        "hash",
    ),
    "wrong hash": (lambda c, m: replace(c, model_sha256="0" * 64), "hash"),
    "slopes above 1": (lambda c, m: forged(c, {"slopes": changed(c.leaves.slopes, (0, 0), 1.01)}), "outside [0, 1]"),
    "slopes below 0": (lambda c, m: forged(c, {"slopes": changed(c.leaves.slopes, (0, 0), -0.01)}), "outside"),
    "negative multipliers": (
        lambda c, m: forged(c, {"multipliers": changed(c.leaves.multipliers, 0, -1.0)}),
        "negative",
    ),
    "huge multipliers": (
        lambda c, m: forged(c, {"multipliers": np.full_like(c.leaves.multipliers, 1e6)}),
        "bound of leaf",
    ),
    "negative weights": (lambda c, m: forged(c, {"weights": -c.leaves.weights}), "negative"),
    "weights that add up to 2": (lambda c, m: forged(c, {"weights": 2 * c.leaves.weights}), "add up"),
    "weights of nothing": (lambda c, m: forged(c, {"weights": 0 * c.leaves.weights}), "add up"),
    "weights of other clauses": (
        lambda c, m: forged(c, {"weights": c.leaves.weights[:, ::-1].copy()}),
        "other clauses",
    ),
    "a neuron that is not there": (
        lambda c, m: forged(c, {"neurons": changed(c.leaves.neurons, (0, 1), 10**6)}),
        "no neuron",
    ),
    "a neuron under two names": (
        lambda c, m: forged(c, {"neurons": changed(c.leaves.neurons, 0, c.leaves.neurons[1])}),
        "named twice",
    ),
    "a node that is not there": (
        lambda c, m: forged(c, {"nodes": tuple(f"{name}x" for name in c.leaves.nodes)}),
        "no neuron",
    ),
    "swapped verdict": (lambda c, m: replace(c, verdict="falsified"), "has leaves"),
    "swapped verdict without leaves": (
        lambda c, m: replace(c, verdict="falsified", leaves=None, counterexample=c.origin.image),
        "positive",
    ),
    "no leaves": (lambda c, m: replace(c, leaves=None), "no leaves"),
    "a verdict of its own": (lambda c, m: replace(c, verdict="true"), "no verdict"),
    "wrong shape": (lambda c, m: replace(c, lower=c.lower[:1]), "shape"),
}


@pytest.mark.parametrize("name", VERIFIED)
def test_forged_proofs_are_rejected(name: str) -> None:
    given, model = genuine("neurons")
    assert audit(given, model).verdict is Verdict.CONFIRMED
    forge, reason = VERIFIED[name]
    finding = audit(forge(given, model), model)
    assert finding.verdict is Verdict.REJECTED, finding
    assert any(part in finding.reason for part in reason.split("|")), finding


BOXES: dict[str, tuple[Forgery, str]] = {
    "missing leaf": (lambda c, m: forged(c, leaf_without(c, 0)), "cover"),
    "a gap between boxes": (
        lambda c, m: forged(c, {"boxes": c.leaves.boxes * [[1.0], [1 - 1e-9]]}),
        "cover",
    ),
    "a leaf twice": (lambda c, m: forged(c, {"boxes": changed(c.leaves.boxes, 0, c.leaves.boxes[1])}), "cover"),
    "the whole box for each": (lambda c, m: forged(c, {"boxes": None}), "cover"),
    "boxes inside out": (lambda c, m: forged(c, {"boxes": c.leaves.boxes[:, ::-1].copy()}), "cover"),
}


@pytest.mark.parametrize("name", BOXES)
def test_forged_boxes_are_rejected(name: str) -> None:
    given, model = genuine("boxes")
    assert given.leaves is not None
    assert given.leaves.boxes is not None
    assert audit(given, model).verdict is Verdict.CONFIRMED
    forge, reason = BOXES[name]
    finding = audit(forge(given, model), model)
    assert finding.verdict is Verdict.REJECTED
    assert reason in finding.reason


def moved(given: Certificate, by: float) -> Certificate:
    """The counterexample pushed out of its box by one entry."""
    assert given.counterexample is not None
    x = given.counterexample.copy()
    x.flat[0] = given.upper.flat[0] + by
    return replace(given, counterexample=x)


FALSIFIED: dict[str, tuple[Forgery, str]] = {
    "outside the box": (lambda c, m: moved(c, 1e-6), "not in the box"),
    "outside by rounding": (lambda c, m: moved(c, 1e-15), "not in the box"),
    "NaN": (lambda c, m: replace(c, counterexample=c.counterexample * np.nan), "NaN"),
    "property that always holds": (
        lambda c, m: replace(c, origin=None, matrix=0 * c.matrix, offset=c.offset + 1),
        "positive",
    ),
    "other label": (
        lambda c, m: replace(c, origin=replace(c.origin, label=(c.origin.label + 1) % 3)),
        "of label",
    ),
    "none": (lambda c, m: replace(c, counterexample=None), "no counterexample"),
    "swapped verdict": (lambda c, m: replace(c, verdict="verified"), "has a counterexample"),
    "swapped verdict without it": (lambda c, m: replace(c, verdict="verified", counterexample=None), "no leaves"),
    "smaller eps": (
        lambda c, m: replace(c, origin=replace(c.origin, eps="0"), lower=c.origin.image, upper=c.origin.image),
        "not in the box",
    ),
}


@pytest.mark.parametrize("name", FALSIFIED)
def test_forged_counterexamples_are_rejected(name: str) -> None:
    given, model = genuine("falsified")
    assert audit(given, model).verdict is Verdict.CONFIRMED
    forge, reason = FALSIFIED[name]
    finding = audit(forge(given, model), model)
    assert finding.verdict is Verdict.REJECTED, finding
    assert reason in finding.reason


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["neurons", "boxes", "falsified"])
def test_no_number_may_be_nan_or_infinite(kind: str, bad: float) -> None:
    given, model = genuine(kind)
    forgeries = []
    for owner, name in [("", f) for f in ("lower", "upper", "matrix", "offset", "counterexample")] + [
        ("leaves", f) for f in ("weights", "slopes", "multipliers", "boxes")
    ]:
        part = given.leaves if owner else given
        value = getattr(part, name, None)
        if value is not None and value.size:
            change = {name: changed(value.astype(np.float64), (0,) * value.ndim, bad)}
            forgeries.append(forged(given, change) if owner else replace(given, **change))
    assert given.origin is not None
    image = changed(given.origin.image, (0,) * given.origin.image.ndim, bad)
    forgeries.append(replace(given, origin=replace(given.origin, image=image)))
    for forgery in forgeries:
        assert audit(forgery, model).verdict is Verdict.REJECTED
    for name, value in model.weights.items():
        other = Model(model.graph, {**model.weights, name: changed(value, (0,) * value.ndim, bad)})
        assert audit(replace(given, model_sha256=other.sha256), other).verdict is Verdict.REJECTED


def test_a_graph_that_is_no_network_is_rejected() -> None:
    given, model = genuine("neurons")
    nodes = model.graph["nodes"]
    shape = [*nodes[0]["shape"], 1]
    for forgery in (
        {"nodes": []},
        {"nodes": nodes[1:]},
        {"nodes": [{**nodes[0], "op": "magic"}, *nodes[1:]]},
        {"nodes": [{**nodes[0], "shape": shape}, *nodes[1:]]},
        {"nodes": [{**nodes[0], "inputs": [nodes[-1]["name"]]}, *nodes[1:]]},
        {"nodes": [{**nodes[0], "facts": {}}, *nodes[1:]]},
        {"input_shape": [1]},
    ):
        other = Model({**model.graph, **forgery}, model.weights)
        assert audit(replace(given, model_sha256=other.sha256), other).verdict is Verdict.REJECTED


def test_a_maximum_must_be_one() -> None:
    """Its range is that of a maximum only if its third input is relu(b - a)."""
    module = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)).to(F64)
    given = problem(module, (1, 4, 4), "1/30", 3)
    found, model = certificates(given, VERIFIERS["ibp"], "1/30")
    names = [node["name"] for node in model.graph["nodes"] if node["op"] == "relu"]
    sums = [n["name"] for n in model.graph["nodes"] if n["op"] == "add"]
    assert names
    assert sums
    nodes = [{**n, "facts": {"sign": 1}} if n["op"] == "add" else n for n in model.graph["nodes"]]
    other = Model({**model.graph, "nodes": nodes}, model.weights)
    finding = audit(replace(found[0], model_sha256=other.sha256), other)
    assert finding.verdict is Verdict.REJECTED
    assert "maximum" in finding.reason


@pytest.mark.parametrize("name", RELAXATIONS)
def test_a_relaxation_that_proves_less_is_not_enough(name: str) -> None:
    """The recipe is part of the proof: bounds are recomputed with it and with nothing else."""
    given = problem(case("mlp").module, case("mlp").shape, "0.15", 6)
    verified = {n: [o.verdict is core.Verdict.VERIFIED for o in decided(VERIFIERS[n], given)] for n in RELAXATIONS}
    model = canonical(given.network, given.params)
    for i, outcome in enumerate(decided(VERIFIERS["deeppoly"], given)):
        made = certificate(given, i, outcome, model.sha256)
        if made is not None and name != "ibp" and not verified[name][i]:
            slope = {"slope": "adaptive"} if name == "crown_ibp" else {}
            finding = audit(forged(made, {"relaxation": {"name": name, **slope}}), model)
            assert finding.verdict is Verdict.REJECTED or verified["deeppoly"][i]


def test_an_unknown_relaxation_is_not_confirmed() -> None:
    given, model = genuine("neurons")
    for relaxation in ({"name": "magic"}, {}, {"name": "deeppoly"}, {"name": "deeppoly", "slope": "steep"}):
        assert audit(forged(given, {"relaxation": relaxation}), model).verdict is Verdict.UNDECIDED


def test_a_tie_is_not_confirmed() -> None:
    """A margin of exactly 0, neither proved nor refuted by more than rounding."""
    module = nn.Sequential(nn.Linear(2, 2)).to(F64)
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[0.1, 0.2], [0.1, 0.2]], dtype=F64))
        module[0].bias.zero_()
    net, params = tr.from_module(module, (2,))
    x = torch.tensor([[0.3, 0.7]], dtype=F64)
    given = Problem(net, params, tr.linf_box(x, "0.1"), tr.margin_spec(torch.tensor([0]), 2, dtype=F64))
    model = canonical(net, params)
    claimed = core.Outcome(core.Verdict.FALSIFIED, -1.0, 0.0, "test", counterexample=x[0])
    made = certificate(given, 0, claimed, model.sha256)
    assert made is not None
    assert audit(made, model).verdict is Verdict.UNDECIDED


ENDS: dict[str, tuple[Forgery, str]] = {
    "slopes above 1": (lambda c, m: with_ends(c, 1.5), "outside [0, 1]"),
    "no slopes": (lambda c, m: forged(with_ends(c), {"end_slopes": None}), "no slopes"),
    "NaN": (lambda c, m: with_ends(c, np.nan), "NaN"),
    "no such neuron": (lambda c, m: forged(with_ends(c), {"ends": with_ends(c).leaves.ends * [1000, 1]}), "no end"),
    "no such end": (lambda c, m: forged(with_ends(c), {"ends": with_ends(c).leaves.ends * [1, 2]}), "no end"),
}


@pytest.mark.parametrize("name", ENDS)
def test_forged_ends_are_rejected(name: str) -> None:
    given, model = genuine("neurons")
    forge, reason = ENDS[name]
    finding = audit(forge(given, model), model)
    assert finding.verdict is Verdict.REJECTED
    assert reason in finding.reason
