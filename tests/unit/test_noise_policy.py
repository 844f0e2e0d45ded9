"""Which tensors get how much noise, schedules of the std, ClipUp, and what is said of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from helpers import F64
from tightrope.core.bounds import Metrics, Params
from tightrope.errors import ConfigError, InputError, NumericalError
from tightrope.experiments.build import build_job, build_plugins
from tightrope.experiments.load import load_config
from tightrope.schedules import Constant, Cosine, Linear, Proportional
from tightrope.training.clipup import ClipUp
from tightrope.training.diagnostics import cosine, derived, jump_share
from tightrope.training.job import Job
from tightrope.training.loop import train_step
from tightrope.training.noise_policy import NoisePolicy, noise_norm

SETTINGS: dict[str, Any] = {
    "data": {"name": "digits", "train": 60, "validation": 0},
    "model": {"name": "mlp", "width": [6]},
    "method": {"name": "certified", "relaxation": "crown_ibp"},
    "eps": {"train": "0.05", "finish": 2, "ramp": "linear"},
    "optimizer": {"lr": 0.02, "milestones": [2], "factor": 0.5},
    "train": {"epochs": 4, "batch_size": 20},
}


def job_of(smoother: dict[str, Any], **sections: Any) -> Job:
    config = load_config(SETTINGS | {"smoother": smoother} | sections)[1]
    return build_job(config, build_plugins(config), data_dir=None)


def normed() -> tuple[tr.Network, dict[str, Tensor]]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)]
    net, params = tr.from_module(nn.Sequential(*layers), (1, 4, 4))
    return net, dict(params)


# ------------------------------------------------------------------------------------------------- policies


def test_absolute_noise_is_the_same_for_all() -> None:
    net, params = normed()
    assert NoisePolicy().std(0.1, net, params) == 0.1


def test_noise_in_units_of_the_weights_keeps_its_proportion() -> None:
    """Biases follow their layer's kernel, though they may be 0; ten times larger weights get ten times the noise."""
    net, params = normed()
    params["0.bias"].zero_()
    std = NoisePolicy("weight").std(0.1, net, params)
    root = float(params["0.weight"].square().mean().sqrt())
    assert std["0.weight"] == std["0.bias"] == pytest.approx(0.1 * root)
    assert std["1.weight"] == std["1.bias"] == pytest.approx(0.1)  # scales of 1
    larger = NoisePolicy("weight").std(0.1, net, {**params, "0.weight": 10 * params["0.weight"]})
    assert larger["0.weight"] == pytest.approx(10 * std["0.weight"])


def test_noise_by_fan_in() -> None:
    net, params = normed()
    std = NoisePolicy("fan_in").std(0.6, net, params)
    assert (std["0.weight"], std["0.bias"]) == (pytest.approx(0.2), pytest.approx(0.2))
    assert std["4.weight"] == pytest.approx(0.6 / math.sqrt(8))
    assert std["1.weight"] == 0.6


def test_biases_and_normalisation_can_be_left_out() -> None:
    net, params = normed()
    assert set(NoisePolicy(biases=False).std(0.1, net, params)) == {"0.weight", "1.weight", "1.bias", "4.weight"}
    assert set(NoisePolicy(normalisation=False).std(0.1, net, params)) == {"0.weight", "0.bias", "4.weight", "4.bias"}


def test_noise_norm() -> None:
    net, params = normed()
    weights = sum(params[name].numel() for name in net.trainable)
    assert noise_norm(0.1, params, net.trainable) == pytest.approx(0.1 * math.sqrt(weights))
    assert noise_norm({"4.bias": 2.0}, params, net.trainable) == pytest.approx(2 * math.sqrt(3))


def spied(job: Job) -> list[dict[str, Tensor]]:
    """The weights at which one step evaluates the loss."""
    seen: list[dict[str, Tensor]] = []
    at = job.loss_at

    def watching(*inputs: Any) -> Callable[[Params], tuple[Tensor, Metrics]]:
        loss = at(*inputs)

        def spy(params: Params) -> tuple[Tensor, Metrics]:
            seen.append({name: value.detach().clone() for name, value in params.items()})
            return loss(params)

        return spy

    job.__dict__["loss_at"] = watching
    train_step(job, job.new_state())
    return seen


def test_a_step_follows_the_policy() -> None:
    job = job_of({"name": "pgpe", "std": 0.1, "pairs": 3, "std_mode": "weight", "biases": False})
    seen = spied(job)
    assert len(seen) == 6
    for params in seen:
        for name in job.network.trainable:
            assert torch.equal(params[name], job.params[name]) == name.endswith("bias")


