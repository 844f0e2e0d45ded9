"""What a proof rests on, kept as it is found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.protocols import Relaxation
from tightrope.records.certificate import Array, Leaves
from tightrope.verifiers._subproblems import Items, Subproblems


def whole_box(relaxation: Relaxation, rows: Tensor, clause: Sequence[int]) -> Leaves:
    """The evidence of one bound: a leaf for every clause, which rests on its largest row.

    Args:
        relaxation: whose bound it is.
        rows: their bounds, (rows,).
        clause: of each row.
    """
    count, members = max(clause) + 1, torch.tensor(clause, device=rows.device)
    best = [int(torch.where(members == c, rows, -torch.inf).argmax()) for c in range(count)]
    return Leaves(
        describe(relaxation),
        nodes=(),
        neurons=np.zeros((0, 2), np.int64),
        clause=np.arange(count),
        weights=np.eye(len(clause))[best],
        slopes=np.zeros((count, 0)),
        splits=np.zeros((0, 3), np.int64),
        multipliers=np.zeros(0),
    )


def describe(relaxation: Relaxation) -> Mapping[str, Any]:
    """A relaxation by name and options, as JSON values."""
    options: dict[str, Any] = {}
    if is_dataclass(relaxation) and not isinstance(relaxation, type):
        options = asdict(relaxation)
    return {"name": type(relaxation).__module__.rpartition(".")[2], **options}


def with_evidence(outcomes: Sequence[Outcome], ledger: Ledger) -> list[Outcome]:
    """The outcomes of the samples, those that are proved with their leaves."""
    return [
        replace(outcome, evidence=ledger.leaves(i)) if outcome.verdict is Verdict.VERIFIED else outcome
        for i, outcome in enumerate(outcomes)
    ]


class _Kept(NamedTuple):
    """Some proved subproblems of one sample, as in :class:`Leaves`; ``boxes`` None: each has the whole one."""

    clause: Array
    weights: Array
    slopes: Array
    splits: Array
    multipliers: Array
    boxes: Array | None


class Ledger:
    """The proved subproblems of every sample of a batch.

    Their variables, on their boxes and with their signs, must give their bounds; or these are those of the relaxation.

    Args:
        items: what they are subproblems of.
        relaxation: of the pre-activation bounds.
    """

    def __init__(self, items: Items, relaxation: Relaxation) -> None:
        self._items, self._relaxation = items, relaxation
        self._unstable = items.neurons.unstable(items.neurons.pre()).numpy(force=True)
        self._kept: defaultdict[int, list[_Kept]] = defaultdict(list)
        self._ends: defaultdict[int, list[tuple[Array, Array]]] = defaultdict(list)

    def keep(self, part: Subproblems) -> Ledger:
        """Take in those that have a positive bound."""
        part = part.rows(part.lower > 0)
        samples = self._items.sample[part.item]
        for sample in samples.unique().tolist():
            self._kept[sample].append(self._compact(part.rows(samples == sample), sample))
        return self

    def keep_ends(self, node: str, sample: Tensor, entry: Tensor, side: Tensor, slopes: Mapping[str, Tensor]) -> None:
        """Take in how ends of pre-activation bounds on whole boxes were tightened, node by node in their order.

        Args:
            node: name of the pre-activation.
            sample, entry: of each end, (ends,); entries are counted row-major.
            side: 1 for lower ends and -1 for upper ones, (ends,).
            slopes: lower slopes by pre-activation, (ends, *shape).
        """
        neurons, network = self._items.neurons, self._items.problem.network
        zero = self._items.margins.new_zeros
        given = {name: slopes.get(name, zero(len(entry), *network.shapes[name])) for name in network.pre_activations}
        tilts = neurons.of(given, len(entry)).numpy(force=True)
        layer, index = neurons.layer.numpy(force=True), neurons.index.numpy(force=True)
        of_node = layer == network.pre_activations.index(node)
        for number in sample.unique().tolist():
            here, columns = (sample == number).numpy(force=True), self._unstable[number]
            number_of = {int(i): n for n, i in enumerate(np.where(of_node, index, -1)[columns])}
            ends = zip(entry[here].tolist(), side[here].tolist(), strict=True)
            pairs = np.array([(number_of[e], s) for e, s in ends], np.int64)
            self._ends[number].append((pairs, tilts[here][:, columns]))

    def leaves(self, sample: int) -> Leaves:
        """The evidence of a sample."""
        items, kept, ends = self._items, self._kept[sample], self._ends[sample]
        starts = np.cumsum([0, *(len(part.clause) for part in kept)])
        splits = [part.splits + np.array([start, 0, 0]) for part, start in zip(kept, starts, strict=False)]
        cut = [self._whole(sample, len(part.clause)) if part.boxes is None else part.boxes for part in kept]
        neurons = torch.stack([items.neurons.layer, items.neurons.index], 1).numpy(force=True)
        return Leaves(
            describe(self._relaxation),
            nodes=items.problem.network.pre_activations,
            neurons=neurons[self._unstable[sample]],
            clause=np.concatenate([part.clause for part in kept]),
            weights=np.concatenate([part.weights for part in kept]),
            slopes=np.concatenate([part.slopes for part in kept]),
            splits=np.concatenate(splits).astype(np.int64),
            multipliers=np.concatenate([part.multipliers for part in kept]),
            boxes=None if all(part.boxes is None for part in kept) else np.concatenate(cut),
            ends=np.concatenate([pairs for pairs, _ in ends]) if ends else None,
            end_slopes=np.concatenate([tilts for _, tilts in ends]) if ends else None,
        )

    def _compact(self, part: Subproblems, sample: int) -> _Kept:
        clauses, columns = self._items.margins.shape[1], self._unstable[sample]
        signs, slopes, multipliers = (
            value.numpy(force=True)[:, columns] for value in (part.signs, part.slopes, part.multipliers)
        )
        leaf, neuron = np.nonzero(signs)
        single = slopes.astype(np.float32)
        boxes = np.stack([part.box_lower.numpy(force=True), part.box_upper.numpy(force=True)], 1)
        return _Kept(
            clause=(part.item % clauses).numpy(force=True),
            weights=self._items.row_weights(part).numpy(force=True),
            slopes=single if (single == slopes).all() else slopes,  # they were found in float32
            splits=np.stack([leaf, neuron, signs[leaf, neuron]], 1).astype(np.int64),
            multipliers=multipliers[leaf, neuron],
            boxes=None if (boxes == self._whole(sample, 1)).all() else boxes,
        )

    def _whole(self, sample: int, count: int) -> Array:
        box = torch.stack([end[sample] for end in self._items.problem.box]).numpy(force=True)
        return np.broadcast_to(box, (count, *box.shape))
