"""Subproblems of verification problems, and the Lagrangian bound of each.

An *item* is one clause of one sample's property: max_r row_r > 0 on the sample's box. A *subproblem* is the part of an
item's box where some neurons have a given sign s_j. With the *variables* w >= 0, sum w = 1, and beta >= 0,

    max_r row_r(x)  >=  sum_r w_r row_r(x)  >=  sum_r w_r row_r(x) - sum_j beta_j s_j z_j(x)

there, and back-substitution bounds the right-hand side on the whole box, for any lower slopes alpha in [0, 1] of the
non-linear ops. So all values of the variables are sound; good ones are found by ascent (beta-CROWN). The weights w are
those by which a disjunction of rows loses nothing: by minimax, the best w reaches the bound of max_r row_r itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tightrope.core.bounds import Interval, Lines
from tightrope.core.box import Box
from tightrope.core.network import INPUT
from tightrope.core.op import AffineOp, ElementwiseOp, Tilt
from tightrope.core.protocols import Relaxation
from tightrope.core.rounding import gamma, tiny
from tightrope.core.spec import Spec, clause_margins, evaluate
from tightrope.relaxations._backward import Engine
from tightrope.relaxations._interval import Forward, forward_intervals
from tightrope.relaxations._rounding import Rounding, to_entry
from tightrope.verifiers._neurons import Neurons
from tightrope.verifiers._problem import Problem


class Variables(NamedTuple):
    """What a bound is maximised over.

    Attributes:
        slopes: alpha, in [0, 1], (batch, neurons).
        multipliers: beta >= 0, (batch, neurons).
        weights: w, on the simplex, (batch, rows).
    """

    slopes: Tensor
    multipliers: Tensor
    weights: Tensor


class Subproblems(NamedTuple):
    """A batch of subproblems; every tensor has the batch as its first axis.

    Attributes:
        item: number of the item, (batch,).
        box_lower, box_upper: (batch, *input shape).
        pre_lower, pre_upper: bounds of the neurons, (batch, neurons).
        signs: s: +1, -1, or 0 for neurons that are not split, (batch, neurons).
        slopes, multipliers, weights: the best variables known.
        lower: a bound of the clause's margin, (batch,).
    """

    item: Tensor
    box_lower: Tensor
    box_upper: Tensor
    pre_lower: Tensor
    pre_upper: Tensor
    signs: Tensor
    slopes: Tensor
    multipliers: Tensor
    weights: Tensor
    lower: Tensor

    @property
    def size(self) -> int:
        """Number of subproblems."""
        return self.item.shape[0]

    @property
    def box(self) -> Box:
        """Where they live."""
        return Box(self.box_lower, self.box_upper)

    @property
    def pre(self) -> Interval:
        """Bounds of the neurons."""
        return Interval(self.pre_lower, self.pre_upper)

    @property
    def variables(self) -> Variables:
        """The best variables known."""
        return Variables(self.slopes, self.multipliers, self.weights)

    def single(self) -> Subproblems:
        """The same in float32."""
        return Subproblems(*(value.float() if value.is_floating_point() else value for value in self))

    def rows(self, index: Tensor | slice) -> Subproblems:
        """Some of them."""
        return Subproblems(*(value[index] for value in self))


def best_row(margins: Tensor) -> Tensor:
    """Weights that are all on the row of the largest bound, (batch, rows) as the bounds."""
    return torch.nn.functional.one_hot(margins.argmax(1), margins.shape[1]).to(margins.dtype)


def joined(parts: Sequence[Subproblems]) -> Subproblems:
    """Batches one after the other."""
    return Subproblems(*(torch.cat(values) for values in zip(*parts, strict=True)))


class Items:
    """The items of a batch of problems.

    Args:
        problem: what is to be decided.
        relaxation: of the pre-activation bounds.
        pre: those that are known already.
        on_parts: of the bounds on parts of the boxes; by default the same relaxation.

    Attributes:
        margins: the relaxation's bounds of the clauses, (batch, clauses).
        neurons: see :class:`~tightrope.verifiers._neurons.Neurons`.
        sample: of each item, (items,).
    """

    def __init__(
        self,
        problem: Problem,
        relaxation: Relaxation,
        pre: Mapping[str, Interval] | None = None,
        on_parts: Relaxation | None = None,
    ) -> None:
        network, params, box, spec = problem
        self.problem, self._on_parts = problem, on_parts or relaxation
        with torch.no_grad():
            self._bounds = relaxation.bounds(network, params, box, spec, pre=pre, rigorous=True)
        self.margins = clause_margins(self._bounds.margins, spec.clause)
        self.neurons = Neurons(network, self._bounds.pre, box.lower)
        self.sample = torch.arange(problem.size, device=box.lower.device).repeat_interleave(self.margins.shape[1])
        self._index = _members(spec.clause, box.lower.device)
        with torch.no_grad():
            prefix = self._affine(box, rigorous=True)
            self._prefixes, entry = {True: prefix}, prefix.interval(network.entry)
            self._rounding: Rounding | None = to_entry(network, params, entry, self._bounds.pre)

    def prefix(self, part: Subproblems, *, rigorous: bool) -> Forward:
        """The interval pass as far as nodes are affine in the input; computed once for boxes that are not cut."""
        box, sample = self.problem.box, self.sample[part.item]
        differentiated = part.box_lower.requires_grad or part.box_upper.requires_grad
        if differentiated or not all(torch.equal(a, b[sample]) for a, b in zip(part.box, box, strict=True)):
            return self._affine(part.box, rigorous=rigorous)
        if rigorous not in self._prefixes:
            with torch.no_grad():
                self._prefixes[rigorous] = self._affine(box, rigorous=rigorous)
        return self._prefixes[rigorous].rows(sample)

    def _affine(self, box: Box, *, rigorous: bool) -> Forward:
        network, params = self.problem.network, self.problem.params
        return forward_intervals(network, params, box, only=network.affine_prefix, rigorous=rigorous)

    @cached_property
    def single(self) -> Items:
        """The same in float32 and without bounds of rounding errors, to find out which variables are good ones."""
        network, params, box, spec = self.problem
        weights = {name: value.float() if value.is_floating_point() else value for name, value in params.items()}
        items = copy(self)
        spec = spec._replace(matrix=spec.matrix.float(), offset=spec.offset.float())
        items.problem = Problem(network, weights, Box(*(end.float() for end in box)), spec)
        items.neurons, items._rounding, items._prefixes = self.neurons.single(), None, {}
        return items

    def roots(self) -> Subproblems:
        """Every item whole, with DeepPoly's slopes, and all weight on the row of the largest bound."""
        pre = Interval(*(end[self.sample] for end in self.neurons.pre()))
        weights = best_row(self._bounds.margins[:, self._index].flatten(0, 1))
        none, slopes = torch.zeros_like(pre.lower), self.neurons.slopes(pre)
        item = torch.arange(len(self.sample), device=self.sample.device)
        lower = self.margins.flatten()
        box_lower, box_upper = (end[self.sample] for end in self.problem.box)
        return Subproblems(item, box_lower, box_upper, *pre, none, slopes, none, weights, lower)

    def spec(self, item: Tensor) -> Spec:
        """The clauses of items, (batch, rows of the longest clause, outputs); shorter ones repeat their first row."""
        spec = self.problem.spec
        matrix, offset = spec.matrix[:, self._index].flatten(0, 1), spec.offset[:, self._index].flatten(0, 1)
        return Spec(matrix[item], offset[item], (0,) * self._index.shape[1])

    def row_weights(self, part: Subproblems) -> Tensor:
        """The weights of subproblems over all rows of the property, (batch, rows)."""
        clause = self._index[part.item % self.margins.shape[1]]
        return part.weights.new_zeros(part.size, self.problem.spec.offset.shape[1]).scatter_add(1, clause, part.weights)

    def bounds_on(self, item: Tensor, box: Box) -> tuple[Interval, Tensor]:
        """Bounds of the neurons, and of the clauses' rows, (batch, rows), computed anew on boxes."""
        network, params = self.problem.network, self.problem.params
        bounds = self._on_parts.bounds(network, params, box, self.spec(item), rigorous=True)
        ends = ({name: interval[side] for name, interval in bounds.pre.items()} for side in (0, 1))
        return Interval(*(self.neurons.of(end, len(item)) for end in ends)), bounds.margins

    def rounding(self, item: Tensor) -> Rounding | None:
        """What bounds the rounding errors on any part of the boxes of items; None for guesses."""
        return None if self._rounding is None else self._rounding.rows(self.sample[item])


