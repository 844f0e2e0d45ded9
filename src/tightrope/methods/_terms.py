"""Terms that several methods share."""

from __future__ import annotations

from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.network import Network
from tightrope.core.protocols import Batch
from tightrope.core.spec import evaluate, margin_cross_entropy, worst_margin
from tightrope.errors import InputError


def natural_term(network: Network, params: Params, batch: Batch) -> tuple[Tensor, Metrics]:
    """Mean cross-entropy at the clean inputs, with its metrics."""
    return margin_term(evaluate(batch.spec, network(params, batch.x)), batch, "natural")


def margin_term(rows: Tensor, batch: Batch, name: str) -> tuple[Tensor, Metrics]:
    """Mean cross-entropy of margins (batch, rows), with metrics ``<name>_loss`` and ``<name>_accuracy``."""
    loss = margin_cross_entropy(rows, batch.spec.clause).mean()
    accuracy = (worst_margin(rows, batch.spec.clause) > 0).to(rows.dtype).mean()
    return loss, {f"{name}_loss": loss.detach(), f"{name}_accuracy": accuracy.detach()}


def mix(weight: float, natural: Tensor, robust: Tensor) -> Tensor:
    """(1 - weight) natural + weight robust."""
    return robust if weight == 1.0 else (1.0 - weight) * natural + weight * robust


def check_weight(robust_weight: float) -> None:
    """Refuse a weight outside [0, 1]."""
    if not 0.0 <= robust_weight <= 1.0:
        raise InputError(f"robust_weight must be in [0, 1], got {robust_weight!r}.")
