"""A certification in two rounds: all blocks of images, then what these left open, many images at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from tightrope.errors import InputError
from tightrope.evaluation._ledger import Ledger
from tightrope.evaluation._workers import Job, workers
from tightrope.evaluation.shards import Shard, merged, merged_if_finished
from tightrope.records import image
from tightrope.records.image import Record

A = TypeVar("A", bound=Record)


class Found(NamedTuple, Generic[A]):
    """Records of images that are decided, and of those that are left to the second round."""

    decided: list[A]
    open: list[A]


class Effort(NamedTuple):
    """How the work is spread. Nothing of it changes what the first round finds.

    Attributes:
        workers: processes of this certification.
        memory_gib: of all of them together, beyond what they hold at the start; None for no bound.
        shard: decide this part of the blocks only, into a file of its own beside that of the whole. When the files of
            all shards are finished, the whole is made of them.
        merge: decide nothing, but make the whole of the files of all shards, which are then required.
    """

    workers: int = 1
    memory_gib: float | None = None
    shard: Shard | None = None
    merge: bool = False


class State(NamedTuple, Generic[A]):
    """How far it is.

    Attributes:
        decided: their records.
        open: images that the first round left to the second, which did not decide them yet.
        total: images in all.
    """

    decided: Collection[A]
    open: int
    total: int


class Rounds(NamedTuple, Generic[A]):
    """A certification of any kind.

    Attributes:
        job: decides a block, or a group of open images by their records.
        kind: of records.
        labels: of all images.
        blocks: of all images.
        path: ``*.jsonl``.
        header: what the records depend on; JSON values.
        together: open images in a group, at most.
    """

    job: Job[range | tuple[A, ...], Found[A]]
    kind: type[A]
    labels: Sequence[int]
    blocks: Sequence[range]
    path: Path
    header: Mapping[str, object]
    together: int

    def checked(self) -> Rounds[A]:
        """With a header as it is read back.

        Raises:
            InputError: what is not usable.
        """
        if self.path.suffix != ".jsonl":
            raise InputError(f"The records of a certification are JSON lines: {self.path} must end in .jsonl.")
        if self.together < 1:
            raise InputError(f"together must be at least 1, got {self.together}.")
        return self._replace(header=image.as_json(self.header))

    def run(self, effort: Effort, report: Callable[[State[A]], None]) -> tuple[Path, list[A]]:
        """Decide what is not decided yet; this process alone writes.

        Args:
            effort: how the work is spread.
            report: called when a block or group is on the disk.

        Returns:
            The finished file, of the shard or of the whole, and its records in the order of the images.
        """
        this = self.checked()
        if effort.merge:
            return this.path, merged(this.path, this.header, this.kind)
        if effort.shard is None:
            return this.path, this._decide(effort, report)
        part = this._replace(
            blocks=effort.shard.part(this.blocks),
            path=effort.shard.path(this.path),
            header=effort.shard.header(this.header),
        )
        records = part._decide(effort, report)
        whole = merged_if_finished(this.path, this.header, this.kind)
        return (part.path, records) if whole is None else (this.path, whole)

    def _decide(self, effort: Effort, report: Callable[[State[A]], None]) -> list[A]:
        ledger = Ledger(self.path, self.header, self.kind, self.labels)
        total = sum(map(len, self.blocks))
        if ledger.unseen(self.blocks) or ledger.undecided(self.together):
            with workers(self.job, effort.workers, effort.memory_gib) as decided:
                for rest in (False, True):  # which images share a group is known when the blocks are done
                    for found in decided(ledger.undecided(self.together) if rest else ledger.unseen(self.blocks)):
                        ledger.add(found.open, is_open=True)
                        ledger.add(found.decided)
                        left = len(ledger.open.keys() - ledger.decided.keys())
                        report(State(ledger.decided.values(), left, total))
        return ledger.finish()
