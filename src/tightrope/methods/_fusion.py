"""Loss fusion: one row that bounds the loss, in place of one row for each margin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.protocols import Relaxation
from tightrope.core.spec import Spec
from tightrope.errors import InputError
from tightrope.relaxations.crown_ibp import CrownIbp
from tightrope.relaxations.ibp import Ibp


def fused_cross_entropy(
    network: Network, params: Params, box: Box, spec: Spec, relaxation: Relaxation
) -> tuple[Tensor, Tensor]:
    """An upper bound of the worst ``log(1 + sum exp(-margin))`` and whether every margin is thereby positive.

    Interval bounds l <= margin <= u give the chords exp(-m) <= exp(-l) - s (m - l). Their sum needs a lower bound of
    the one row ``sum s m``. Not always tighter or looser than the cross-entropy of each margin's own bound.

    Args:
        network: the graph.
        params: weights by name.
        box: input bounds, (batch, *input shape).
        spec: every clause a single row.
        relaxation: what bounds the fused row.

    Returns:
        Losses (batch,) and certificates, bool (batch,).

    Raises:
        InputError: a clause of several rows.

    Source: Xu et al. 2020 (arXiv 2002.12920), loss fusion.
    """
    check_fusible(spec)
    both = Spec(torch.cat([spec.matrix, -spec.matrix], 1), torch.cat([spec.offset, -spec.offset], 1), ())
    found = Ibp().bounds(network, params, box, both)
    lower, upper = found.margins.chunk(2, dim=1)
    width = (-upper - lower).clamp(min=1e-6)  # a longer chord is still above the function
    largest = (-lower).amax(1, keepdim=True).clamp(min=0).detach()  # taken out of every exponential
    ends = torch.exp(-lower - largest)
    slope = ends * (-torch.expm1(-width) / width)
    row = Spec((slope[:, :, None] * spec.matrix).sum(1, keepdim=True), (slope * spec.offset).sum(1, keepdim=True), (0,))
    pre = found.pre if isinstance(relaxation, CrownIbp) else None
    bound = relaxation.bounds(network, params, box, row, pre=pre).margins
    rest = torch.exp(-largest) + (ends + slope * lower).sum(1, keepdim=True)
    least = torch.exp(-largest) + torch.exp(-lower - largest - width).sum(1, keepdim=True)  # all margins at their best
    total = torch.maximum(rest - bound, least)  # differ by rounding where the bound is exact
    loss = (largest + total.log())[:, 0]
    return loss, (loss < math.log(2.0)) | (lower > 0).all(1)


def check_fusible(spec: Spec) -> None:
    """Refuse a property that is no conjunction of single rows."""
    if spec.clause != tuple(range(spec.matrix.shape[1])):
        raise InputError(
            f"Loss fusion needs one row in every clause, got clauses {spec.clause}. Use fused=False for disjunctions."
        )
