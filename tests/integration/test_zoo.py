"""The zoo: what comes with the package is what was trained and certified, and a damaged file is never a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tools.zoo import LIMIT, add, write_sums
from typer.testing import CliRunner

import tightrope as tr
from tightrope.cli import _console
from tightrope.cli.main import app
from tightrope.data import _files
from tightrope.errors import CheckpointError, InputError, UnknownNameError
from tightrope.experiments import model_zoo
from tightrope.records import image
from tightrope.records.certificate import Certificate
from tightrope.records.image import ImageRecord
from tightrope.training.state import save_tensors

NAMES = model_zoo.zoo()
KNOWN = "zoo/mnist-0.1-cnn3_tiny-deeppoly-rgs"


def sample(name: str) -> tuple[list[ImageRecord], list[Certificate]]:
    folder = model_zoo.find(name)
    records = image.read(folder / "certify-sample.jsonl")
    return records, [Certificate.read(folder / f"certificates/certify-sample/{r.index}.safetensors") for r in records]


@pytest.fixture
def own_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage, in place of the zoo."""
    root = tmp_path / "package"
    shutil.copytree(model_zoo.find(KNOWN), root / KNOWN.removeprefix("zoo/"))
    monkeypatch.setattr(model_zoo, "root", lambda: root)
    return root / KNOWN.removeprefix("zoo/")


def test_there_are_networks_and_they_are_small() -> None:
    assert KNOWN in NAMES
    for name in NAMES:
        assert sum(path.stat().st_size for path in model_zoo.find(name).rglob("*") if path.is_file()) < LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_every_certificate_in_the_zoo_is_confirmed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the independent auditor, from the weights and the images in the certificates alone; nothing is downloaded."""
    monkeypatch.delenv(_files.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(_files.pooch, "os_cache", lambda _: tmp_path)
    monkeypatch.setattr(_files.pooch, "retrieve", lambda *_, **__: pytest.fail("a download"))
    found = tr.audit(name)
    assert len(found) == len(sample(name)[0])
    assert all(one.confirmed and one.replayed for one in found), found
    assert "verified" in {one.claim for one in found}


@pytest.mark.parametrize("name", NAMES)
def test_certified_again_the_sample_is_what_its_records_say(name: str, tmp_path: Path) -> None:
    records, certificates = sample(name)
    images = torch.stack([torch.from_numpy(given.origin.image) for given in certificates if given.origin])
    labels = torch.tensor([record.label for record in records])
    out = tmp_path / "again.jsonl"
    tr.certify(name, (images, labels), out=out, complete=True, timeout=30)
    assert [(r.index, r.label, r.verdict) for r in image.read(out)] == [
        (record.index, record.label, record.verdict) for record in records
    ]
    assert model_zoo.summary(name).eps == records[0].eps == tr.load(name).config.eps.target


@pytest.mark.parametrize("victim", ["weights.safetensors", "network.json", "record.json", "certify-sample.jsonl"])
@pytest.mark.parametrize("damage", ["altered", "cut off", "gone"])
def test_a_damaged_file_is_an_error_and_never_another_network(own_zoo: Path, victim: str, damage: str) -> None:
    assert tr.load(KNOWN).params
    path = own_zoo / victim
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(data if damage == "altered" else data[:-1])
    with pytest.raises(CheckpointError, match=victim):
        tr.load(KNOWN)


def test_weights_of_another_network_are_refused_even_with_their_checksum(own_zoo: Path) -> None:
    others = {name: 2 * value if value.is_floating_point() else value for name, value in tr.load(KNOWN).params.items()}
    save_tensors(own_zoo / "weights.safetensors", others, {})
    write_sums(own_zoo)
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        _ = tr.load(KNOWN).params


def test_bad_names() -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{KNOWN}'"):
        tr.load(KNOWN + "s")
    with pytest.raises(UnknownNameError):
        tr.load("zoo/../zoo")


def test_a_folder_of_the_same_name_is_never_mistaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(KNOWN).mkdir(parents=True)
    with pytest.raises(InputError, match="a folder here"):
        tr.load(KNOWN)


def test_results_about_the_zoo_go_to_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in model_zoo.find(KNOWN).rglob("*") if path.is_file()}
    tr.certify(KNOWN, (torch.zeros(1, 1, 28, 28), torch.tensor([0])), relaxations=["ibp"])
    assert [*tmp_path.glob("runs/zoo-*/certify-data-*.jsonl")]
    assert {path: path.read_bytes() for path in model_zoo.find(KNOWN).rglob("*") if path.is_file()} == before


def test_the_zoo_is_listed_with_its_accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_console.out, "_width", 250)
    result = CliRunner().invoke(app, ["list", "zoo"])
    assert result.exit_code == 0, result.output
    for name in NAMES:
        assert name in result.output
    assert "certified 78.6 % of 10,000 test images" in result.output


def test_only_what_is_certified_and_new_is_added(own_zoo: Path, tmp_path: Path) -> None:
    run = tr.load(KNOWN)
    with pytest.raises(InputError, match="exists"):
        add(run, own_zoo, 1, None)
    (own_zoo / "certify-mnist-test-0.1-float64-complete.summary.json").unlink()
    with pytest.raises(InputError, match="one complete certification"):
        add(run, tmp_path / "new", 1, None)