def test_members_are_spread_over_parts_of_the_batch() -> None:
    """Two parts of 10 images: half the pairs see one, half the other, and every image has its own draws."""
    job = job_of({"name": "rgs", "std": 0.01, "pairs": 4, "parts": 2})
    state, seen = job.new_state(), []
    at = job.loss_at
    job.__dict__["loss_at"] = lambda batch, eps, draws: seen.append(batch.x) or at(batch, eps, draws)
    train_step(job, state)
    assert [len(x) for x in seen] == [10, 10]
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"name": "rgs", "std": 0.1, "pairs": 3, "parts": 2}, "spread evenly"),
        ({"name": "pgpe", "std": -0.1}, "std"),
        ({"name": "pgpe", "std": math.nan}, "std"),
        ({"name": "hybrid"}, "needs a std"),
        ({"name": "rgs", "std": 0.1, "std_mode": "layer"}, "std_mode"),
        ({"name": "pgpe", "std": 0.1, "pairs": 0}, "pairs"),
        ({"name": "pgpe", "std": 0.1, "max_dropped": 1.0}, "max_dropped"),
    ],
)
def test_bad_noise_is_refused_before_any_work(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_config(SETTINGS | {"smoother": options})


# ------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.4, 0.4, 0.4]),
        ("lr", [0.4, 0.2, 0.2]),
        ("eps", [0.08, 0.4, 0.4]),
        ("cosine", [0.4, 0.24, 0.08]),
    ],
)
def test_the_std_follows_its_schedule(schedule: str, expected: list[float]) -> None:
    job = job_of({"name": "pgpe", "std": 0.4, "std_schedule": schedule, "std_floor": 0.2})
    assert [job.std(epoch) for epoch in (0, 2, 4)] == pytest.approx(expected)


def test_after_its_epochs_a_smoother_gives_way_to_plain_gradients() -> None:
    """Of 12 steps, 3 an epoch, 5 begin within the first 1.5 epochs."""
    smoother = {"name": "pgpe", "std": 0.4, "std_schedule": "cosine", "std_floor": 0.25, "pairs": 3}
    sgd = {"name": "sgd", "lr": 0.02}  # without memory of the steps before
    job, plain = job_of(smoother | {"epochs": 1.5}, optimizer=sgd), job_of({"name": "none"}, optimizer=sgd)
    assert [job.std_at(step) for step in (0, 5, 11)] == [0.4, 0.0, 0.0]
    assert job.std_at(4) == pytest.approx(0.4 * 0.25 + 0.4 * 0.75 * (1 + math.cos(math.pi * 4 / 4.5)) / 2)
    assert [job.evaluations(steps) for steps in (4, 5, 6, 12)] == [24, 30, 31, 37]
    state, other = job.new_state(), plain.new_state()
    for step in range(7):
        for name, weight in state.params.items():
            other.params[name].copy_(weight)
        train_step(job, state)
        train_step(plain, other)
        assert all(torch.equal(state.params[name], other.params[name]) for name in state.params) == (step >= 5)


def test_cosine_and_proportional() -> None:
    fade = Cosine(2.0, 1.0, begin=1, finish=3)
    assert [fade(x) for x in (0, 1, 2, 3, 9)] == pytest.approx([2, 2, 1.5, 1, 1])
    assert Proportional(3.0, Linear(0.0, 2.0, 0, 2), reference=2.0)(1) == 1.5
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="reference"):
            Proportional(1.0, Constant(1.0), reference=bad)


# --------------------------------------------------------------------------------------------------- ClipUp


