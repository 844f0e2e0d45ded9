"""Compiled training is training: the same steps, no graph breaks, and nothing compiled again from step to step."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope.core import registry
from tightrope.core.bounds import Metrics, Params
from tightrope.core.compiled import Compiled, at_members, check_compiler
from tightrope.errors import InputError
from tightrope.experiments.build import build_job, build_plugins, fingerprint
from tightrope.experiments.load import load_config
from tightrope.schedules import Linear
from tightrope.training.loop import Job, train_step

SETTINGS: dict[str, Any] = {
    "threads": 1,
    "data": {"name": "digits", "train": 60, "validation": 0},
    "model": {"name": "mlp"},
    "method": {"name": "certified", "relaxation": "ibp"},
    "eps": {"train": "0.05", "ramp": "linear", "finish": 10},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "train": {"epochs": 20, "batch_size": 20},
}
SMOOTHERS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "rgs": {"name": "rgs", "std": 0.01},
    "rgs-chunks": {"name": "rgs", "std": 0.01, "pairs": 2, "chunk": 2},
    "pgpe": {"name": "pgpe", "std": 0.05, "pairs": 1},
    "pgpe-chunks": {"name": "pgpe", "std": 0.05, "pairs": 2, "chunk": 2},
    "hybrid-chunks": {"name": "hybrid", "std": 0.05, "pairs": 2, "chunk": 2},
}
METHODS: dict[str, dict[str, Any]] = {
    "standard": {"name": "standard"},
    "pgd": {"name": "pgd", "attack": {"name": "pgd", "steps": 2}},
}
PENALTIES = {"l1": 1e-3, "shi": 0.5}

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the default backend needs a C++ compiler")
each_smoother = pytest.mark.parametrize("smoother", SMOOTHERS)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """One thread, no graphs of earlier tests, and none left behind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    torch.set_num_threads(threads)


@dataclass
class Counting:
    """A backend that runs the captured graph as it is, and counts the graphs."""

    graphs: int = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def job_of(dtype: torch.dtype = torch.float64, normed: bool = False, **sections: dict[str, Any]) -> Job:
    """A tiny job. A section with a name replaces that of the settings, another one is merged into it."""
    changes = {key: part if "name" in part else {**SETTINGS[key], **part} for key, part in sections.items()}
    config = load_config(SETTINGS | changes)[1]
    torch.manual_seed(0)
    hidden = [nn.Linear(64, 5), *([nn.BatchNorm1d(5)] if normed else []), nn.ReLU(), nn.Linear(5, 4), nn.ReLU()]
    module = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(4, 10))
    return build_job(config, build_plugins(config), data_dir=None, module=module.to(dtype))


def steps(job: Job, count: int) -> dict[str, Tensor]:
    """Weights and the sums of the metrics after some steps."""
    state = job.new_state()
    for _ in range(count):
        train_step(job, state)
    return {**state.params, **state.meter.sums}


def assert_same_steps(job: Job, backend: Any = "eager", count: int = 3, rtol: float = 1e-9) -> None:
    found, expected = steps(replace(job, backend=backend), count), steps(job, count)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)
    assert not torch.equal(expected["1.weight"], job.params["1.weight"])


# ---------------------------------------------------------------------------------------- compiled is eager


@pytest.mark.parametrize("smoother", ["none", "rgs-chunks", "pgpe-chunks"])
@pytest.mark.parametrize("relaxation", registry.names("relaxations"))
def test_relaxations_under_smoothers(relaxation: str, smoother: str) -> None:
    """What is captured is the whole step: values and gradients, of one weight vector and of populations.

    The captured graph runs as it is here. A graph break is an error of its own.
    """
    assert_same_steps(job_of(method={"name": "certified", "relaxation": relaxation}, smoother=SMOOTHERS[smoother]))


@each_smoother
def test_gradients_that_are_compiled_too(smoother: str) -> None:
    assert_same_steps(job_of(smoother=SMOOTHERS[smoother]), "aot_eager")


@pytest.mark.parametrize("smoother", ["none", "rgs-chunks"])
@pytest.mark.parametrize("method", METHODS)
def test_other_methods(method: str, smoother: str) -> None:
    assert_same_steps(job_of(method=METHODS[method], smoother=SMOOTHERS[smoother]))


