"""Output properties: an AND over clauses of an OR over rows ``matrix @ output + offset > 0``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from tightrope.errors import InputError


class Spec(NamedTuple):
    """A property of the network's output vector.

    It holds when in **every** clause **some** row has ``matrix @ output + offset > 0``.

    Attributes:
        matrix: (batch, rows, outputs).
        offset: (batch, rows).
        clause: for each row the index of its clause, 0 .. clauses - 1; the same for the whole batch.

    Example:
        Class 0 beats class 1, and output 2 or output 3 is positive:

        >>> matrix = torch.tensor([[[1.0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]])
        >>> spec = Spec(matrix, torch.zeros(1, 3), clause=(0, 1, 1))
    """

    matrix: Tensor
    offset: Tensor
    clause: tuple[int, ...]

    def samples(self, index: Tensor | slice) -> Spec:
        """The properties of some samples, which may be repeated."""
        return Spec(self.matrix[index], self.offset[index], self.clause)


class MarginSpec(Spec):
    """A :func:`margin_spec` that knows its labels, for what is faster then.

    What is derived from it by any other means than :meth:`samples` (other rows, other signs) does not know them.

    Attributes:
        labels: int64, (batch,), or None.
    """

    labels: Tensor | None = None

    @classmethod
    def of(cls, spec: Spec, labels: Tensor) -> Spec:
        """The spec with its labels; in compiled code, which does not take to that, the spec alone."""
        if torch.compiler.is_compiling():
            return spec
        known = cls(*spec)
        known.labels = labels
        return known

    def samples(self, index: Tensor | slice) -> Spec:
        """See :meth:`Spec.samples`."""
        some = super().samples(index)
        return some if self.labels is None else MarginSpec.of(some, self.labels[index])


def margin_spec(labels: Tensor, num_classes: int, *, dtype: torch.dtype | None = None) -> Spec:
    """The classification property: the label's logit is above every other one.

    Args:
        labels: int64, (batch,), each in 0 .. num_classes - 1.
        num_classes: at least 2.

    Returns:
        A spec of ``num_classes - 1`` rows ``y_label - y_i``, one clause each, in ascending order of i.

    Raises:
        InputError: a label out of range, or fewer than two classes.

    Example:
        >>> margin_spec(torch.tensor([1]), 3).matrix
        tensor([[[-1.,  1.,  0.],
                 [ 0.,  1., -1.]]])
    """
    if num_classes < 2:
        raise InputError(f"A margin needs at least 2 classes, got {num_classes}.")
    if labels.dtype not in (torch.int64, torch.int32, torch.uint8, torch.int16) or labels.ndim != 1:
        raise InputError(f"Labels must be integers of shape (batch,), got {labels.dtype} {tuple(labels.shape)}.")
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise InputError(
            f"Labels must be in 0 .. {num_classes - 1} for {num_classes} classes, got values from "
            f"{int(labels.min())} to {int(labels.max())}."
        )
    return margins_of(labels, num_classes, dtype or torch.get_default_dtype())


def margins_of(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Spec:
    """:func:`margin_spec` without its checks, for use inside compiled code."""
    labels = labels.long()  # other integer types would index as a mask
    eye = torch.eye(num_classes, dtype=dtype, device=labels.device)
    rows = torch.arange(num_classes - 1, device=labels.device)
    others = rows + (rows >= labels[:, None])  # skips the label
    matrix = eye[labels][:, None, :] - eye[others]
    offset = torch.zeros(matrix.shape[:2], dtype=dtype, device=labels.device)
    return MarginSpec.of(Spec(matrix, offset, tuple(range(num_classes - 1))), labels)


def check_spec(spec: Spec, batch: int, outputs: int) -> Spec:
    """The spec, if it fits a batch and a network.

    Raises:
        InputError: shapes that do not fit, NaN, no rows, or clause numbers with gaps.
    """
    shape = tuple(spec.matrix.shape)
    if len(shape) != 3 or shape[0] != batch or shape[2] != outputs or shape[1] == 0:
        raise InputError(f"spec.matrix must be (batch, rows, outputs) = ({batch}, rows >= 1, {outputs}), got {shape}.")
    if tuple(spec.offset.shape) != shape[:2]:
        raise InputError(f"spec.offset must be (batch, rows) = {shape[:2]}, got {tuple(spec.offset.shape)}.")
    if len(spec.clause) != shape[1] or set(spec.clause) != set(range(max(spec.clause, default=-1) + 1)):
        raise InputError(
            f"spec.clause must name a clause 0 .. k-1, without gaps, for each of the {shape[1]} rows, "
            f"got {spec.clause}."
        )
    if not bool(torch.isfinite(spec.matrix).all() & torch.isfinite(spec.offset).all()):
        raise InputError("The spec has NaN or infinite entries.")
    return spec


def evaluate(spec: Spec, outputs: Tensor) -> Tensor:
    """The rows' values at concrete outputs (batch, outputs): (batch, rows)."""
    return torch.einsum("bro,bo->br", spec.matrix, outputs) + spec.offset


def clause_margins(rows: Tensor, clause: Iterable[int]) -> Tensor:
    """The largest row of each clause, (batch, rows) -> (batch, clauses); NaN stays NaN.

    The maximum of lower bounds is a lower bound of the maximum, so that the result is as sound as its input.
    """
    clause = tuple(clause)
    if clause == tuple(range(len(clause))):
        return rows
    members = [[row for row, owner in enumerate(clause) if owner == c] for c in range(max(clause) + 1)]
    return torch.stack([rows[:, member].amax(dim=1) for member in members], dim=1)


def worst_margin(rows: Tensor, clause: Iterable[int]) -> Tensor:
    """The property's margin, (batch,): > 0 if and only if it holds (or is proved, when rows are lower bounds)."""
    return clause_margins(rows, clause).amin(dim=1)


def margin_cross_entropy(rows: Tensor, clause: Iterable[int]) -> Tensor:
    """Cross-entropy of the vector (0, -margins) with target 0, one value a sample: ``log(1 + sum exp(-margin))``.

    For :func:`margin_spec` at concrete outputs this is the ordinary cross-entropy of the logits.
    """
    margins = clause_margins(rows, clause)
    return torch.logsumexp(torch.cat([torch.zeros_like(margins[:, :1]), -margins], dim=1), dim=1)
