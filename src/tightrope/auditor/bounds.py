"""Bounds of a canonical graph over a box, with the rounding errors of their own computation.

Every result is rigorous for real arithmetic on the stored weights: after each operation the error that rounding can
have made is bounded and charged to the bound. A sum of n products is off by at most gamma(n) times the sum of their
absolute values, in whatever order it is formed (Higham 2002, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from tightrope.auditor.graph import INPUT, Activation, Affine, Array, Graph, Ints, Matrix, Step
from tightrope.auditor.lines import UNIT, Interval, Lines, image, lines, one_line

_SAFETY = 1 + 1e-6  # errors of computing the errors
_UNDERFLOW = 1e-290
_ENTRIES = 2**22  # of the coefficients of a chunk of rows

RELAXATIONS: dict[str, tuple[str, str]] = {
    "ibp": ("intervals", "intervals"),
    "crown_ibp": ("intervals", "slope"),
    "deeppoly": ("substitution", "slope"),
    "deepz": ("substitution", "parallel"),
    "hbox": ("substitution", "constant"),
}
"""How each bounds pre-activations, and the rule of its lines; ``slope``: as the option of that name says."""


class Recipe(NamedTuple):
    """How bounds are to be recomputed.

    Attributes:
        pre: bounds of pre-activations: ``intervals``, in which activations take the bounds of their inputs;
            ``substitution``; or ``sparse``: intervals where they show a single line, else substitution.
        rule: of the lines, see :func:`tightrope.auditor.lines.lines`; ``intervals``: back-substitution ends there.
    """

    pre: str
    rule: str

    @classmethod
    def of(cls, relaxation: Mapping[str, Any]) -> Recipe:
        """That of a relaxation by name.

        Raises:
            LookupError: there is no such relaxation.
        """
        pre, rule = RELAXATIONS[relaxation["name"]]
        pre = "sparse" if pre == "substitution" and relaxation.get("sparse") else pre
        rule = relaxation["slope"] if rule == "slope" else rule
        if rule not in ("intervals", "adaptive", "soft", "zero", "parallel", "constant"):
            raise LookupError(rule)
        return cls(pre, rule)


class Bound(NamedTuple):
    """Lower bounds of rows, (rows,), before and after the error of rounding is taken off."""

    computed: Array
    rigorous: Array


def gamma(terms: int) -> float:
    """Bound of the relative error of a sum of so many products."""
    return _SAFETY * terms * UNIT / (1 - terms * UNIT)


class Region:
    """A box, and what is known about the graph's values on it.

    Args:
        graph: the network.
        box: of the flattened input.
        recipe: of the pre-activation bounds.
        around: a region that contains the box; its bounds hold here as well.
        tighten: makes better bounds of a pre-activation from this region, in which all earlier ones are known.

    Attributes:
        pre: the bounds of pre-activations that leaves' lines are made from.
        plain: those by the recipe alone, on this box alone.
        ranges: the best bounds of every value, which errors are measured by.
        lines: of activations by node name, those that bounds of later pre-activations rest on.
    """

    def __init__(
        self,
        graph: Graph,
        box: Interval,
        recipe: Recipe,
        around: Region | None = None,
        tighten: Callable[[Region, str], Interval] | None = None,
    ) -> None:
        self.graph, self.recipe = graph, recipe
        self.ranges: dict[str, Interval] = {INPUT: box}
        self.pre: dict[str, Interval] = {}
        self.plain: dict[str, Interval] = {}
        self._intervals = {INPUT: box}
        self.lines: dict[str, Lines] = {}
        wanted = set(graph.pre_activations())
        for name in [INPUT, *graph.steps]:
            if name != INPUT:
                known = self.plain if isinstance(graph.steps[name].op, Activation) else self._intervals
                self._intervals[name] = self._interval(graph.steps[name], known)
                self.ranges[name] = self._interval(graph.steps[name], self.ranges)
            if name in wanted:
                self.plain[name] = self._recomputed(name)
                self.ranges[name] = _narrower(self.ranges[name], self.plain[name])
                for step in graph.steps.values():
                    if isinstance(step.op, Activation) and step.inputs[0] == name and recipe.rule != "intervals":
                        self.lines[step.name] = lines(step.op, self.plain[name], recipe.rule)
                self.pre[name] = self.plain[name] if around is None else _narrower(self.plain[name], around.pre[name])
                if tighten is not None:
                    self.pre[name] = _narrower(self.pre[name], tighten(self, name))

    def _recomputed(self, name: str) -> Interval:
        """The bounds of a pre-activation by the recipe."""
        interval = self._intervals[name]
        if self.recipe.pre == "intervals":
            return interval
        kept = np.full(interval.lower.shape, self.recipe.pre == "sparse")
        for step in self.graph.steps.values():
            if isinstance(step.op, Activation) and step.inputs[0] == name:
                kept &= one_line(step.op, interval)
        lower, upper = (end.copy() for end in interval)
        left = np.flatnonzero(~kept)
        step_size = max(1, _ENTRIES // max(map(self.graph.size, [INPUT, *self.graph.steps])))
        for first in range(0, left.size, step_size):
            index = left[first : first + step_size]
            lower[index], upper[index] = self._substituted(name, index)
        return Interval(lower, upper)

    def _substituted(self, name: str, index: Ints) -> Interval:
        shape = (index.size, self.graph.size(name))
        ones = sparse.csr_array((np.ones(index.size), (np.arange(index.size), index)), shape=shape)
        lower, negated = (lower_bounds(self, {name: coef}, self.lines).rigorous for coef in (ones, -ones))
        return Interval(lower, -negated)

    def _interval(self, step: Step, known: Mapping[str, Interval]) -> Interval:
        inputs = [known[name] for name in step.inputs]
        if isinstance(step.op, Activation):
            return image(step.op, inputs[0])
        if step.op.largest:
            (a, b), (c, d) = inputs[:2]
            return Interval(np.maximum(a, c), np.maximum(b, d))
        centre, radius = step.op.bias, step.op.bias_error + gamma(len(inputs) + 2) * np.abs(step.op.bias)
        for matrix, (lower, upper) in zip(step.op.matrices, inputs, strict=True):
            middle = 0.5 * (lower + upper)
            half = np.maximum(upper - middle, middle - lower) * (1 + 2 * UNIT)
            size, share = abs(matrix), gamma(matrix.shape[1] + len(inputs) + 2) + step.op.spread * UNIT
            centre = centre + matrix @ middle
            radius = radius + (size @ half) * (1 + share) + share * (size @ np.abs(middle)) + _UNDERFLOW
        radius = (radius + 4 * UNIT * np.abs(centre)) * (1 + gamma(2 * len(inputs) + 8))
        return Interval(centre - radius, centre + radius)


def _narrower(first: Interval, second: Interval) -> Interval:
    return Interval(np.maximum(first.lower, second.lower), np.minimum(first.upper, second.upper))


# --------------------------------------------------------------------------------------------- back-substitution


class _Sum:
    """Terms of a bound, one each row, with a bound of all errors made in forming and adding them."""

    def __init__(self, rows: int) -> None:
        self.value, self.size, self.error, self.terms = np.zeros(rows), np.zeros(rows), np.zeros(rows), 1

    def add(self, value: Array, error: Array | float = 0.0) -> None:
        self.value = self.value + value
        self.size = self.size + np.abs(value)
        self.error = self.error + error
        self.terms += 1

    def bound(self) -> Bound:
        error = (self.error + gamma(self.terms) * self.size) * _SAFETY + _UNDERFLOW
        lower = self.value - error
        return Bound(self.value, lower - 2 * UNIT * np.abs(lower))


def lower_bounds(
    region: Region,
    rows: Mapping[str, Matrix],
    known: Mapping[str, Lines],
    offset: Array | float = 0.0,
    slack: Array | float = 0.0,
) -> Bound:
    """Lower bounds of ``sum over nodes of rows[node] @ value(node)``, + offset, over the region's box.

    Args:
        region: the box and the ranges of all values on it.
        rows: coefficients by node, each (rows, entries).
        known: the lines of activations by node name, shared by all rows or (rows, entries) each. Back-substitution ends
            at the intervals of activations without; if there are none at all, also at those of maxima.
        offset: (rows,).
        slack: bound of the errors of rows and offset, (rows,).
    """
    graph = region.graph
    total = _Sum(next(iter(rows.values())).shape[0])
    total.add(np.broadcast_to(offset, total.value.shape), slack)
    waiting = dict(rows)
    for step in reversed(graph.steps.values()):
        coef = waiting.pop(step.name, None)
        if coef is None:
            continue
        if isinstance(step.op, Affine) and (known or not step.op.largest):
            pulled = list(_through_affine(region, step, step.op, coef, total))
        elif step.name in known:
            pulled = [_through_lines(region, step, known[step.name], _dense(coef), total)]
        else:
            _end(region.ranges[step.name], _dense(coef), total)
            continue
        for name, part in zip(step.inputs, pulled, strict=True):
            if name in waiting:
                part = _dense(part) + _dense(waiting[name])
                total.add(np.zeros_like(total.value), UNIT * (np.abs(part) @ magnitude(region, name)))
            waiting[name] = part
    if INPUT in waiting:
        _end(region.ranges[INPUT], _dense(waiting[INPUT]), total)
    return total.bound()


def _through_affine(region: Region, step: Step, op: Affine, coef: Matrix, total: _Sum) -> Iterator[Matrix]:
    """coef @ (matrix @ x + bias); what rounding changes of a coefficient of x costs at most that times |x|."""
    size, share = abs(coef), gamma(step.size + 2) + op.spread * UNIT
    total.add(coef @ op.bias, size @ (op.bias_error + gamma(step.size + 2) * np.abs(op.bias)))
    for matrix, name in zip(op.matrices, step.inputs, strict=True):
        x = magnitude(region, name)
        reached = (abs(matrix) @ x) * (1 + gamma(x.size + 2))
        total.add(np.zeros_like(total.value), share * (size @ reached) + _UNDERFLOW * (1 + x.sum()))
        yield coef @ matrix


def _through_lines(region: Region, step: Step, found: Lines, coef: Array, total: _Sum) -> Array:
    up, down = np.maximum(coef, 0.0), np.minimum(coef, 0.0)
    offsets = up * found.lower_offset + down * found.upper_offset
    total.add(offsets.sum(1), gamma(step.size + 2) * np.abs(offsets).sum(1))
    pulled = up * found.lower_slope + down * found.upper_slope  # one of the two is 0
    x = magnitude(region, step.inputs[0])
    total.add(np.zeros_like(total.value), 2 * UNIT * (np.abs(pulled) @ x) + _UNDERFLOW * (1 + x.sum()))
    return pulled


def _end(interval: Interval, coef: Array, total: _Sum) -> None:
    terms = np.maximum(coef, 0.0) * interval.lower + np.minimum(coef, 0.0) * interval.upper
    total.add(terms.sum(1), gamma(terms.shape[1] + 2) * np.abs(terms).sum(1) + _UNDERFLOW)


def magnitude(region: Region, name: str) -> Array:
    """The largest absolute values of a node's entries on the region."""
    lower, upper = region.ranges[name]
    return np.maximum(np.abs(lower), np.abs(upper))


def _dense(value: Matrix) -> Array:
    dense: Array = value.toarray() if sparse.issparse(value) else value
    return dense
