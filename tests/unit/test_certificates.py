"""Genuine certificates are confirmed, forged ones are not, and files say what they hold."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tightrope as tr
from certificates import VERIFIERS, bare_spec, certificates, decided, forged, genuine, problem, with_ends
from helpers import F64, TINY, case, random_points, randomise
from reference.exact import exact_min, linear_pieces
from tightrope.auditor.audit import audit
from tightrope.auditor.bounds import Recipe, Region
from tightrope.auditor.finding import Verdict
from tightrope.auditor.graph import Graph
from tightrope.auditor.lines import Interval
from tightrope.auditor.proof import _tightened
from tightrope.core import outcome as core
from tightrope.core import registry
from tightrope.errors import CorruptDataError, InvariantError, MissingDataError
from tightrope.evaluation.certificates import certificate
from tightrope.frontend.graph import canonical
from tightrope.records.certificate import Certificate, Model
from tightrope.verifiers._problem import Problem
from tightrope.verifiers.alpha_crown import AlphaCrown
from tightrope.verifiers.bab import Bab
from tightrope.verifiers.milp import Milp
from tightrope.verifiers.one_shot import OneShot


def layers() -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """An example of every op, with a small head."""
    found = []
    for name in registry.names("ops"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module, shape = registry.find("ops", name).examples()[0]
            module = module.to(F64).eval()
            outputs = module(torch.zeros((1, *shape), dtype=F64)).flatten(1).shape[1]
            head = nn.Sequential(nn.Linear(outputs, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
            found.append((name, nn.Sequential(module, nn.Flatten(), head).to(F64).eval(), shape))
    return found


# ------------------------------------------------------------------------------------------------- genuine ones


@pytest.mark.parametrize(("name", "module", "shape"), layers(), ids=lambda value: value if type(value) is str else "")
def test_certificates_of_every_layer_are_confirmed(
    name: str, module: nn.Module, shape: tuple[int, ...], tmp_path: Path
) -> None:
    given, count = problem(module, shape, "1/30", 2), 0
    for verifier in VERIFIERS.values():
        found, model = certificates(given, verifier, "1/30")
        for made in found:
            made.write(tmp_path / "file")
            finding = audit(Certificate.read(tmp_path / "file"), model)
            assert finding.verdict is Verdict.CONFIRMED, (verifier, finding)
            count += 1
    assert count >= len(VERIFIERS)


@pytest.mark.parametrize("name", TINY)
def test_what_is_confirmed_is_true(name: str) -> None:
    """By enumeration; and all that is decided is confirmed."""
    given = problem(case(name).module, case(name).shape, "0.08", 3)
    verdicts = set()
    for outcome, i in zip(decided(VERIFIERS["neurons"], given), range(given.size), strict=True):
        box, rows = [end[i].numpy() for end in given.box], given.spec.matrix[i].numpy()
        assert linear_pieces(case(name).oracle, *box)
        exact = min(exact_min(case(name).oracle, *box, row) for row in rows)
        model = canonical(given.network, given.params)
        made = certificate(given, i, outcome, model.sha256)
        assert made is not None
        finding = audit(made, model)
        assert finding.verdict is Verdict.CONFIRMED
        assert finding.margin is not None
        assert (exact >= finding.margin) if made.verdict == "verified" else (exact <= finding.margin)
        verdicts.add(made.verdict)
    assert verdicts == {"verified", "falsified"}


def test_disjunctions_rest_on_weights() -> None:
    """Neither row alone is positive on the whole box, their mean is: of x and 1 - x one is at least a half."""
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).to(F64)
    with torch.no_grad():
        for value, numbers in zip(module.parameters(), ([[1], [-1]], [0, 1], [[1, 0], [0, 1]], [0, 0]), strict=True):
            value.copy_(torch.tensor(numbers, dtype=F64))
    net, params = tr.from_module(module, (1,))
    x = torch.tensor([[0.5]], dtype=F64)
    given = Problem(net, params, tr.linf_box(x, 0.5), bare_spec([[1, 0], [0, 1]], 1, (0, 0)))
    model = canonical(net, params)
    for verifier in (AlphaCrown(evidence=True), Bab(edges=0, evidence=True)):
        made = certificate(given, 0, decided(verifier, given)[0], model.sha256)
        assert made is not None
        assert audit(made, model).verdict is Verdict.CONFIRMED
        assert made.leaves is not None
        one_row = forged(made, {"weights": np.eye(2)[np.zeros(made.leaves.size, int)]})
        assert audit(one_row, model).verdict is not Verdict.CONFIRMED


def test_float32_verdicts_can_be_audited() -> None:
    given = case("conv")
    net, params = given.net, {name: value.float() for name, value in given.params.items()}
    x = given.inputs(4).float()
    spec = tr.margin_spec(net(params, x).argmax(1), 3)
    single, model = Problem(net, params, tr.linf_box(x, "0.01"), spec), canonical(net, params)
    found = [certificate(single, i, o, model.sha256) for i, o in enumerate(decided(VERIFIERS["deeppoly"], single))]
    assert any(found)
    assert all(audit(made, model).verdict is Verdict.CONFIRMED for made in found if made)


def test_a_program_s_verdicts_rest_on_the_leaves_of_its_proof() -> None:
    module = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    given = problem(randomise(module, 1), (2,), "1/5", 3)
    found, model = certificates(given, Milp(proof=Bab(edges=0, evidence=True)), "1/5")
    assert {made.verdict for made in found} == {"verified", "falsified"}
    assert {audit(made, model).verdict for made in found} == {Verdict.CONFIRMED}


def test_nothing_is_kept_unless_asked() -> None:
    given = problem(case("mlp").module, case("mlp").shape, "0.05", 3)
    for verifier in (OneShot(tr.relaxation("deeppoly"), "deeppoly"), AlphaCrown(), Bab()):
        assert all(outcome.evidence is None for outcome in decided(verifier, given))


def test_an_unknown_outcome_has_no_certificate_and_no_evidence() -> None:
    given = problem(case("mlp").module, case("mlp").shape, "0.15", 3)
    unknown = core.Outcome(core.Verdict.UNKNOWN, -1.0, 1.0, "test", reason="none")
    assert certificate(given, 0, unknown, "") is None
    with pytest.raises(InvariantError, match="evidence"):
        replace(unknown, evidence=genuine("neurons")[0].leaves)


# ------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["neurons", "boxes", "falsified"])
def test_a_file_that_holds_its_network_stands_alone(kind: str, tmp_path: Path) -> None:
    given, model = genuine(kind)
    replace(given, model=model).write(tmp_path / "alone.safetensors")
    given.write(tmp_path / "refers.safetensors")
    assert audit(Certificate.read(tmp_path / "alone.safetensors")).verdict is Verdict.CONFIRMED
    finding = audit(Certificate.read(tmp_path / "refers.safetensors"))
    assert finding.verdict is Verdict.UNDECIDED
    assert "its network is not there" in finding.reason


def test_files_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    given, model = genuine("boxes")
    given.write(tmp_path / "certificate")
    model.write(tmp_path / "model")
    again = Certificate.read(tmp_path / "certificate")
    assert given.leaves is not None
    assert again.leaves is not None
    for field in fields(given.leaves):
        assert np.array_equal(getattr(again.leaves, field.name), getattr(given.leaves, field.name)), field.name
    assert Model.read(tmp_path / "model").sha256 == model.sha256 == again.model_sha256


def test_damaged_files_are_named(tmp_path: Path) -> None:
    given, model = genuine("neurons")
    given.write(tmp_path / "whole.safetensors")
    model.write(tmp_path / "model")
    data = (tmp_path / "whole.safetensors").read_bytes()
    for cut in (0, 7, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.safetensors").write_bytes(data[:cut])
        with pytest.raises(CorruptDataError, match=r"cut\.safetensors"):
            Certificate.read(tmp_path / "cut.safetensors")
        [audited] = tr.audit(tmp_path / "cut.safetensors")
        assert audited.finding.verdict is Verdict.REJECTED
    with pytest.raises(CorruptDataError, match="not a certificate"):
        Certificate.read(tmp_path / "model")
    with pytest.raises(CorruptDataError, match="not a model"):
        Model.read(tmp_path / "whole.safetensors")
    with pytest.raises(MissingDataError):
        Certificate.read(tmp_path / "none")


def test_the_hash_depends_on_everything() -> None:
    _, model = genuine("neurons")
    name = next(iter(model.weights))
    others = [
        Model(model.graph, {**model.weights, name: model.weights[name] + 1e-9}),
        Model(model.graph, {**model.weights, name: model.weights[name].astype(np.float32)}),
        Model({**model.graph, "source": ["weights.safetensors", "0"]}, model.weights),
        Model({**model.graph, "nodes": model.graph["nodes"][:-1]}, model.weights),
    ]
    assert len({model.sha256, *(other.sha256 for other in others)}) == 5


# ------------------------------------------------------------------------------------- tightened pre-activations


@pytest.mark.parametrize("kind", ["neurons", "boxes"])
def test_ends_with_slopes_of_their_own_are_confirmed(kind: str, tmp_path: Path) -> None:
    given, model = genuine(kind)
    for slope in (None, 0.0, 1.0):
        with_ends(given, slope).write(tmp_path / "file")
        assert audit(Certificate.read(tmp_path / "file"), model).verdict is Verdict.CONFIRMED


@pytest.mark.parametrize("name", ["mlp", "tanh"])
def test_ends_hold_whatever_their_slopes(name: str) -> None:
    """At corners and random points of the box; and they are tighter somewhere, or the test shows nothing."""
    given = problem(case(name).module, case(name).shape, "0.4", 1)
    net, params, box, _ = given
    model = canonical(net, params)
    graph = Graph(model.graph, model.weights)
    neurons = np.array([(n, i) for n, node in enumerate(net.pre_activations) for i in range(graph.size(node))])
    made = forged(genuine("neurons")[0], {"nodes": net.pre_activations, "neurons": neurons, "ends": None})
    leaves = with_ends(made).leaves
    assert leaves is not None
    flat = Interval(*(end[0].numpy().ravel() for end in box))
    recipe = Recipe("substitution", "adaptive")
    plain, tightened = Region(graph, flat, recipe), Region(graph, flat, recipe, tighten=partial(_tightened, leaves))
    points = random_points(box, 500, torch.Generator().manual_seed(0)).flatten(0, 1)
    gain = 0.0
    for node, value in net.values(params, torch.cat([points, box.lower, box.upper])).items():
        if node in tightened.pre:
            lower, upper = tightened.pre[node]
            seen = value.detach().flatten(1).numpy()
            assert ((lower - 1e-12 <= seen) & (seen <= upper + 1e-12)).all()
            gain = max(gain, (lower - plain.pre[node].lower).max())
    assert gain > 0
