"""Subproblems without an unstable neuron: there the network is linear, and a linear program decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tightrope.core.deadline import check_time, seconds_left
from tightrope.core.extras import require
from tightrope.verifiers._subproblems import Lagrangian, Subproblems

Array = npt.NDArray[np.float64]
_PENALTIES = (1e3, 1e7)
_TINY = 1e-300


class _Forms(NamedTuple):
    """``gradient @ y + offset`` for y in [-1, 1], in units of ``size``, so that the values are in [-1, 1] too."""

    gradient: Array
    offset: Array
    size: Array


def solutions(bound: Lagrangian) -> Iterator[tuple[Subproblems, Tensor]]:
    """A leaf with the multipliers and weights that solve it and their bound, and the point that solves it.

    Minimised is max_r row_r over the box and the signs. The solver only *guesses*: the bound is that of any other
    variables, and the point is for the network to judge. Wrong signs cost a penalty instead of being forbidden, so that
    an empty leaf is a program of large value and not a failure; larger penalties come later.

    Args:
        bound: of one subproblem.
    """
    part = bound.part
    centre, radius = (part.box_lower + part.box_upper) / 2, (part.box_upper - part.box_lower) / 2
    split = (part.signs[0] != 0).nonzero()[:, 0]
    with torch.enable_grad():
        x = centre.clone().requires_grad_()
        values, neurons = bound.evaluate(x, bound.lines(part.slopes))
        forms = [(_jacobian(value, x), value) for value in (values[0], (part.signs * neurons)[0, split])]
    rows, signs = (_scaled((gradient * radius).flatten(1), offset) for gradient, offset in forms)
    largest = rows.size.max()
    share = rows.size / largest
    rows = _Forms(rows.gradient * share[:, None], rows.offset * share, share)
    for penalty in _PENALTIES:
        point, weights, multipliers = _minimise(rows, signs, penalty)
        multipliers = multipliers * largest / signs.size
        variables = part.variables._replace(
            multipliers=torch.zeros_like(part.signs).index_copy(1, split, _tensor(multipliers, centre)[None]),
            weights=_tensor(weights, centre)[None],
        )
        with torch.no_grad():
            lower = bound(variables)
        found = part._replace(multipliers=variables.multipliers, weights=variables.weights, lower=lower)
        yield found, centre + _tensor(point, centre).reshape(centre.shape) * radius


def _jacobian(values: Tensor, x: Tensor) -> Tensor:
    """The gradients of values, (n,), at x, (n, *x)."""
    rows = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in values]
    return torch.stack(rows) if rows else x.new_zeros(0, *x.shape)


def _scaled(gradient: Tensor, offset: Tensor) -> _Forms:
    matrix, vector = (value.detach().double().numpy(force=True) for value in (gradient, offset))
    size = np.maximum(np.abs(matrix).sum(1) + np.abs(vector), _TINY)
    return _Forms(matrix / size[:, None], vector / size, size)


def _minimise(rows: _Forms, signs: _Forms, penalty: float) -> tuple[Array, Array, Array]:
    """y that minimises t + penalty * s with rows <= t and -signs <= s, and the multipliers of both; NaN on failure."""
    count, (limits, inputs) = len(rows.offset), signs.gradient.shape
    matrix = np.zeros((count + limits, inputs + 2))
    matrix[:count, :inputs], matrix[:count, inputs] = rows.gradient, -1.0
    matrix[count:, :inputs], matrix[count:, inputs + 1] = -signs.gradient, -1.0
    bounds = [(-1.0, 1.0)] * inputs + [(None, None), (0.0, None)]
    cost = np.concatenate([np.zeros(inputs), [1.0, penalty]])
    if np.isfinite(matrix).all():
        linprog = require("scipy.optimize").linprog
        limit = {"time_limit": seconds_left()}
        ends = np.concatenate([-rows.offset, signs.offset])
        result = linprog(cost, matrix, ends, bounds=bounds, method="highs", options=limit)
        check_time()
        if result.status == 0:
            dual = np.maximum(-result.ineqlin.marginals, 0.0)
            return result.x[:inputs], dual[:count], dual[count:]
    return np.full(inputs, np.nan), np.full(count, np.nan), np.full(limits, np.nan)


def _tensor(value: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value)).to(like)
