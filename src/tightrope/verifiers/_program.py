"""A piecewise linear network on a box as a mixed-integer program, for one sample.

Variables are the inputs, the outputs of unstable neurons, and a 0-1 variable for each of these, its phase; everything
else is affine in them. So a network is a stack of rows, found by sending unit vectors through its affine ops. Every
variable is in units of its own range: the tolerances of solvers are absolute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from threading import Thread
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from tightrope.core.bounds import Interval
from tightrope.core.deadline import check_time
from tightrope.core.network import INPUT
from tightrope.core.op import AffineOp, ElementwiseOp
from tightrope.errors import UnsupportedLayerError
from tightrope.verifiers._problem import INF, Problem

Array = npt.NDArray[np.float64]
T = TypeVar("T")
_TINY = 1e-300
_SHARE = 0.9  # of the time, as solvers look at the clock now and then only


class Answer(NamedTuple):
    """What a solver says of a clause, all to its tolerance.

    Attributes:
        lower: least value of the clause's margin; -inf if it found no bound.
        x: the input where it is attained, (*input shape), or None.
        complete: whether it came to an end, or ran out of time.
    """

    lower: float
    x: Tensor | None
    complete: bool


class _Form(NamedTuple):
    """Values of a node as ``linear`` (variables, *shape) applied to the variables, plus ``constant`` (1, *shape)."""

    linear: Tensor
    constant: Tensor


class _Neurons(NamedTuple):
    """Unstable neurons: what enters them, as rows over the variables, and its bounds.

    Attributes:
        rows: (neurons, inputs + all neurons); only earlier neurons enter.
        constant, lower, upper: (neurons,).
        below, above: slopes of their functions left and right of 0.
    """

    rows: Array
    constant: Array
    lower: Array
    upper: Array
    below: Array
    above: Array


class Program:
    """The network of one sample.

    Args:
        problem: of one sample.
        pre: sound bounds of its pre-activations, by node name.

    Raises:
        UnsupportedLayerError: an op that is no convex function of two lines that meet at 0.
    """

    def __init__(self, problem: Problem, pre: Mapping[str, Interval]) -> None:
        self._problem = problem
        self._unstable = _unstable(problem, pre)
        self._centre = (problem.box.lower + problem.box.upper) / 2
        self._radius = (problem.box.upper - problem.box.lower) / 2
        self._inputs = self._centre.numel()
        self._neurons, self._output = self._walk(pre)

    @property
    def size(self) -> int:
        """Number of unstable neurons."""
        return len(self._neurons.lower)

    def minimum(self, clause: int, timeout: float) -> Answer:
        """The least margin of a clause, max over its rows, over the box.

        Args:
            clause: its number.
            timeout: seconds.
        """
        matrix, constant = self._rows(clause)
        units = np.concatenate([np.ones(self._inputs), self._sizes, np.ones(self.size)])
        size = max(float((np.abs(matrix) @ units[: matrix.shape[1]] + np.abs(constant)).max()), _TINY)
        pad = np.zeros((len(matrix), self.size))
        rows = np.hstack([matrix * units[: matrix.shape[1]], pad, np.full((len(matrix), 1), -size)]) / size
        cost = np.zeros(rows.shape[1])
        cost[-1] = 1.0
        phases = np.concatenate([np.zeros(self._inputs + self.size), np.ones(self.size), [0.0]])
        steepest = np.maximum(np.maximum(np.abs(self._neurons.below), np.abs(self._neurons.above)), 1.0)
        ends = np.concatenate([np.ones(self._inputs), steepest, np.ones(self.size), [2.0]])
        below = np.where(phases > 0, 0.0, -ends)
        constraints = [self._phases(), LinearConstraint(rows, -np.inf, -constant / size)]
        options = {"time_limit": max(_SHARE * timeout, 1e-3), "mip_rel_gap": 1e-6}
        result = _awaited(
            lambda: milp(
                cost, integrality=phases, bounds=Bounds(below, ends), constraints=constraints, options=options
            ),
            timeout,
        )
        if result is None:
            return Answer(-INF, None, False)
        bound = result.mip_dual_bound if self.size else result.fun
        lower = size * float(bound) if bound is not None and np.isfinite(bound) else -INF
        return Answer(lower, None if result.x is None else self._point(result.x), result.status == 0)

    @property
    def _sizes(self) -> Array:
        return np.maximum(np.abs(self._neurons.lower), np.abs(self._neurons.upper))

    def _point(self, values: Array) -> Tensor:
        share = torch.from_numpy(values[: self._inputs].copy()).to(self._centre).reshape(self._centre.shape)
        return (self._centre + share * self._radius)[0]

    def _rows(self, clause: int) -> tuple[Array, Array]:
        spec = self._problem.spec
        member = [row for row, owner in enumerate(spec.clause) if owner == clause]
        matrix = spec.matrix[0, member].double()
        linear = matrix @ self._output.linear.double().T
        constant = matrix @ self._output.constant[0].double() + spec.offset[0, member].double()
        return linear.numpy(force=True), constant.numpy(force=True)

    def _phases(self) -> LinearConstraint:
        """y = f(z) of every neuron, for a = 0 left and a = 1 right of 0 (Tjeng et al., section 4), in units.

        With slopes s <= r:  y >= s z,  y >= r z,  y <= s z + (r - s) u a,  y <= r z - (r - s) l (1 - a).
        """
        facts, sizes = self._neurons, self._sizes
        units = np.concatenate([np.ones(self._inputs), sizes])
        z, y, a = facts.rows * units / sizes[:, None], np.eye(self.size), np.eye(self.size)
        constant, none = facts.constant / sizes, np.zeros((self.size, 1))
        s, r = facts.below[:, None], facts.above[:, None]
        wide, deep = ((r - s)[:, 0] * end / sizes for end in (facts.upper, facts.lower))
        blocks = []
        for slope, phase, rest in ((s, 0.0, None), (r, 0.0, None), (s, wide, 0.0), (r, deep, deep)):
            sign = -1.0 if rest is None else 1.0  # rows <= limits
            move = np.zeros(self.size) if rest is None else phase
            matrix = sign * (np.pad(y, ((0, 0), (self._inputs, 0))) - slope * z)
            limit = sign * slope[:, 0] * constant - (0.0 if rest is None else rest)
            blocks.append((np.hstack([matrix, -a * move, none]), limit))
        matrices, limits = zip(*blocks, strict=True)
        return LinearConstraint(np.vstack(matrices), -np.inf, np.concatenate(limits))

    def _walk(self, pre: Mapping[str, Interval]) -> tuple[_Neurons, _Form]:
        """The rows of all unstable neurons, and of the output."""
        network, params, _, _ = self._problem
        count = self._inputs + sum(int(mask.sum()) for mask in self._unstable.values())
        unit = torch.eye(count, dtype=self._centre.dtype, device=self._centre.device)
        units = unit[:, : self._inputs].reshape(-1, *network.input_shape)
        forms = {INPUT: _Form(units * self._radius, self._centre)}
        found: list[tuple[Tensor, ...]] = []
        used = self._inputs
        for node in network.nodes:
            check_time()
            inputs = [forms[name] for name in node.inputs]
            if isinstance(node.op, AffineOp):
                linear = node.op.linear(params, *(form.linear for form in inputs))
                forms[node.name] = _Form(linear, node.op.forward(params, *(form.constant for form in inputs)))
                continue
            mask, bounds = self._unstable[node.name], pre[node.inputs[0]]
            below, above = _slopes(node.op, node.name)
            slope = torch.where(bounds.lower >= 0, above, below)
            linear, constant = (torch.where(mask, 0.0, value * slope) for value in inputs[0])
            linear[:, mask[0]] = unit[:, used : (used := used + int(mask.sum()))]
            forms[node.name] = _Form(linear, constant)
            ends = (end[mask] for end in (inputs[0].constant, *bounds))
            sides = (torch.full_like(bounds.lower[mask], side) for side in (below, above))
            found.append((inputs[0].linear[:, mask[0]].T, *ends, *sides))
        return _joined(found, count), forms[network.output]


def _awaited(solve: Callable[[], T], seconds: float) -> T | None:
    """What a solver finds in time, or raises; one that does not look at its limit is left to end by itself."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(solve())
        except BaseException as error:  # for who waits
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return answer.result(None if seconds == INF else seconds)
    except FutureTimeout:
        return None


def _joined(found: list[tuple[Tensor, ...]], count: int) -> _Neurons:
    if not found:
        return _Neurons(np.zeros((0, count)), *(np.zeros(0) for _ in range(5)))
    return _Neurons(*(torch.cat(parts).double().numpy(force=True) for parts in zip(*found, strict=True)))


def _unstable(problem: Problem, pre: Mapping[str, Interval]) -> dict[str, Tensor]:
    """By non-linear node, (1, *shape)."""
    nodes = [(node.name, node.op, node.inputs[0]) for node in problem.network.nodes]
    return {name: ~op.stable(pre[before]) for name, op, before in nodes if isinstance(op, ElementwiseOp)}


def _slopes(op: object, name: str) -> tuple[float, float]:
    """Left and right of 0."""
    if isinstance(op, ElementwiseOp) and op.breakpoints == (0.0,):
        below, above = (float(side * op.forward({}, torch.tensor(side, dtype=torch.float64))) for side in (-1.0, 1.0))
        if below <= above:
            return below, above
    raise UnsupportedLayerError(
        f"milp cannot decide node {name!r} ({type(op).__name__}): a mixed-integer program needs functions of two lines "
        "that meet at 0, such as ReLU, leaky ReLU and max-pooling. Use bab for this network."
    )
