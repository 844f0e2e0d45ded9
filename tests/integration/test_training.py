"""The training loop: what it computes step by step, what it records, and when it stops."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tightrope as tr
from tightrope.core import registry
from tightrope.data._loader import Samples
from tightrope.data.digits import Digits
from tightrope.errors import NumericalError
from tightrope.experiments.build import build_job, build_plugins
from tightrope.experiments.load import load_config
from tightrope.records.run import EpochRecord, RunRecord
from tightrope.schedules import Constant
from tightrope.training.events import StepEvent
from tightrope.training.job import Job
from tightrope.training.loop import evaluate, train_step
from tightrope.training.state import Meter, load_tensors

TINY: dict[str, Any] = {
    "data": {"name": "digits", "train": 200, "validation": 40},
    "model": {"name": "mlp", "width": [8]},
    "method": {"name": "certified", "relaxation": "ibp"},
    "eps": {"train": "0.02"},
    "optimizer": {"lr": 1e-2},
    "train": {"epochs": 3, "batch_size": 40},
}  # 4 steps an epoch


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and runs set the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(**changes: Any) -> dict[str, Any]:
    """The tiny settings with others, named ``section__key``."""
    values = copy.deepcopy(TINY)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values.setdefault(section, {})[key] = value
        else:
            values[section] = value
    return values


def job_of(module: nn.Module | None = None, samples: Samples | None = None, **changes: Any) -> Job:
    config = load_config(settings(**changes))[1]
    return build_job(config, build_plugins(config), data_dir=None, module=module, samples=samples)


def step(job: Job, count: int = 1) -> dict[str, Tensor]:
    """The params after some steps."""
    state = job.new_state()
    for _ in range(count):
        train_step(job, state)
    return {name: value.detach().clone() for name, value in state.params.items()}


def plain_sgd(**changes: Any) -> dict[str, Any]:
    return {"optimizer": {"name": "sgd", "lr": 0.5, "clip_norm": 0}, **changes}


# -------------------------------------------------------------------------------------------- it trains

ATTACK = {"name": "pgd", "steps": 2}
METHODS = {
    "standard": {"name": "standard"},
    "trades": {"name": "trades", "steps": 2},
    **{name: {"name": name, "attack": ATTACK} for name in ("pgd", "edac", "sabr", "mtl_ibp", "cc_ibp", "exp_ibp")},
    "taps": {"name": "taps", "attack": ATTACK, "split": -1},
    "staps": {"name": "staps", "attack": ATTACK, "search": ATTACK, "split": "layers.1"},
    **{f"certified-{name}": {"name": "certified", "relaxation": name} for name in registry.names("relaxations")},
}
SMOOTHERS = {
    "none": {"name": "none"},
    "rgs": {"name": "rgs", "std": 0.01, "pairs": 1},
    "pgpe": {"name": "pgpe", "std": 0.05, "pairs": 64, "chunk": 64},
    "hybrid": {"name": "hybrid", "std": 0.02, "pairs": 2, "chunk": 2},
}


def test_every_plugin_is_trained_with() -> None:
    assert {name.split("-")[0] for name in METHODS} == set(registry.names("methods"))
    assert set(SMOOTHERS) == set(registry.names("smoothers"))


@pytest.mark.parametrize("smoother", SMOOTHERS)
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_goes_down(method: str, smoother: str, tmp_path: Path) -> None:
    config = settings(method=METHODS[method], smoother=SMOOTHERS[smoother])
    run = tr.fit(config, out=tmp_path / "run")
    losses = [epoch.train["loss"] for epoch in run.epochs]
    assert losses[-1] < losses[0] - 0.02
    assert run.epochs[-1].validation["loss"] < run.epochs[0].validation["loss"]
    robust = {"surrogate_loss", "surrogate_accuracy"}
    for metrics in (run.epochs[-1].train, run.epochs[-1].validation):
        assert robust & set(metrics) == (set() if method == "standard" else robust)
        if method not in {"edac", "trades"}:  # their points need not be worse: other weights, another objective
            assert metrics.get("surrogate_accuracy", 0) <= metrics["natural_accuracy"]


# --------------------------------------------------------------------------------------- what a step does


def test_a_standard_step_is_that_of_torch() -> None:
    """One step of SGD with momentum and weight decay on the same batch, by hand."""
    optimizer = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "clip_norm": 0}
    data = {"name": "digits", "train": 50, "validation": 0}
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10))
    job = job_of(module, method={"name": "standard"}, optimizer=optimizer, data=data, train__batch_size=50)
    found = step(job, 3)
    x, labels = job.train.images.float() / job.train.scale, job.train.labels
    by_hand = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        by_hand.zero_grad()
        F.cross_entropy(module(x), labels).backward()
        by_hand.step()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


class Normed(nn.Module):
    """Both kinds of batch normalisation, with momenta of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, stride=2)
        self.first = nn.BatchNorm2d(3, momentum=0.3)
        self.hidden = nn.Linear(27, 6)
        self.second = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.conv(x)))
        return self.head(F.relu(self.second(self.hidden(x.flatten(1)))))


