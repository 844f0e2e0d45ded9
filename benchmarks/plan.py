"""The planner's forecasts beside what training takes: relaxation x network x batch x population.

A forecast is made as ``tightrope plan`` makes it, before anything of its group is measured. Then the real training step
(batch, gradient estimate, update) is timed as every contender is, with the chunk that was planned. Its peak memory is
that of the first steps in a fresh process, whose set-up is a step of every size that the planner tried. The images are
random: no dataset is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.case import Case, Prepared, Record, use_setting
from benchmarks.memory import MIB
from benchmarks.problem import CLASSES, EPS, SEED, SHAPE
from benchmarks.protocol import Group, ours
from tightrope.data._loader import Samples
from tightrope.experiments.build import build_job, build_plugins
from tightrope.experiments.config import RunConfig
from tightrope.experiments.load import load_config
from tightrope.experiments.plan import plan_of
from tightrope.runtime.memory import keep_freed_memory, return_freed_memory
from tightrope.training.calibration import rehearsed
from tightrope.training.job import Job
from tightrope.training.loop import train_step

STD = 0.01
PEAK_STEPS = 5  # of the first call, which gives the peak: a step may leave gaps that the next one cannot use
SMOOTHERS: Mapping[str, Mapping[str, Any]] = {
    "none": {"name": "none"},
    "pgpe, 8 pairs": {"name": "pgpe", "std": STD, "pairs": 8, "chunk": "auto"},
    "rgs, 2 pairs": {"name": "rgs", "std": STD, "pairs": 2, "chunk": "auto"},
}


@dataclass(frozen=True)
class Options:
    """The grid."""

    device: str
    threads: int | None = None
    networks: Sequence[str] = ("cnn3_tiny", "cnn3")
    batches: Sequence[int] = (16, 64)
    relaxations: Sequence[str] = ("ibp", "crown_ibp", "deeppoly")


def groups(options: Options) -> list[Group]:
    """One group for each network and batch size, its forecasts in its setting."""
    use_setting({"threads": options.threads})
    keep_freed_memory()
    return [_group(options, network, batch) for network in options.networks for batch in options.batches]


def prepare(case: Case) -> Prepared:
    """Set one training step up."""
    keep_freed_memory()  # as training does
    setting = case.setting
    chunk = setting["forecasts"][case.contender]["chunk"]
    job = job_of(config_of(setting, case.contender, {} if chunk is None else {"chunk": chunk}))
    for size in setting["forecasts"][case.contender]["trials"]:  # as a run has done that follows its plan
        trial = rehearsed(job, *size)
        train_step(trial, trial.new_state())
    return_freed_memory()
    state = job.new_state()

    def run() -> None:
        for _ in range(PEAK_STEPS if state.step == 0 else 1):
            state.step = 0
            train_step(job, state)

    return Prepared(run, dict)


def config_of(setting: Mapping[str, Any], contender: str, options: Mapping[str, Any]) -> RunConfig:
    """The settings of a contender; ``options`` are of its smoother."""
    relaxation, _, smoother = contender.partition(", ")
    values = {
        "device": setting["device"],
        "data": {"name": "mnist", "validation": 0},
        "model": {"name": setting["network"]},
        "method": {"name": "certified", "relaxation": relaxation},
        "smoother": {**SMOOTHERS[smoother], **options},
        "eps": {"train": str(EPS)},
        "train": {"epochs": 1, "batch_size": setting["batch"]},
    }
    return load_config(values)[1]


def job_of(config: RunConfig) -> Job:
    """A training run on one batch of random images."""
    batch, generator = config.train.batch_size, torch.Generator().manual_seed(SEED)
    images = torch.randint(256, (batch, *SHAPE), generator=generator, dtype=torch.uint8)
    samples = Samples(images, torch.randint(CLASSES, (batch,), generator=generator))
    return build_job(config, build_plugins(config), data_dir=None, samples=samples)


def compare(group: Record) -> Record:
    """The record of a group with forecast over measured in each row that ran."""
    for row in group["contenders"]:
        forecast = group["setting"]["forecasts"][row["name"]]
        if row["status"] == "ok":
            row["forecast_over_measured"] = {
                "seconds_per_step": forecast["seconds_per_step"] / row["seconds_per_step"]["median"],
                "peak_memory": _ratio(forecast["peak_memory_mib"], row.get("peak_memory_mib")),
            }
    return group


def _ratio(forecast: float, found: float | None) -> float | None:
    return forecast / found if found else None


def _group(options: Options, network: str, batch: int) -> Group:
    names = [f"{relaxation}, {smoother}" for relaxation in options.relaxations for smoother in SMOOTHERS]
    setting: dict[str, Any] = {"network": network, "batch": batch, "device": options.device, "threads": options.threads}
    return Group(
        __name__,
        f"{network}, batch {batch}",
        setting | {"eps": EPS, "forecasts": {name: _forecast(setting, name) for name in names}},
        dict.fromkeys(names, ours()),
        batch,
        "images/s",
    )


def _forecast(setting: Mapping[str, Any], name: str) -> Record:
    config = config_of(setting, name, {})
    plan = plan_of(config, job_of(config))
    return {
        "chunk": plan.chunk,
        "seconds_per_step": plan.seconds_per_step,
        "peak_memory_mib": plan.peak_memory / MIB,
        "trials": [[trial.batch, trial.pairs, trial.chunk] for trial in plan.trials],
    }