class Lagrangian:
    """The bounds of a batch of subproblems as a function of variables.

    A call bounds its own rounding errors, so that what it returns is proved; so it does not for
    :attr:`Items.single`, and methods do not.

    Cost: a call is one back-substitution of one row a subproblem.
    """

    def __init__(self, items: Items, part: Subproblems) -> None:
        network = items.problem.network
        self.items, self.part = items, part
        self.network, self._params, self._spec = network, items.problem.params, items.spec(part.item)
        self._split = bool((part.signs != 0).any())
        self._intervals = items.neurons.intervals(items.sample[part.item], part.pre)

    @cached_property
    def _forward(self) -> Forward:
        return self.items.prefix(self.part, rigorous=False)

    @cached_property
    def _real_forward(self) -> Forward:
        return self.items.prefix(self.part, rigorous=True)

    @cached_property
    def _rounding(self) -> Rounding | None:
        return self.items.rounding(self.part.item)

    def single(self) -> Lagrangian:
        """The same in float32, for what need not be exact."""
        return Lagrangian(self.items.single, self.part.single())

    def __call__(self, variables: Variables) -> Tensor:
        """Lower bounds of the clauses' margins on the subproblems, (batch,)."""
        lines, rounding = self.lines(variables.slopes), self._rounding
        return self.with_lines(lines, variables) if rounding is None else self._proved(lines, variables, rounding)

    def with_lines(self, lines: dict[str, Lines], variables: Variables) -> Tensor:
        """The same for given lines of the non-linear nodes, up to rounding."""
        return self._bound(Engine(self.network, self._params, self._forward), lines, variables)

    def _proved(self, lines: dict[str, Lines], variables: Variables, rounding: Rounding) -> Tensor:
        engine = Engine(self.network, self._params, self._real_forward)
        engine.rounding = rounding
        outward = {
            node.name: node.op.outward(self._intervals[node.inputs[0]], lines[node.name])
            for node in self.network.nodes
            if isinstance(node.op, ElementwiseOp)
        }
        bound = self._bound(engine, outward, variables)
        # The row is a computed sum, and its weights sum up to 1 only nearly.
        weights, matrix, offset = variables.weights, self._spec.matrix, self._spec.offset
        share = gamma(weights.shape[1] + 8, weights.dtype)
        reach = rounding.reach[self.network.output][:, None]
        size = (weights * ((matrix.abs() * reach).sum(2) + offset.abs())).sum(1)
        bound = (bound - share * size) / weights.sum(1)
        return bound - share * bound.abs() - tiny(bound.dtype)

    def _bound(self, engine: Engine, lines: dict[str, Lines], variables: Variables) -> Tensor:
        engine.lines = lines
        if self._split:
            engine.multipliers = self.items.neurons.on_nodes(self.part.signs * variables.multipliers)
        weights, matrix, offset = variables.weights, self._spec.matrix, self._spec.offset
        row = Spec((weights[:, :, None] * matrix).sum(1, keepdim=True), (weights * offset).sum(1, keepdim=True), (0,))
        return engine.spec_bounds(row)[:, 0]

    def lines(self, slopes: Tensor) -> dict[str, Lines]:
        """The lines of the non-linear nodes."""
        tilts, found = self.items.neurons.on_nodes(slopes), {}
        for node in self.network.nodes:
            if isinstance(node.op, ElementwiseOp):
                name = node.inputs[0]
                upper = node.op.minimum_area(self._intervals[name]).upper
                found[node.name] = node.op.envelope(self._intervals[name], Tilt(tilts[name], upper))
        return found

    def evaluate(self, x: Tensor, lines: Mapping[str, Lines]) -> tuple[Tensor, Tensor]:
        """The clauses' rows and the neurons at inputs, with the lower lines in the place of the non-linear ops."""
        values = {INPUT: x}
        for node in self.network.nodes:
            inputs = [values[name] for name in node.inputs]
            if isinstance(node.op, AffineOp):
                values[node.name] = node.op.forward(self._params, *inputs)
            else:
                slope, offset, _, _ = lines[node.name]
                values[node.name] = slope * inputs[0] + (0.0 if offset is None else offset)
        return evaluate(self._spec, values[self.network.output]), self.items.neurons.of(values, len(x))

    def minimisers(self, variables: Variables) -> tuple[Tensor, Tensor]:
        """The points of the boxes where the bound, linear in the input, is attained, and its coefficients there."""
        ends = [end.detach().requires_grad_() for end in self.part.box]
        with torch.enable_grad():
            moved = Lagrangian(self.items, self.part._replace(box_lower=ends[0], box_upper=ends[1]))
            # With c the centre and r the radius it is a . c - |a| . r + b, whose gradients at the ends sum up to a.
            below, above = torch.autograd.grad(moved.with_lines(moved.lines(variables.slopes), variables).sum(), ends)
        coef = below + above
        return torch.where(coef > 0, *self.part.box), coef


def _members(clause: Sequence[int], device: torch.device) -> Tensor:
    """The rows of each clause, (clauses, rows of the longest)."""
    members = [[row for row, owner in enumerate(clause) if owner == c] for c in range(max(clause) + 1)]
    longest = max(map(len, members))
    return torch.tensor([rows + rows[:1] * (longest - len(rows)) for rows in members], device=device)
