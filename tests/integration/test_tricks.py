"""What a fair comparison needs beside the loss: averages, exact statistics, accumulation, selection, smoothing."""

from __future__ import annotations

import copy
import math
import signal
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tightrope as tr
from tightrope.core.protocols import Batch
from tightrope.errors import ConfigError
from tightrope.experiments.build import build_job, build_plugins
from tightrope.experiments.load import load_config
from tightrope.records.run import EpochRecord
from tightrope.training import loop
from tightrope.training.accumulation import pieces
from tightrope.training.averaging import exact_statistics
from tightrope.training.events import StepEvent
from tightrope.training.loop import Job, evaluate, train_step
from tightrope.training.state import State

TINY: dict[str, Any] = {
    "threads": 1,
    "data": {"name": "digits", "train": 130, "validation": 30},
    "model": {"name": "mlp", "width": [8]},
    "method": {"name": "certified", "relaxation": "ibp"},
    "eps": {"train": "0.05", "finish": 1},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "train": {"epochs": 4, "batch_size": 25},
}  # 4 steps an epoch
PGD = {"name": "pgd", "attack": {"name": "pgd", "steps": 2}}
SMOOTHERS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "rgs": {"name": "rgs", "std": 0.01},
    "rgs, mapped": {"name": "rgs", "std": 0.01, "pairs": 2, "chunk": 2},
    "pgpe": {"name": "pgpe", "std": 0.01, "pairs": 2},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(**changes: Any) -> dict[str, Any]:
    values = copy.deepcopy(TINY)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values[section] = {**values.get(section, {}), key: value} if key else value
    return values


def normed() -> nn.Module:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), *head)


def job_of(module: nn.Module | None = None, **changes: Any) -> Job:
    config = load_config(settings(**changes))[1]
    return build_job(config, build_plugins(config), data_dir=None, module=module)


def after(job: Job, steps: int) -> State:
    state = job.new_state()
    for _ in range(steps):
        train_step(job, state)
    return state


def images(job: Job) -> Tensor:
    return job.train.images.float() / job.train.scale


# ------------------------------------------------------------------------------------------------- averages


def trajectory(job: Job, steps: int) -> list[dict[str, Tensor]]:
    """The weights after each step, without averaging."""
    plain, weights = replace(job, averaging=None), []
    state = plain.new_state()
    for _ in range(steps):
        train_step(plain, state)
        weights.append({name: state.params[name].detach().clone() for name in job.network.trainable})
    return weights


@pytest.mark.parametrize(("begin", "every"), [(0.0, 1), (1.0, 1), (1.5, 2), (1.0, 3)])
def test_swa_is_the_mean_of_the_weights_on_the_way(begin: float, every: int) -> None:
    job = job_of(average={"kind": "swa", "begin": begin, "every": every})
    taken = [w for step, w in enumerate(trajectory(job, 12), 1) if step % every == 0 and step >= begin * 4]
    state = after(job, 12)
    assert state.averaged == len(taken)
    for name, average in state.average.items():
        torch.testing.assert_close(average, torch.stack([w[name] for w in taken]).mean(0))


def test_ema_is_the_exponential_average() -> None:
    job = job_of(average={"kind": "ema", "decay": 0.8})
    expected: dict[str, Tensor] = {}
    for weights in trajectory(job, 6):
        expected = {name: 0.8 * expected.get(name, value) + 0.2 * value for name, value in weights.items()}
    for name, average in after(job, 6).average.items():
        torch.testing.assert_close(average, expected[name])


def test_averaging_leaves_training_itself_alone() -> None:
    job = job_of(average={"kind": "ema", "decay": 0.5})
    last, state = trajectory(job, 5)[-1], after(job, 5)
    assert all(torch.equal(state.params[name], value) for name, value in last.items())


@pytest.mark.parametrize("kind", ["swa", "ema"])
def test_the_run_ends_with_the_average_and_its_own_statistics(kind: str, tmp_path: Path) -> None:
    config = settings(average={"kind": kind, "begin": 2, "decay": 0.5})
    run = tr.fit(normed(), config=config, out=tmp_path / "run")
    job = job_of(normed(), **{key: config[key] for key in ("average",)})
    state = after(job, 16)
    for name, average in state.average.items():
        assert torch.equal(run.params[name], average)
    batches = [images(job)[start : start + 25] for start in range(0, job.train.size, 25)]
    for name, value in exact_statistics(job.network, {**state.params, **state.average}, batches).items():
        assert torch.equal(run.params[name], value)
    assert run.record.final is not None
    metrics = evaluate(job, run.params, job.validation, 25)
    assert run.record.final.validation == pytest.approx(metrics)


