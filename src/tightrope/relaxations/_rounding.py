"""How much of a bound is rounding: the error of back-substitution, rigorously bounded.

Every error that back-substitution makes at a node is at most ``|L| . slack``, where L are the computed coefficients of
the node and the slack is known beforehand: ``gamma (|A| m + |b|)`` for an affine node, where m bounds the absolute
values of its inputs. ``docs/explanation/soundness.md`` has the derivation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tightrope.core.bounds import Interval, Lines, Params
from tightrope.core.network import Network, Node
from tightrope.core.op import AffineOp, ElementwiseOp
from tightrope.core.precision import direct_convolutions
from tightrope.core.rounding import gamma, largest, tiny
from tightrope.relaxations._interval import Forward, image


class Rounding:
    """The slacks of one network over one batch of boxes, node by node in their order.

    Attributes:
        reach: largest absolute value of a node over the box, (batch, *shape), by name.
        slack: of affine nodes and of those where back-substitution ends, (batch, *shape), by name.
        floor: what underflow costs a row at most, (batch, 1).
    """

    def __init__(self, network: Network, params: Params, dtype: torch.dtype) -> None:
        self._network, self._params, self._dtype = network, params, dtype
        # Terms that a bound is summed up from: a handful a node, and coefficients that meet at one.
        self._terms = 16 * (len(network.nodes) + 4)
        self.reach: dict[str, Tensor] = {}
        self.slack: dict[str, Tensor] = {}
        self.floor: Tensor | float = 0.0

    def ends_at(self, name: str, interval: Interval) -> None:
        """Back-substitution ends at a node, with the middle of its interval and a half-width."""
        size = self.reach[name] = largest(interval)
        self.slack[name] = self._share(name) * (3 * size) + tiny(self._dtype)
        self._underflow(1, size)

    def affine(self, node: Node) -> None:
        """An affine node of known inputs."""
        assert isinstance(node.op, AffineOp)
        inputs = [self.reach[name] for name in node.inputs]
        count, dtype = node.op.roundings(self._params), self._dtype
        with direct_convolutions():
            size = node.op.linear_abs(self._params, *inputs)
        slack = gamma(count + self._terms, dtype) * size + tiny(dtype)
        if (bias := node.op.bias_abs(self._params)) is not None:
            slack, size = slack + self._share(node.name) * bias, size + bias
        size = (1 + gamma(count + 8, dtype)) * size + (count + 8) * tiny(dtype)
        self.slack[node.name], self.reach[node.name] = slack, size
        self._underflow(count, *inputs)

    def elementwise(self, node: Node, pre: Interval) -> None:
        """A non-linear node of a known pre-activation."""
        assert isinstance(node.op, ElementwiseOp)
        name = node.inputs[0]
        self.reach[name] = torch.minimum(self.reach[name], largest(pre))
        self.reach[node.name] = largest(image(node.op, pre))
        self._underflow(4, largest(pre))

    def through(self, node: Node, lines: Lines) -> Tensor:
        """The slack of a non-linear node with these lines."""
        reach = self.reach[node.inputs[0]]
        slopes, biases = lines.lower_slope.abs() + lines.upper_slope.abs(), lines.upper_bias.abs()
        if lines.lower_bias is not None:
            biases = biases + lines.lower_bias.abs()
        return self._few * slopes * reach + self._share(node.name) * biases + tiny(self._dtype)

    def term(self, name: str) -> Tensor:
        """The slack of coefficients that are added to those of a node."""
        return self._few * self.reach[name] + tiny(self._dtype)

    def rows(self, index: Tensor) -> Rounding:
        """Those of some of the boxes."""
        found = Rounding(self._network, self._params, self._dtype)
        found.reach = {name: value[index] for name, value in self.reach.items()}
        found.slack = {name: value[index] for name, value in self.slack.items()}
        found.floor = self.floor[index] if isinstance(self.floor, Tensor) else self.floor
        return found

    @property
    def _few(self) -> float:
        return gamma(self._terms, self._dtype)

    def _share(self, name: str) -> float:
        """Of a product of all entries of a node."""
        return gamma(math.prod(self._network.shapes[name]) + self._terms, self._dtype)

    def _underflow(self, count: int, *inputs: Tensor) -> None:
        least = (count + self._terms) * tiny(self._dtype)
        for size in inputs:
            self.floor = self.floor + least * (1 + size).flatten(1).sum(1, keepdim=True)


def to_entry(network: Network, params: Params, entry: Interval, pre: Mapping[str, Interval]) -> Rounding:
    """The slacks where back-substitution goes back to the entry, from the bounds of all pre-activations."""
    found = Rounding(network, params, entry.lower.dtype)
    found.ends_at(network.entry, entry)
    for node in after_entry(network):
        if isinstance(node.op, ElementwiseOp):
            found.elementwise(node, pre[node.inputs[0]])
        else:
            found.affine(node)
    return found


def to_intervals(network: Network, params: Params, forward: Forward) -> Rounding:
    """The slacks where back-substitution of the output ends at the last intervals."""
    passed, ends = [], {network.output}
    for node in reversed(after_entry(network)):
        if node.name in ends and node.name in forward.centres:
            ends = ends - {node.name} | set(node.inputs)
            passed.append(node)
    found = Rounding(network, params, forward.radii[network.entry].dtype)
    for name in ends:
        found.ends_at(name, forward.interval(name))
    for node in reversed(passed):
        found.affine(node)
    return found


def after_entry(network: Network) -> tuple[Node, ...]:
    """The nodes that back-substitution passes through."""
    names = [node.name for node in network.nodes]
    return network.nodes[names.index(network.entry) + 1 if network.entry in names else 0 :]
