"""The state of a run, and its checkpoint: one safetensors file, written atomically, that never executes anything."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.digest import tensor_digest
from tightrope.core.protocols import SmootherState
from tightrope.errors import CheckpointError, MissingDataError
from tightrope.records.files import write_atomic

FORMAT = 1


@dataclass
class Meter:
    """Sums of metrics over the steps of the current epoch, kept as tensors so that no step waits for the device.

    Attributes:
        counts: steps that had a metric; not all have every one.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    steps: int = 0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take in one step."""
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.detach().clone()
            self.counts[name] = self.counts.get(name, 0) + 1
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Means over the steps so far that had the metric."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        counts = {f"count/{name}": torch.tensor(value) for name, value in self.counts.items()}
        return {**self.sums, **counts, "steps": torch.tensor(self.steps)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Meter:
        """Back from :meth:`tensors`."""
        counts = {name: int(value) for name, value in _group(tensors, "count").items()}
        sums = {name: value for name, value in tensors.items() if name != "steps" and not name.startswith("count/")}
        return cls(sums, counts, int(tensors["steps"]))


@dataclass
class State:
    """Everything that changes during a run. All randomness is a function of (seed, step), so none is stored.

    Attributes:
        chunk: pairs of the population evaluated at once; None without a population.
        step: finished steps.
        seconds: of training, pauses left out.
        average: of the weights on the way, if one is taken; ``averaged`` says of how many.
        kept: the params that the run ends with, if they are not simply the last, of epoch ``kept_epoch``.
        kept_loss: on the validation split, where epochs are selected by it.
    """

    params: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    smoother: SmootherState
    meter: Meter
    chunk: int | None = None
    step: int = 0
    seconds: float = 0.0
    average: dict[str, Tensor] = field(default_factory=dict)
    averaged: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)
    kept_epoch: int | None = None
    kept_loss: float = math.inf

    @property
    def final(self) -> dict[str, Tensor]:
        """The params that the run ends with, should it end here."""
        return self.kept or self.params

    def save(self, path: Path, fingerprint: str) -> None:
        """Write a checkpoint atomically. ``fingerprint`` names the configuration it belongs to."""
        tensors = self._tensors()
        names = ("step", "seconds", "chunk", "averaged", "kept_epoch", "kept_loss")
        facts = {name: getattr(self, name) for name in names}
        save_tensors(path, tensors, facts | {"run": fingerprint, "tensors": len(tensors)})

    def restore(self, path: Path, fingerprint: str) -> None:
        """Take over a checkpoint of the same run.

        Raises:
            CheckpointError: truncated, altered, or of another run or network. The state is unchanged then.
        """
        tensors, facts = load_tensors(path)
        if facts.get("run") != fingerprint:
            raise CheckpointError(f"{path} belongs to a run of other settings; start afresh in another folder.")
        params, meter = _group(tensors, "params"), _group(tensors, "meter")
        if {k: v.shape for k, v in params.items()} != {k: v.shape for k, v in self.params.items()}:
            raise CheckpointError(f"{path} holds weights of another network.")
        if facts.get("tensors") != len(tensors) or not {"step", "seconds"} <= facts.keys() or "steps" not in meter:
            raise CheckpointError(f"{path} is not complete.")
        for name, value in self.params.items():
            value.data.copy_(params[name])
        self._restore_optimizer(_group(tensors, "optimizer"))
        self.smoother = SmootherState(self.smoother.trainable, _group(tensors, "smoother"))
        self.meter = Meter.of(meter)
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
        self.chunk = facts.get("chunk", self.chunk)
        self.average, self.kept = (self._on_device(_group(tensors, group)) for group in ("average", "kept"))
        self.averaged = facts.get("averaged", 0)
        self.kept_epoch, self.kept_loss = facts.get("kept_epoch"), facts.get("kept_loss", math.inf)

    def _on_device(self, tensors: Params) -> dict[str, Tensor]:
        return {name: value.to(self.params[name].device) for name, value in tensors.items()}

    def _tensors(self) -> dict[str, Tensor]:
        groups: dict[str, Mapping[str, Tensor]] = {
            "params": self.params,
            "optimizer": self._optimizer_tensors(),
            "smoother": self.smoother.tensors,
            "meter": self.meter.tensors(),
            "average": self.average,
            "kept": self.kept,
        }
        return {f"{group}/{name}": value.detach() for group, values in groups.items() for name, value in values.items()}

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        state = self.optimizer.state_dict()["state"]
        return {
            f"{index}/{name}": value
            for index, values in state.items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split("/", 1)
            state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_tensors(path: Path, tensors: Params, facts: Mapping[str, Any], *, shared: bool = False) -> str:
    """Write tensors and a few facts as one safetensors file, atomically; returns the digest of the tensors.

    ``shared`` as of :func:`tightrope.records.files.write_atomic`.

    Raises:
        OSError: the disk is full or not writable; an older file stays as it was.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    sha256 = tensor_digest(plain)
    text = json.dumps({**facts, "format": FORMAT, "sha256": sha256})
    header = {"tightrope": json.dumps({"facts": text, "seal": _seal(text)})}  # one key: their order is not defined
    write_atomic(path, pack_tensors(plain, header), shared=shared)
    return sha256


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        MissingDataError: there is no such file.
        CheckpointError: it is not such a file (a pickle is never opened), is truncated, or its content was altered.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise MissingDataError(f"{path} does not exist.") from None
    try:
        tensors = parse_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["tightrope"]
        sealed = json.loads(header)
        facts = json.loads(sealed["facts"])
        intact = sealed["seal"] == _seal(sealed["facts"]) and facts["sha256"] == tensor_digest(tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path} is not a complete Tightrope safetensors file ({error}). It was truncated or is something else; "
            "pickled checkpoints are never opened."
        ) from None
    if not intact or facts["format"] != FORMAT:
        raise CheckpointError(f"{path} was altered: its checksum or format does not match its content.")
    return tensors, facts


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _group(tensors: Params, group: str) -> dict[str, Tensor]:
    prefix = f"{group}/"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
