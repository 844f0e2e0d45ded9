"""Plans of real jobs: they change nothing, runs follow them, and a GPU whose memory runs out is no end of a run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tightrope as tr
from tightrope.errors import ConfigError, OutOfMemoryError
from tightrope.experiments import plan as planning
from tightrope.experiments import run as running
from tightrope.experiments.build import build_job, build_plugins
from tightrope.experiments.load import load_config
from tightrope.experiments.run import read_started
from tightrope.records.run import EpochRecord, Plan, RunRecord, Trial
from tightrope.smoothers import _population
from tightrope.smoothers._population import evaluate_members
from tightrope.training import calibration, loop
from tightrope.training.events import StepEvent
from tightrope.training.job import Job
from tightrope.training.loop import train_step
from tightrope.training.state import State

GIB = 2**30
PAIRS = 8
SMOOTHERS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "rgs": {"name": "rgs", "std": 0.01, "pairs": PAIRS, "chunk": "auto"},
    "pgpe": {"name": "pgpe", "std": 0.05, "pairs": PAIRS, "chunk": "auto"},
}
each_smoother = pytest.mark.parametrize("smoother", SMOOTHERS)
each_population = pytest.mark.parametrize("smoother", ["rgs", "pgpe"])


def settings(smoother: str, **options: Any) -> dict[str, Any]:
    return {
        "threads": 1,
        "data": {"name": "digits", "train": 120, "validation": 24},
        "model": {"name": "mlp", "width": [8]},
        "method": {"name": "certified", "relaxation": "ibp"},
        "smoother": {**SMOOTHERS[smoother], **options},
        "eps": {"train": "0.05"},
        "train": {"epochs": 3, "batch_size": 24},
    }  # 4 steps an epoch, 12 in all


def job_of(smoother: str, **options: Any) -> Job:
    config = load_config(settings(smoother, **options))[1]
    return build_job(config, build_plugins(config), data_dir=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and runs set the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short trials, and every step is told."""
    monkeypatch.setattr(calibration, "REPEATS", (1, 1))
    monkeypatch.setattr(loop, "EVENT_SECONDS", -1.0)


class InterruptAt:
    """Ctrl-C after some step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, event: StepEvent) -> None:
        if event.step == self._step:
            signal.raise_signal(signal.SIGINT)

    def on_epoch(self, record: EpochRecord) -> None:
        """Nothing."""


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in one | other)


# -------------------------------------------------------------------------------------------------- plans


@each_smoother
def test_planning_changes_nothing(smoother: str) -> None:
    """Steps after a plan are bit for bit those without one; the job and the global generator stay as they are."""
    job, other = job_of(smoother), job_of(smoother)
    before, state, plain = torch.get_rng_state(), job.new_state(), other.new_state()
    train_step(job, state)
    calibration.plan(job, GIB, images=96, validation=24)
    train_step(job, state)
    for _ in range(2):
        train_step(other, plain)
    assert_same(state.params, plain.params)
    assert_same(dict(job.params), dict(other.params))
    assert torch.equal(torch.get_rng_state(), before)


@each_smoother
def test_a_plan_is_complete(smoother: str) -> None:
    job = job_of(smoother)
    found = calibration.plan(job, GIB, images=96, validation=24)
    assert (found.batch_size, found.images, found.steps_per_epoch, found.epochs) == (24, 96, 4, 3)
    assert found.weights == sum(job.params[name].numel() for name in job.network.trainable)
    assert found.fits
    assert 0 <= found.peak_memory <= GIB
    assert 0 < 4 * found.seconds_per_step < found.seconds_per_epoch
    assert found.seconds == pytest.approx(3 * found.seconds_per_epoch)
    assert (found.pairs, found.chunk is None) == ((None, True) if smoother == "none" else (PAIRS, False))
    assert max(trial.batch for trial in found.trials) == 24
    assert Plan.model_validate_json(found.model_dump_json()) == found


def test_epochs_without_smoothing_are_planned_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole run is as long, and a step as large, as the two kinds of steps say: here one epoch and two."""

    def measured(job: Job, batch: int, pairs: int, chunk: int) -> Trial:
        plain = not isinstance(job.smoother, _population.Population)
        seconds = batch / 24 * (1 if plain else pairs)
        return Trial(batch=batch, pairs=pairs, chunk=chunk, seconds=seconds, peak_memory=500 if plain else 20)

    monkeypatch.setattr(calibration, "measured", measured)
    found = calibration.plan(job_of("pgpe", epochs=1), GIB, images=96, validation=0)
    assert (found.seconds_per_step, found.seconds_per_epoch) == pytest.approx((PAIRS, 4 * PAIRS))
    assert found.seconds == pytest.approx(4 * PAIRS + 2 * 4)
    assert found.peak_memory == 500


