"""Runs: training into a folder, resuming, reading back."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tightrope._version import __version__
from tightrope.core.digest import tensor_digest
from tightrope.core.network import Network
from tightrope.errors import CheckpointError, ConfigError, InputError, MissingDataError
from tightrope.experiments.build import build_module, build_plugins, fingerprint
from tightrope.experiments.config import RunConfig, parse_config
from tightrope.experiments.load import config_toml, config_values
from tightrope.experiments.model_zoo import find, is_zoo_name
from tightrope.experiments.plan import check_fits, plan_of, set_threads
from tightrope.frontend.graph import from_json, to_json
from tightrope.records.files import read_json, write_atomic, write_json
from tightrope.records.folder import RunFolder
from tightrope.records.run import BackOff, Environment, EpochRecord, Plan, RunRecord, read_epochs, write_epochs
from tightrope.runtime.memory import keep_freed_memory
from tightrope.smoothers._population import Population
from tightrope.training.events import Silent, Watcher
from tightrope.training.job import Job
from tightrope.training.loop import train
from tightrope.training.state import State, load_tensors, save_tensors


@dataclass(frozen=True)
class Run:
    """A finished training run, read from its folder.

    Attributes:
        folder: where its files are.
        record: what was trained and how it went.

    Example:
        >>> run = tr.load("runs/digits-mlp-ibp")  # doctest: +SKIP
        >>> run.network(run.params, x).argmax(1)  # doctest: +SKIP
    """

    folder: RunFolder
    record: RunRecord

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def name(self) -> str:
        """What to call it."""
        return self.record.name

    @property
    def dataset(self) -> str | None:
        """The dataset that it was trained on, by name; None for data handed in."""
        return None if "dataset" in self.record.handed_in else self.config.data.name

    @property
    def eps(self) -> str:
        """The radius at test time, exactly."""
        return self.config.eps.target

    def original(self) -> nn.Module | None:
        """The module that was trained, built anew, with its weights; None where it was handed in."""
        if "module" in self.record.handed_in:
            return None
        module = build_module(self.config, build_plugins(self.config))
        module.load_state_dict(self.params)
        return module

    @cached_property
    def config(self) -> RunConfig:
        """The configuration, defaults filled in."""
        return parse_config(self.record.config, str(self.folder.record))

    @cached_property
    def network(self) -> Network:
        """The graph."""
        return from_json(read_json(self.folder.network))

    @cached_property
    def params(self) -> dict[str, Tensor]:
        """The final weights, on the CPU.

        Raises:
            CheckpointError: the file is truncated, altered, or of another network.
            NumericalError: NaN or infinite weights.
        """
        params, _ = load_tensors(self.folder.weights)
        if tensor_digest(params) != self.record.weights_sha256:
            raise CheckpointError(f"{self.folder.weights} does not hold the weights that its run ended with.")
        needed = {key for node in self.network.nodes for key in vars(node.op).values() if isinstance(key, str)}
        if missing := sorted(needed - set(params)):
            raise CheckpointError(f"{self.folder.weights} belongs to another network: it lacks {missing[0]}.")
        self.network.check_params(params)
        return params

    @property
    def epochs(self) -> list[EpochRecord]:
        """The record of every epoch."""
        return read_epochs(self.folder.metrics)


def load(path: Path | str) -> Run:
    """Read a finished run, or ``zoo/NAME``: a network that comes with the package.

    Raises:
        MissingDataError: there is no run in that folder, or it is not finished.
        UnknownNameError: no such network in the zoo.
        CorruptDataError: a file of it is damaged.

    Example:
        >>> load("zoo/mnist-0.1-cnn3-ibp").record.weights
        24330
    """
    folder = RunFolder(find(path) if is_zoo_name(path) else Path(path))
    if not folder.record.is_file():
        found = " It holds an imported network: tr.load_imported." if folder.imported.is_file() else ""
        raise MissingDataError(f"{path} is not a run folder: it has no {folder.record.name}.{found}")
    record = RunRecord.read(folder.record)
    if record.status != "finished":
        raise MissingDataError(
            f"The run in {path} is {record.status}, not finished. Continue it with: tightrope train --resume {path}"
        )
    return Run(folder, record)


def read_started(path: Path | str) -> RunRecord:
    """The record of a run, finished or not.

    Raises:
        MissingDataError: there is no run in that folder.
    """
    folder = RunFolder(Path(path))
    if not folder.record.is_file():
        raise MissingDataError(f"There is nothing to resume in {path}: it has no {folder.record.name}.")
    return RunRecord.read(folder.record)


def execute(
    name: str,
    config: RunConfig,
    job: Job,
    out: Path,
    *,
    resume: bool = False,
    watcher: Watcher,
    handed_in: tuple[str, ...] = (),
) -> Run:
    """Train into a folder, or finish what is there.

    Args:
        name: of the configuration.
        config: written to the folder.
        job: built from it.
        out: the run folder.
        resume: continue a run that was interrupted; a finished one is returned as it is.
        watcher: is told of progress.
        handed_in: what of the job did not come from the settings, for the record.

    Raises:
        InputError: the folder holds a run and ``resume`` is not set.
        CheckpointError: the checkpoint is damaged, or of another run.
        OutOfMemoryError: chunks are to be planned, and not even one pair fits; or the GPU's memory ran out.
        KeyboardInterrupt, NumericalError, RankLostError, OSError: from training; the folder can be resumed.
    """
    folder = RunFolder(out)
    previous = RunRecord.read(folder.record) if folder.record.is_file() else None
    _check_folder(folder, previous, config, resume)
    if previous is not None and previous.status == "finished":
        return Run(folder, previous)
    _together(job)
    keep_freed_memory()
    threads = set_threads(config, job, previous.environment.threads if previous else None)
    state, mark = job.new_state(), fingerprint(config, job)
    plan = previous.plan if previous else _plan(config, job)
    if plan is not None and plan.chunk is not None:
        state.chunk = plan.chunk
    if job.ranks.rank > 0:
        return _follow(folder, job, state, mark, resume=previous is not None)
    if previous is None:  # the record comes last: with it the folder is a run that can be resumed
        write_atomic(folder.config, config_toml(config))
        write_json(folder.network, to_json(job.network))
        state.save(folder.checkpoint, mark)
    else:
        state.restore(folder.checkpoint, mark)
    epochs = [epoch for epoch in read_epochs(folder.metrics) if epoch.step <= state.step]
    facts: dict[str, Any] = {"plan": plan, "handed_in": handed_in}
    if previous is not None:
        kept = tuple(event for event in previous.events if event.step <= state.step)
        facts |= {"resumed": previous.resumed + 1, "events": kept}
    record = _new_record(name, config, job, threads).model_copy(update=facts)
    record.write(folder.record)
    return _train(folder, record, epochs, job, state, mark, watcher)


def _train(
    folder: RunFolder,
    record: RunRecord,
    epochs: list[EpochRecord],
    job: Job,
    state: State,
    mark: str,
    watcher: Watcher,
) -> Run:
    every = record.config["train"].get("keep_every")

    def keep_weights(epoch: int) -> None:
        if every is not None and epoch % every == 0:
            save_tensors(folder.weights_after(epoch), state.params, {"run": mark, "epoch": epoch})

    def finish_epoch(epoch: EpochRecord) -> None:
        keep_weights(epoch.epoch)  # first: a run killed after it repeats the epoch and writes the same again
        epochs.append(epoch)
        write_epochs(folder.metrics, epochs)

    def back_off(event: BackOff) -> None:
        nonlocal record
        record = record.model_copy(update={"events": (*record.events, event)})
        record.write(folder.record)

    def close(status: str, message: str = "", sha256: str = "") -> RunRecord:
        final = epochs[-1] if epochs else None
        facts: dict[str, Any] = {"status": status, "message": message, "weights_sha256": sha256, "final": final}
        facts |= {"selected": state.kept_epoch if job.select else None, "seconds": round(state.seconds, 3)}
        closed = record.model_copy(update=facts)
        closed.write(folder.record)
        return closed

    checkpoint: Callable[[State], None] = lambda current: current.save(folder.checkpoint, mark)  # noqa: E731
    try:
        if state.step == 0:
            keep_weights(0)
        train(job, state, checkpoint=checkpoint, finish_epoch=finish_epoch, back_off=back_off, watcher=watcher)
    except KeyboardInterrupt:
        close("interrupted")
        raise KeyboardInterrupt(f"Saved. Continue with: tightrope train --resume {folder.path}") from None
    except Exception as error:
        close("failed", str(error))
        raise
    sha256 = save_tensors(folder.weights, state.final, {"run": mark})
    run = Run(folder, close("finished", sha256=sha256))
    _together(job)
    return run


def _follow(folder: RunFolder, job: Job, state: State, mark: str, *, resume: bool) -> Run:
    """What every process but the first does: it trains too, and writes nothing."""
    if resume:
        state.restore(folder.checkpoint, mark)

    def ignore(_: object) -> None:
        pass

    train(job, state, checkpoint=ignore, finish_epoch=ignore, back_off=ignore, watcher=Silent())
    _together(job)
    return load(folder.path)


def _together(job: Job) -> None:
    """Wait until every process is here: nobody reads what the first has not written, or writes what others read."""
    job.ranks.sum({"here": torch.zeros(())})


def _check_folder(folder: RunFolder, previous: RunRecord | None, config: RunConfig, resume: bool) -> None:
    if previous is None:
        if folder.path.exists() and not (folder.path.is_dir() and folder.holds_only_a_beginning()):
            raise InputError(f"{folder.path} exists and is not a run folder; choose another --out.")
        return
    if not resume:
        raise InputError(
            f"{folder.path} already holds a run ({previous.status}). Continue it with --resume {folder.path}, or "
            "choose another --out."
        )
    if previous.config != config_values(config):
        raise ConfigError([f"it differs from the one that {folder.path} was started with"], "the configuration")


def _plan(config: RunConfig, job: Job) -> Plan | None:
    """The plan of a new run, where the size of the chunks is left to it."""
    if not (isinstance(job.smoother, Population) and job.smoother.chunk == "auto"):
        return None
    plan = plan_of(config, job)
    check_fits(plan)
    return plan


def _new_record(name: str, config: RunConfig, job: Job, threads: int) -> RunRecord:
    device = next(iter(job.params.values())).device
    return RunRecord(
        name=name,
        status="running",
        config=config_values(config),
        environment=Environment(
            tightrope=__version__,
            torch=torch.__version__,
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.machine()}",
            processor=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            device=device.type,
            threads=threads,
        ),
        weights=sum(job.params[key].numel() for key in job.network.trainable),
        samples={"train": job.train.size, "validation": job.validation.size if job.validation else 0},
        steps=job.steps,
        seconds=0.0,
    )


def _processor() -> str:
    """The processor's name; Python itself only knows the architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
