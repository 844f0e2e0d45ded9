"""Boxes that are smaller than the ball, and interval bounds that are smaller than sound ones."""

from __future__ import annotations

from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.protocols import Attack
from tightrope.core.spec import Spec
from tightrope.relaxations._backward import Engine
from tightrope.relaxations._interval import forward_intervals


def inner_box(box: Box, ratio: float) -> Box:
    """Where the centres of boxes of ``ratio`` times the size may lie."""
    centre, radius = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2
    return Box(centre - (1.0 - ratio) * radius, centre + (1.0 - ratio) * radius)


def small_box(
    network: Network, params: Params, box: Box, spec: Spec, *, ratio: float, search: Attack, noise: Tensor
) -> Box:
    """The part of a box, ``ratio`` times its size, around the worst centre that an attack finds.

    Source: Mueller et al. 2023 (arXiv 2210.04871), section 3.
    """
    radius = ratio * (box.upper - box.lower) / 2
    centre = search.perturb(network, params, inner_box(box, ratio), spec, noise)
    return Box((centre - radius).clamp(min=box.lower), (centre + radius).clamp(max=box.upper))


def interval_margins(network: Network, params: Params, box: Box, spec: Spec, keep: float) -> Tensor:
    """IBP's margins (batch, rows); if ``keep`` < 1 no bounds, since activations keep that share of their width."""
    return Engine(network, params, forward_intervals(network, params, box, keep=keep)).spec_bounds(spec)
