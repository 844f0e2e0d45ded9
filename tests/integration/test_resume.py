"""Runs that are killed, interrupted or crash, and are then resumed, end as if nothing had happened: bit for bit.

Run as a script, this file is a server that forks one training process for each line of its input, so that processes
can be killed without paying for the import of torch every time.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tightrope as tr
from tightrope.errors import CheckpointError, ConfigError, CorruptDataError, InputError, MissingDataError
from tightrope.experiments.build import build_job, build_plugins
from tightrope.experiments.load import load_config
from tightrope.records.run import EpochRecord, RunRecord
from tightrope.training import loop
from tightrope.training.events import StepEvent

BASE: dict[str, Any] = {
    "threads": 1,
    "data": {"name": "digits", "train": 240, "validation": 24},
    "model": {"name": "mlp", "width": [8]},
    "method": {"name": "certified", "relaxation": "crown_ibp"},
    "eps": {"train": "0.05", "finish": 2},
    "optimizer": {"lr": 5e-3, "milestones": [3]},
    "train": {"epochs": 5, "batch_size": 24},
}  # 9 steps an epoch, 45 in all
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rgs": {"smoother": {"name": "rgs", "std": 0.01, "pairs": 2}},
    "pgpe": {"smoother": {"name": "pgpe", "std": 0.05, "pairs": 4, "chunk": 4, "epochs": 2.5}},
    "adapted": {
        "optimizer": {"name": "clipup", "lr": 0.02},
        "smoother": {"name": "pgpe", "std": 0.05, "pairs": 4, "chunk": 4, "adapt": 0.1, "std_schedule": "cosine"},
        "train": {"epochs": 5, "batch_size": 24, "diagnose_every": 20},
    },
    "hybrid": {
        "smoother": {
            **{"name": "hybrid", "std": 0.1, "std_mode": "weight", "pairs": 2, "chunk": 2, "parts": 2},
            **{"control": "previous", "unbiased": "recent", "memory": 3, "shrink": True},
        },
    },
    "module": {
        "data": {"name": "digits", "train": 240, "validation": 24, "flip": True, "pad": 1},
        "method": {"name": "pgd", "attack": {"name": "pgd", "steps": 2}},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
        "smoother": {"name": "rgs", "std": 0.01},
        "train": {"epochs": 5, "batch_size": 24, "l1": 1e-4, "shi": 0.5},
    },
}
each_scenario = pytest.mark.parametrize("scenario", SCENARIOS)


def settings(scenario: str = "plain", **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(BASE | SCENARIOS[scenario] | changes)


def normed_module() -> nn.Module:
    """A module of the user's own, with batch statistics."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), *head)


class Watching:
    """Calls a function after every step and every epoch."""

    def __init__(self, on_step: Callable[[int], None], on_epoch: Callable[[int], None] = lambda epoch: None) -> None:
        self._on_step, self._on_epoch = on_step, on_epoch

    def on_step(self, event: StepEvent) -> None:
        self._on_step(event.step)

    def on_epoch(self, record: EpochRecord) -> None:
        self._on_epoch(record.epoch)


