"""The open subproblems of a batch of samples: whose turn it is, and what is known about each sample."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tightrope.core.deadline import now, time_is_up, time_limit
from tightrope.core.outcome import Outcome, Verdict
from tightrope.verifiers._problem import INF, TIMEOUT
from tightrope.verifiers._subproblems import Subproblems, joined


class Entry(NamedTuple):
    """An open subproblem: by its bound and then by its age, which is its own.

    Attributes:
        lower: its bound.
        order: its number.
        batch, row: where it is stored.
    """

    lower: float
    order: int
    batch: Subproblems
    row: int


@dataclass
class Progress:
    """What is known about one sample.

    Attributes:
        open: subproblems, in ascending order.
        lower: least bound of what is settled.
        upper: least margin at an input.
        counterexample: an input whose margin is not positive.
        reason: why something was settled without a proof.
        seconds: used so far.
    """

    open: list[Entry] = field(default_factory=list)
    lower: float = INF
    upper: float = INF
    counterexample: Tensor | None = None
    reason: str = ""
    seconds: float = 0.0

    def add(self, entries: Iterable[Entry]) -> None:
        """More open subproblems."""
        self.open.extend(entries)
        self.open.sort()

    def take(self, count: int, *, easiest: bool) -> list[Entry]:
        """Open subproblems to go on with: of the least bounds, or of the largest."""
        chosen = slice(max(0, len(self.open) - count), None) if easiest else slice(count)
        taken = self.open[chosen]
        del self.open[chosen]
        return taken

    def settle(self, lower: float, reason: str = "") -> None:
        """A subproblem is done with: proved, or not, for a reason."""
        self.lower, self.reason = min(self.lower, lower), self.reason or reason

    def settle_all(self, reason: str) -> None:
        """Everything that is open is done with."""
        if self.open:
            self.settle(self.open[0].lower, reason)
        self.open.clear()

    def saw(self, margin: float, x: Tensor) -> None:
        """The margin at an input in the box; NaN and infinity say nothing."""
        if math.isfinite(margin) and margin < self.upper:
            self.upper = margin
            if margin <= 0:
                self.counterexample = x.clone()
                self.settle_all("")

    def outcome(self, name: str) -> Outcome:
        """The verdict, once nothing is open."""
        lower = min(self.lower, self.upper)
        if self.counterexample is not None:
            return Outcome(Verdict.FALSIFIED, lower, self.upper, name, self.counterexample)
        if self.reason or lower == INF:
            return Outcome(Verdict.UNKNOWN, min(lower, 0.0), self.upper, name, reason=f"{name}: {self.reason}")
        return Outcome(Verdict.VERIFIED, lower, self.upper, name)


class Queue:
    """Subproblems in turns: as many of one open sample as of another, the worst of each first.

    Args:
        size: number of samples.
        timeout: seconds of each.
        batch_size: subproblems of a turn.
        memory: bytes that open subproblems should not exceed.

    Attributes:
        samples: in their order.
        batch_size: may be changed.
    """

    def __init__(self, size: int, timeout: float, batch_size: int, memory: int) -> None:
        self.samples = [Progress() for _ in range(size)]
        self.batch_size = batch_size
        self._timeout, self._memory, self._added, self._bytes = timeout, memory, 0, 0

    @property
    def timeout(self) -> str:
        """Why a sample is given up whose time is up."""
        return f"{TIMEOUT} of {self._timeout:g} s"

    def add(self, sample: Tensor, part: Subproblems) -> None:
        """Subproblems of samples, (batch,): those with a positive bound are proved, the others are open."""
        left = (~(part.lower > 0)).nonzero()[:, 0]
        for i, lower in zip(sample.tolist(), part.lower.tolist(), strict=True):
            if lower > 0 or self.samples[i].counterexample is not None:
                self.samples[i].settle(lower)
        part, sample = part.rows(left), sample[left]
        self._bytes = sum(value[:1].numel() * value.element_size() for value in part)
        added: dict[int, list[Entry]] = defaultdict(list)
        for row, (i, lower) in enumerate(zip(sample.tolist(), part.lower.tolist(), strict=True)):
            added[i].append(Entry(lower, self._added + row, part, row))
        self._added += part.size
        for i, entries in added.items():
            if self.samples[i].counterexample is None:
                self.samples[i].add(entries)

    def take(self) -> Subproblems | None:
        """The next batch; None when nothing is open. Samples whose time is up are given up, all when that of all is.

        When the memory is used up the subproblems that are closest to a proof come first: what that leaves open grows
        with the depth of the search only.
        """
        for progress in self.samples:
            if progress.open and (progress.seconds >= self._timeout or time_is_up()):
                progress.settle_all(self.timeout)
        waiting = [progress for progress in self.samples if progress.open]
        if not waiting:
            return None
        full = sum(len(progress.open) for progress in waiting) * self._bytes > self._memory
        turn = sorted(waiting, key=lambda progress: progress.seconds)[: self.batch_size]
        share = self.batch_size // len(turn)
        return _gathered([entry for progress in turn for entry in progress.take(share, easiest=full)])

    @contextmanager
    def charged(self, sample: Tensor) -> Iterator[None]:
        """The time spent inside is shared among samples, (n,), each as often as it is named.

        It is up when that of one of them is.
        """
        begin = now()
        shares = (torch.bincount(sample, minlength=len(self.samples)) / max(1, len(sample))).tolist()
        charged = [(progress, share) for progress, share in zip(self.samples, shares, strict=True) if share > 0]
        left = min(((self._timeout - progress.seconds) / share for progress, share in charged), default=0.0)
        try:
            with time_limit(left):
                yield
        finally:
            spent = now() - begin
            for progress, share in charged:
                progress.seconds += spent * share


def _gathered(entries: Iterable[Entry]) -> Subproblems:
    """The subproblems of entries, one gather for each batch that they are stored in."""
    rows: dict[int, list[int]] = defaultdict(list)
    batches: dict[int, Subproblems] = {}
    for entry in entries:
        batches[id(entry.batch)] = entry.batch
        rows[id(entry.batch)].append(entry.row)
    return joined([batch.rows(torch.tensor(rows[key], device=batch.item.device)) for key, batch in batches.items()])
