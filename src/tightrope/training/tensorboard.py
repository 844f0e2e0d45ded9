"""Scalars of a run for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tightrope.core.extras import require
from tightrope.records.run import EpochRecord
from tightrope.training.events import StepEvent, Watcher

EXTRA = "track"


class TensorBoard:
    """Writes what the loop tells as scalars over steps: ``step/*`` now and then, ``train/*``, ``validation/*`` and
    ``schedule/*`` after every epoch.

    A resumed run may go on in the same folder: what was logged after its checkpoint is replaced by what it repeats,
    which is the same, bit for bit.

    Args:
        folder: of the logs; made at the first event, so that a run which fails before leaves none.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        require("tensorboard", EXTRA)  # here, before any work, and by its own name
        self._folder, self._writer = folder, None

    def on_step(self, event: StepEvent) -> None:
        """Means of the epoch so far."""
        self._write(event.step, {f"step/{name}": value for name, value in event.metrics.items()})

    def on_epoch(self, record: EpochRecord) -> None:
        """Everything in the record."""
        schedule = {"eps": record.eps, "lr": record.lr, "std": record.std, "seconds": record.seconds}
        groups: dict[str, Mapping[str, float]] = {"train": record.train, "validation": record.validation}
        for group, values in {**groups, "schedule": schedule}.items():
            self._write(record.step, {f"{group}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Wait until everything is on the disk."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        writer = self._writer or self._open(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def _open(self, step: int) -> Any:
        summary = require("torch.utils.tensorboard", EXTRA)
        self._writer = summary.SummaryWriter(str(self._folder), purge_step=step)
        return self._writer


class _Both:
    """Passes on to two."""

    def __init__(self, one: Watcher, other: Watcher) -> None:
        self._watchers = (one, other)

    def on_step(self, event: StepEvent) -> None:
        for watcher in self._watchers:
            watcher.on_step(event)

    def on_epoch(self, record: EpochRecord) -> None:
        for watcher in self._watchers:
            watcher.on_epoch(record)


@contextmanager
def logged(watcher: Watcher, folder: Path | None) -> Iterator[Watcher]:
    """The watcher, and beside it TensorBoard's logs if there is a folder for them; they are closed at the end.

    Raises:
        MissingExtraError: TensorBoard is not installed, and there is a folder.
    """
    if folder is None:
        yield watcher
        return
    board = TensorBoard(folder)
    try:
        yield _Both(watcher, board)
    finally:
        board.close()
