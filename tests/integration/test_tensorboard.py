"""Logs for TensorBoard: what the records say, also where a run was interrupted; and by the first process alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tightrope as tr
from tightrope.cli.main import app
from tightrope.errors import MissingExtraError
from tightrope.records.run import EpochRecord, read_epochs
from tightrope.training.events import StepEvent
from tightrope.training.tensorboard import TensorBoard

TINY = {
    "threads": 1,
    "data": {"name": "digits", "train": 120, "validation": 20},
    "model": {"name": "mlp", "width": [4]},
    "method": {"name": "certified", "relaxation": "ibp"},
    "eps": {"train": "0.02"},
    "train": {"epochs": 4, "batch_size": 25},
}  # 4 steps an epoch


class Interrupting:
    """Stands for Ctrl-C after an epoch, which the loop only notices at the next step."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_step(self, event: StepEvent) -> None:
        pass

    def on_epoch(self, record: EpochRecord) -> None:
        if record.epoch == self._epoch:
            raise KeyboardInterrupt


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = module.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_what_is_logged_is_in_the_records(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tr.fit(TINY, out=tmp_path / "run", tensorboard=True)
    found, epochs = scalars(tmp_path / "run" / "tensorboard"), read_epochs(tmp_path / "run" / "metrics.jsonl")
    for group in ("train", "validation"):
        for name in getattr(epochs[0], group):
            wanted = [(epoch.step, pytest.approx(getattr(epoch, group)[name], rel=1e-6)) for epoch in epochs]
            assert found[f"{group}/{name}"] == wanted
    assert [value for _, value in found["schedule/eps"]] == pytest.approx([epoch.eps for epoch in epochs])


def test_a_resumed_run_goes_on_in_the_same_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tr.fit(TINY, out=tmp_path / "whole", tensorboard=True)
    for epoch in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            tr.fit(TINY, out=tmp_path / "parts", tensorboard=True, resume=epoch > 2, watcher=Interrupting(epoch))
    tr.fit(TINY, out=tmp_path / "parts", tensorboard=True, resume=True)
    whole, parts = (scalars(tmp_path / name / "tensorboard") for name in ("whole", "parts"))
    for tag in whole.keys() - {"schedule/seconds"}:
        if not tag.startswith("step/"):  # these come when they come
            assert parts[tag] == whole[tag]


def test_steps_are_logged_and_those_that_are_repeated_replaced(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for steps in ((3, 7), (5, 9)):  # the second goes on from a checkpoint before step 7
        logs = TensorBoard(tmp_path / "logs")
        for step in steps:
            logs.on_step(StepEvent(step=step, steps=9, epoch=1, eps=0.1, metrics={"loss": 1 / step}))
        logs.close()
    assert scalars(tmp_path / "logs")["step/loss"] == [(step, pytest.approx(1 / step)) for step in (3, 5, 9)]


def test_without_the_option_there_are_no_logs(tmp_path: Path) -> None:
    tr.fit(TINY, out=tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_run_that_fails_before_it_starts_leaves_none(tmp_path: Path) -> None:
    TensorBoard(tmp_path / "logs").close()
    assert not list(tmp_path.iterdir())


def test_without_the_package_it_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"tightrope\[track\]"):
        tr.fit(TINY, out=tmp_path / "run", tensorboard=True)
    assert not list(tmp_path.iterdir())


def test_the_command_says_how_to_look(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    sets = [part for setting in ("data.train=100", "train.epochs=1", "threads=1") for part in ("--set", setting)]
    result = CliRunner().invoke(
        app, ["train", "digits/mlp-ibp", "--tensorboard", "--out", str(tmp_path / "run"), *sets]
    )
    assert result.exit_code == 0, result.output
    assert "tensorboard --logdir" in " ".join(result.output.split())