@pytest.mark.parametrize("smoother", ["none", "rgs"])
def test_running_statistics_are_updated_as_by_torch(smoother: str) -> None:
    """Momentum and the unbiased variance of the batch, at the weights themselves; with the plain gradient also the
    weights are those of torch's training mode."""
    torch.manual_seed(0)
    module = Normed()
    data = {"name": "digits", "train": 30, "validation": 0}
    changes = plain_sgd(method={"name": "standard"}, smoother=SMOOTHERS[smoother], data=data, train__batch_size=30)
    job = job_of(module, **changes)
    found = step(job)
    module.train()
    F.cross_entropy(module(job.train.images.float() / job.train.scale), job.train.labels).backward()
    expected = module.state_dict()
    statistics = [name for name in expected if "running" in name]
    assert len(statistics) == 4
    for name in statistics:
        assert not torch.equal(found[name], job.params[name])
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
    if smoother == "none":
        for name, weight in module.named_parameters():
            torch.testing.assert_close(found[name], weight - 0.5 * weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [0.01, 0.5])
def test_clipping_bounds_the_step_and_the_norm_before_is_recorded(clip_norm: float, tmp_path: Path) -> None:
    optimizer = {"name": "sgd", "lr": 1.0, "clip_norm": clip_norm}
    job = job_of(optimizer=optimizer)
    state = job.new_state()
    train_step(job, state)
    change = torch.cat([(state.params[name] - job.params[name]).flatten() for name in job.network.trainable])
    norm = float(state.meter.sums["grad_norm"])
    assert norm > clip_norm
    assert float(change.norm()) == pytest.approx(clip_norm, rel=1e-3)


@pytest.mark.parametrize("clip_norm", [0.0, 1e9])
def test_gradients_below_the_clipping_norm_are_left_alone(clip_norm: float) -> None:
    job = job_of(optimizer={"name": "sgd", "lr": 1.0, "clip_norm": clip_norm})
    state = job.new_state()
    train_step(job, state)
    change = torch.cat([(state.params[name] - job.params[name]).flatten() for name in job.network.trainable])
    assert float(change.norm()) == pytest.approx(float(state.meter.sums["grad_norm"]), rel=1e-4)


@pytest.mark.parametrize("smoother", SMOOTHERS)
def test_l1_adds_its_own_plain_gradient_to_the_kernels(smoother: str) -> None:
    """lr * l1 * sign(w), the same under every smoother; biases are left alone."""
    weight = 0.01
    plain = step(job_of(**plain_sgd(smoother=SMOOTHERS[smoother])))
    job = job_of(**plain_sgd(smoother=SMOOTHERS[smoother], train__l1=weight))
    shrunk = step(job)
    for name in job.network.trainable:
        pull = 0.5 * weight * job.params[name].sign() if job.params[name].ndim > 1 else torch.tensor(0.0)
        torch.testing.assert_close(plain[name] - shrunk[name], pull.expand_as(plain[name]), rtol=1e-3, atol=1e-6)


def test_l1_shrinks_the_kernels() -> None:
    def size(l1: float) -> float:
        return sum(float(v.abs().sum()) for v in step(job_of(train__l1=l1), 12).values() if v.ndim == 2)

    assert size(0.05) < 0.8 * size(0.0)


