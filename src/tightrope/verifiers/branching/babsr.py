"""The neuron whose two signs promise the largest gain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.verifiers._subproblems import Lagrangian, Subproblems
from tightrope.verifiers.branching._split import Estimates, candidates, estimates, split_at


@dataclass(frozen=True)
class Babsr:
    """Split where the estimated gain of the child that gains less is largest; in doubt, by the offset's cost.

    The published score evaluates the change of the lines at the bias of the layer before; here it is evaluated where
    the bound is attained, which is the gradient of the bound and needs no notion of a layer.

    Cost: one gradient of the bound a subproblem.

    Source: Bunel et al. 2020 (JMLR 21), section 5.3, in the form of De Palma et al. 2021 (arXiv 2104.06718), section 3.
    """

    def children(self, bound: Lagrangian) -> Subproblems:
        """See :class:`~tightrope.verifiers.branching._split.Branching`."""
        scores = score(estimates(bound.single()))
        return split_at(bound.part, torch.where(candidates(bound), scores, -torch.inf).argmax(1))


def score(found: Estimates) -> Tensor:
    """(batch, neurons); larger is better, NaN counts as nothing."""
    gain = torch.minimum(found.above, found.below).clamp(min=0.0)
    return (gain + 1e-3 * found.offset).nan_to_num(0.0)