# ------------------------------------------------------------------------------------------ exact statistics


def test_exact_statistics_of_one_batch_are_its_own() -> None:
    """What torch's training mode writes with momentum 1."""
    module = normed()
    net, params = tr.from_module(module, (1, 8, 8))
    x = torch.rand(20, 1, 8, 8)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum = 1.0
    module.train()(x)
    for name, value in exact_statistics(net, params, [x]).items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, module.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_exact_statistics_of_the_first_layer_do_not_depend_on_the_batches() -> None:
    net, params = tr.from_module(normed(), (1, 8, 8))
    x = torch.rand(20, 1, 8, 8)
    whole, parts = exact_statistics(net, params, [x]), exact_statistics(net, params, [x[:7], x[7:8], x[8:]])
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-6)


def test_precise_statistics_are_those_of_the_training_split(tmp_path: Path) -> None:
    run = tr.fit(normed(), config=settings(train__precise_bn=True), out=tmp_path / "run")
    plain = tr.fit(normed(), config=settings(), out=tmp_path / "plain")
    job = job_of(normed())
    batches = [images(job)[start : start + 25] for start in range(0, job.train.size, 25)]
    for name, value in exact_statistics(job.network, plain.params, batches).items():
        assert torch.equal(run.params[name], value)
    assert not torch.equal(run.params["1.running_mean"], plain.params["1.running_mean"])


# ------------------------------------------------------------------------------------------------ accumulation


@pytest.mark.parametrize("method", [{"name": "standard"}, {"name": "certified", "relaxation": "crown_ibp"}])
@pytest.mark.parametrize("count", [3, 100])
@pytest.mark.parametrize("smoother", SMOOTHERS)
def test_accumulated_steps_are_those_of_the_whole_batch(method: dict[str, Any], count: int, smoother: str) -> None:
    """Statistics of the whole batch included, whose gradients flow: the weights are the same up to rounding."""
    changes = {"method": method, "smoother": SMOOTHERS[smoother]}
    whole, parts = (
        after(job_of(normed().double(), **changes, train__accumulate=pieces), 2).params for pieces in (1, count)
    )
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["pgd", "edac"])
def test_methods_that_differentiate_themselves_are_accumulated(name: str) -> None:
    state = after(job_of(method={**PGD, "name": name}, train__accumulate=3), 2)
    assert all(bool(torch.isfinite(value).all()) for value in state.params.values())


def test_accumulation_keeps_one_piece_at_a_time() -> None:
    """Nothing that belongs to an earlier piece is needed when the next one begins."""
    job = job_of(normed(), train__accumulate=5)
    alive: list[int] = []
    graphs: list[Any] = []

    class Watched:
        robust = False

        def draws(self, *args: Any, **options: Any) -> dict[str, Tensor]:
            return {}

        def loss(self, network: Any, params: Any, batch: Batch, eps: Tensor, draws: Any) -> Any:
            alive.append(sum(graph() is not None for graph in graphs))
            hidden = network(params, batch.x)
            graphs.append(weakref.ref(hidden))
            return F.cross_entropy(hidden, torch.zeros(batch.x.shape[0], dtype=torch.int64)), {}

    train_step(replace(job, method=Watched()), job.new_state())
    assert alive == [0] * 5


@pytest.mark.parametrize("count", [1, 2, 4, 7, 50])
def test_pieces_are_the_batch(count: int) -> None:
    batch = Batch(torch.rand(7, 3), tr.margin_spec(torch.arange(7) % 3, 3), 0.1)
    found = pieces(batch, count)
    assert len(found) == min(count, 7)
    assert torch.equal(torch.cat([piece.x for piece in found]), batch.x)
    assert torch.equal(torch.cat([piece.spec.matrix for piece in found]), batch.spec.matrix)
    assert {piece.label_smoothing for piece in found} == {0.1}


# --------------------------------------------------------------------------------------------------- selection


