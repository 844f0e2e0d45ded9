"""The one back-substitution engine: linear bounds of any node, pulled back to the input.

A row ``coef . value`` of a node is bounded from above by replacing every node, from the output backwards, by its affine
map or by one of its two lines: the upper one where the coefficient is positive, the lower one where it is negative. A
lower bound is minus the upper bound of the negated row.

Nodes before the first non-linear op are affine in the input. Rows that arrive there are evaluated at the values of the
box's centre, c, and only |A^T row| . radius is left to be pulled back to the network's entry. Where rounding errors are
bounded as well, everything is pulled back to the entry, and every node adds the error that is made there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tightrope.core.bounds import Bounds, Interval, Lines, Params, Shape
from tightrope.core.box import Box
from tightrope.core.coef import Coef, Dense, identity
from tightrope.core.deadline import check_time
from tightrope.core.frame import Pair
from tightrope.core.lowering import can_recompute, chunk_entries, keeps
from tightrope.core.network import INPUT, Network, Node
from tightrope.core.op import AffineOp, ElementwiseOp
from tightrope.core.precision import direct_convolutions
from tightrope.core.rounding import below
from tightrope.core.spec import Spec
from tightrope.relaxations._interval import Forward, forward_intervals
from tightrope.relaxations._rounding import Rounding, after_entry
from tightrope.relaxations._slopes import Rule


def backward_bounds(
    network: Network,
    params: Params,
    box: Box,
    spec: Spec,
    rule: Rule,
    pre: Mapping[str, Interval] | None,
    forward: Forward | None = None,
    *,
    rigorous: bool = False,
) -> Bounds:
    """Bounds by back-substitution of every pre-activation that ``pre`` does not give, then of the spec's rows.

    Pre-activations whose interval bounds are exact take those.

    Args:
        forward: the interval pass, if it is there already.
        rigorous: whether the bounds hold for real arithmetic.
    """
    forward = forward or forward_intervals(network, params, box, only=network.affine_prefix, rigorous=rigorous)
    engine = Engine(network, params, forward)
    if rigorous:
        engine.rounding = Rounding(network, params, box.lower.dtype)
        engine.rounding.ends_at(network.entry, forward.interval(network.entry))
    passed = frozenset(node.name for node in after_entry(network))
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
            if engine.rounding is not None:
                engine.lines[node.name] = node.op.outward(known[name], engine.lines[node.name])
                engine.rounding.elementwise(node, known[name])
        elif engine.rounding is not None and node.name in passed:
            engine.rounding.affine(node)
    return Bounds(engine.spec_bounds(spec), known)


class Engine:
    """Back-substitution through one network over one box.

    Attributes:
        lines: of the non-linear nodes, by node name, as they become known. Where a node has none, back-substitution
            ends at its interval.
        multipliers: by node name, (batch, *shape): m with ``m . value >= 0`` at all points of interest (Lagrange
            multipliers of the constraints of a subproblem). Bounds of the spec then hold at these points.
        rounding: if given, bounds hold for real arithmetic. The forward pass, the lines and known intervals must, too.
    """

    def __init__(self, network: Network, params: Params, forward: Forward) -> None:
        self.network, self.params = network, params
        self.lines: dict[str, Lines] = {}
        self.multipliers: dict[str, Tensor] = {}
        self.rounding: Rounding | None = None
        self._forward = forward
        self._radius = forward.radii[INPUT]
        self._batch = self._radius.shape[0]

    def spec_bounds(self, spec: Spec) -> Tensor:
        """Lower bounds of the spec's rows, (batch, rows)."""

        def upper(first: int, last: int) -> Tensor:
            return self._upper_bounds(self.network.output, Dense(-spec.matrix[:, first:last]), self.multipliers)

        bound = spec.offset - torch.cat(self._in_chunks(upper, self.network.output, spec.matrix.shape[1], 1), 1)
        return bound if self.rounding is None else below(bound)

    def node_bounds(self, name: str) -> Interval:
        """Both bounds of every entry of a node."""
        shape = self.network.shapes[name]

        def upper(first: int, last: int) -> Tensor:
            return self._upper_bounds(name, identity(shape, first, last, self._radius))

        found = [part.chunk(2, dim=1) for part in self._in_chunks(upper, name, shape[0], 2 * math.prod(shape[1:]))]
        full = (self._batch, *shape)
        above, below = (torch.cat(parts, 1).reshape(full) for parts in zip(*found, strict=True))
        return Interval(-below, above)

    def _in_chunks(self, upper: Callable[[int, int], Tensor], name: str, count: int, rows: int) -> list[Tensor]:
        """``upper(first, last)`` over ``range(count)`` in pieces of bounded size; ``rows`` are the rows of one.

        Where all of them together take too much memory, each is computed anew in the backward pass.
        """
        entries = rows * self._batch * _entries_of_a_row(self.network, name)
        step = max(1, chunk_entries(self._radius.device) // entries)
        pieces = [(first, min(first + step, count)) for first in range(0, count, step)]
        if self.rounding is not None:
            with direct_convolutions():
                return [upper(*piece) for piece in pieces]
        if len(pieces) == 1 or keeps(count * entries, self._radius.device) or not can_recompute():
            return [upper(*piece) for piece in pieces]
        return [checkpoint(upper, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]

    def _upper_bounds(
        self, target: str, coef: Coef, multipliers: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Tensor:
        """Upper bounds of ``coef . target`` plus the ``multipliers``' terms over the box, (batch, rows)."""
        centres, rows, rounding = self._forward.centres, coef.rows, self.rounding
        # Nodes that are affine in what back-substitution ends with: their values at its centre are known.
        affine = self.network.affine_prefix if self.lines else centres.keys()
        affine = frozenset() if rounding is not None else affine
        bound = coef.dot(centres[target]) if target in affine else self._radius.new_zeros(())
        waiting: dict[str, Coef] = {target: coef}
        for name, value in multipliers.items():
            term = Dense(value[:, None])
            bound = bound + term.dot(centres[name]) if name in affine else bound
            bound = bound if rounding is None else bound + term.spread(rounding.term(name))
            waiting[name] = waiting[name].plus(term) if name in waiting else term
        for node in reversed(self.network.nodes):
            here = waiting.pop(node.name, None) if node.name != self.network.entry else None
            if here is None:
                continue
            check_time()
            if rounding is not None:
                bound = bound + here.spread(self._slack(node))
            if isinstance(node.op, AffineOp) and (self.lines or node.name in centres):  # among intervals joins are none
                if node.name not in affine and (bias := node.op.bias(self.params)) is not None:
                    bound = bound + here.dot(bias.expand(self.network.shapes[node.name])[None])
                pulled = node.op.adjoint(self.params, here)
            elif node.name in self.lines:
                line, constant = here.through(self.lines[node.name])
                pulled, bound = (line,), bound + constant
            else:
                centre, radius = self._forward.middle(node.name)
                bound = bound + here.dot_abs(radius)
                if self.lines or rounding is not None or node.name == target:
                    bound = bound + here.dot(centre)
                continue
            for name, part in zip(node.inputs, pulled, strict=True):
                if name in affine and node.name not in affine:
                    bound = bound + part.dot(centres[name])
                waiting[name] = waiting[name].plus(part) if name in waiting else part
        if (entry := waiting.get(self.network.entry)) is not None:
            centre, radius = self._forward.middle(self.network.entry)
            bound = bound + entry.dot_abs(radius)
            if rounding is not None:
                bound = bound + entry.dot(centre) + entry.spread(rounding.slack[self.network.entry])
        if rounding is not None:
            bound = bound + rounding.floor
            bound = torch.where(bound == -torch.inf, torch.nan, bound)  # an overflow; plus infinity bounds everything
        return bound.expand(self._batch, rows)

    def _slack(self, node: Node) -> Tensor:
        assert self.rounding is not None
        if node.name in self.lines:
            return self.rounding.through(node, self.lines[node.name])
        return self.rounding.slack[node.name]


class _Row(NamedTuple):
    """A row of a bound at some node, as far as its size goes.

    Attributes:
        extent: of its window; None once it is dense.
        factor: rows of the window that the convolution below multiplies, see :class:`~tightrope.core.coef.Factored`; 0
            before the first non-linear op, None once rows are multiplied out.
        pulled: whether that convolution is passed.
    """

    extent: Pair | None
    factor: int | None
    pulled: bool = False

    def entries(self, shape: Shape) -> int:
        """That are stored for each row of a batch."""
        if self.extent is None:
            return math.prod(shape)
        if self.factor is None:
            return shape[0] * math.prod(self.extent)
        return shape[0] * math.prod(self.extent) // self.factor if self.pulled else 1

    def behind(self, op: AffineOp | ElementwiseOp, shape: Shape) -> _Row:
        """The row at the input, of ``shape``, of an op."""
        if self.extent is None:
            return self
        if isinstance(op, ElementwiseOp):
            return self._replace(factor=self.extent[0] if self.factor == 0 else None)
        if op.window is None:
            return _Row(None, None)
        extent = op.window.behind(self.extent)
        if extent == self.extent:
            return self
        if math.prod(extent) >= math.prod(shape[1:]):
            return _Row(None, None)
        return _Row(extent, None if self.pulled else self.factor, pulled=bool(self.factor))


def _entries_of_a_row(network: Network, target: str) -> int:
    """Coefficients that one row of a node takes where it takes most, on its way to the entry."""
    rows = {target: _Row((1, 1) if len(network.shapes[target]) == 3 else None, 0)}
    most = 1
    for node in reversed(network.nodes):
        if node.name in rows and node.name != network.entry:
            assert isinstance(node.op, AffineOp | ElementwiseOp)
            for name in node.inputs:
                shape = network.shapes[name]
                found = rows[node.name].behind(node.op, shape)
                if name not in rows or rows[name].entries(shape) < found.entries(shape):
                    rows[name] = found
                most = max(most, found.entries(shape))
    return most
