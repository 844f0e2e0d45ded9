"""Reports and comparisons of runs that were really trained: the commands, and that they can be repeated to the bit."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
import torch
from click.testing import Result
from typer.testing import CliRunner

import tightrope as tr
from tightrope.cli import _console
from tightrope.cli.main import app
from tightrope.records import image
from tightrope.records.certificate import MODEL_FILE, Model
from tightrope.records.run import RunRecord
from tightrope.reports.gather import gather
from tightrope.reports.pictures import folder_of, worst
from tightrope.reports.reproduce import commands, settings_toml

TINY = ("threads=1", "data.train=200", "model.width=[6]", "train.epochs=2", "eps.train=0.02", "optimizer.lr=0.02")


def tightrope(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def text(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture(autouse=True)
def wide_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_console.out, "_width", 400)
    monkeypatch.setattr(_console.err, "_width", 400)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two seeds, trained and certified with evidence; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        tr.fit("digits/mlp-ibp", out=folder / str(seed), overrides=[*TINY, f"seed={seed}"])
        certified = ("--count", 40, "--eps", "0.05", "--attack-steps", 5, "--evidence")
        assert tightrope("certify", folder / str(seed), *certified).exit_code == 0
    return folder / "0", folder / "1"


def test_the_commands_of_a_report_repeat_the_run(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and records are the same, seconds aside."""
    (run,) = gather(runs[:1]).runs
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(settings_toml(run))
    for command in commands(run):
        words = shlex.split(command)
        assert words[0] == "tightrope"
        result = tightrope(*words[1:])
        assert result.exit_code == 0, result.output
    again = tmp_path / "0-again"
    assert RunRecord.read(again / "record.json").weights_sha256 == run.record.weights_sha256
    (certification,) = run.certifications
    records = image.read(again / certification.path.name)
    aside = {"seconds": 0.0}
    assert [r.model_copy(update=aside) for r in records] == [r.model_copy(update=aside) for r in certification.records]


def test_counterexamples_are_confirmed_and_forged_ones_are_not(runs: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    (run,) = gather([folder]).runs
    assert run.main is not None
    found = worst(run.main)
    assert found
    assert all(failure.confirmed and failure.taken_for not in (None, failure.label) for failure in found)
    assert [failure.margin for failure in found] == sorted(failure.margin for failure in found)
    path = folder_of(run.main) / MODEL_FILE
    model = Model.read(path)
    Model(model.graph, {name: 2 * weights for name, weights in model.weights.items()}).write(path)
    assert not any(failure.confirmed for failure in worst(run.main))


def test_a_page_is_written_and_the_next_step_is_said(runs: tuple[Path, Path], tmp_path: Path) -> None:
    result = tightrope("report", *runs, "-o", tmp_path / "page.html", "--title", "Two seeds")
    assert result.exit_code == 0, result.output
    assert "page.html" in text(result)
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<h1>Two seeds</h1>" in page
    assert page.count("data:image/png;base64,") >= 6
    assert len(page) < 6 * 2**20


@pytest.mark.parametrize(("option", "bold"), [("--markdown", "**"), ("--latex", r"\textbf")])
def test_tables_go_to_the_output_or_to_a_file(option: str, bold: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    shown = tightrope("report", *runs, option)
    assert shown.exit_code == 0
    assert "±" in shown.stdout or r"$\pm$" in shown.stdout
    assert bold not in shown.stdout.replace(r"**digits", "").replace(
        "verification**", ""
    )  # a single row is not the best
    assert tightrope("report", *runs, option, "-o", tmp_path / "table").exit_code == 0
    assert (tmp_path / "table").read_text() == shown.stdout


def test_comparing_says_what_differs_and_by_how_much(runs: tuple[Path, Path]) -> None:
    result = tightrope("compare", *runs)
    assert result.exit_code == 0, result.output
    rows = {row[0]: row[1:] for line in result.output.splitlines() if (row := re.split(r"\s*│\s*", line.strip("│ \n")))}
    assert rows["seed"] == ["0", "1"]
    assert set(rows) >= {"natural accuracy", "certified accuracy", "time of training", "certified", "natural"}
    first, second = (
        sum(record.certified for record in image.read(next(run.glob("certify-*.jsonl")))) / 40 for run in runs
    )
    assert rows["certified"][0] == f"{100 * (second - first):+.2f}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "nowhere does not exist"),
        (["report", "{run}", "--markdown", "--latex"], "not both"),
        (["report", "{run}", "-o", "."], "is a folder"),
        (["compare", "{run}"], "at least two"),
        (["compare", "{run}", "{run}"], "given twice"),
    ],
)
def test_what_cannot_be_done_is_refused(
    arguments: list[str], message: str, runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tightrope(*(argument.format(run=runs[0]) for argument in arguments))
    assert result.exit_code == 2
    assert message in text(result)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_not_certified_has_no_table(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("record.json", "metrics.jsonl"):
        shutil.copy(runs[0] / name, folder)
    assert "tightrope certify RUN" in text(tightrope("report", folder, "--latex"))
    assert tightrope("report", folder, "-o", tmp_path / "page.html").exit_code == 0


# ----------------------------------------------------------------------------------------------------- settings


def test_the_settings_in_a_report_are_those_of_the_run(runs: tuple[Path, Path]) -> None:
    (run,) = gather(runs[:1]).runs
    assert settings_toml(run) == tomli_w.dumps(run.record.config)
