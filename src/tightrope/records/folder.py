"""Where things lie in a run folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration, as TOML, defaults filled in."""
        return self.path / "config.toml"

    @property
    def record(self) -> Path:
        """The run record."""
        return self.path / "record.json"

    @property
    def imported(self) -> Path:
        """The record of a network of another library, instead of that of a run."""
        return self.path / "imported.json"

    @property
    def metrics(self) -> Path:
        """One JSON line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def network(self) -> Path:
        """The graph, so that a run of any module can be read back without its code."""
        return self.path / "network.json"

    @property
    def weights(self) -> Path:
        """The final weights."""
        return self.path / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The state to resume from."""
        return self.path / "checkpoint.safetensors"

    def weights_after(self, epoch: int) -> Path:
        """Weights that were kept on the way, after an epoch; 0 for the initial ones."""
        return self.path / f"weights-{epoch}.safetensors"

    @property
    def trajectory(self) -> dict[int, Path]:
        """All weights that were kept on the way, by epoch."""
        found = (re.fullmatch(r"weights-(\d+)\.safetensors", entry.name) for entry in self.path.iterdir())
        epochs = sorted(int(match[1]) for match in found if match)
        return {epoch: self.weights_after(epoch) for epoch in epochs}

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's logs, where they were asked for."""
        return self.path / "tensorboard"

    def holds_only_a_beginning(self) -> bool:
        """Whether there is nothing in it but what a run writes before its record."""
        started = {path.name for path in (self.config, self.network, self.checkpoint)}
        return all(entry.name in started or entry.name.endswith(".tmp") for entry in self.path.iterdir())

    def certification(self, name: str) -> Path:
        """One JSON line per image of one certification."""
        return self.path / f"certify-{name}.jsonl"