def test_selection_keeps_the_epoch_of_least_validation_loss_after_the_ramp(tmp_path: Path) -> None:
    changes = {"train__select": "best", "train__epochs": 8, "optimizer": {"name": "adam", "lr": 0.1}, "eps__finish": 3}
    run = tr.fit(settings(**changes), out=tmp_path / "run")
    losses = {epoch.epoch: epoch.validation["loss"] for epoch in run.epochs if epoch.epoch >= 3}
    best = min(losses, key=losses.__getitem__)
    assert run.record.selected == best
    job = job_of(**changes)
    assert evaluate(job, run.params, job.validation, 25)["loss"] == pytest.approx(losses[best], rel=1e-6)
    other = tr.fit(settings(**{**changes, "train__select": "last"}), out=tmp_path / "last")
    assert other.record.selected is None
    assert [e.validation for e in other.epochs] == [e.validation for e in run.epochs]
    if best != 8:
        assert other.record.weights_sha256 != run.record.weights_sha256


def test_what_a_run_ends_with_when_the_ramp_does_not_end(tmp_path: Path) -> None:
    """The last epoch's weights."""
    changes = {"eps__finish": 50, "train__select": "best"}
    run, plain = (tr.fit(settings(**c), out=tmp_path / str(i)) for i, c in enumerate((changes, {"eps__finish": 50})))
    assert run.record.weights_sha256 == plain.record.weights_sha256


# -------------------------------------------------------------------------------------------- label smoothing


@pytest.mark.parametrize("method", [{"name": "standard"}, {"name": "pgd", "attack": {"name": "pgd", "steps": 0}}])
def test_label_smoothing_is_that_of_torch(method: dict[str, Any]) -> None:
    """At radius 0, where the attack returns the clean inputs."""
    job = job_of(method=method, train__label_smoothing=0.2, eps={"train": "0"}, data__validation=0)
    state = after(job, 1)
    module = job.network.to_module(job.params)
    order = loop._order(job.train.size, job.seed, 0, torch.device("cpu"))[:25]
    logits = module(images(job)[order])
    expected = F.cross_entropy(logits, job.train.labels[order], label_smoothing=0.2)
    assert float(state.meter.sums["loss"]) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_validation_has_no_label_smoothing() -> None:
    smooth, plain = job_of(train__label_smoothing=0.3), job_of()
    assert evaluate(smooth, smooth.params, smooth.validation, 25) == evaluate(plain, plain.params, plain.validation, 25)


# ----------------------------------------------------------------------------------------------------- resumed

TRICKS: dict[str, dict[str, Any]] = {
    "swa": {"average": {"kind": "swa", "begin": 1, "every": 2}},
    "ema": {"average": {"kind": "ema", "decay": 0.9}},
    "precise": {"train__precise_bn": True},
    "best": {"train__select": "best"},
    "all": {
        "average": {"kind": "swa", "begin": 1},
        "train": {"epochs": 4, "batch_size": 25, "accumulate": 3, "select": "best", "precise_bn": True, "shi": 0.5},
        "method": {"name": "taps", "split": -3, "attack": {"name": "pgd", "steps": 2}},
    },
}


class Interrupting:
    """Ctrl-C after every step."""

    def on_step(self, event: StepEvent) -> None:
        signal.raise_signal(signal.SIGINT)

    def on_epoch(self, record: EpochRecord) -> None:
        pass


@pytest.mark.parametrize("trick", TRICKS)
def test_runs_interrupted_after_every_step_end_alike(
    trick: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "EVENT_SECONDS", -1.0)
    config = settings(**TRICKS[trick])
    straight = tr.fit(normed(), config=config, out=tmp_path / "straight")
    folder = tmp_path / "run"
    for step in range(1, 16):
        with pytest.raises(KeyboardInterrupt):
            tr.fit(normed(), config=config, out=folder, resume=step > 1, watcher=Interrupting())
    run = tr.fit(normed(), config=config, out=folder, resume=True)
    assert run.record.weights_sha256 == straight.record.weights_sha256
    assert run.record.selected == straight.record.selected
    assert [(e.train, e.validation) for e in run.epochs] == [(e.train, e.validation) for e in straight.epochs]


# ----------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train__select": "best", "data__validation": 0}, "data.validation"),
        ({"average": {"kind": "swa", "begin": 4}}, "average.begin"),
        ({"average": {"kind": "mean"}}, "average.kind"),
        ({"average": {"kind": "ema", "decay": 1.0}}, "average.decay"),
        ({"train__accumulate": 0}, "train.accumulate"),
        ({"train__label_smoothing": 1.0}, "train.label_smoothing"),
        ({"train__label_smoothing": math.nan}, "train.label_smoothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(settings(**changes))
    (problem,) = caught.value.problems
    assert problem.startswith(named) or named in problem
