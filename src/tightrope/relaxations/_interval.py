"""The forward interval pass."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple

from torch import Tensor

from tightrope.core.bounds import Interval, Params
from tightrope.core.box import Box
from tightrope.core.network import INPUT, Network
from tightrope.core.op import AffineOp, ElementwiseOp, JoinOp


class Forward(NamedTuple):
    """What the pass found.

    Attributes:
        intervals: of pre-activations and of the outputs of non-linear nodes and joins, by node name.
        centres: value of every other affine node, and of the input, at the centres of its inputs.
        radii: half-widths of the same nodes.
    """

    intervals: dict[str, Interval]
    centres: dict[str, Tensor]
    radii: dict[str, Tensor]

    def interval(self, name: str) -> Interval:
        """Lower and upper ends of a node."""
        if name in self.intervals:
            return self.intervals[name]
        centre, radius = self.centres[name], self.radii[name]
        return Interval(centre - radius, centre + radius)

    def middle(self, name: str) -> tuple[Tensor, Tensor]:
        """Centre and half-width of a node."""
        if name in self.centres:
            return self.centres[name], self.radii[name]
        return _middle(self.intervals[name])


def _middle(interval: Interval) -> tuple[Tensor, Tensor]:
    centre = 0.5 * (interval.lower + interval.upper)
    return centre, interval.upper - centre


def _shrunken(interval: Interval, keep: float) -> Interval:
    if keep == 1.0:
        return interval
    centre, radius = _middle(interval)
    return Interval(centre - keep * radius, centre + keep * radius)


def forward_intervals(
    network: Network,
    params: Params,
    box: Box,
    *,
    pre: Mapping[str, Interval] | None = None,
    only: Container[str] | None = None,
    keep: float = 1.0,
) -> Forward:
    """Interval bounds of the nodes in ``only`` (closed under inputs), or of all.

    Non-linear ops take ``pre`` where it is given. Affine nodes pass centre and half-width on as they are; lower and
    upper ends are formed where a non-linear op needs them. So centres before the first non-linear op are values of the
    network. Elementwise ops keep the share ``keep`` of the width of their range, about its centre: below 1 the result
    is no bound, for training losses that want one too small.
    """
    found = Forward({}, {}, {})
    found.intervals[INPUT] = Interval(*box)
    found.centres[INPUT], found.radii[INPUT] = found.middle(INPUT)
    given = pre or {}
    for node in network.nodes:
        if only is not None and node.name not in only:
            continue
        if isinstance(node.op, ElementwiseOp | JoinOp):
            own = given.get(node.name) or node.op.interval(*(found.interval(name) for name in node.inputs))
            found.intervals[node.name] = own if isinstance(node.op, JoinOp) else _shrunken(own, keep)
            continue
        assert isinstance(node.op, AffineOp)
        middles = [found.middle(name) for name in node.inputs]
        found.centres[node.name] = node.op.forward(params, *(c for c, _ in middles))
        found.radii[node.name] = node.op.linear_abs(params, *(r for _, r in middles))
        if node.name in given:
            found.intervals[node.name] = given[node.name]
        elif node.name in network.pre_activations:
            found.intervals[node.name] = found.interval(node.name)
    return found
