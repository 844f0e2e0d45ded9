"""The forward interval pass."""

from __future__ import annotations

from collections.abc import Container, Mapping

from tightrope.core.bounds import Interval, Params
from tightrope.core.box import Box
from tightrope.core.network import INPUT, Network, Node
from tightrope.core.op import AffineOp, ElementwiseOp


def intervals(
    network: Network,
    params: Params,
    box: Box,
    *,
    pre: Mapping[str, Interval] | None = None,
    only: Container[str] | None = None,
) -> dict[str, Interval]:
    """Interval bounds of the nodes in ``only`` (closed under inputs), or of all; ``pre`` takes precedence."""
    known = {INPUT: Interval(box.lower, box.upper)}
    for node in network.nodes:
        if pre is not None and node.name in pre:
            known[node.name] = pre[node.name]
        elif only is None or node.name in only:
            known[node.name] = _step(node, params, [known[name] for name in node.inputs])
    return known


def _step(node: Node, params: Params, inputs: list[Interval]) -> Interval:
    op = node.op
    if isinstance(op, ElementwiseOp):
        return op.interval(inputs[0])
    assert isinstance(op, AffineOp)
    centre = op.forward(params, *((i.lower + i.upper) / 2 for i in inputs))
    radius = op.linear_abs(params, *((i.upper - i.lower) / 2 for i in inputs))
    return Interval(centre - radius, centre + radius)
