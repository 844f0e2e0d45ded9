"""The one back-substitution engine: linear bounds of any node, pulled back to the input.

A row ``coef . value`` of a node is bounded from below by replacing every node, from the output backwards, by its affine
map or by one of its two lines: the lower one where the coefficient is positive, the upper one where it is negative. An
upper bound is minus the lower bound of the negated row.

Soundness: each replacement is a lower bound of the one before, on every point of the box, because each line bounds its
op on the interval ``pre``, which contains all values that the op can see. NaN anywhere ends as NaN.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tightrope.core.bounds import Bounds, Interval, Lines, Params
from tightrope.core.box import Box
from tightrope.core.network import INPUT, Network
from tightrope.core.op import AffineOp, ElementwiseOp, Shape, product
from tightrope.core.spec import Spec
from tightrope.relaxations._interval import intervals
from tightrope.relaxations._slopes import Rule

# Entries of a coefficient tensor above which rows are treated in chunks: 256 MiB in float32.
CHUNK_ENTRIES = 2**26


def backward_bounds(
    network: Network,
    params: Params,
    box: Box,
    spec: Spec,
    rule: Rule,
    pre: Mapping[str, Interval] | None,
) -> Bounds:
    """Bounds by back-substitution of every pre-activation that ``pre`` does not give, then of the spec's rows.

    Pre-activations whose interval bounds are exact take those.
    """
    exact = intervals(network, params, box, only=network.exact_intervals)
    known: dict[str, Interval] = {}
    lines: dict[str, Lines] = {}
    for node in network.nodes:
        if isinstance(node.op, ElementwiseOp):
            name = node.inputs[0]
            if name not in known:
                given = pre.get(name) if pre is not None else None
                known[name] = given or exact.get(name) or _node_bounds(network, params, box, name, lines)
            lines[node.name] = rule(node.op, known[name])
    margins = lower_bounds(network, params, box, network.output, spec.matrix, lines) + spec.offset
    return Bounds(margins, known)


def lower_bounds(
    network: Network,
    params: Params,
    box: Box,
    target: str,
    coef: Tensor,
    lines: Mapping[str, Lines],
    post: Mapping[str, Interval] | None = None,
) -> Tensor:
    """Lower bounds of ``coef . target`` over the box.

    Args:
        network: the graph.
        params: weights by name.
        box: input bounds, (batch, *input shape).
        target: the node that the rows are about.
        coef: (batch or 1, rows, *shape of target).
        lines: lines of the non-linear nodes, by node name.
        post: value bounds of nodes without lines; back-substitution ends there.

    Returns:
        (batch, rows).
    """
    waiting = {target: coef}
    bound = coef.new_zeros(())
    for node in reversed(network.nodes):
        coef_here = waiting.pop(node.name, None)
        if coef_here is None:
            continue
        if isinstance(node.op, AffineOp):
            bound = bound + _dot_bias(coef_here, node.op.bias(params), network.shapes[node.name])
            pulled = node.op.adjoint(params, coef_here)
        elif node.name in lines:
            slope_term, bias_term = _through_lines(coef_here, lines[node.name])
            pulled, bound = (slope_term,), bound + bias_term
        else:
            assert post is not None
            bound = bound + concretize(coef_here, post[node.name])
            continue
        for name, part in zip(node.inputs, pulled, strict=True):
            waiting[name] = waiting[name] + part if name in waiting else part
    if INPUT in waiting:
        bound = bound + concretize(waiting[INPUT], Interval(box.lower, box.upper))
    return bound.expand(box.lower.shape[0], coef.shape[1])


def concretize(coef: Tensor, interval: Interval) -> Tensor:
    """The minimum of ``coef . x`` over an interval: (batch or 1, rows, *shape) -> (batch, rows)."""
    centre = ((interval.lower + interval.upper) / 2).flatten(1)
    radius = ((interval.upper - interval.lower) / 2).flatten(1)
    flat = coef.flatten(2)
    return _dot(flat, centre) - _dot(flat.abs(), radius)


def _dot(coef: Tensor, x: Tensor) -> Tensor:
    """(batch or 1, rows, n) times (batch, n) -> (batch, rows)."""
    if coef.shape[0] == 1:  # one matrix for the whole batch
        return x @ coef[0].T
    return torch.matmul(coef, x[:, :, None])[:, :, 0]


def _dot_bias(coef: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
    if bias is None:
        return coef.new_zeros(())
    return coef.flatten(2) @ bias.expand(shape).flatten()


def _through_lines(coef: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
    positive, negative = coef.clamp(min=0), coef.clamp(max=0)
    pulled = positive * lines.lower_slope[:, None] + negative * lines.upper_slope[:, None]
    bias = _dot(positive.flatten(2), lines.lower_bias.flatten(1)) + _dot(
        negative.flatten(2), lines.upper_bias.flatten(1)
    )
    return pulled, bias


def _node_bounds(network: Network, params: Params, box: Box, name: str, lines: Mapping[str, Lines]) -> Interval:
    """Both bounds of every entry of a node, rows in chunks of bounded size."""
    shape = network.shapes[name]
    size, batch = product(shape), box.lower.shape[0]
    widest = max(product(network.shapes[n]) for n in (name, INPUT, *lines))
    step = max(1, min(size, CHUNK_ENTRIES // max(1, 2 * batch * widest)))
    lower, upper = [], []
    for start in range(0, size, step):
        stop = min(start + step, size)
        index = torch.arange(start, stop, device=box.lower.device)
        rows = torch.nn.functional.one_hot(index, size).to(box.lower.dtype)
        both = torch.cat([rows, -rows]).reshape(1, -1, *shape)
        found = lower_bounds(network, params, box, name, both, lines)
        lower.append(found[:, : stop - start])
        upper.append(-found[:, stop - start :])
    return Interval(torch.cat(lower, 1).reshape(batch, *shape), torch.cat(upper, 1).reshape(batch, *shape))
