"""Certified training: cross-entropy of the lower bounds of a convex relaxation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.box import Box, ball
from tightrope.core.network import Network
from tightrope.core.protocols import Batch, LossFn, Relaxation
from tightrope.core.spec import Spec, check_spec, margin_spec
from tightrope.errors import InputError
from tightrope.methods._fusion import check_fusible, fused_cross_entropy
from tightrope.methods._terms import check_weight, cross_entropy, holds, margin_term, mix, natural_term, term
from tightrope.relaxations.ibp import Ibp


@dataclass(frozen=True)
class Certified:
    """(1 - w) natural + w cross-entropy of the vector (0 for the label, minus the lower bound of each margin).

    An upper bound of the worst-case cross-entropy over the box, whatever the relaxation.

    Args:
        relaxation: what bounds the margins.
        robust_weight: w.
        fused: bound the loss by one row instead of every margin by its own, see :mod:`tightrope.methods._fusion`: for
            many classes most of the cost of CROWN-IBP.
        towards_ibp: along the ramp of eps, move from the relaxation's margins to those of IBP: beta of the former and
            1 - beta of the latter, where beta is the rest of the ramp; from its end on IBP alone. Fused, the two
            bounds of the loss are mixed instead. Still an upper bound.

    Source: Wong and Kolter 2018 (arXiv 1711.00851), the loss of the dual network's bounds; Gowal et al. 2018
    (arXiv 1810.12715), the loss of the worst-case logits and its schedules; beta: Zhang et al. 2020 (arXiv 1906.06316),
    its training objective; fusion: Xu et al. 2020 (arXiv 2002.12920), loss fusion.
    """

    relaxation: Relaxation
    robust_weight: float = 1.0
    fused: bool = False
    towards_ibp: bool = False

    robust: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight(self.robust_weight)

    def draws(
        self, network: Network, batch: Batch, eps: Tensor, generator: torch.Generator, *, fading: float = 0.0
    ) -> dict[str, Tensor]:
        """Nothing random: beta, where the loss moves towards intervals and has not arrived there."""
        return {"beta": batch.x.new_full((), fading)} if self.towards_ibp and fading > 0 else {}

    def loss(
        self, network: Network, params: Params, batch: Batch, eps: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """See :meth:`tightrope.core.protocols.TrainingMethod.loss`."""
        natural, metrics = natural_term(network, params, batch)
        box = ball(batch.x, eps)
        if self.towards_ibp:
            robust, more = self._on_the_way(network, params, box, batch, draws)
        else:
            robust, more = _robust_term(network, params, box, batch, self.relaxation, "surrogate", self.fused)
        return mix(self.robust_weight, natural, robust), metrics | more

    def _on_the_way(
        self, network: Network, params: Params, box: Box, batch: Batch, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        loose = Ibp().bounds(network, params, box, batch.spec).margins
        if "beta" not in draws:
            return margin_term(loose, batch, "surrogate")
        beta = draws["beta"]
        if not self.fused:
            tight = self.relaxation.bounds(network, params, box, batch.spec).margins
            return margin_term(beta * tight + (1.0 - beta) * loose, batch, "surrogate")
        losses, certified = fused_cross_entropy(network, params, box, batch.spec, self.relaxation)
        mixed = beta * losses + (1.0 - beta) * cross_entropy(loose, batch)
        return term(mixed, torch.maximum(certified.to(mixed.dtype), holds(loose, batch)), "surrogate")


def _robust_term(
    network: Network, params: Params, box: Box, batch: Batch, relaxation: Relaxation, name: str, fused: bool
) -> tuple[Tensor, Metrics]:
    if not fused:
        return margin_term(relaxation.bounds(network, params, box, batch.spec).margins, batch, name)
    losses, certified = fused_cross_entropy(network, params, box, batch.spec, relaxation)
    return term(losses, certified.to(losses.dtype), name)


def certified_loss(
    network: Network, relaxation: Relaxation, box: Box, target: Tensor | Spec, *, fused: bool = False
) -> LossFn:
    """The certified loss of a fixed batch as a pure function of the params.

    Args:
        network: the graph.
        relaxation: what bounds the margins.
        box: input bounds, (batch, *input shape).
        target: labels, int64 (batch,), or a :class:`Spec` of any property.
        fused: bound the loss by one row instead of every margin by its own.

    Returns:
        A function from params to the mean certified cross-entropy and its metrics ``certified_loss`` and
        ``certified_accuracy`` (the box is the one given: these are certificates up to rounding).

    Raises:
        InputError: labels or a spec that do not fit the network or the box.

    Example:
        >>> import tightrope as tr
        >>> net, params = tr.from_module(torch.nn.Linear(2, 2), (2,))
        >>> box = tr.linf_box(torch.rand(3, 2), 0.1)
        >>> value, metrics = certified_loss(net, tr.relaxation("ibp"), box, torch.tensor([0, 1, 0]))(params)
        >>> value.shape
        torch.Size([])
    """
    batch = box.lower.shape[0]
    if tuple(box.lower.shape[1:]) != network.input_shape:
        raise InputError(
            f"The box has samples of {tuple(box.lower.shape[1:])}, the network takes {network.input_shape}."
        )
    if isinstance(target, Tensor):
        if target.shape[0] != batch:
            raise InputError(f"{target.shape[0]} labels for a box of {batch} samples.")
        target = margin_spec(target, network.num_outputs, dtype=box.lower.dtype)
    spec = check_spec(target, batch, network.num_outputs)
    if fused:
        check_fusible(spec)

    def loss(params: Params) -> tuple[Tensor, Metrics]:
        return _robust_term(network, params, box, Batch(box.lower, spec), relaxation, "certified", fused)

    return loss
