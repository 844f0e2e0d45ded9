"""The record of a training run: everything needed to judge, repeat or resume it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, PlainSerializer, ValidationError

from tightrope.errors import CorruptDataError
from tightrope.records.files import first_problem, read_json, write_atomic, write_json

SCHEMA = 1

Status = Literal["running", "interrupted", "failed", "finished"]


def _as_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


Number = Annotated[float, PlainSerializer(_as_json, when_used="json")]
"""A float; NaN and infinity are written as text, since JSON has neither."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Environment(_Record):
    """What the run ran on.

    Attributes:
        threads: of torch; a resumed run takes the same, since sums depend on it.
    """

    tightrope: str
    torch: str
    python: str
    platform: str
    processor: str
    device: str
    threads: int


class EpochRecord(_Record):
    """One epoch. ``train`` averages the steps; ``validation`` is at the end; both hold surrogates, no certificates.

    Attributes:
        epoch: counted from 1.
        seconds: of training since the run began, pauses left out.
        eps: training radius at the end of the epoch, input units.
        evaluations: losses of a mini-batch evaluated since the run began, over all processes.
    """

    epoch: int
    step: int
    seconds: float
    lr: float
    eps: float
    std: float
    train: dict[str, Number]
    validation: dict[str, Number]
    evaluations: int = 0


class Trial(_Record):
    """One measured step of a calibration.

    Attributes:
        batch: images.
        pairs: of the population; 1 without one.
        chunk: pairs evaluated at once.
        seconds: median.
        peak_memory: bytes beyond what is held between steps.
    """

    batch: int
    pairs: int
    chunk: int
    seconds: float
    peak_memory: int


class Plan(_Record):
    """What training will take on this machine, predicted from a few steps.

    Attributes:
        memory_budget: bytes that a step may need.
        batch_size: images a step.
        pairs: of the population; None without one.
        chunk: pairs evaluated at once; None without a population.
        peak_memory: bytes that a step needs beyond weights and data.
        images: of the training split; None if it is not known.
        steps_per_epoch, seconds_per_epoch, seconds: of the first epoch, validation included, and of the run; None with
            ``images``.
        trials: what was measured.
        threads: of torch, on which it was measured; None in older records.
    """

    device: str
    memory_budget: int
    weights: int
    batch_size: int
    pairs: int | None
    chunk: int | None
    seconds_per_step: float
    peak_memory: int
    images: int | None
    steps_per_epoch: int | None
    seconds_per_epoch: float | None
    epochs: int
    seconds: float | None
    trials: tuple[Trial, ...]
    threads: int | None = None

    @property
    def fits(self) -> bool:
        """Whether a step fits the budget."""
        return self.peak_memory <= self.memory_budget


class BackOff(_Record):
    """The GPU's memory ran out: from this step on fewer pairs are evaluated at once, with the same draws.

    Attributes:
        step: finished steps, the one that was repeated included.
        before, after: pairs evaluated at once.
    """

    kind: Literal["out of memory"] = "out of memory"
    step: int
    before: int
    after: int


class RunRecord(_Record):
    """A training run.

    Attributes:
        name: of the preset or file it came from.
        config: the whole configuration, defaults filled in.
        handed_in: what came from the caller instead of the settings: ``module``, ``dataset``, ``spec``. To resume, hand
            it in again.
        weights: number of trainable weights.
        samples: training and validation images.
        plan: what was predicted, and the chunk that was chosen, where that was asked for.
        events: what happened on the way.
        weights_sha256: of the final weights; empty until finished.
        final: the last epoch's record.
        selected: the epoch whose weights the run ended with, where they were selected on the validation split.
    """

    schema_version: Literal[1] = 1
    name: str
    status: Status
    config: dict[str, Any]
    handed_in: tuple[str, ...] = ()
    environment: Environment
    weights: int
    samples: dict[str, int]
    steps: int
    seconds: float
    resumed: int = 0
    plan: Plan | None = None
    events: tuple[BackOff, ...] = ()
    weights_sha256: str = ""
    final: EpochRecord | None = None
    selected: int | None = None
    message: str = ""

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read from JSON.

        Raises:
            MissingDataError: there is no such file.
            CorruptDataError: it is not a run record of this version.
        """
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise CorruptDataError(f"{path} is not a run record of schema {SCHEMA}: {first_problem(error)}.") from None


def write_epochs(path: Path, epochs: Iterable[EpochRecord]) -> None:
    """Write the epochs as JSON lines, atomically: a few hundred short lines at most."""
    write_atomic(path, "".join(json.dumps(epoch.model_dump(mode="json")) + "\n" for epoch in epochs))


def read_epochs(path: Path) -> list[EpochRecord]:
    """Read the epochs written so far, none if there is no file.

    Raises:
        CorruptDataError: a line is not an epoch.
    """
    if not path.exists():
        return []
    try:
        return [EpochRecord.model_validate_json(line) for line in path.read_text().splitlines()]
    except ValidationError as error:
        raise CorruptDataError(f"{path} is damaged: {first_problem(error)}.") from None
    except UnicodeDecodeError as error:
        raise CorruptDataError(f"{path} is damaged: {error}.") from None