@each_population
def test_a_chunk_that_was_set_is_kept(smoother: str) -> None:
    found = calibration.plan(job_of(smoother, chunk=3), GIB, images=96, validation=0)
    assert (found.chunk, {trial.chunk for trial in found.trials}) == (3, {3})


@each_smoother
def test_threads_are_those_of_the_quickest_step(smoother: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all steps slower but those on two of four threads; the number that was set comes back, the job stays."""
    job, other = job_of(smoother), job_of(smoother)
    monkeypatch.setattr(calibration, "median_seconds", lambda *_: {1: 3.0, 2: 1.0, 4: 2.0}[torch.get_num_threads()])
    torch.set_num_threads(4)
    try:
        assert calibration.fastest_threads(job) == 2
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)
    assert_same(dict(job.params), dict(other.params))


def test_chosen_threads_are_recorded_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run takes the recorded number and measures nothing."""
    monkeypatch.setattr(calibration, "fastest_threads", lambda _: 2)
    source = settings("none") | {"threads": "auto"}
    try:
        with pytest.raises(KeyboardInterrupt):
            tr.fit(config=source, out=tmp_path / "run", watcher=InterruptAt(2))
        torch.set_num_threads(1)
        monkeypatch.setattr(calibration, "fastest_threads", lambda _: 1 // 0)
        run = tr.fit(out=tmp_path / "run", resume=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert (run.record.environment.threads, run.record.config["threads"]) == (2, "auto")


def test_without_data_a_plan_needs_the_number_of_images(tmp_path: Path) -> None:
    """Images are random then; their shape comes from the dataset."""
    overrides = ["data.name=mnist", "train.batch_size=16"]
    found = tr.plan(settings("none") | {"data": {"name": "mnist"}}, overrides=overrides, data_dir=tmp_path)
    assert (found.images, found.steps_per_epoch, found.seconds) == (None, None, None)
    assert found.seconds_per_step > 0
    told = tr.plan(settings("none"), overrides=[*overrides, "data.train=1000"], data_dir=tmp_path)
    assert (told.images, told.steps_per_epoch) == (976, 61)
    assert told.weights == found.weights


def test_a_budget_is_a_positive_number() -> None:
    with pytest.raises(ConfigError, match="memory_gib"):
        tr.plan(settings("none"), overrides=["memory_gib=0"])


# ------------------------------------------------------------------------------------------ runs with plans


def planned(chunk: int) -> Callable[..., Plan]:
    """A planner that always finds this chunk."""

    def plan_of(config: Any, job: Job) -> Plan:
        return calibration.plan(job, GIB, images=96, validation=24).model_copy(update={"chunk": chunk})

    return plan_of


@each_population
def test_a_run_follows_its_plan(smoother: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the run that has this chunk in its settings, and the plan is in its record."""
    monkeypatch.setattr(running, "plan_of", planned(4))
    run = tr.fit(settings(smoother), out=tmp_path / "planned")
    plain = tr.fit(settings(smoother, chunk=4), out=tmp_path / "plain")
    assert_same(run.params, plain.params)
    assert (run.record.plan.chunk, plain.record.plan) == (4, None)
    assert run.config.smoother.options["chunk"] == "auto"


@each_population
def test_a_resumed_run_repeats_the_plan(smoother: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a new calibration would say."""
    monkeypatch.setattr(running, "plan_of", planned(4))
    with pytest.raises(KeyboardInterrupt):
        tr.fit(settings(smoother), out=tmp_path / "run", watcher=InterruptAt(5))
    first = read_started(tmp_path / "run").plan
    monkeypatch.setattr(running, "plan_of", planned(1))
    run = tr.fit(out=tmp_path / "run", resume=True)
    assert_same(run.params, tr.fit(settings(smoother, chunk=4), out=tmp_path / "plain").params)
    assert run.record.plan == first


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = {**settings("pgpe"), "memory_gib": 1e-9}
    with pytest.raises(OutOfMemoryError, match=r"needs about .* 1 pair at a time.*batch_size"):
        tr.fit(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_default_budget_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "free_memory", lambda device: 10 * GIB)
    assert tr.plan(settings("none")).memory_budget == 8 * GIB


# ------------------------------------------------------------------------------------------- out of memory


class SmallGpu:
    """From some loss evaluation on only so many members fit at once, or for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fits: int, *, after: int = 0) -> None:
        self._fits, self._after, self.failures = fits, after, 0
        monkeypatch.setattr(_population, "evaluate_members", self)

    def __call__(self, loss: Any, params: Any, noise: Any, sign: float = 1.0) -> Any:
        self._after -= 1
        if self._after < 0 and next(iter(noise.values())).shape[0] > self._fits:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return evaluate_members(loss, params, noise, sign)


def stepped(job: Job, chunks: list[int]) -> State:
    """The state after one step with each chunk."""
    state = job.new_state()
    for chunk in chunks:
        state.chunk = chunk
        train_step(job, state)
    return state


@each_population
def test_a_step_is_repeated_with_the_same_draws(smoother: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in the middle of the third step: that step, and all after it, are those of the smaller chunk."""
    job = job_of(smoother, chunk=8)
    expected = stepped(job, [8, 8, 2, 2])
    gpu, state = SmallGpu(monkeypatch, 2, after=5), job.new_state()  # two evaluations a step in one chunk
    for _ in range(4):
        train_step(job, state)
    assert (state.chunk, gpu.failures) == (2, 2)
    assert_same(state.params, expected.params)
    assert state.meter.means() == expected.meter.means()


def test_a_failed_step_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of("pgpe", chunk=8)
    state = job.new_state()
    before = {name: value.clone() for name, value in state.params.items()}
    SmallGpu(monkeypatch, 0)
    with pytest.raises(OutOfMemoryError, match=r"even one pair at a time.*batch_size"):
        train_step(job, state)
    assert_same(state.params, before)
    assert (state.step, state.chunk, state.meter.steps, state.optimizer.state_dict()["state"]) == (0, 1, 0, {})


def test_without_a_population_there_is_nothing_to_make_smaller() -> None:
    def loss(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    job = job_of("none")
    method = type("Hungry", (), {"loss": loss, "draws": lambda *arguments, **options: {}})()
    with pytest.raises(OutOfMemoryError, match="batch_size"):
        train_step(replace(job, method=method), job.new_state())


@each_population
def test_the_record_says_when_memory_ran_out(smoother: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = stepped(job_of(smoother, chunk=8), [8, 8, *[2] * 10])
    SmallGpu(monkeypatch, 2, after=5)
    run = tr.fit(settings(smoother, chunk=8), out=tmp_path / "run")
    assert [(event.step, event.before, event.after) for event in run.record.events] == [(3, 8, 2)]
    stored = json.loads((tmp_path / "run" / "record.json").read_text())
    assert stored["events"] == [{"kind": "out of memory", "step": 3, "before": 8, "after": 2}]
    assert_same(run.params, expected.params)


@each_population
def test_a_resumed_run_keeps_the_smaller_chunk(smoother: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On whatever machine it goes on, and although the settings and the plan name another."""
    with monkeypatch.context() as small:
        SmallGpu(small, 2, after=5)
        small.setattr(running, "plan_of", planned(8))
        small.setattr(calibration, "measured", measured_elsewhere)
        with pytest.raises(KeyboardInterrupt):
            tr.fit(settings(smoother), out=tmp_path / "run", watcher=InterruptAt(5))
    run = tr.fit(out=tmp_path / "run", resume=True)
    assert_same(run.params, stepped(job_of(smoother), [8, 8, *[2] * 10]).params)
    assert [(event.step, event.after) for event in run.record.events] == [(3, 2)]
    assert run.record.plan.chunk == 8


def measured_elsewhere(job: Job, batch: int, pairs: int, chunk: int) -> Any:
    """A trial that evaluates nothing."""
    return calibration.Trial(batch=batch, pairs=pairs, chunk=chunk, seconds=0.001, peak_memory=1000)


def test_a_run_that_cannot_go_on_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint is that before the step, and it goes on where there is more memory."""
    with monkeypatch.context() as small:
        SmallGpu(small, 0, after=5)
        with pytest.raises(OutOfMemoryError):
            tr.fit(settings("pgpe", chunk=8), out=tmp_path / "run")
    record = RunRecord.read(tmp_path / "run" / "record.json")
    assert (record.status, "batch_size" in record.message) == ("failed", True)
    run = tr.fit(out=tmp_path / "run", resume=True)
    assert_same(run.params, stepped(job_of("pgpe"), [8, 8, *[1] * 10]).params)