@pytest.mark.parametrize("smoother", SMOOTHERS)
@pytest.mark.parametrize("module", [None, Normed()])
def test_a_step_of_length_zero_leaves_no_noise_in_the_weights(smoother: str, module: nn.Module | None) -> None:
    job = replace(job_of(module, smoother=SMOOTHERS[smoother], train__shi=1.0), lr=Constant(0.0))
    found = step(job, 3)
    for name in job.network.trainable:
        assert torch.equal(found[name], job.params[name])
    moved = [name for name in found if not torch.equal(found[name], job.params[name])]
    assert all("running" in name for name in moved)
    assert bool(moved) == (module is not None)


@pytest.mark.parametrize("smoother", SMOOTHERS)
def test_every_step_draws_its_own_noise(smoother: str) -> None:
    """On the same batch at the same weights, the loss differs from step to step if and only if there is noise."""
    job = replace(job_of(smoother=SMOOTHERS[smoother], train__batch_size=160), lr=Constant(0.0))
    state, losses = job.new_state(), []
    for _ in range(3):
        train_step(job, state)
        losses.append(state.meter.means()["loss"])
        state.meter = Meter()
    same = [loss == pytest.approx(losses[0], rel=1e-6) for loss in losses[1:]]
    assert same == [smoother == "none"] * 2


@pytest.mark.parametrize("smoother", ["rgs", "pgpe"])
def test_chunks_change_nothing_but_rounding(smoother: str) -> None:
    one, many = (
        step(job_of(**plain_sgd(smoother={"name": smoother, "std": 0.05, "pairs": 5, "chunk": chunk})))
        for chunk in (1, 3)
    )
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=1e-4, atol=1e-5)


def test_training_neither_uses_nor_changes_the_global_generator(tmp_path: Path) -> None:
    changes = {"smoother": SMOOTHERS["rgs"], "method": METHODS["pgd"], "data__flip": True, "data__pad": 1}
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        runs.append(tr.fit(settings(**changes), out=tmp_path / str(seed)))
        assert torch.equal(torch.get_rng_state(), before)
    assert runs[0].record.weights_sha256 == runs[1].record.weights_sha256


def test_augmentation_changes_what_is_trained_on() -> None:
    plain, padded, flipped = (step(job_of(**changes)) for changes in ({}, {"data__pad": 1}, {"data__flip": True}))
    name = "layers.1.weight"
    assert not torch.equal(plain[name], padded[name])
    assert not torch.equal(plain[name], flipped[name])


def test_the_test_split_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, load = [], Digits.load

    def watched(self: Digits, root: Path | None, split: str) -> Samples:
        read.append(split)
        return load(self, root, split)

    monkeypatch.setattr(Digits, "load", watched)
    run = tr.fit(settings(train__epochs=1), out=tmp_path / "run")
    assert set(read) == {"train"}
    tr.certify(run, count=2, attack={"name": "pgd", "steps": 1})
    assert read[-1] == "test"


