"""Interval bound propagation with scalar loops (Gowal et al. 2018, "On the effectiveness of IBP", eq. 6)."""

from __future__ import annotations

import numpy as np

from reference.network import INPUT, Add, Affine, Array, Bounds, Net, activate, offsets


def affine_interval(weight: Array, bias: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Exact range of each entry of weight @ x + bias: each term takes the end that its sign asks for."""
    low, high = np.array(bias, dtype=np.float64), np.array(bias, dtype=np.float64)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            w = weight[i, j]
            low[i] += w * (lower[j] if w >= 0.0 else upper[j])
            high[i] += w * (upper[j] if w >= 0.0 else lower[j])
    return low, high


def node_intervals(net: Net, lower: Array, upper: Array) -> dict[str, tuple[Array, Array]]:
    """An interval for every node, each computed from the intervals of its inputs alone."""
    found = {INPUT: (np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64))}
    for name, layer, inputs in net.nodes:
        low, high = found[inputs[0]]
        if isinstance(layer, Affine):
            found[name] = affine_interval(layer.weight, layer.bias, low, high)
        elif isinstance(layer, Add):
            found[name] = (low + found[inputs[1]][0], high + found[inputs[1]][1])
        else:  # increasing, so the ends map to the ends
            found[name] = (activate(layer, low), activate(layer, high))
    return found


def ibp(net: Net, lower: Array, upper: Array, rows: Array, offset: Array | None = None) -> Bounds:
    """IBP; if the last node is affine, it is merged with the specification: rows @ (W h + b) + offset."""
    found = node_intervals(net, lower, upper)
    pre = {name: found[inputs[0]] for name, layer, inputs in net.nodes if not isinstance(layer, Affine | Add)}
    last, constant = net.nodes[-1], offsets(rows, offset)
    if isinstance(last.layer, Affine):
        merged, shift = rows @ last.layer.weight, rows @ last.layer.bias + constant
        margins, _ = affine_interval(merged, shift, *found[last.inputs[0]])
    else:
        margins, _ = affine_interval(rows, constant, *found[last.name])
    return Bounds(pre, margins)
