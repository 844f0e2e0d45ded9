"""Terms that several methods share."""

from __future__ import annotations

import math

from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.network import Network
from tightrope.core.protocols import Batch
from tightrope.core.spec import evaluate, margin_cross_entropy, worst_margin
from tightrope.errors import InputError


def natural_term(network: Network, params: Params, batch: Batch) -> tuple[Tensor, Metrics]:
    """Mean cross-entropy at the clean inputs, with its metrics."""
    return point_term(rows_at(network, params, batch, batch.x), batch, "natural")


def point_term(rows: Tensor, batch: Batch, name: str) -> tuple[Tensor, Metrics]:
    """:func:`margin_term` of margins at points, with the batch's label smoothing.

    Since -log p_i = -log p_label + margin_i, smoothing by s adds s / classes times the sum of all margins.
    """
    losses = cross_entropy(rows, batch)
    if batch.label_smoothing > 0:
        losses = losses + batch.label_smoothing / (rows.shape[1] + 1) * rows.sum(1)
    return term(losses, holds(rows, batch), name)


def margin_term(rows: Tensor, batch: Batch, name: str) -> tuple[Tensor, Metrics]:
    """Mean cross-entropy of margins (batch, rows), with metrics ``<name>_loss`` and ``<name>_accuracy``."""
    return term(cross_entropy(rows, batch), holds(rows, batch), name)


def cross_entropy(rows: Tensor, batch: Batch) -> Tensor:
    """log(1 + sum exp(-margin)) of each sample's margins (batch, rows): (batch,)."""
    return margin_cross_entropy(rows, batch.spec.clause)


def holds(rows: Tensor, batch: Batch) -> Tensor:
    """Whether the property holds with these margins (batch, rows): 0 or 1, (batch,)."""
    return (worst_margin(rows, batch.spec.clause) > 0).to(rows.dtype)


def term(losses: Tensor, accuracies: Tensor, name: str) -> tuple[Tensor, Metrics]:
    """The mean loss of the samples, with metrics ``<name>_loss`` and ``<name>_accuracy``."""
    loss = losses.mean()
    return loss, {f"{name}_loss": loss.detach(), f"{name}_accuracy": accuracies.detach().mean()}


def rows_at(network: Network, params: Params, batch: Batch, x: Tensor) -> Tensor:
    """The margins (batch, rows) at inputs that stand for those of the batch."""
    return evaluate(batch.spec, network(params, x))


def mix(weight: float, natural: Tensor, robust: Tensor) -> Tensor:
    """(1 - weight) natural + weight robust."""
    return robust if weight == 1.0 else (1.0 - weight) * natural + weight * robust


def check_weight(robust_weight: float) -> None:
    """Refuse a weight outside [0, 1]."""
    check_share("robust_weight", robust_weight)


def check_share(name: str, value: float) -> None:
    """Refuse a number outside [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{name} must be in [0, 1], got {value!r}.")


def check_not_negative(**values: float) -> None:
    """Refuse negative, NaN and infinite numbers."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be a finite number >= 0, got {value!r}.")
