"""The exact minimum of row . f(x) + offset over a box, in two unrelated ways, and its triangle relaxation.

1. Enumeration: a piecewise linear network is affine on each of finitely many polytopes. Fix the phases of the
   activations one neuron after the other, drop those that no point of the polytope takes, and solve one
   linear program for each polytope left. For up to about 12 crossing neurons.
2. MILP: one 0-1 variable for each crossing neuron (Tjeng, Xiao, Tedrake 2019, "Evaluating robustness of
   neural networks with mixed integer programming"). Without these variables it is the triangle LP (Ehlers
   2017): with the same pre-activation bounds no bound from single-neuron lines beats it (Salman et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import OptimizeResult, linprog

from reference.network import INPUT, Add, Affine, Array, Net, Node, PreBounds, output, sizes

_TOLERANCES = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def _solved(result: OptimizeResult) -> bool:
    """False if the program is infeasible; anything but a solution or infeasibility is an error."""
    if result.status not in (0, 2):
        raise ArithmeticError(f"the linear program failed: {result.message}")
    return bool(result.status == 0)


# -------------------------------------------------------------------------------------------- enumeration


class Region(NamedTuple):
    """The polytope {x : lower <= x <= upper, matrix @ x <= vector}."""

    lower: Array
    upper: Array
    matrix: Array
    vector: Array

    def cut(self, row: Array, value: float) -> Region:
        """The part with row . x <= value."""
        return self._replace(matrix=np.vstack([self.matrix, row]), vector=np.append(self.vector, value))

    def minimise(self, row: Array) -> Array | None:
        """A point with the least row . x, or None if the polytope is empty."""
        if len(self.vector) == 0:
            return np.where(row >= 0.0, self.lower, self.upper)
        box = np.stack([self.lower, self.upper], axis=1)
        result = linprog(row, self.matrix, self.vector, bounds=box, method="highs", options=_TOLERANCES)
        return np.clip(result.x, self.lower, self.upper) if _solved(result) else None


class Piece(NamedTuple):
    """On ``region`` the network is x -> weight @ x + bias."""

    weight: Array
    bias: Array
    region: Region


def _phases(weight: Array, bias: Array, slope: float, region: Region) -> Iterator[tuple[list[float], Region]]:
    """All ways a layer max(z, slope z), z = weight @ x + bias, can be linear on a part of the region."""
    if len(bias) == 0:
        yield [], region
        return
    row, constant = weight[0], bias[0]
    at_least, at_most = region.minimise(row), region.minimise(-row)
    if at_least is None or at_most is None:
        return
    if row @ at_least + constant >= 0.0:
        options = [(1.0, region)]
    elif row @ at_most + constant <= 0.0:
        options = [(slope, region)]
    else:
        options = [(1.0, region.cut(-row, constant)), (slope, region.cut(row, -constant))]
    for factor, part in options:
        for factors, smaller in _phases(weight[1:], bias[1:], slope, part):
            yield [factor, *factors], smaller


def _pieces(nodes: Sequence[Node], forms: dict[str, tuple[Array, Array]], region: Region) -> Iterator[Piece]:
    """Extend the affine forms (weight, bias) of the nodes so far over the remaining nodes."""
    (name, layer, inputs), rest = nodes[0], nodes[1:]
    weight, bias = forms[inputs[0]]
    if isinstance(layer, Affine):
        options = [(layer.weight @ weight, layer.weight @ bias + layer.bias, region)]
    elif isinstance(layer, Add):
        options = [(weight + forms[inputs[1]][0], bias + forms[inputs[1]][1], region)]
    else:
        found = ((np.array(f), part) for f, part in _phases(weight, bias, layer.slope, region))
        options = [(f[:, None] * weight, f * bias, part) for f, part in found]
    for new_weight, new_bias, part in options:
        if rest:
            yield from _pieces(rest, {**forms, name: (new_weight, new_bias)}, part)
        else:
            yield Piece(new_weight, new_bias, part)


def linear_pieces(net: Net, lower: Array, upper: Array) -> list[Piece]:
    """The polytopes on which the network is affine; together they cover the box."""
    lower, upper = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
    box = Region(lower, upper, np.zeros((0, len(lower))), np.zeros(0))
    return list(_pieces(net.nodes, {INPUT: (np.eye(len(lower)), np.zeros(len(lower)))}, box))


def exact_argmin(
    net: Net, lower: Array, upper: Array, row: Array, offset: float = 0.0, pieces: list[Piece] | None = None
) -> tuple[float, Array]:
    """The minimum and a point of the box where it is attained; the value is the network's own at that point.

    ``pieces`` (of the same net and box) saves the enumeration when several rows are minimised.
    """
    best: tuple[float, Array] | None = None
    for weight, bias, region in linear_pieces(net, lower, upper) if pieces is None else pieces:
        x = region.minimise(row @ weight)
        if x is None:
            continue
        value = float(row @ output(net, x) + offset)
        if abs(value - (row @ (weight @ x + bias) + offset)) > 1e-6 * (1.0 + abs(value)):
            raise ArithmeticError("the affine form of a piece differs from the network on it")
        if best is None or value < best[0]:
            best = (value, x)
    if best is None:
        raise ArithmeticError("no piece left: the box is empty or the linear programs are ill-conditioned")
    return best


def exact_min(net: Net, lower: Array, upper: Array, row: Array, offset: float = 0.0) -> float:
    """min of row . f(x) + offset over lower <= x <= upper, by enumeration."""
    return exact_argmin(net, lower, upper, row, offset)[0]


# --------------------------------------------------------------------------------- MILP and the triangle LP


class _Program:
    """Linear constraints on one variable per entry of every node, written as {variable: factor} <= value."""

    def __init__(self, size: dict[str, int]) -> None:
        self.size = size
        self.first = dict(zip(size, np.cumsum([0, *size.values()])[:-1].tolist(), strict=True))
        self.bounds: list[tuple[float, float]] = [(-np.inf, np.inf)] * sum(size.values())
        self.integrality = [0] * len(self.bounds)
        self.below: list[tuple[dict[int, float], float]] = []
        self.equal: list[tuple[dict[int, float], float]] = []

    def restrict(self, name: str, lower: Array, upper: Array) -> None:
        """lower <= node <= upper, on top of what is known."""
        for i, (low, high) in enumerate(zip(lower, upper, strict=True), start=self.first[name]):
            self.bounds[i] = (max(self.bounds[i][0], low), min(self.bounds[i][1], high))

    def zero_or_one(self) -> int:
        """A new 0-1 variable."""
        self.bounds.append((0.0, 1.0))
        self.integrality.append(1)
        return len(self.bounds) - 1

    def _dense(self, terms: list[tuple[dict[int, float], float]]) -> tuple[Array, Array]:
        matrix = np.zeros((len(terms), len(self.bounds)))
        for i, (factors, _) in enumerate(terms):
            for j, factor in factors.items():
                matrix[i, j] += factor
        return matrix, np.array([value for _, value in terms])

    def minimum(self, objective: dict[int, float]) -> float:
        """The least value, or +inf if no point satisfies the constraints."""
        cost = self._dense([(objective, 0.0)])[0][0]
        options = {"mip_rel_gap": 0.0} if any(self.integrality) else _TOLERANCES
        constraints = (*self._dense(self.below), *self._dense(self.equal), self.bounds)
        result = linprog(cost, *constraints, method="highs", integrality=self.integrality, options=options)
        return float(result.fun) if _solved(result) else np.inf


def _activation(program: _Program, x: int, y: int, slope: float, low: float, high: float, exact: bool) -> None:
    """y = max(x, slope x) for low <= x <= high if exact, else its convex hull there: the triangle."""
    if low >= 0.0 or high <= 0.0:
        program.equal.append(({y: 1.0, x: -1.0 if low >= 0.0 else -slope}, 0.0))
        return
    program.below += [({x: 1.0, y: -1.0}, 0.0), ({x: slope, y: -1.0}, 0.0)]
    if exact:  # on = 1: y <= x;  on = 0: y <= slope x
        on = program.zero_or_one()
        program.below.append(({y: 1.0, x: -slope, on: -(1.0 - slope) * high}, 0.0))
        program.below.append(({y: 1.0, x: -1.0, on: -(1.0 - slope) * low}, -(1.0 - slope) * low))
    else:  # y <= chord (x - high) + high
        chord = (high - slope * low) / (high - low)
        program.below.append(({y: 1.0, x: -chord}, high - chord * high))


def _program_min(net: Net, lower: Array, upper: Array, pre: PreBounds, row: Array, offset: float, exact: bool) -> float:
    program = _Program(sizes(net, len(lower)))
    program.restrict(INPUT, lower, upper)
    for name, layer, inputs in net.nodes:
        y, x = program.first[name], program.first[inputs[0]]
        if isinstance(layer, Affine):
            for i, weights in enumerate(layer.weight):
                terms = {x + j: -float(w) for j, w in enumerate(weights)}
                program.equal.append(({y + i: 1.0, **terms}, float(layer.bias[i])))
        elif isinstance(layer, Add):
            other = program.first[inputs[1]]
            for i in range(program.size[name]):
                twice = {x + i: -2.0} if other == x else {x + i: -1.0, other + i: -1.0}
                program.equal.append(({y + i: 1.0, **twice}, 0.0))
        else:
            program.restrict(inputs[0], *pre[name])
            for i, (low, high) in enumerate(zip(*pre[name], strict=True)):
                _activation(program, x + i, y + i, layer.slope, float(low), float(high), exact)
    return program.minimum({program.first[net.output] + i: float(c) for i, c in enumerate(row)}) + offset


def lp_relaxation_min(net: Net, lower: Array, upper: Array, pre: PreBounds, row: Array, offset: float = 0.0) -> float:
    """The triangle relaxation, all neurons jointly; +inf if ``pre`` (clamped by a split) leaves no point."""
    return _program_min(net, lower, upper, pre, row, offset, exact=False)


def milp_min(net: Net, lower: Array, upper: Array, pre: PreBounds, row: Array, offset: float = 0.0) -> float:
    """The exact minimum over the points of the box whose pre-activations lie in ``pre`` (to about 1e-6)."""
    return _program_min(net, lower, upper, pre, row, offset, exact=True)
