"""The one back-substitution engine: linear bounds of any node, pulled back to the input.

A row ``coef . value`` of a node is bounded from below by replacing every node, from the output backwards, by its affine
map or by one of its two lines: the lower one where the coefficient is positive, the upper one where it is negative. An
upper bound is minus the lower bound of the negated row.

Nodes before the first non-linear op are affine in the input. Rows that arrive there are evaluated at the values of the
box's centre, c, and only |A^T row| . radius is left to be pulled back to the network's entry.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tightrope.core.bounds import Bounds, Interval, Lines, Params, Shape
from tightrope.core.box import Box
from tightrope.core.coef import Coef, Dense, identity
from tightrope.core.network import INPUT, Network
from tightrope.core.op import AffineOp, ElementwiseOp
from tightrope.core.spec import Spec
from tightrope.relaxations._interval import Forward, forward_intervals
from tightrope.relaxations._slopes import Rule

# Entries of the largest coefficient tensor above which rows are treated in chunks. 16 MiB in float32: larger blocks are
# slower on a CPU (measured from 2**20 to 2**30), since each is fetched from the system and returned anew.
CHUNK_ENTRIES = 2**22


def backward_bounds(
    network: Network,
    params: Params,
    box: Box,
    spec: Spec,
    rule: Rule,
    pre: Mapping[str, Interval] | None,
    forward: Forward | None = None,
) -> Bounds:
    """Bounds by back-substitution of every pre-activation that ``pre`` does not give, then of the spec's rows.

    Pre-activations whose interval bounds are exact take those.

    Args:
        forward: the interval pass, if it is there already.
    """
    forward = forward or forward_intervals(network, params, box, only=network.affine_prefix)
    engine = Engine(network, params, forward)
    known: dict[str, Interval] = {}
    for node in network.nodes:
        if isinstance(node.op, ElementwiseOp):
            name = node.inputs[0]
            if name not in known:
                if pre is not None and name in pre:
                    known[name] = pre[name]
                elif name in network.exact_intervals:
                    known[name] = forward.intervals[name]
                else:
                    known[name] = engine.node_bounds(name)
            engine.lines[node.name] = rule(node.op, known[name])
    return Bounds(engine.spec_bounds(spec), known)


class Engine:
    """Back-substitution through one network over one box.

    Attributes:
        lines: of the non-linear nodes, by node name, as they become known. Where a node has none, back-substitution
            ends at its interval.
    """

    def __init__(self, network: Network, params: Params, forward: Forward) -> None:
        self.network, self.params = network, params
        self.lines: dict[str, Lines] = {}
        self._forward = forward
        self._radius = forward.radii[INPUT]
        self._batch = self._radius.shape[0]
        self._peak = 1  # entries of the largest coefficient of the latest rows

    def spec_bounds(self, spec: Spec) -> Tensor:
        """Lower bounds of the spec's rows, (batch, rows)."""
        return self.lower_bounds(self.network.output, Dense(spec.matrix)) + spec.offset

    def lower_bounds(self, target: str, coef: Coef) -> Tensor:
        """Lower bounds of ``coef . target`` over the box, (batch, rows)."""
        rows, self._peak = coef.rows, 1
        prefix, centres = self.network.affine_prefix, self._forward.centres
        bound = coef.dot(centres[target]) if target in prefix else coef.value.new_zeros(())
        waiting: dict[str, Coef] = {target: coef}
        for node in reversed(self.network.nodes):
            here = waiting.pop(node.name, None) if node.name != self.network.entry else None
            if here is None:
                continue
            if isinstance(node.op, AffineOp):
                if node.name not in prefix:
                    bound = bound + self._constant(here, node.op.bias(self.params), self.network.shapes[node.name])
                pulled = node.op.adjoint(self.params, here)
            elif node.name in self.lines:
                line, constant = here.through(self.lines[node.name])
                pulled, bound = (line,), bound + constant
            else:
                bound = bound + concretize(here, self._forward.intervals[node.name])
                continue
            for name, part in zip(node.inputs, pulled, strict=True):
                self._peak = max(self._peak, part.value.numel())
                if name in prefix and node.name not in prefix:
                    bound = bound + part.dot(centres[name])
                waiting[name] = waiting[name].plus(part) if name in waiting else part
        if (entry := waiting.get(self.network.entry)) is not None:
            bound = bound - entry.dot_abs(self._forward.radii[self.network.entry])
        return bound.expand(self._batch, rows)

    def node_bounds(self, name: str) -> Interval:
        """Both bounds of every entry of a node, rows in chunks of bounded size."""
        shape = self.network.shapes[name]
        first, step = 0, 1  # the first chunk, of one row or channel, tells how large the others may be
        lower, upper = [], []
        while first < shape[0]:
            last = min(first + step, shape[0])
            found = self.lower_bounds(name, identity(shape, first, last, self._radius))
            below, above = found.chunk(2, dim=1)
            lower.append(below)
            upper.append(-above)
            first, step = last, max(1, CHUNK_ENTRIES * (last - first) // self._peak)
        full = (self._batch, *shape)
        return Interval(torch.cat(lower, 1).reshape(full), torch.cat(upper, 1).reshape(full))

    def _constant(self, coef: Coef, bias: Tensor | None, shape: Shape) -> Tensor:
        return coef.value.new_zeros(()) if bias is None else coef.dot(bias.expand(shape)[None])


def concretize(coef: Coef, interval: Interval) -> Tensor:
    """The minimum of ``coef . x`` over an interval, (batch, rows)."""
    centre, radius = (interval.lower + interval.upper) / 2, (interval.upper - interval.lower) / 2
    return coef.dot(centre) - coef.dot_abs(radius)
