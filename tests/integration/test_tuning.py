"""The search of settings: ranges, pruning, resuming, and that the test split is never read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from tightrope.cli.main import app
from tightrope.data.digits import Digits
from tightrope.errors import ConfigError, InputError
from tightrope.experiments import tuning
from tightrope.experiments.config import parse_config
from tightrope.training.events import Silent

RANGES: dict[str, Any] = {
    "threads": 1,
    "data": {"name": "digits", "train": 90, "validation": 30},
    "model": {"name": "mlp", "width": [4]},
    "method": {"name": "certified", "relaxation": {"choices": ["ibp", "crown_ibp"]}},
    "eps": {"train": "0.02"},
    "optimizer": {"lr": {"low": 1e-3, "high": 1e-1, "log": True}},
    "train": {"epochs": {"low": 2, "high": 3}, "batch_size": 30},
}


def search(out: Path, trials: int, values: Any = RANGES) -> list[tuning.Tried]:
    return tuning.tune("tiny", values, trials=trials, out=out, count=8, watch=lambda name: Silent())


def test_a_study_goes_on_where_it_stopped_and_never_reads_the_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    loaded, load = set(), Digits.load
    monkeypatch.setattr(Digits, "load", lambda self, root, split: loaded.add(split) or load(self, root, split))
    first = search(tmp_path, 2)
    both = search(tmp_path, 4)
    assert [each.number for each in both] == [0, 1, 2, 3]
    assert both[:2] == [each if each.best == now.best else now for each, now in zip(first, both, strict=False)]
    assert loaded == {"train"}
    complete = [each for each in both if each.certified is not None]
    for each in complete:
        assert set(each.values) == {"method.relaxation", "optimizer.lr", "train.epochs"}
        assert each.best == (not any(_dominates(other, each) for other in complete))
    best = parse_config(tomllib.loads((tmp_path / "best.toml").read_text()), "best")
    top = max(complete, key=lambda each: (each.certified, each.natural))
    assert best.optimizer.lr == top.values["optimizer.lr"]


def _dominates(one: tuning.Tried, other: tuning.Tried) -> bool:
    a, b = (one.natural, one.certified), (other.natural, other.certified)
    return a != b and a[0] >= b[0] and a[1] >= b[1]


def test_a_hopeless_trial_is_pruned(tmp_path: Path) -> None:
    """After four good ones, a learning rate of almost 0 is below the median from the third epoch on."""
    optuna = pytest.importorskip("optuna")
    values = RANGES | {"method": {"name": "certified", "relaxation": "ibp"}, "train": {"epochs": 6, "batch_size": 30}}
    values = values | {"optimizer": {"lr": {"choices": [0.05, 1e-9]}}}
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
    study = optuna.create_study(
        study_name="tiny", storage=optuna.storages.JournalStorage(backend), direction="maximize"
    )
    for rate in (0.05, 0.05, 0.05, 0.05, 1e-9):
        study.enqueue_trial({"optimizer.lr": rate})
    found = search(tmp_path, 5, values)
    assert [each.state for each in found] == [*["complete"] * 4, "pruned"]
    assert not found[-1].best


def test_bad_searches_are_refused_before_any_work(tmp_path: Path) -> None:
    plain = RANGES | {"method": {"name": "standard"}, "optimizer": {}, "train": {"epochs": 1}}
    for values, match in (
        (plain, "nothing is marked"),
        (RANGES | {"data": {"name": "digits", "validation": 0}}, "validation"),
        (RANGES | {"optimizer": {"lr": {"choices": [-1.0]}}}, "optimizer.lr"),
    ):
        with pytest.raises(ConfigError, match=match):
            search(tmp_path / "study", 1, values)
    assert not (tmp_path / "study").exists()


def test_without_optuna_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(tuning.importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"tightrope\[tune\]"):
        search(tmp_path / "study", 1)


def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(RANGES))
    arguments = ["tune", str(path), "--trials", "1", "--count", "4", "--out", str(tmp_path / "study")]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "best.toml" in result.output
