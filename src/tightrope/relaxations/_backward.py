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
from tightrope.core.coef import Coef, Dense, identity, unit_rows
from tightrope.core.deadline import check_time
from tightrope.core.frame import Pair
from tightrope.core.lowering import can_recompute, chunk_entries, keeps
from tightrope.core.network import INPUT, Network, Node
from tightrope.core.op import AffineOp, ElementwiseOp
from tightrope.core.precision import direct_convolutions
from tightrope.core.rounding import below
from tightrope.core.spec import MarginSpec, Spec, margins_of
from tightrope.relaxations._choice import most_of_a_sample
from tightrope.relaxations._interval import Forward, advance, forward_intervals, image
from tightrope.relaxations._rounding import Rounding, after_entry
from tightrope.relaxations._slopes import Rule

_SHARE = 0.75
"""Of the coefficients of all rows of a node, up to which it pays to bound some of the rows one by one."""
_CLASSES = 16
"""Up to so many the rows of all labels are bounded rather than those of every sample, see `Engine.spec_bounds`."""


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
    sparse: bool = False,
) -> Bounds:
    """Bounds by back-substitution of every pre-activation that ``pre`` does not give, then of the spec's rows.

    Pre-activations whose interval bounds are exact take those.

    Args:
        forward: the interval pass, if it is there already.
        rigorous: whether the bounds hold for real arithmetic.
        sparse: whether neurons that are stable on their intervals take these as well. In that interval pass non-linear
            ops take the bounds of their inputs. Looks at values: where rigorous bounds are asked for, elsewhere not.
    """
    forward = forward or forward_intervals(network, params, box, only=network.affine_prefix, rigorous=rigorous)
    engine = Engine(network, params, forward)
    if rigorous:
        engine.rounding = Rounding(network, params, box.lower.dtype)
        engine.rounding.ends_at(network.entry, forward.interval(network.entry))
    sparse = sparse and rigorous
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
                elif sparse:
                    known[name] = engine.sparse_bounds(name, forward.interval(name))
                else:
                    known[name] = engine.node_bounds(name)
            engine.lines[node.name] = rule(node.op, known[name])
            if engine.rounding is not None:
                engine.lines[node.name] = node.op.outward(known[name], engine.lines[node.name])
                engine.rounding.elementwise(node, known[name])
        elif engine.rounding is not None and node.name in passed:
            engine.rounding.affine(node)
        if sparse and isinstance(node.op, ElementwiseOp):
            forward.intervals[node.name] = image(node.op, known[node.inputs[0]])
        elif sparse and node.name not in network.affine_prefix:
            with direct_convolutions():
                advance(forward, network, params, node, {})
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
        labels = spec.labels if isinstance(spec, MarginSpec) else None
        of_the_batch = not (self.lines or self.multipliers) and self.rounding is None
        if of_the_batch and labels is not None and spec.matrix.shape[2] <= min(_CLASSES, spec.matrix.shape[0]):
            return self._margin_bounds(spec, labels) + spec.offset

        def upper(first: int, last: int) -> Tensor:
            return self._upper_bounds(self.network.output, Dense(-spec.matrix[:, first:last]), self.multipliers)

        bound = spec.offset - torch.cat(self._in_chunks(upper, self.network.output, spec.matrix.shape[1], 1), 1)
        return bound if self.rounding is None else below(bound)

    def _margin_bounds(self, spec: Spec, labels: Tensor) -> Tensor:
        """Of a margin spec: the rows of every label for all samples, as one matrix, and of these each sample's own.

        The rows of K labels cost K times the products, but no pass over coefficients of every sample, which these have
        where no line is a sample's own.
        """
        rows, classes = spec.matrix.shape[1:]
        every = margins_of(torch.arange(classes, device=labels.device), classes, spec.matrix.dtype).matrix
        bounds = -self._upper_bounds(self.network.output, Dense(-every.flatten(0, 1)[None]))
        own = rows * labels[:, None] + torch.arange(rows, device=labels.device)
        return bounds.gather(1, own)

    def node_bounds(self, name: str) -> Interval:
        """Both bounds of every entry of a node."""
        shape = self.network.shapes[name]

        def upper(first: int, last: int) -> Tensor:
            return self._upper_bounds(name, identity(shape, first, last, self._radius))

        found = self._in_chunks(upper, name, shape[0], 2 * math.prod(shape[1:]))
        return Interval(*(end.reshape(self._batch, *shape) for end in _ends(found)))

    def sparse_bounds(self, name: str, interval: Interval) -> Interval:
        """Both bounds of every entry of a node: an interval that holds where it makes them stable, else their own.

        Which rows are bounded depends on the batch, but what comes out does not.
        """
        stable = _stable_on(self.network, name, interval).flatten(1)
        most = most_of_a_sample(~stable)
        if most == 0:
            return interval
        one_by_one, together = (_entries_of_a_row(self.network, name, factored) for factored in (False, True))
        if most * one_by_one > _SHARE * stable.shape[1] * together:
            found = self.node_bounds(name)
        else:
            index = stable.byte().argsort(dim=1, stable=True)[:, :most]  # samples with fewer take some of the others
            some = zip(interval, self._some_bounds(name, index), strict=True)
            found = Interval(*(old.flatten(1).scatter(1, index, new).reshape_as(old) for old, new in some))
        kept = stable.reshape_as(interval.lower)
        return Interval(*(torch.where(kept, old, new) for old, new in zip(interval, found, strict=True)))

    def _some_bounds(self, name: str, index: Tensor) -> Interval:
        """Both bounds of some entries of a node, (batch, entries): others for every sample, counted row-major."""
        shape = self.network.shapes[name]
        each = math.prod(shape[1:])

        def upper(first: int, last: int) -> Tensor:
            part = index[:, first:last]
            entries, kind = (part // each).unique(return_inverse=True)
            row = kind * each + part % each
            rows = torch.cat([row, row + len(entries) * each], 1)
            return self._upper_bounds(name, unit_rows(shape, entries, self._radius), rows=rows)

        return _ends(self._in_chunks(upper, name, index.shape[1], 2, factored=False))

    def _in_chunks(
        self, upper: Callable[[int, int], Tensor], name: str, count: int, rows: int, *, factored: bool = True
    ) -> list[Tensor]:
        """``upper(first, last)`` over ``range(count)`` in pieces of bounded size; ``rows`` are the rows of one.

        Where all of them together take too much memory, each is computed anew in the backward pass.
        """
        entries = rows * self._batch * _entries_of_a_row(self.network, name, factored)
        step = max(1, chunk_entries(self._radius.device) // entries)
        pieces = [(first, min(first + step, count)) for first in range(0, count, step)]
        if self.rounding is not None:
            with direct_convolutions():
                return [upper(*piece) for piece in pieces]
        if len(pieces) == 1 or keeps(count * entries, self._radius.device) or not can_recompute():
            return [upper(*piece) for piece in pieces]
        return [checkpoint(upper, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]

    def _upper_bounds(
        self,
        target: str,
        coef: Coef,
        multipliers: Mapping[str, Tensor] = MappingProxyType({}),
        rows: Tensor | None = None,
    ) -> Tensor:
        """Upper bounds of ``coef . target`` plus the ``multipliers``' terms over the box, (batch, rows).

        Args:
            rows: those that are wanted, others for every sample, (batch, wanted). They part where coefficients become
                a sample's own: all that is affine behind the target is passed once.
        """
        centres, count, rounding = self._forward.centres, coef.rows, self.rounding
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
                if rows is not None:
                    here, bound, count = here.select(rows), _selected(bound, rows), rows.shape[1]
                    waiting, rows = {name: other.select(rows) for name, other in waiting.items()}, None
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
        return bound.expand(self._batch, count) if rows is None else _selected(bound.expand(self._batch, count), rows)

    def _slack(self, node: Node) -> Tensor:
        assert self.rounding is not None
        if node.name in self.lines:
            return self.rounding.through(node, self.lines[node.name])
        return self.rounding.slack[node.name]


def _ends(parts: list[Tensor]) -> Interval:
    """From upper bounds of rows +x and then -x, of pieces of the rows."""
    above, below = (torch.cat(half, 1) for half in zip(*(part.chunk(2, dim=1) for part in parts), strict=True))
    return Interval(-below, above)


def _stable_on(network: Network, name: str, interval: Interval) -> Tensor:
    """Where all that a node feeds is one line on an interval of it, (batch, *shape)."""
    ops = [node.op for node in network.nodes if name in node.inputs and isinstance(node.op, ElementwiseOp)]
    finite = torch.isfinite(interval.upper - interval.lower)  # lines of an infinite interval are none
    return torch.stack([op.stable(interval) & finite for op in ops]).all(0)


def _selected(bound: Tensor, rows: Tensor) -> Tensor:
    """(batch or 1, all rows) or a number -> (batch, rows)."""
    return bound.expand(rows.shape[0], -1).gather(1, rows) if bound.ndim else bound


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


def _entries_of_a_row(network: Network, target: str, factored: bool = True) -> int:
    """Coefficients that one row of a node takes where it takes most, on its way to the entry."""
    rows = {target: _Row((1, 1) if len(network.shapes[target]) == 3 else None, 0 if factored else None)}
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