def train(scenario: str, folder: Path, *, resume: bool = False, watcher: Watching | None = None) -> tr.Run:
    if scenario == "module":
        return tr.fit(normed_module(), config=settings("module"), out=folder, resume=resume, watcher=watcher)
    return tr.fit(settings(scenario), out=folder, resume=resume, watcher=watcher)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and runs set the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def every_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "EVENT_SECONDS", -1.0)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without their seconds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same(folder: Path, reference: Path) -> None:
    """Byte for byte what an uninterrupted run leaves, but for the time it took."""
    for name in ("weights.safetensors", "network.json", "config.toml"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    assert metrics(folder) == metrics(reference)
    one, other = RunRecord.read(folder / "record.json"), RunRecord.read(reference / "record.json")
    assert (one.status, one.weights_sha256, one.steps) == ("finished", other.weights_sha256, other.steps)
    assert not list(folder.glob(".*.tmp"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the uninterrupted run of a scenario."""
    folders: dict[str, Path] = {}

    def folder_of(scenario: str) -> Path:
        if scenario not in folders:
            folders[scenario] = tmp_path_factory.mktemp("finished") / scenario
            train(scenario, folders[scenario])
        return folders[scenario]

    return folder_of


# ------------------------------------------------------------------------------------------------- SIGKILL


def say(kind: str, number: int) -> None:
    os.write(1, f"{kind} {number}\n".encode())


def tell(step: int) -> None:
    say("step", step)
    time.sleep(0.004)  # so that the run does not end before the signal comes


def serve() -> None:
    """For each line ``[scenario, folder, resume]``: train in a forked process that says ``step N`` after each step."""
    loop.EVENT_SECONDS, loop.CHECKPOINT_SECONDS = -1.0, 0.02
    torch.set_num_threads(1)
    for scenario in SCENARIOS:  # whatever is imported late is imported here, once
        config = load_config(settings(scenario))[1]
        build_job(config, build_plugins(config), data_dir=None).new_state()
    for line in sys.stdin:
        scenario, folder, resume = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                say("pid", os.getpid())
                train(scenario, Path(folder), resume=resume, watcher=Watching(tell))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        say("exit", os.waitstatus_to_exitcode(status))


class Server:
    """The other end of :func:`serve`."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def train(self, scenario: str, folder: Path, *, resume: bool, steps: int = -1, delay: float = 0.0) -> int:
        """The exit code; kills the process some seconds after it took so many steps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([scenario, str(folder), resume]) + "\n")
        self.process.stdin.flush()
        pid, taken = 0, 0
        for line in self.process.stdout:
            kind, number = line.split()
            if kind == "exit":
                return int(number)
            pid = int(number) if kind == "pid" else pid
            taken += kind == "step"
            if kind == "step" and taken == steps:
                time.sleep(delay)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        raise AssertionError("the server ended")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert server.process.wait(60) == 0


@each_scenario
def test_killed_four_times_and_resumed(
    scenario: str, tmp_path: Path, server: Server, finished: Callable[[str], Path]
) -> None:
    draw, folder, kills = random.Random(scenario), tmp_path / "run", 0
    for attempt in range(4):
        steps, delay = draw.randrange(3, 8), draw.uniform(0, 0.012)
        code = server.train(scenario, folder, resume=attempt > 0, steps=steps, delay=delay)
        if code == 0:  # on a busy machine the run may end before the signal comes
            break
        assert code == -signal.SIGKILL
        kills += 1
        assert RunRecord.read(folder / "record.json").status == "running"
    assert kills >= 2
    assert server.train(scenario, folder, resume=True) == 0
    assert_same(folder, finished(scenario))
    assert RunRecord.read(folder / "record.json").resumed >= kills


# ------------------------------------------------------------------------------------------- in one process


@each_scenario
def test_interrupted_after_every_step(scenario: str, tmp_path: Path, finished: Callable[[str], Path]) -> None:
    """Ctrl-C ends a step, leaves a checkpoint and a record that says so."""
    folder, watcher = tmp_path / "run", Watching(lambda step: signal.raise_signal(signal.SIGINT))
    for step in range(1, 45):
        with pytest.raises(KeyboardInterrupt):
            train(scenario, folder, resume=step > 1, watcher=watcher)
        assert (folder / "checkpoint.safetensors").is_file()
        assert RunRecord.read(folder / "record.json").status == "interrupted"
    train(scenario, folder, resume=True, watcher=watcher)  # the last step has nothing left to interrupt
    assert_same(folder, finished(scenario))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_after_the_step_and_handlers_are_put_back(number: signal.Signals, tmp_path: Path) -> None:
    before, steps = signal.getsignal(number), []

    def on_step(step: int) -> None:
        steps.append(step)
        if step == 3:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        train("plain", tmp_path / "run", watcher=Watching(on_step))
    assert steps == [1, 2, 3]
    assert signal.getsignal(number) is before


class Crash(BaseException):
    """The process ends here: nothing that catches errors sees it."""


def crash(*_: object) -> None:
    raise Crash


@pytest.mark.parametrize("epoch", [1, 2, 5])
def test_a_crash_between_the_metrics_and_the_checkpoint(
    epoch: int, tmp_path: Path, finished: Callable[[str], Path]
) -> None:
    """The epoch is in metrics.jsonl but not in the checkpoint: it is done again and not written twice."""
    watcher = Watching(lambda step: None, lambda number: crash() if number == epoch else None)
    with pytest.raises(Crash):
        train("plain", tmp_path / "run", watcher=watcher)
    assert len(metrics(tmp_path / "run")) == epoch
    train("plain", tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", finished("plain"))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", range(1, 16))
def test_a_crash_at_any_write(
    write: int, when: str, tmp_path: Path, finished: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed just before or after any file takes its place: what is there is resumed, or a start if nothing is."""
    folder, replace, count = tmp_path / "run", os.replace, 0

    def counted(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == write and when == "before":
            half = Path(source).read_bytes()[:10]
            crash_file = Path(source).with_name(f"{Path(source).name}.left")
            crash_file.write_bytes(half)
            raise Crash
        replace(source, target)
        if count == write:
            raise Crash

    monkeypatch.setattr(os, "replace", counted)
    with pytest.raises(Crash):
        train("plain", folder)
    monkeypatch.setattr(os, "replace", replace)
    for left in folder.glob("*.left"):  # the half-written file that a killed process leaves
        left.rename(left.with_suffix(""))
    train("plain", folder, resume=(folder / "record.json").is_file())
    assert_same(folder, finished("plain"))


def test_a_failing_disk_leaves_a_run_that_can_be_resumed(
    tmp_path: Path, finished: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        train(
            "plain",
            folder,
            watcher=Watching(lambda step: monkeypatch.setattr(os, "fsync", full) if step == 20 else None),
        )
    monkeypatch.undo()
    assert not list(folder.glob(".*.tmp"))
    train("plain", folder, resume=True)
    assert_same(folder, finished("plain"))


def test_a_warm_start_that_crashes_before_its_first_checkpoint(tmp_path: Path, finished: Callable[[str], Path]) -> None:
    """The initial weights are a part of the run: resuming needs no ``init_from``."""
    other = settings(seed=3)
    tr.fit(other, out=tmp_path / "reference", init_from=finished("plain"))
    with pytest.raises(Crash):
        tr.fit(other, out=tmp_path / "run", init_from=finished("plain"), watcher=Watching(crash))
    tr.fit(resume=True, out=tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "reference")


# --------------------------------------------------------------------------------- what may not be resumed


def test_resuming_a_finished_run_returns_it_unchanged(finished: Callable[[str], Path]) -> None:
    folder = finished("plain")
    before = contents(folder)
    for resumed in (tr.fit(resume=True, out=folder), tr.fit(settings(), out=folder, resume=True)):
        assert resumed.record == tr.load(folder).record
    assert contents(folder) == before


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A run that was interrupted after 12 of 45 steps."""
    watcher = Watching(lambda step: signal.raise_signal(signal.SIGINT) if step == 12 else None)
    with pytest.raises(KeyboardInterrupt):
        train("plain", tmp_path / "run", watcher=watcher)
    return tmp_path / "run"


def test_the_settings_of_an_interrupted_run_are_its_own(interrupted: Path, finished: Callable[[str], Path]) -> None:
    run = tr.fit(resume=True, out=interrupted)
    assert_same(interrupted, finished("plain"))
    assert run.record.resumed == 1


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"threads": 2}, {"eps": {"train": "0.06", "finish": 2}}, {"smoother": {"name": "rgs", "std": 0.1}}],
)
def test_other_settings_are_refused_in_the_same_folder(
    changes: dict[str, Any], interrupted: Path, finished: Callable[[str], Path]
) -> None:
    for folder in (interrupted, finished("plain")):
        before = contents(folder)
        with pytest.raises(ConfigError, match="differs"):
            tr.fit(settings(**changes), out=folder, resume=True)
        assert contents(folder) == before


@pytest.mark.parametrize("resume", [False, True])
def test_another_network_is_refused_in_the_same_folder(resume: bool, interrupted: Path) -> None:
    before = contents(interrupted)
    with pytest.raises((CheckpointError, InputError)):
        tr.fit(normed_module(), config=settings(), out=interrupted, resume=resume)
    assert contents(interrupted) == before


def test_a_second_run_is_refused_in_the_same_folder(interrupted: Path) -> None:
    before = contents(interrupted)
    with pytest.raises(InputError, match="--resume"):
        tr.fit(settings(), out=interrupted)
    assert contents(interrupted) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(InputError, match="choose another"):
            tr.fit(settings(), out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert tr.fit(settings(train={"epochs": 1}), out=tmp_path / "empty").record.status == "finished"


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="resume"):
        tr.fit(resume=True, out=tmp_path / "nowhere")
    with pytest.raises(InputError, match="out="):
        tr.fit(resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "record.json", "metrics.jsonl"])
@pytest.mark.parametrize("damage", ["short", "cut", "binary"])
def test_damaged_files_are_refused_and_left_as_they_are(name: str, damage: str, interrupted: Path) -> None:
    path = interrupted / name
    content = path.read_bytes()
    path.write_bytes({"short": content[:1], "cut": content[: len(content) // 2], "binary": b"\xff\xfe" * 20}[damage])
    before = contents(interrupted)
    with pytest.raises(CorruptDataError, match=path.name.replace(".", r"\.")):
        tr.fit(resume=True, out=interrupted)
    assert contents(interrupted) == before


def test_a_checkpoint_of_another_run_is_refused(interrupted: Path, tmp_path: Path) -> None:
    watcher = Watching(lambda step: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        tr.fit(settings(seed=7), out=tmp_path / "other", watcher=watcher)
    (interrupted / "checkpoint.safetensors").write_bytes((tmp_path / "other" / "checkpoint.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="another"):
        tr.fit(resume=True, out=interrupted)


# ---------------------------------------------------------------------------------------------- determinism


@each_scenario
def test_two_runs_of_one_seed_are_identical(scenario: str, tmp_path: Path, finished: Callable[[str], Path]) -> None:
    train(scenario, tmp_path / "run")
    assert_same(tmp_path / "run", finished(scenario))


def test_runs_of_other_seeds_differ(tmp_path: Path, finished: Callable[[str], Path]) -> None:
    run = tr.fit(settings(seed=1), out=tmp_path / "run")
    assert run.record.weights_sha256 != tr.load(finished("plain")).record.weights_sha256


def test_seconds_grow_and_leave_out_pauses(interrupted: Path) -> None:
    before = RunRecord.read(interrupted / "record.json").seconds
    time.sleep(0.3)
    start = time.monotonic()
    run = tr.fit(resume=True, out=interrupted)
    assert before <= run.record.seconds <= before + time.monotonic() - start + 0.01
    seconds = [epoch.seconds for epoch in run.epochs]
    assert seconds == sorted(seconds)


# ----------------------------------------------------------------------------------- from the command line


def command(threads: int, *arguments: str) -> subprocess.Popen[str]:
    whole = [sys.executable, "-c", "from tightrope.cli.main import main; main()", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "200"}
    pipe = subprocess.PIPE
    return subprocess.Popen(whole, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_ctrl_c_and_resume_with_other_threads_from_the_command_line(tmp_path: Path) -> None:
    folder, preset = tmp_path / "run", "digits/mlp-deeppoly-rgs"
    overrides = ["data.train=300", "model.width=[8]", "train.epochs=30", "eps.finish=5"]
    arguments = [part for override in overrides for part in ("--set", override)]
    first = command(1, "train", preset, "--out", str(folder), *arguments)
    assert first.stderr is not None
    seen = []
    for line in first.stderr:
        seen.append(line)
        if "epoch   2" in line:
            first.send_signal(signal.SIGINT)
            break
    shown = "".join(seen) + first.communicate(timeout=120)[1]
    assert first.returncode == 130, shown
    assert "Traceback" not in shown
    assert (folder / "checkpoint.safetensors").is_file()
    record = RunRecord.read(folder / "record.json")
    assert (record.status, record.environment.threads) == ("interrupted", 1)

    second = command(2, "train", "--resume", str(folder), "--quiet")
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert "tightrope certify" in output
    assert RunRecord.read(folder / "record.json").environment.threads == 1

    tr.fit(preset, out=tmp_path / "reference", overrides=overrides)
    assert_same(folder, tmp_path / "reference")


if __name__ == "__main__":
    serve()
