"""The command line, in this process: exit codes, files, and messages that are one readable paragraph."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import tightrope as tr
from tightrope.cli import _console
from tightrope.cli.main import _interrupt, app
from tightrope.core import registry
from tightrope.errors import InvariantError
from tightrope.experiments import demo
from tightrope.experiments.load import families, single_presets
from tightrope.records.image import read, read_summary
from tightrope.records.radius import read_distribution
from tightrope.records.run import Plan, RunRecord
from tightrope.training import loop

COMMANDS = ("train", "plan", "certify", "audit", "verify", "export", "demo", "report", "compare", "lab", "list")
TINY = ("data.train=200", "model.width=[6]", "train.epochs=2", "eps.train=0.02", "optimizer.lr=0.02")


@pytest.fixture(autouse=True)
def quiet_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide lines, an empty current folder, and reports of bugs beside it."""
    monkeypatch.setattr(_console.out, "_width", 400)
    monkeypatch.setattr(_console.err, "_width", 400)
    (tmp_path / "here").mkdir()
    (tmp_path / "reports").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "reports"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and runs set the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tightrope(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def text(result: Result) -> str:
    """Everything that was shown, in one line without the frames of tables and messages."""
    return " ".join(re.sub(r"[│╭╮╰╯─┃]", " ", result.output).split())


def refused(*arguments: object) -> str:
    """The message of a command that ends with exit code 2."""
    result = tightrope(*arguments)
    assert result.exit_code == 2, text(result)
    return text(result)


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained by the command line; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = tightrope("train", "digits/mlp-ibp", "--out", folder, *sets(*TINY))
    assert result.exit_code == 0, text(result)
    return folder


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of the run's folder, to be changed."""
    folder = tmp_path / "own"
    folder.mkdir()
    for path in run.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------ help and lists


@pytest.mark.parametrize(
    "command", [(), *((command,) for command in COMMANDS), ("lab", "surface"), ("lab", "properties")]
)
def test_help_describes_every_option(command: tuple[str, ...]) -> None:
    result = tightrope(*command, "--help")
    assert result.exit_code == 0
    shown = text(result)
    for word in COMMANDS if not command else ():
        assert word in shown
    assert "130 interrupted" in shown or command
    app_command = typer_command(*command)
    for parameter in app_command.params:
        assert parameter.help, f"{parameter.name} has no help"


def typer_command(*names: str) -> Any:
    import typer.main

    command: Any = typer.main.get_command(app)
    for name in names:
        command = command.get_command(None, name)
    return command


def test_without_arguments_there_is_help() -> None:
    assert "Commands" in tightrope().output


def test_the_version() -> None:
    result = tightrope("--version")
    assert result.exit_code == 0
    assert tr.__version__ in result.output


@pytest.mark.parametrize("kind", registry.KINDS)
def test_plugins_are_listed_with_what_they_are(kind: str) -> None:
    result = tightrope("list", kind)
    assert result.exit_code == 0
    rows = [line for line in result.output.splitlines() if line.startswith("│")]
    for name in registry.names(kind):
        (row,) = [line for line in rows if line.split("│")[1].strip() == name]
        assert len(row.split("│")[2].split()) >= 3, f"{name} is not described"


def test_presets_are_listed_with_what_they_train() -> None:
    result = tightrope("list", "presets")
    assert result.exit_code == 0
    for name in single_presets():
        (row,) = [line for line in result.output.splitlines() if f" {name} " in line]
        assert "epochs" in row
        assert "eps" in row
    text = " ".join(word for word in result.output.split() if word != "│")
    for family, (networks, methods) in families().items():
        assert f" {family}/NETWORK-METHOD " in text
        assert all(word in text for word in (*networks, *methods))


@pytest.mark.parametrize(
    "arguments",
    [["lsit"], ["list"], ["list", "preset"], ["train", "--epochs", "3"], ["certify"], ["certify", "x", "--count", "0"]],
)
def test_commands_and_options_that_do_not_exist(arguments: list[str]) -> None:
    refused(*arguments)


# ------------------------------------------------------------------------------------------------- train


def test_training_writes_a_run_and_says_what_comes_next(run: Path, tmp_path: Path) -> None:
    result = tightrope("train", "digits/mlp-ibp", "--out", tmp_path / "run", *sets(*TINY))
    assert result.exit_code == 0
    assert f"tightrope certify {tmp_path / 'run'}" in text(result)
    assert result.stderr.count("epoch ") == 2
    for word in ("natural", "surrogate", "validation"):
        assert word in result.stdout
    again, first = tr.load(tmp_path / "run").record, tr.load(run).record
    assert again.weights_sha256 == first.weights_sha256
    assert again.config["train"]["epochs"] == 2


def test_quiet_training_says_only_the_result(tmp_path: Path) -> None:
    result = tightrope("train", "digits/mlp-ibp", "--quiet", "--out", tmp_path / "run", *sets(*TINY))
    assert result.exit_code == 0
    assert "epoch " not in result.stderr


def test_the_run_folder_is_named_after_the_preset() -> None:
    assert tightrope("train", "digits/mlp-ibp", "-q", *sets(*TINY, "train.epochs=1")).exit_code == 0
    assert tr.load("runs/digits-mlp-ibp").record.name == "digits/mlp-ibp"


def test_a_file_of_settings_is_trained(run: Path, tmp_path: Path) -> None:
    """The settings that a run leaves repeat it."""
    result = tightrope("train", run / "config.toml", "--out", tmp_path / "again")
    assert result.exit_code == 0
    assert tr.load(tmp_path / "again").record.weights_sha256 == tr.load(run).record.weights_sha256


def test_training_goes_on_from_another_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "warm"
    result = tightrope("train", "digits/mlp-ibp", "--init-from", run, "--out", out, *sets(*TINY, "optimizer.lr=1e-30"))
    assert result.exit_code == 0
    torch.testing.assert_close(tr.load(out).params, tr.load(run).params)
    other = sets(*TINY, "model.width=[7]")
    assert "another network" in refused("train", "digits/mlp-ibp", "--init-from", run, "--out", tmp_path / "x", *other)


def test_resuming_a_finished_run_changes_nothing(own: Path) -> None:
    before = contents(own)
    assert tightrope("train", "--resume", own).exit_code == 0
    assert contents(own) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits/mlp-ibpp"], ["Did you mean 'digits/mlp-ibp'?"]),
        (["digits/mlp-ibp", "--set", "train.epoch=3"], ["train.epoch", "Did you mean 'epochs'?"]),
        (["digits/mlp-ibp", "--set", "method.relaxation=ipb"], ["method", "Did you mean 'ibp'?"]),
        (["digits/mlp-ibp", "--set", "eps.train=2/0"], ["eps.train", "2/0"]),
        (["digits/mlp-ibp", "--set", "eps.train=8"], ["eps.train", "8/255"]),
        (["digits/mlp-ibp", "--set", "eps.train=-0.1"], ["eps.train", "negative"]),
        (["digits/mlp-ibp", "--set", "train.epochs"], ["section.key=value"]),
        (["digits/mlp-ibp", "--set", "smoother.std=0.1"], ["smoother", "std"]),
        (["digits/mlp-ibp", "--set", "data.validation=1437"], ["validation"]),
        (["digits/mlp-ibp", "--set", "data.train=5000"], ["1437", "5000"]),
        (["nowhere.toml"], ["nowhere.toml"]),
        (["mnist-0.1/cnn3-ibp", "--data-dir", "nowhere"], ["--data-dir", "MNIST/raw"]),
        (["digits/mlp-ibp", "--init-from", "nowhere"], ["nowhere"]),
        (["--resume", "nowhere"], ["nowhere"]),
        (["digits/mlp-ibp", "--resume", "nowhere"], ["--resume"]),
        (["--resume", "nowhere", "--set", "train.epochs=3"], ["--resume", "--set"]),
        ([], ["preset"]),
    ],
)
def test_bad_training_commands_say_what_is_wrong_and_write_nothing(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    shown = refused("train", *arguments)
    for word in words:
        assert word in shown
    assert list((tmp_path / "here").iterdir()) == []
    assert list((tmp_path / "reports").iterdir()) == []


def test_all_problems_are_shown_at_once() -> None:
    wrong = sets("train.epochs=0", "model.name=mpl", "eps.train=nan", "smoother.name=rsg", "sede=1")
    shown = refused("train", "digits/mlp-ibp", *wrong)
    for word in ("train.epochs", "mpl", "eps.train", "rsg", "sede"):
        assert word in shown


def test_a_folder_with_a_run_is_refused(own: Path) -> None:
    before = contents(own)
    assert f"--resume {own}" in refused("train", "digits/mlp-ibp", "--out", own)
    assert contents(own) == before


def test_a_damaged_checkpoint_is_refused(own: Path) -> None:
    record = RunRecord.read(own / "record.json").model_copy(update={"status": "interrupted"})
    record.write(own / "record.json")
    checkpoint = own / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    assert "truncated" in refused("train", "--resume", own)


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(loop, "EVENT_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(_console.TrainingProgress, "on_step", lambda *_: signal.raise_signal(signal.SIGINT))
        result = tightrope("train", "digits/mlp-ibp", "--out", out, *sets(*TINY))
    assert result.exit_code == 130
    assert (out / "checkpoint.safetensors").is_file()
    assert f"tightrope train --resume {out}" in text(result)
    assert tightrope("train", "--resume", out).exit_code == 0


def test_ctrl_c_during_an_import_ends_the_program_at_once(tmp_path: Path) -> None:
    """Whatever the module, or who imports it, makes of the exception: half a module is no state to go on from."""
    (tmp_path / "broken_off.py").write_text("import signal\ntry: signal.raise_signal(signal.SIGINT)\nexcept: pass\n")
    script = "import signal, tightrope.cli.main as m\nsignal.signal(signal.SIGINT, m._interrupt)\nimport broken_off"
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, env={**os.environ, "PYTHONPATH": f"{tmp_path}"}, capture_output=True, check=False)
    assert (found.returncode, found.stderr) == (130, b"error: Interrupted.\n")
    with pytest.raises(KeyboardInterrupt):
        _interrupt(signal.SIGINT, None)


# ----------------------------------------------------------------------------------------------- certify

FAST = ("--attack-steps", "2", "--attack-restarts", "1")


def test_certifying_writes_records_and_shows_three_accuracies(own: Path) -> None:
    result = tightrope("certify", own, "--count", "30", *FAST)
    assert result.exit_code == 0
    (path,) = own.glob("certify-digits-test-*.jsonl")
    summary = read_summary(path.with_suffix(".summary.json"))
    assert (summary.count, summary.eps, len(read(path))) == (30, "0.02", 30)
    shown = text(result)
    for name in ("natural", "adversarial", "certified"):
        assert re.search(rf"{name} accuracy.*?{getattr(summary, name)} / 30", shown)
    assert f"{own}" in shown
    before = contents(own)
    again = tightrope("certify", own, "--count", "30", *FAST)
    assert again.stdout == result.stdout
    assert contents(own) == before


def test_an_interrupted_certification_is_completed(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("certify", own, "--count", "30", "--batch-size", "10", *FAST)
    certify, count = tr.certify, 0

    def interrupted(*args: Any, on_batch: Any, **options: Any) -> Any:
        def stop(state: Any) -> None:
            nonlocal count
            count += 1
            if count == 2:
                raise KeyboardInterrupt

        return certify(*args, on_batch=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tr, "certify", interrupted)
        assert tightrope(*arguments).exit_code == 130
    (path,) = own.glob("certify-*.jsonl")
    begun = path.read_text()
    assert len(read(path)) == 20
    assert tightrope(*arguments).exit_code == 0
    assert path.read_text().startswith(begun)
    assert len(read(path)) == 30


def test_other_settings_into_the_same_file_are_refused(own: Path) -> None:
    assert tightrope("certify", own, "--count", "10", *FAST).exit_code == 0
    before = contents(own)
    for changes in (["--count", "20"], ["--count", "10", "--seed", "1"], ["--count", "10", "--relaxations", "ibp"]):
        assert "other settings" in refused("certify", own, *FAST, *changes)
    assert contents(own) == before
    other = own / "other.jsonl"
    assert tightrope("certify", own, "--count", "20", *FAST, "--out", other).exit_code == 0
    assert len(read(other)) == 20


def test_shards_become_one_file(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("certify", own, "--count", "30", "--batch-size", "10", "--per-class", *FAST)
    monkeypatch.setenv("RANK", "1")  # as torchrun does
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "10 / 10" not in text(tightrope(*arguments, "--shard", "1/3"))
    tightrope(*arguments)
    assert "shards 3/3 are missing" in refused(*arguments, "--merge")
    last = tightrope(*arguments, "--shard", "3/3")
    whole = next(path for path in own.glob("certify-*.jsonl") if "shard" not in path.name)
    assert len(read(whole)) == 30
    assert text(tightrope(*arguments, "--merge")) == text(last)
    assert "class" in text(last)


def test_radii_are_found_and_drawn(own: Path) -> None:
    arguments = ("certify", own, "--count", "20", "--radius", "--tolerance", "1/100", "--eps", "1/20", *FAST)
    result = tightrope(*arguments)
    assert result.exit_code == 0
    (path,) = own.glob("certify-*-radius.jsonl")
    found = read_distribution(path.with_suffix(".summary.json"))
    assert (found.count, len(found.curve), found.curve[-1].eps) == (20, 6, "1/20")
    for ending in (".png", ".curve.csv"):
        assert path.with_suffix(ending).is_file()
    assert tightrope(*arguments).stdout == result.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--shard", "3/2"], "1 <= i <= n"),
        (["--shard", "1/9"], "cannot be shared by 9"),
        (["--workers", "0"], "workers"),
        (["--memory", "0"], "positive"),
        (["--tolerance", "1/10"], "--radius"),
        (["--radius", "--tolerance", "2"], "tolerance <= eps"),
        (["--radius", "--eps", "0"], "tolerance <= eps"),
        (["--radius", "--eps", "8"], "data range"),
        (["--merge"], "there are: none"),
    ],
)
def test_options_of_scale_that_cannot_be(arguments: list[str], word: str, own: Path) -> None:
    assert word in refused("certify", own, "--count", "20", *FAST, *arguments)
    assert not list(own.glob("certify-*"))


@pytest.mark.parametrize(
    "arguments",
    [["--relaxations", "ibp, deeppoly"], ["--float32"], ["--attack-steps", "0"], ["--eps", "0"], ["--eps", "1/255"]],
)
def test_options_of_certifying(arguments: list[str], own: Path) -> None:
    result = tightrope("certify", own, "--count", "5", "--attack-restarts", "1", *arguments)
    assert result.exit_code == 0
    assert len(list(own.glob("certify-*.jsonl"))) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eps", "2"], ["eps = 2", "data range"]),
        (["--eps", "8"], ["8/255"]),
        (["--eps", "-0.1"], ["negative"]),
        (["--eps", "nan"], ["nan"]),
        (["--eps", "2/0"], ["2/0"]),
        (["--eps", "abc"], ["abc"]),
        (["--dataset", "digit"], ["Did you mean 'digits'?"]),
        (["--dataset", "mnist", "--data-dir", "nowhere"], ["--data-dir"]),
        (["--relaxations", "ibp,deppoly"], ["Did you mean 'deeppoly'?"]),
        (["--relaxations", ""], ["relaxation"]),
        (["--count", "361"], ["360"]),
        (["--out", "records.json"], [".jsonl"]),
        (["--device", "abacus"], ["abacus"]),
    ],
)
def test_bad_certifying_commands_say_what_is_wrong_and_write_nothing(
    arguments: list[str], words: list[str], own: Path, tmp_path: Path
) -> None:
    before = contents(own)
    shown = refused("certify", own, *FAST, *arguments)
    for word in words:
        assert word in shown
    assert contents(own) == before
    assert list((tmp_path / "here").iterdir()) == []
    assert list((tmp_path / "reports").iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there(own: Path) -> None:
    assert "cuda" in refused("certify", own, "--device", "cuda", *FAST)


def test_images_of_another_shape(own: Path, tmp_path: Path) -> None:
    data = os.environ.get("TIGHTROPE_DATA")
    if not data or not (Path(data) / "MNIST").is_dir():
        pytest.skip("needs MNIST below TIGHTROPE_DATA")
    assert "(1, 28, 28)" in refused("certify", own, "--dataset", "mnist", "--data-dir", data)


def test_folders_that_hold_no_finished_run(own: Path, tmp_path: Path) -> None:
    assert "nowhere" in refused("certify", "nowhere")
    assert "record.json" in refused("certify", tmp_path / "here")
    RunRecord.read(own / "record.json").model_copy(update={"status": "interrupted"}).write(own / "record.json")
    assert f"tightrope train --resume {own}" in refused("certify", own)


@pytest.mark.parametrize("name", ["record.json", "network.json", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "binary", "gone"])
def test_damaged_runs_are_refused(name: str, damage: str, own: Path, tmp_path: Path) -> None:
    content = (own / name).read_bytes()
    (own / name).unlink()
    if damage != "gone":
        (own / name).write_bytes(content[: len(content) // 2] if damage == "cut" else b"\xff\xfe" * 20)
    refused("certify", own, *FAST)
    assert list((tmp_path / "reports").iterdir()) == []


def test_weights_of_another_network_are_refused(own: Path, tmp_path: Path) -> None:
    other = tr.fit("digits/mlp-ibp", out=tmp_path / "other", overrides=[*TINY, "model.width=[7]"])
    (own / "weights.safetensors").write_bytes((other.path / "weights.safetensors").read_bytes())
    refused("certify", own, *FAST)


# ------------------------------------------------------------------------------------------------- demo


@pytest.fixture
def tiny_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four presets of the demo in two epochs, certified on 20 images."""
    overrides = ["train.epochs=2", "data.train=200", "model.width=[6]"]
    monkeypatch.setattr(demo, "fit", functools.partial(tr.fit, overrides=overrides))
    attack = {"name": "pgd", "steps": 2}
    monkeypatch.setattr(demo, "certify", functools.partial(tr.certify, count=20, attack=attack))


def test_the_demo_shows_four_rows_and_draws_them(tiny_demo: None, tmp_path: Path) -> None:
    result = tightrope("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 0, text(result)
    facts = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert len(facts) == 4
    assert list(facts) == list(demo.PRESETS)
    for name, row in facts.items():
        (line,) = [line for line in result.stdout.splitlines() if name in line]
        assert f"{100 * row['natural_accuracy']:.1f} %" in line
        assert f"{100 * row['certified_accuracy']:.1f} %" in line
        assert row["certified"] <= row["adversarial"] <= row["natural"] <= row["count"] == 20
    picture = (tmp_path / "demo" / "demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 10_000
    for preset in demo.PRESETS.values():
        assert tr.load(tmp_path / "demo" / preset.split("/")[1]).record.status == "finished"


def test_the_demo_goes_on_where_it_was_interrupted(
    tiny_demo: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certify = demo.certify

    def interrupted(run: tr.Run) -> Any:
        if run.path.name == "mlp-deeppoly":
            raise KeyboardInterrupt
        return certify(run)

    with monkeypatch.context() as patch:
        patch.setattr(demo, "certify", interrupted)
        assert tightrope("demo", "--out", tmp_path / "demo").exit_code == 130
    weights = (tmp_path / "demo" / "mlp-ibp" / "weights.safetensors").stat().st_mtime_ns
    assert tightrope("demo", "--out", tmp_path / "demo").exit_code == 0
    assert (tmp_path / "demo" / "mlp-ibp" / "weights.safetensors").stat().st_mtime_ns == weights


def test_a_demo_into_a_file_is_refused(tiny_demo: None, tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("keep")
    refused("demo", "--out", tmp_path / "demo")
    assert (tmp_path / "demo").read_text() == "keep"


# ------------------------------------------------------------------------------------------ how things end


def raising(error: BaseException) -> Any:
    def function(*_: Any, **__: Any) -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ZeroDivisionError("division"), 70),
        (InvariantError("image 3 is certified and has an adversarial example"), 30),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 2),
        (MemoryError(), 2),
    ],
)
def test_every_end_has_its_exit_code(
    error: BaseException, code: int, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, command in (("fit", ["train", "digits/mlp-ibp"]), ("certify", ["certify", own])):
        monkeypatch.setattr(tr, name, raising(error))
        result = tightrope(*command)
        assert result.exit_code == code
        assert result.stdout == ""
    reports = list((tmp_path / "reports").iterdir())
    assert len(reports) == (2 if code == 70 else 0)
    for report in reports:
        assert "ZeroDivisionError" in report.read_text()


def test_a_bug_names_the_file_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tr, "fit", raising(ZeroDivisionError("division")))
    shown = text(tightrope("train", "digits/mlp-ibp"))
    (report,) = (tmp_path / "reports").iterdir()
    assert str(report) in shown
    assert "Traceback" in report.read_text()


@pytest.mark.parametrize("write", [1, 2, 4, 6])
def test_a_full_disk_while_training(write: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file finds the disk full: a clear message, nothing half, and the run can be finished later."""
    out, fsync, count = tmp_path / "run", os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count >= write:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "disk is full" in refused("train", "digits/mlp-ibp", "--out", out, *sets(*TINY))
    assert not list(out.glob(".*"))
    again = ["--resume", out] if (out / "record.json").exists() else ["digits/mlp-ibp", "--out", out, *sets(*TINY)]
    assert tightrope("train", *again).exit_code == 0
    assert tr.load(out).record.status == "finished"


def test_a_run_that_diverges_is_reported_and_not_a_bug(tmp_path: Path) -> None:
    diverging = sets(*TINY, "optimizer.name=sgd", "optimizer.lr=1e30", "optimizer.clip_norm=0")
    shown = refused("train", "digits/mlp-ibp", "--out", tmp_path / "run", *diverging)
    assert "NaN" in shown
    assert "learning rate" in shown
    assert RunRecord.read(tmp_path / "run" / "record.json").status == "failed"
    assert "failed" in refused("certify", tmp_path / "run")


@pytest.mark.parametrize("name", ["[red]run[/red]", "[/run]", "a b", "ü"])
def test_folders_of_any_name(name: str, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / name.replace("/", "|")
    assert tightrope("train", run / "config.toml", "--out", folder, "--set", "train.epochs=1").exit_code == 0
    result = tightrope("certify", folder, "--count", "3", *FAST)
    assert result.exit_code == 0
    assert folder.name in text(result)
    assert tightrope("train", "--resume", folder).exit_code == 0


@pytest.mark.parametrize("name", ["[bold]my[-bold].toml", "[/bold]my.toml"])
def test_files_of_settings_of_any_name(name: str, run: Path, tmp_path: Path) -> None:
    """A path that looks like markup is a path."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((run / "config.toml").read_bytes())
    result = tightrope("train", path, "--out", tmp_path / "out", "--set", "train.epochs=1")
    assert result.exit_code == 0, text(result)
    assert f"{path.stem}:" in text(result)


# -------------------------------------------------------------------------------------------------- plan


def test_a_plan_says_what_a_run_takes() -> None:
    result = tightrope("plan", "digits/mlp-deeppoly-pgpe", *sets("smoother.pairs=2", "smoother.chunk=auto"))
    assert result.exit_code == 0
    shown = text(result)
    for words in ("time per step", "time per epoch", "time of 6 epochs", "peak memory", "pairs, at once (chunk)"):
        assert words in shown
    assert "steps of up to 64 images, chunks of 1, 2" in shown
    assert not list(Path().iterdir())


def test_a_plan_as_json() -> None:
    result = tightrope("plan", "digits/mlp-ibp", "--json")
    plan = Plan.model_validate_json(result.stdout)
    assert (plan.device, plan.steps_per_epoch, plan.epochs, plan.chunk) == ("cpu", 21, 40, None)


def test_a_plan_over_its_budget_says_what_to_do() -> None:
    shown = refused("plan", "digits/mlp-deeppoly-rgs", *sets("memory_gib=1e-6"))
    for words in ("needs about", "1 pair at a time", "train.batch_size", "memory_gib"):
        assert words in shown


def test_a_plan_without_data_says_what_is_missing(tmp_path: Path) -> None:
    result = tightrope("plan", "mnist-0.1/cnn3-ibp", "--data-dir", tmp_path, *sets("train.batch_size=8"))
    assert result.exit_code == 0
    assert "time per epoch not known" in text(result)
    assert "--set data.train=N" in text(result)


def test_plans_of_bad_settings_are_refused() -> None:
    assert "Did you mean 'digits/mlp-ibp'?" in refused("plan", "digits/mlp-ibpp")
    assert "memory_gib" in refused("plan", "digits/mlp-ibp", *sets("memory_gib=-1"))
    assert "chunk" in refused("plan", "digits/mlp-deeppoly-rgs", *sets("smoother.chunk=automatic"))


def test_complete_certification_shows_branch_and_bound(own: Path) -> None:
    few = ("--count", "20", "--relaxations", "ibp")  # leaves something for it
    result = tightrope("certify", own, *few, "--eps", "0.05", "--complete", "--timeout", "5", *FAST)
    assert result.exit_code == 0
    (path,) = own.glob("certify-digits-test-0.05-*-complete.jsonl")
    assert {record.method for record in read(path)} & {"alpha_crown", "bab"}
    assert tightrope("certify", own, "--complete", "--timeout", "-1", *FAST).exit_code != 0
