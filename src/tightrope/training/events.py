"""What the loop tells whoever watches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tightrope.records.run import EpochRecord


@dataclass(frozen=True)
class StepEvent:
    """One finished step.

    Attributes:
        step: steps done.
        steps: steps of the whole run.
        epoch: the current one, from 1.
        eps: training radius.
        metrics: means of the epoch so far.
    """

    step: int
    steps: int
    epoch: int
    eps: float
    metrics: Mapping[str, float]


class Watcher(Protocol):
    """Receives events; must not change anything."""

    def on_step(self, event: StepEvent) -> None:
        """After some of the steps (not each of many fast ones)."""
        ...

    def on_epoch(self, record: EpochRecord) -> None:
        """After every epoch."""
        ...


class Silent:
    """A watcher that does nothing."""

    def on_step(self, event: StepEvent) -> None:
        """Nothing."""

    def on_epoch(self, record: EpochRecord) -> None:
        """Nothing."""
