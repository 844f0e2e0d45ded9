"""The whole road on the real MNIST, and the committed records of real runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import tightrope as tr
from tightrope.data._loader import subset, to_unit
from tightrope.data.mnist import Mnist
from tightrope.experiments.config import parse_config
from tightrope.records.image import read, read_summary
from tightrope.records.run import RunRecord

RESULTS = Path(__file__).parents[2] / "results"
RECORDS = sorted(RESULTS.glob("*/record.json"))
SUMMARIES = sorted(RESULTS.glob("*/*.summary.json"))


def mnist_folder() -> str:
    root = os.environ.get("TIGHTROPE_DATA")
    if not root:
        pytest.skip("TIGHTROPE_DATA is not set")
    if not list(Path(root).glob("MNIST/raw/t10k-images-idx3-ubyte*")):
        pytest.skip(f"TIGHTROPE_DATA = {root} has no MNIST")
    return root


def test_mnist_from_preset_to_certificate(tmp_path: Path) -> None:
    root, count, eps = mnist_folder(), 50, 0.1
    overrides = ["data.train=1000", "data.validation=100", "train.epochs=2", "eps.train=0.1", "eps.finish=1"]
    overrides += ["optimizer.lr=5e-3", "optimizer.milestones=[]", "train.batch_size=100"]
    run = tr.fit("mnist-0.1/cnn3-ibp", overrides=overrides, data_dir=root, out=tmp_path / "run")
    assert run.record.status == "finished"
    assert run.record.samples == {"train": 900, "validation": 100}
    assert run.epochs[1].train["natural_loss"] < run.epochs[0].train["natural_loss"]

    attack = {"name": "pgd", "steps": 5}
    summary = tr.certify(run, count=count, data_dir=root, attack=attack)
    (path,) = run.path.glob("certify-mnist-test-*.jsonl")
    records = read(path)
    assert (summary.count, summary.eps) == (count, "0.1")
    assert summary.certified <= summary.adversarial <= summary.natural
    assert summary.natural > count // 5, "no better than guessing"

    samples = subset(Mnist().load(root, "test"), count)
    assert [record.label for record in records] == samples.labels.tolist()
    x = to_unit(samples, torch.float64)
    params = {name: value.double() for name, value in run.params.items()}
    correct = run.network(params, x).argmax(1) == samples.labels
    assert [record.natural for record in records] == correct.tolist()
    certified = torch.tensor([record.certified for record in records])
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):  # the corners of the box, which hurt most
        signs = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.float64) * 2 - 1
        predicted = run.network(params, (x + eps * signs).clamp(0, 1)).argmax(1)
        assert bool((predicted == samples.labels)[certified].all())


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_committed_runs_are_certified_at_their_radius(path: Path) -> None:
    config = parse_config(RunRecord.read(path).config, str(path))
    summaries = [read_summary(each) for each in path.parent.glob("*.summary.json")]
    assert config.eps.target in {summary.eps for summary in summaries}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_committed_run_records_can_be_read(path: Path) -> None:
    record = RunRecord.read(path)
    assert record.status == "finished"
    assert record.final is not None
    assert record.final.step == record.steps
    config = parse_config(record.config, str(path))
    assert config.train.epochs == record.final.epoch


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_committed_summaries_can_be_read(path: Path) -> None:
    summary = read_summary(path)
    assert summary.certified <= summary.adversarial <= summary.natural <= summary.count
    assert summary.certified_accuracy == summary.certified / summary.count
    low, high = summary.certified_interval
    assert low <= summary.certified_accuracy <= high
