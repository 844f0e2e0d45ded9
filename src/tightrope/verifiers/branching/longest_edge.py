"""Cut the box instead of a neuron: for few inputs, and for ops that have no breakpoint to split at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from tightrope.core.box import Box
from tightrope.verifiers._subproblems import Lagrangian, Subproblems, best_row, joined


@dataclass(frozen=True)
class LongestEdge:
    """Halve the edge of the box along which the bound changes most, and bound every pre-activation anew.

    The change is ``|coefficient| * length``; a tenth of the mean coefficient is added, so that every edge has its turn.

    Cost: one gradient of the bound, and the relaxation on both halves.
    """

    def children(self, bound: Lagrangian) -> Subproblems:
        """See :class:`~tightrope.verifiers.branching._split.Branching`; it needs no neuron to split."""
        part = bound.part
        _, coef = bound.minimisers(part.variables)
        size = coef.flatten(1).abs().nan_to_num(0.0)
        size = torch.where(size.amax(1, keepdim=True) > 0, size + 0.1 * size.mean(1, keepdim=True), 1.0)
        length = (part.box_upper - part.box_lower).flatten(1)
        edge = F.one_hot((size * length).argmax(1), length.shape[1]).reshape(part.box_lower.shape) > 0
        middle = part.box_lower + 0.5 * (part.box_upper - part.box_lower)
        halves = [
            Box(part.box_lower, torch.where(edge, middle, part.box_upper)),
            Box(torch.where(edge, middle, part.box_lower), part.box_upper),
        ]
        return joined([_within(bound, half) for half in halves])


def _within(bound: Lagrangian, box: Box) -> Subproblems:
    """The subproblems on smaller boxes."""
    part, items = bound.part, bound.items
    with torch.no_grad():
        (lower, upper), margins = items.bounds_on(part.item, box)
    pre_lower, pre_upper = torch.fmax(part.pre_lower, lower), torch.fmin(part.pre_upper, upper)
    part = part._replace(box_lower=box.lower, box_upper=box.upper, pre_lower=pre_lower, pre_upper=pre_upper)
    return part._replace(slopes=items.neurons.slopes(part.pre), weights=best_row(margins))
