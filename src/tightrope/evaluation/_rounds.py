"""A certification in two rounds: all blocks of images, then what these left open, many images at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from tightrope.evaluation._ledger import Ledger
from tightrope.evaluation._workers import Job, workers
from tightrope.records.image import R, Record

A = TypeVar("A", bound=Record)


class Found(NamedTuple, Generic[A]):
    """Records of images that are decided, and of those that are left to the second round."""

    decided: list[A]
    open: list[A]


class Effort(NamedTuple):
    """How the work is spread. Nothing of it changes a result.

    Attributes:
        workers: processes.
        memory_gib: of all of them together, beyond what they hold at the start; None for no bound.
    """

    workers: int = 1
    memory_gib: float | None = None


def decide_all(
    job: Job[range | tuple[R, ...], Found[R]],
    ledger: Ledger[R],
    blocks: Sequence[range],
    together: int,
    effort: Effort,
    report: Callable[[], None],
) -> list[R]:
    """Decide what the ledger is still without; the parent process alone writes.

    Args:
        job: decides a block, or a group of open images by their records.
        ledger: has what earlier sittings found.
        blocks: of the images that are to be decided.
        together: open images in a group, at most.
        effort: how the work is spread.
        report: called when a block or group is on the disk.

    Returns:
        All records, in the order of the images.
    """
    if ledger.unseen(blocks) or ledger.undecided(together):
        with workers(job, effort.workers, effort.memory_gib) as decided:
            for rest in (False, True):  # which images share a group is known when the blocks are done
                for found in decided(ledger.undecided(together) if rest else ledger.unseen(blocks)):
                    ledger.add(found.open, is_open=True)
                    ledger.add(found.decided)
                    report()
    return ledger.finish()
