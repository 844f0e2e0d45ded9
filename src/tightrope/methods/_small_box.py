"""Boxes that are smaller than the ball, and interval bounds that are smaller than sound ones."""

from __future__ import annotations

import torch
from torch import Tensor

from tightrope.core.bounds import Interval, Params
from tightrope.core.box import Box
from tightrope.core.network import INPUT, Network
from tightrope.core.op import AffineOp, ElementwiseOp, JoinOp
from tightrope.core.protocols import Attack
from tightrope.core.spec import Spec
from tightrope.relaxations._backward import Engine
from tightrope.relaxations._interval import Forward, forward_intervals


def inner_box(box: Box, ratio: float) -> Box:
    """Where the centres of boxes of ``ratio`` times the size may lie."""
    centre, radius = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2
    return Box(centre - (1.0 - ratio) * radius, centre + (1.0 - ratio) * radius)


def small_box(
    network: Network, params: Params, box: Box, spec: Spec, *, ratio: float, search: Attack, noise: Tensor
) -> Box:
    """The part of a box, ``ratio`` times its size, around the worst centre that an attack finds.

    Source: Mueller et al. 2023 (arXiv 2210.04871), the selection of the propagation region.
    """
    radius = ratio * (box.upper - box.lower) / 2
    centre = search.perturb(network, params, inner_box(box, ratio), spec, noise)
    return Box((centre - radius).clamp(min=box.lower), (centre + radius).clamp(max=box.upper))


def interval_margins(network: Network, params: Params, box: Box, spec: Spec, keep: float) -> Tensor:
    """IBP's margins (batch, rows); if ``keep`` < 1 no bounds, see :func:`kept_intervals`."""
    return Engine(network, params, kept_intervals(network, params, box, keep)).spec_bounds(spec)


def kept_intervals(network: Network, params: Params, box: Box, keep: float) -> Forward:
    """The interval pass, where activations that are not stable keep a share of their range, from its lower end.

    For ReLU: [0, u] becomes [0, keep u]. Below 1 these are no bounds: for training losses only, which is why it is not
    among the relaxations.

    Source: Mueller et al. 2023 (arXiv 2210.04871), ReLU shrinking.
    """
    if keep == 1.0:
        return forward_intervals(network, params, box)
    found = Forward({INPUT: Interval(*box)}, {}, {})
    found.centres[INPUT], found.radii[INPUT] = found.middle(INPUT)
    for node in network.nodes:
        if isinstance(node.op, ElementwiseOp | JoinOp):
            pre = [found.interval(name) for name in node.inputs]
            lower, upper = node.op.interval(*pre)
            if isinstance(node.op, ElementwiseOp):
                upper = torch.where(node.op.stable(pre[0]), upper, lower + keep * (upper - lower))
            found.intervals[node.name] = Interval(lower, upper)
        elif isinstance(node.op, AffineOp):
            middles = [found.middle(name) for name in node.inputs]
            found.centres[node.name] = node.op.forward(params, *(centre for centre, _ in middles))
            found.radii[node.name] = node.op.linear_abs(params, *(radius for _, radius in middles))
    return found