class Waits(TorchDispatchMode):
    """Counts how often Python asks for the number in a tensor: on a GPU each is a wait for all that was queued."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("smoother", SMOOTHERS)
def test_a_step_waits_for_the_device_once_and_a_smoother_once_more(smoother: str) -> None:
    """For the norm of the gradient, as what is not finite must not reach the weights; for the seed of the noise."""
    data = {"name": "digits", "train": 200, "validation": 40, "flip": True, "pad": 1}
    penalties = {"train__l1": 1e-3, "train__shi": 0.5}
    job = job_of(Normed(), data=data, **plain_sgd(smoother=SMOOTHERS[smoother], method=METHODS["pgd"]), **penalties)
    state = job.new_state()
    with Waits() as waits:
        train_step(job, state)
    assert waits.count == (1 if smoother == "none" else 2)


def test_evaluation_waits_for_the_device_at_its_end_only() -> None:
    job = job_of(method=METHODS["pgd"], data={"name": "digits", "train": 200, "validation": 100})
    assert job.validation is not None
    with Waits() as waits:
        found = evaluate(job, job.params, job.validation, 30)
    assert waits.count == 0
    batches = evaluate(job, job.params, job.validation, 100)
    assert found["natural_loss"] == pytest.approx(batches["natural_loss"], rel=1e-5)


# ---------------------------------------------------------------------------------------- what is recorded


def records(run: tr.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]


def test_a_run_folder_holds_everything(tmp_path: Path) -> None:
    run = tr.fit(settings(), out=tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.toml", "record.json", "metrics.jsonl", "network.json", "weights.safetensors"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    record = run.record
    assert (record.status, record.steps, record.resumed) == ("finished", 12, 0)
    assert record.samples == {"train": 160, "validation": 40}
    assert record.weights == sum(run.params[name].numel() for name in run.network.trainable) == 64 * 8 + 8 + 80 + 10
    assert record.final == run.epochs[-1]
    assert [line["epoch"] for line in records(run)] == [1, 2, 3]
    assert [line["step"] for line in records(run)] == [4, 8, 12]
    assert load_config(run.folder.config)[1] == run.config
    assert RunRecord.read(run.folder.record) == tr.load(run.path).record == record
    assert 0 < record.seconds < 600


def test_learning_rate_and_radius_follow_their_schedules(tmp_path: Path) -> None:
    """At the last step of each epoch; milestones count from the epoch they name."""
    eps = {"train": "0.1", "ramp": "linear", "begin": 1, "finish": 3}
    optimizer = {"lr": 1e-3, "milestones": [2, 3.5], "factor": 0.5}
    run = tr.fit(settings(eps=eps, optimizer=optimizer, train__epochs=5), out=tmp_path / "run")
    last = [epoch - 1 / 4 for epoch in range(1, 6)]  # four steps an epoch
    assert [r["lr"] for r in records(run)] == [1e-3, 1e-3, 5e-4, 2.5e-4, 2.5e-4]
    assert [r["eps"] for r in records(run)] == pytest.approx([0.1 * min(1, max(0, p - 1) / 2) for p in last])


def test_the_smooth_ramp_is_a_fourth_power_and_then_a_line(tmp_path: Path) -> None:
    eps = {"train": "0.1", "ramp": "smooth", "begin": 0, "finish": 4}
    run = tr.fit(settings(eps=eps, train__epochs=5), out=tmp_path / "run")

    def by_hand(position: float) -> float:
        u, mid = min(1.0, position / 4), 0.25
        a = 1 / (mid**4 + 4 * mid**3 * (1 - mid))
        return 0.1 * a * (u**4 if u < mid else mid**4 + 4 * mid**3 * (u - mid))

    assert [r["eps"] for r in records(run)] == pytest.approx([by_hand(epoch - 1 / 4) for epoch in range(1, 6)])


@pytest.mark.parametrize("ramp", ["smooth", "linear"])
def test_a_ramp_without_length_jumps_where_it_is(ramp: str) -> None:
    job = job_of(eps={"train": "0.1", "ramp": ramp, "begin": 2, "finish": 2})
    assert [job.eps(position) for position in (0, 1.99, 2, 3)] == [0, 0, 0.1, 0.1]


def test_without_a_ramp_the_radius_is_constant() -> None:
    for eps in ({"train": "0.1"}, {"train": "0.1", "ramp": "none", "finish": 3}):
        assert [job_of(eps=eps).eps(position) for position in (0, 1, 3)] == [0.1] * 3


def test_the_regularisers_of_shi_fade_out_with_the_ramp(tmp_path: Path) -> None:
    eps = {"train": "0.1", "ramp": "linear", "finish": 2}
    run = tr.fit(settings(eps=eps, train__shi=0.5), out=tmp_path / "run")
    assert ["tightness" in r["train"] for r in records(run)] == [True, True, False]
    unregularised = tr.fit(settings(eps=eps), out=tmp_path / "other")
    assert run.record.weights_sha256 != unregularised.record.weights_sha256


def test_the_weight_of_the_regularisers_is_the_rest_of_the_ramp() -> None:
    """A step halfway changes the weights by half of what the regularisers alone would at full weight."""
    eps = {"train": "0.1", "ramp": "linear", "finish": 2}

    def moved(share: float, shi: float) -> Tensor:
        job = replace(job_of(**plain_sgd(eps=eps, train__shi=shi)), eps=Constant(0.05), eps_ramp_end=share)
        return step(job)["layers.1.weight"]

    halfway = moved(0.1, 1.0) - moved(0.1, 0.0)  # fading 1 - 0.05 / 0.1
    most = moved(0.5, 1.0) - moved(0.5, 0.0)  # 1 - 0.05 / 0.5
    assert float(halfway.abs().max()) > 0
    torch.testing.assert_close(halfway / 0.5, most / 0.9, rtol=1e-2, atol=1e-6)


class Recorder:
    """Keeps all events."""

    def __init__(self) -> None:
        self.steps: list[StepEvent] = []
        self.epochs: list[EpochRecord] = []

    def on_step(self, event: StepEvent) -> None:
        self.steps.append(event)

    def on_epoch(self, record: EpochRecord) -> None:
        self.epochs.append(record)


def test_watchers_hear_of_every_epoch_and_of_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tightrope.training.loop.EVENT_SECONDS", -1.0)
    recorder = Recorder()
    run = tr.fit(settings(), out=tmp_path / "run", watcher=recorder)
    assert recorder.epochs == run.epochs
    assert [event.step for event in recorder.steps] == list(range(1, 13))
    assert all(event.steps == 12 and 1 <= event.epoch <= 3 for event in recorder.steps)
    assert tr.fit(settings(), out=tmp_path / "silent").record.weights_sha256 == run.record.weights_sha256


def test_validation_is_measured_at_the_target_radius(tmp_path: Path) -> None:
    """With the weights at the end of the epoch: here by hand, on the images that were held out."""
    run = tr.fit(settings(eps={"train": "0.02", "test": "0.05"}), out=tmp_path / "run")
    job = job_of(eps={"train": "0.02", "test": "0.05"})
    assert job.validation is not None
    x = job.validation.images.float() / job.validation.scale
    box, spec = tr.linf_box(x, "0.05"), tr.margin_spec(job.validation.labels, 10)
    margins = tr.relaxation("ibp").bounds(run.network, run.params, box, spec).margins
    assert run.epochs[-1].validation["surrogate_accuracy"] == pytest.approx(float((margins > 0).all(1).float().mean()))
    correct = (run.network(run.params, x).argmax(1) == job.validation.labels).float().mean()
    assert run.epochs[-1].validation["natural_accuracy"] == pytest.approx(float(correct))


# --------------------------------------------------------------------------------------------- divergence

DIVERGING = {"name": "sgd", "lr": 1e30, "clip_norm": 0}


def assert_stopped(folder: Path) -> None:
    """The failure is on record, and the checkpoint has finite weights."""
    record = RunRecord.read(folder / "record.json")
    assert record.status == "failed"
    assert "gradient" in record.message
    tensors, _ = load_tensors(folder / "checkpoint.safetensors")
    weights = [value for name, value in tensors.items() if name.startswith("params/")]
    assert weights
    assert all(bool(torch.isfinite(value).all()) for value in weights)
    assert not (folder / "weights.safetensors").exists()


def test_a_gradient_of_nan_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="gradient"):
        tr.fit(settings(optimizer=DIVERGING), out=tmp_path / "run")
    assert_stopped(tmp_path / "run")


def test_a_run_that_diverges_at_the_end_of_an_epoch_is_on_record_too(tmp_path: Path) -> None:
    """One step an epoch: the validation of the first epoch is not finite any more."""
    with pytest.raises(NumericalError, match="gradient"):
        tr.fit(settings(optimizer=DIVERGING, train__batch_size=160), out=tmp_path / "run")
    assert_stopped(tmp_path / "run")


@pytest.mark.parametrize("smoother", SMOOTHERS)
def test_images_of_nan_never_reach_the_weights(smoother: str) -> None:
    samples = Samples(torch.full((40, 1, 8, 8), math.nan), torch.arange(40) % 10, scale=1.0)
    data = {"name": "digits", "validation": 0}
    job = job_of(samples=samples, data=data, smoother=SMOOTHERS[smoother])
    state = job.new_state()
    with pytest.raises(NumericalError):
        train_step(job, state)
    for name, value in state.params.items():
        assert torch.equal(value, job.params[name])
    assert state.step == 0
