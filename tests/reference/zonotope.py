"""Forward zonotopes with an explicit generator matrix: DeepZ and hBox.

A zonotope is {centre + generators @ e : |e_i| <= 1}. Column i < d belongs to input coordinate i, and every
activation neuron owns one further column from the start, so that a sum of two branches is a plain sum.

DeepZ: Singh et al. 2018, "Fast and effective robustness certification", theorem 3.1 (= CAP = Fast-Lin).
hBox: Mirman et al. 2018, "Differentiable abstract interpretation for provably robust neural networks".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reference import smooth
from reference.network import (
    INPUT,
    Activation,
    Add,
    Affine,
    Array,
    Bounds,
    LeakyRelu,
    Net,
    Relu,
    SShaped,
    offsets,
    sizes,
)


class Zonotope(NamedTuple):
    """{centre + generators @ e : |e_i| <= 1}."""

    centre: Array
    generators: Array

    def bounds(self) -> tuple[Array, Array]:
        """The exact range of every coordinate."""
        radius = np.abs(self.generators).sum(axis=1)
        return self.centre - radius, self.centre + radius


def _piece(layer: Relu | LeakyRelu, low: float, high: float, kind: str) -> tuple[float, float, float]:
    """scale, bottom, top with scale x + bottom <= max(x, slope x) <= scale x + top on [low, high]."""
    slope = layer.slope
    if low >= 0.0:
        return 1.0, 0.0, 0.0
    if high <= 0.0:  # stable and off: the linear map slope * x
        return slope, 0.0, 0.0
    if kind == "deepz":  # between the parallel lines chord * x and chord * x + (1 - chord) high
        chord = (high - slope * low) / (high - low)
        return chord, 0.0, (1.0 - chord) * high
    return 0.0, slope * low, high  # hbox: forget x, keep the range


def _activation(z: Zonotope, layer: Activation, first_column: int, kind: str) -> Zonotope:
    """One layer, neuron by neuron; neuron i may use column first_column + i."""
    centre, generators = z.centre.copy(), z.generators.copy()
    lower, upper = z.bounds()
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        if isinstance(layer, SShaped):
            scale = smooth.slopes(layer, low, high, "chord" if kind == "deepz" else "box")[0]
            bottom, top = smooth.extremes(layer, scale, low, high)
        else:
            scale, bottom, top = _piece(layer, low, high, kind)
        centre[i] = scale * centre[i] + (bottom + top) / 2.0
        generators[i] *= scale
        generators[i, first_column + i] += (top - bottom) / 2.0
    return Zonotope(centre, generators)


def zonotope(net: Net, lower: Array, upper: Array, rows: Array, offset: Array | None, kind: str) -> Bounds:
    """Push the box through the net; pre-activation bounds and margins are read off the zonotopes."""
    if kind not in ("deepz", "hbox"):
        raise ValueError(f"unknown zonotope {kind!r}")
    size = sizes(net, len(lower))
    neurons = sum(size[name] for name, layer, _ in net.nodes if not isinstance(layer, Affine | Add))
    generators = np.zeros((len(lower), len(lower) + neurons))
    generators[:, : len(lower)] = np.diag((np.asarray(upper) - lower) / 2.0)
    found = {INPUT: Zonotope((np.asarray(upper) + lower) / 2.0, generators)}
    pre, column = {}, len(lower)
    for name, layer, inputs in net.nodes:
        z = found[inputs[0]]
        if isinstance(layer, Affine):
            found[name] = Zonotope(layer.weight @ z.centre + layer.bias, layer.weight @ z.generators)
        elif isinstance(layer, Add):
            other = found[inputs[1]]
            found[name] = Zonotope(z.centre + other.centre, z.generators + other.generators)
        else:
            pre[name] = z.bounds()
            found[name] = _activation(z, layer, column, kind)
            column += size[name]
    last = found[net.output]
    margins = Zonotope(rows @ last.centre + offsets(rows, offset), rows @ last.generators)
    return Bounds(pre, margins.bounds()[0])


def deepz(net: Net, lower: Array, upper: Array, rows: Array, offset: Array | None = None) -> Bounds:
    """A crossing neuron lies between two parallel lines of chord slope, the lower one through 0."""
    return zonotope(net, lower, upper, rows, offset, "deepz")


def hbox(net: Net, lower: Array, upper: Array, rows: Array, offset: Array | None = None) -> Bounds:
    """A crossing neuron becomes a fresh box [slope * low, high]; stable neurons stay linear."""
    return zonotope(net, lower, upper, rows, offset, "hbox")