def test_clipup_by_hand() -> None:
    """Steps of fixed length, momentum, and the speed limit, over both tensors together."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.zeros(3, dtype=F64), torch.zeros(2, 2, dtype=F64)]
    optimizer = ClipUp(weights, lr=0.1, momentum=0.9, max_speed=1.5)
    theta, velocity = torch.zeros(7, dtype=F64), torch.zeros(7, dtype=F64)
    for _ in range(5):
        grad = 100 * torch.randn(7, generator=generator, dtype=F64) + 80
        weights[0].grad, weights[1].grad = grad[:3], grad[3:].reshape(2, 2)
        optimizer.step()
        velocity = 0.9 * velocity + 0.1 * grad / grad.norm()
        velocity = velocity * min(1.0, 0.15 / float(velocity.norm()))
        theta = theta - velocity
        torch.testing.assert_close(torch.cat([w.flatten() for w in weights]), theta)
    assert float(velocity.norm()) == pytest.approx(0.15)


def test_clipup_stands_still_without_a_gradient() -> None:
    weight = torch.ones(2)
    weight.grad = torch.zeros(2)
    ClipUp([weight], lr=0.1).step()
    assert torch.equal(weight, torch.ones(2))


def test_clipup_refuses_weight_decay() -> None:
    with pytest.raises(ConfigError, match="clipup has no weight_decay"):
        load_config(SETTINGS | {"optimizer": {"name": "clipup", "weight_decay": 0.1}})


# ---------------------------------------------------------------------------------------------- diagnostics


def jump(p: Params) -> tuple[Tensor, Metrics]:
    return (p["w"].sum() > 0.5).to(F64) + 0.0 * p["w"].sum(), {}


def smooth(p: Params) -> tuple[Tensor, Metrics]:
    return (p["w"] ** 2).sum(), {}


def both(p: Params) -> tuple[Tensor, Metrics]:
    return jump(p)[0] + p["w"].sum(), {}


@pytest.mark.parametrize(("loss", "share"), [(jump, 1.0), (smooth, 0.0), (both, 0.5)])
def test_share_of_jumps(loss: Callable[[Params], Any], share: float) -> None:
    """Along a step from 0 to 1: a jump of 1, a slope of 1, or both."""
    before, after = ({"w": torch.tensor([x], dtype=F64)} for x in (0.0, 1.0))
    assert float(jump_share(loss, before, after, ("w",))) == pytest.approx(share, abs=0.01)


def test_cosine_between_gradients() -> None:
    one, other = {"a": torch.tensor([1.0, 0.0])}, {"a": torch.tensor([1.0, 1.0])}
    assert float(cosine(one, other)) == pytest.approx(math.sqrt(0.5))
    assert float(cosine(one, {"a": torch.zeros(2)})) == 0.0


def test_signal_to_noise() -> None:
    """|E g|^2 = power - variance; n pairs of ratio r need n / r for a ratio of 1."""
    assert derived({"grad_power": 3.0, "grad_variance": 2.0}, 8) == {"snr": 0.5, "pairs_for_snr_1": 16.0}
    assert derived({"grad_power": 1.0, "grad_variance": 2.0}, 8) == {"snr": 0.0, "pairs_for_snr_1": math.inf}
    assert derived({"loss": 1.0}, 8) == {}


@pytest.mark.parametrize("smoother", ["none", "rgs", "pgpe", "hybrid"])
def test_diagnostics_change_nothing_and_are_means_over_the_steps_that_had_them(smoother: str) -> None:
    options = {"name": smoother} if smoother == "none" else {"name": smoother, "std": 0.01, "pairs": 2}
    plain = job_of(options)
    watched = job_of(options, train={**SETTINGS["train"], "diagnose_every": 2})
    states = [plain.new_state(), watched.new_state()]
    for job, state in zip((plain, watched), states, strict=True):
        for _ in range(3):
            train_step(job, state)
    for name, value in states[0].params.items():
        assert torch.equal(value, states[1].params[name])
    means = states[1].meter.means()
    assert states[1].meter.counts["plain_cosine"] == 2
    assert {"plain_cosine", "jump_share", "noise_to_weight"} <= means.keys() - states[0].meter.means().keys()
    assert means["plain_cosine"] == pytest.approx(1.0) if smoother == "none" else abs(means["plain_cosine"]) <= 1.0


# ------------------------------------------------------------------------------------------------------ faults


class Flat:
    """A method whose loss has no gradient."""

    robust = True

    def draws(self, *_: Any, fading: float = 0.0) -> dict[str, Tensor]:
        return {}

    def loss(self, network: Any, params: Params, batch: Any, eps: Tensor, draws: Any) -> tuple[Tensor, Metrics]:
        return network(params, batch.x).argmax(1).double().mean(), {}


@pytest.mark.parametrize("smoother", ["none", "rgs", "pgpe", "hybrid"])
def test_a_loss_without_gradient_is_refused_when_it_would_be_differentiated(
    smoother: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"name": smoother} if smoother == "none" else {"name": smoother, "std": 0.1, "pairs": 2}
    config = load_config(SETTINGS | {"smoother": options})[1]
    plugins = build_plugins(config)
    object.__setattr__(plugins, "method", Flat())
    if smoother == "pgpe":
        train_step(job := build_job(config, plugins, data_dir=None), job.new_state())
        config = load_config(SETTINGS | {"smoother": options | {"epochs": 2}})[1]
    with pytest.raises(InputError, match=r"has no gradient.*'pgpe'"):
        build_job(config, plugins, data_dir=None)


class Broken(Flat):
    """A method whose loss is NaN at some of its evaluations."""

    def __init__(self, bad: set[int]) -> None:
        self._bad, self._count = bad, -1

    def loss(self, network: Any, params: Params, batch: Any, eps: Tensor, draws: Any) -> tuple[Tensor, Metrics]:
        self._count += 1
        value = network(params, batch.x).square().mean()
        return value * (math.nan if self._count in self._bad else 1.0), {}


def test_a_few_broken_members_are_dropped_and_many_stop_the_run_before_the_weights_change() -> None:
    """Eight pairs, evaluated one after the other: broken are one pair, then three."""
    job = job_of({"name": "pgpe", "std": 0.1, "pairs": 8, "max_dropped": 0.25})
    job, state = replace(job, method=Broken({3, 16 + 1, 16 + 4, 16 + 9})), job.new_state()
    train_step(job, state)
    assert state.meter.means()["dropped"] == pytest.approx(1 / 8)
    before = {name: value.clone() for name, value in state.params.items()}
    assert all(value.isfinite().all() for value in before.values())
    with pytest.raises(NumericalError, match=r"38% of the population.*max_dropped allows 25%"):
        train_step(job, state)
    assert state.step == 1
    assert all(torch.equal(value, state.params[name]) for name, value in before.items())
