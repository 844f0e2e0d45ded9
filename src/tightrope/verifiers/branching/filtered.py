"""A few promising neurons, of which the bounds of both children decide."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.verifiers._subproblems import Lagrangian, Subproblems
from tightrope.verifiers.branching._split import candidates, estimates, split_at
from tightrope.verifiers.branching.babsr import score


@dataclass(frozen=True)
class Filtered:
    """Filtered smart branching: of every layer the best neuron by BaBSR's score and the best by its offset's cost.

    Their children are bounded with the variables of the parent, and the neuron is taken whose worse child is best; a
    child that is proved counts as 0.

    Cost: one gradient of the bound, and 4 bounds a layer and subproblem.

    Source: De Palma et al. 2021 (arXiv 2104.06718), section 4.
    """

    def children(self, bound: Lagrangian) -> Subproblems:
        """See :class:`~tightrope.verifiers.branching._split.Branching`."""
        part, possible, single = bound.part, candidates(bound), bound.single()
        found = estimates(single)
        best, chosen = torch.full_like(single.part.lower, -torch.inf), possible.long().argmax(1)
        for layer in bound.items.neurons.layer.unique():
            here = possible & (bound.items.neurons.layer == layer)
            for values in (score(found), found.offset.nan_to_num(0.0)):
                neuron = torch.where(here, values, -torch.inf).argmax(1)
                worse = torch.where(here.any(1), _children_bound(single, neuron), -torch.inf)
                chosen = torch.where(worse > best, neuron, chosen)
                best = torch.fmax(best, worse)
        return split_at(part, chosen)


def _children_bound(bound: Lagrangian, neuron: Tensor) -> Tensor:
    """How far the children of a split stay below 0, by the variables of the parent, (batch,)."""
    children = split_at(bound.part, neuron)
    with torch.no_grad():
        above, below = Lagrangian(bound.items, children)(children.variables).clamp(max=0.0).chunk(2)
    return torch.minimum(above, below) + 1e-3 * torch.maximum(above, below)