@pytest.mark.parametrize("smoother", ["none", "rgs-chunks"])
def test_penalties_augmentation_and_batch_statistics(smoother: str) -> None:
    data = {"flip": True, "pad": 1}
    job = job_of(normed=True, smoother=SMOOTHERS[smoother], train=PENALTIES, data=data, eps={"finish": 0.5})
    assert_same_steps(job)


@needs_compiler
@pytest.mark.parametrize(
    ("relaxation", "smoother"),
    [
        ("ibp", "rgs-chunks"),
        pytest.param("deeppoly", "none", marks=pytest.mark.slow),
        pytest.param("crown_ibp", "pgpe-chunks", marks=pytest.mark.slow),
    ],
)
def test_default_backend_in_float32(relaxation: str, smoother: str) -> None:
    method = {"name": "certified", "relaxation": relaxation}
    assert_same_steps(job_of(torch.float32, method=method, smoother=SMOOTHERS[smoother]), "inductor", rtol=1e-4)


# ------------------------------------------------------------------------------------ compiled once and for all


@each_smoother
def test_nothing_is_compiled_again_from_step_to_step(smoother: str) -> None:
    """Data, radius and noise change in every step; only a new shape, as of the smaller last batch, is compiled."""
    backend = Counting()
    job = job_of(smoother=SMOOTHERS[smoother], data={"train": 50})  # batches of 20, 20 and 10
    std = Linear(0.01, 0.05, begin=0, finish=20) if smoother != "none" else job.std
    job = replace(job, backend=backend, std=std)
    state = job.new_state()
    seen = []
    for _ in range(9):
        train_step(job, state)
        seen.append(backend.graphs)
    assert seen == [1, 1, *[2] * 7]


def test_the_penalty_is_compiled_once_more_when_it_has_faded_out() -> None:
    backend = Counting()
    job = replace(job_of(train=PENALTIES, eps={"finish": 1}), backend=backend)
    state, seen = job.new_state(), []
    for _ in range(9):
        train_step(job, state)
        seen.append(backend.graphs)
    assert seen == [2, 2, 2, *[3] * 6]


def square(params: Params, x: Tensor) -> tuple[Tensor, Metrics]:
    return (params["w"] * x).square().sum(), {"x": x.sum()}


def test_any_number_of_runs_and_of_chunk_sizes_in_one_process() -> None:
    """torch refuses to compile one function for more than eight shapes."""
    backend = Counting()
    for run in range(12):
        loss = Compiled(square, backend)(torch.ones(2))
        assert float(loss({"w": torch.ones(2)})[0]) == 2
        assert backend.graphs == run + 1
    for members in range(1, 13):
        weights = torch.arange(2.0 * members).reshape(members, 2)
        values, metrics = at_members(loss, {"w": weights}, {})
        torch.testing.assert_close(values, weights.square().sum(1))
        assert metrics["x"].shape == (members,)
    assert backend.graphs == 24


# ------------------------------------------------------------------------------------------------- whole runs


@needs_compiler
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Bit for bit, compiled anew in between."""
    settings = SETTINGS | {"train": {"epochs": 3, "batch_size": 20, "compile": True}, "method": {"name": "standard"}}
    whole = tr.fit(settings, out=tmp_path / "whole")

    class Interrupting:
        def on_step(self, event: Any) -> None: ...

        def on_epoch(self, record: Any) -> None:
            if record.epoch == 2:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tr.fit(settings, out=tmp_path / "cut", watcher=Interrupting())
    torch.compiler.reset()
    assert tr.fit(resume=True, out=tmp_path / "cut").record.weights_sha256 == whole.record.weights_sha256


def test_checkpoints_of_compiled_runs_are_not_those_of_others() -> None:
    """They differ in rounding, and a resumed run promises the same bits."""
    marks = set()
    for flags in ({}, {"compile": True}, {"matmul_precision": "high"}):
        config = load_config(SETTINGS | {"train": SETTINGS["train"] | flags})[1]
        marks.add(fingerprint(config, job_of()))
    assert len(marks) == 3


def test_without_a_compiler_the_error_says_what_to_do_before_any_work(
    tmp_path: Path,
) -> None:
    settings = SETTINGS | {"train": SETTINGS["train"] | {"compile": True}}
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),  # monkeypatch would leave it deleted
        torch._inductor.utils.fresh_cache(),
        pytest.raises(InputError, match=r"no-such-compiler.*a C\+\+ compiler.*leave train\.compile out"),
    ):
        tr.fit(settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_compiler_that_works_is_not_complained_about() -> None:
    check_compiler(torch.device("cpu"), backend="eager")
