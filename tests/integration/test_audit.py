"""``certify --evidence`` and ``audit``, on a small run: what is written, what is checked, how it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import tightrope as tr
from tightrope.auditor.finding import Verdict
from tightrope.cli.main import app
from tightrope.errors import CorruptDataError, InputError, MissingDataError
from tightrope.records.certificate import MODEL_FILE, Certificate, Model
from tightrope.records.image import read, read_all
from tightrope.records.radius import RadiusRecord

TINY = ("data.train=200", "model.width=[6]", "train.epochs=2", "eps.train=0.02", "optimizer.lr=0.02")
COUNT = 10
EPS = "1/50"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and runs set the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with certificates of ten images."""
    path = tmp_path_factory.mktemp("runs") / "run"
    tr.fit("digits/mlp-deeppoly", out=path, overrides=TINY)
    tr.certify(path, eps=EPS, count=COUNT, complete=True, timeout=5.0, evidence=True)
    return path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def folder(run: Path) -> Path:
    [found] = (run / "certificates").iterdir()
    return found


def some(run: Path, verdict: str) -> Path:
    """A certificate with that verdict."""
    files = [file for file in sorted(folder(run).glob("*.safetensors")) if file.name != MODEL_FILE]
    return next(file for file in files if Certificate.read(file).verdict == verdict)


def audited(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["audit", *map(str, arguments)], env={"COLUMNS": "400"})
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, " ".join(result.output.split())


def rejections(run: Path) -> list[str]:
    return [found.finding.reason for found in tr.audit(run) if found.finding.verdict is Verdict.REJECTED]


def test_every_decided_image_has_a_certificate_that_is_confirmed(run: Path) -> None:
    [records] = run.glob("certify-*.jsonl")
    decided = {record.index: record.verdict for record in read(records) if record.verdict != "unknown"}
    assert {"verified", "falsified"} <= set(decided.values())
    found = tr.audit(run)
    assert {int(one.path.stem): one.claim for one in found} == decided
    assert all(one.confirmed and one.replayed for one in found)
    code, text = audited(run)
    assert code == 0
    assert f"{len(found)} of {len(found)} replayed" in text


def test_a_third_party_needs_the_certificate_and_the_network(run: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(some(run, "verified"), tmp_path / "one.safetensors"))
    assert audited(alone)[0] == 20
    assert audited(alone, "--model", folder(run) / MODEL_FILE)[0] == 0
    assert audited(folder(run))[0] == 0
    replace(Certificate.read(alone), model=Model.read(folder(run) / MODEL_FILE)).write(alone)
    assert audited(alone)[0] == 0


def test_a_run_is_held_against_nothing_else(run: Path) -> None:
    """Files that would not be looked at are refused, not passed over."""
    model = next(run.glob("certificates/*/model.safetensors"))
    with pytest.raises(InputError, match="against the run itself"):
        tr.audit(run, model=model)


def test_a_missing_certificate_is_noticed(run: Path) -> None:
    some(run, "verified").unlink()
    assert "does not exist" in rejections(run)[0]
    assert audited(run)[0] == 30


def test_a_damaged_certificate_is_noticed(run: Path) -> None:
    path = some(run, "verified")
    path.write_bytes(path.read_bytes()[:-8])
    [reason] = rejections(run)
    assert "truncated" in reason


def test_certificates_of_other_weights_are_noticed(run: Path) -> None:
    """They prove what they say, but not of this run."""
    model = Model.read(folder(run) / MODEL_FILE)
    name = next(iter(model.weights))
    other = Model(model.graph, {**model.weights, name: model.weights[name] * np.float32(1 + 1e-6)})
    other.write(folder(run) / MODEL_FILE)
    for file in folder(run).glob("*.safetensors"):
        if file.name != MODEL_FILE:
            replace(Certificate.read(file), model_sha256=other.sha256).write(file)
    assert {one.confirmed for one in tr.audit(folder(run))} == {True}
    assert set(rejections(run)) == {"its network is not that of the run"}


