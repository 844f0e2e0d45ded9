"""The forward interval pass."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tightrope.core.bounds import Interval, Params
from tightrope.core.box import Box
from tightrope.core.network import INPUT, Network, Node
from tightrope.core.op import AffineOp, ElementwiseOp, JoinOp
from tightrope.core.precision import direct_convolutions
from tightrope.core.rounding import above, below, gamma, tiny


class Forward(NamedTuple):
    """What the pass found.

    Attributes:
        intervals: of pre-activations and of the outputs of non-linear nodes and joins, by node name.
        centres: value of every other affine node, and of the input, at the centres of its inputs.
        radii: half-widths of the same nodes.
        rigorous: whether these hold for real arithmetic.
    """

    intervals: dict[str, Interval]
    centres: dict[str, Tensor]
    radii: dict[str, Tensor]
    rigorous: bool = False

    def rows(self, index: Tensor) -> Forward:
        """The pass of some samples, which may be repeated."""
        intervals = {name: Interval(*(end[index] for end in pair)) for name, pair in self.intervals.items()}
        centres, radii = ({name: v[index] for name, v in values.items()} for values in (self.centres, self.radii))
        return Forward(intervals, centres, radii, self.rigorous)

    def interval(self, name: str) -> Interval:
        """Lower and upper ends of a node."""
        if name in self.intervals:
            return self.intervals[name]
        centre, radius = self.centres[name], self.radii[name]
        ends = Interval(centre - radius, centre + radius)
        return Interval(below(ends.lower), above(ends.upper)) if self.rigorous else ends

    def middle(self, name: str) -> tuple[Tensor, Tensor]:
        """Centre and half-width of a node."""
        if name in self.centres:
            return self.centres[name], self.radii[name]
        lower, upper = self.intervals[name]
        centre = 0.5 * (lower + upper)
        if self.rigorous:
            return centre, above(torch.maximum(upper - centre, centre - lower))
        return centre, upper - centre


def image(op: ElementwiseOp, pre: Interval) -> Interval:
    """The range of f over an interval, rounded outwards."""
    found = op.interval(pre)
    if op.roundings == 0:
        return found
    share, least = gamma(op.roundings, found.lower.dtype), tiny(found.lower.dtype)
    lower, upper = (share * end.abs() + least for end in found)
    return Interval(below(found.lower - lower), above(found.upper + upper))


def forward_intervals(
    network: Network,
    params: Params,
    box: Box,
    *,
    pre: Mapping[str, Interval] | None = None,
    only: Container[str] | None = None,
    rigorous: bool = False,
) -> Forward:
    """Interval bounds of the nodes in ``only`` (closed under inputs), or of all.

    Non-linear ops take ``pre`` where it is given. Affine nodes pass centre and half-width on as they are; lower and
    upper ends are formed where a non-linear op needs them. So centres before the first non-linear op are values of the
    network.

    With ``rigorous`` the bounds hold for real arithmetic: half-widths grow by what is lost to rounding.
    """
    if rigorous:
        with direct_convolutions():
            return _forward(network, params, box, pre, only, rigorous=True)
    return _forward(network, params, box, pre, only, rigorous=False)


def _forward(
    network: Network,
    params: Params,
    box: Box,
    pre: Mapping[str, Interval] | None,
    only: Container[str] | None,
    *,
    rigorous: bool,
) -> Forward:
    found = Forward({}, {}, {}, rigorous)
    found.intervals[INPUT] = Interval(*box)
    found.centres[INPUT], found.radii[INPUT] = found.middle(INPUT)
    for node in network.nodes:
        if only is None or node.name in only:
            advance(found, network, params, node, pre or {})
    return found


def advance(found: Forward, network: Network, params: Params, node: Node, given: Mapping[str, Interval]) -> None:
    """Add what is to be known of a node whose inputs are there, see :func:`forward_intervals`."""
    if isinstance(node.op, ElementwiseOp | JoinOp):
        found.intervals[node.name] = given.get(node.name) or _range(node, found)
        return
    assert isinstance(node.op, AffineOp)
    middles = [found.middle(name) for name in node.inputs]
    centre = node.op.forward(params, *(c for c, _ in middles))
    found.centres[node.name] = centre
    if found.rigorous:
        found.radii[node.name] = _radius(node.op, params, middles, centre)
    else:
        found.radii[node.name] = node.op.linear_abs(params, *(r for _, r in middles))
    if node.name in given:
        found.intervals[node.name] = given[node.name]
    elif node.name in network.pre_activations:
        found.intervals[node.name] = found.interval(node.name)


def _range(node: Node, found: Forward) -> Interval:
    inputs = [found.interval(name) for name in node.inputs]
    if found.rigorous and isinstance(node.op, ElementwiseOp):
        return image(node.op, *inputs)
    assert isinstance(node.op, ElementwiseOp | JoinOp)
    return node.op.interval(*inputs)


def _radius(op: AffineOp, params: Params, middles: list[tuple[Tensor, Tensor]], centre: Tensor) -> Tensor:
    """How far A z + b can be from the computed centre where every z is within a radius of a computed one.

    ``|A| (r + gamma |c|) + gamma |b|``, rounded upwards; infinite where the centre is not finite.
    """
    if (count := op.roundings(params)) == 0 and op.bias(params) is None:
        return op.linear_abs(params, *(r for _, r in middles))
    share, least = gamma(count + 8, centre.dtype), tiny(centre.dtype)
    radius = (1 + share) * op.linear_abs(params, *(r + (share * c.abs() + least) for c, r in middles))
    if (bias := op.bias_abs(params)) is not None:
        radius = radius + share * bias
    return torch.where(torch.isfinite(centre), radius + (count + 8) * least, torch.inf)