def test_a_record_that_says_something_else_is_noticed(run: Path) -> None:
    path = some(run, "falsified")
    [records] = run.glob("certify-*.jsonl")
    lines = records.read_text().splitlines()
    changed = [line for line in lines if json.loads(line).get("index") != int(path.stem)]
    records.write_text("\n".join(changed) + "\n")
    assert rejections(run) == ["no record belongs to it"]


def test_another_image_is_noticed(run: Path) -> None:
    """A genuine certificate of one image in the place of another's."""
    first, second, *_ = (file for file in sorted(folder(run).glob("*.safetensors")) if file.name != MODEL_FILE)
    given = Certificate.read(first)
    assert given.origin is not None
    origin = replace(given.origin, index=int(second.stem))
    replace(given, origin=origin).write(second)
    [reason] = rejections(run)
    assert "something else" in reason or "of the dataset" in reason


def test_a_replay_that_disagrees_is_noticed(run: Path) -> None:
    found = tr.audit(run, replay=lambda x: np.linspace(0.0, 1.0, 10))
    assert {one.finding.verdict for one in found} == {Verdict.REJECTED}
    assert "other outputs" in found[0].finding.reason


def test_a_damaged_network_and_no_certificates_are_bad_input(run: Path, tmp_path: Path) -> None:
    (folder(run) / MODEL_FILE).write_bytes(b"nothing")
    with pytest.raises(CorruptDataError):
        tr.audit(run)
    assert audited(run)[0] == 2
    with pytest.raises(MissingDataError, match="--evidence"):
        tr.audit(tmp_path / "run" / "certificates")
    with pytest.raises(MissingDataError, match="does not exist"):
        tr.audit(tmp_path / "nothing")


def test_evidence_belongs_to_the_settings_of_a_certification(run: Path) -> None:
    """Or images that were certified without would be left without."""
    with pytest.raises(InputError, match="evidence"):
        tr.certify(run, eps=EPS, count=COUNT, complete=True, timeout=5.0)


def test_nothing_is_written_unless_asked(run: Path) -> None:
    before = sorted(run.rglob("*.safetensors"))
    tr.certify(run, eps=EPS, count=2)
    assert sorted(run.rglob("*.safetensors")) == before


def test_shards_leave_the_same_certificates(whole: Path, run: Path) -> None:
    """An image's is written by the shard that decides it, into the one folder."""
    shutil.rmtree(run / "certificates")
    [records] = run.glob("certify-*.jsonl")
    for path in run.glob("certify-*"):
        path.unlink()
    for shard in ("1/2", "2/2"):
        tr.certify(run, eps=EPS, count=COUNT, complete=True, timeout=5.0, evidence=True, batch_size=5, shard=shard)
    assert records.is_file()
    assert {path.name for path in folder(run).iterdir()} == {path.name for path in folder(whole).iterdir()}
    assert all(one.confirmed for one in tr.audit(run))


def test_both_radii_of_every_image_have_certificates(run: Path) -> None:
    """At the radii that are reported and no others, and missing ones are found."""
    shutil.rmtree(run / "certificates")
    tr.certified_radii(run, limit="1/10", tolerance="1/80", count=6, complete=True, timeout=5.0, evidence=True)
    found = tr.audit(run)
    assert found
    assert all(one.confirmed and one.replayed for one in found)
    [path] = run.glob("certify-*radius.jsonl")
    records = read_all(path, RadiusRecord)
    claims = {(r.index, "verified", r.verified) for r in records if r.certified_radius}
    claims |= {(r.index, "falsified", r.falsified) for r in records if r.falsified is not None}
    assert {verdict for _, verdict, _ in claims} == {"verified", "falsified"}
    given = [Certificate.read(one.path) for one in found]
    assert {(c.origin.index, c.verdict, c.origin.eps) for c in given if c.origin is not None} == claims
    proof = some(run, "verified")
    smaller = next(c for c in given if c.verdict == "verified" and c.origin is not None)
    assert smaller.origin is not None
    forged = replace(smaller, origin=replace(smaller.origin, eps="1/1000"))
    forged.write(proof)
    some(run, "falsified").unlink()
    assert [one.finding.verdict for one in tr.audit(run) if not one.confirmed] == [Verdict.REJECTED] * 2
