"""The neurons that branch and bound is about, in one axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy

import torch
from torch import Tensor

from tightrope.core.bounds import Interval
from tightrope.core.network import Network
from tightrope.core.op import ElementwiseOp


class Neurons:
    """Entries of pre-activations that are not stable for every sample of a batch; all others stay one line for good.

    Args:
        network: the graph.
        pre: bounds of all pre-activations of a batch of samples, by node name.
        like: something of a sample each, (batch, ...), for dtype and device.

    Attributes:
        layer: number of the pre-activation that each neuron belongs to, (neurons,).
        splittable: whether both signs of a neuron leave a single line, (neurons,).

    Values of the neurons are (batch, neurons); those of nodes (batch, *shape), by name.
    """

    def __init__(self, network: Network, pre: Mapping[str, Interval], like: Tensor) -> None:
        batch, self._none = len(like), like.new_zeros(1, 0)
        self._shapes = {name: network.shapes[name] for name in network.pre_activations}
        self._sizes = [math.prod(shape) for shape in self._shapes.values()]
        self._ops = {name: _users(network, name) for name in self._shapes}
        self._all = Interval(*(self._flat({name: pre[name][side] for name in self._shapes}, batch) for side in (0, 1)))
        found = {name: _unstable(ops, pre[name]) for name, ops in self._ops.items()}
        self._columns = self._flat(found, batch).any(0).nonzero()[:, 0]
        device = self._columns.device
        layers = torch.arange(len(self._sizes), device=device)
        self.layer = layers.repeat_interleave(torch.tensor(self._sizes, dtype=torch.int64, device=device))[
            self._columns
        ]
        splittable = [all(op.breakpoints == (0.0,) for op in ops) for ops in self._ops.values()]
        self.splittable = torch.tensor(splittable, dtype=torch.bool, device=device)[self.layer]

    def single(self) -> Neurons:
        """The same with bounds in float32."""
        neurons = copy(self)
        neurons._all, neurons._none = Interval(*(end.float() for end in self._all)), self._none.float()
        return neurons

    def of(self, values: Mapping[str, Tensor], batch: int) -> Tensor:
        """The neurons' entries of values by node."""
        return self._flat({name: values[name] for name in self._shapes}, batch)[:, self._columns]

    @property
    def index(self) -> Tensor:
        """Position of each neuron in its pre-activation, row-major, (neurons,)."""
        starts = torch.tensor([0, *self._sizes[:-1]], device=self.layer.device).cumsum(0)
        return self._columns - starts[self.layer]

    def pre(self) -> Interval:
        """The neurons' bounds for every sample."""
        return Interval(*(end[:, self._columns] for end in self._all))

    def intervals(self, sample: Tensor, pre: Interval) -> dict[str, Interval]:
        """Bounds by node: of the neurons ``pre``, of all other entries those of the samples."""
        lower, upper = (
            self._by_node(every[sample].index_copy(1, self._columns, end))
            for every, end in zip(self._all, pre, strict=True)
        )
        return {name: Interval(lower[name], upper[name]) for name in self._shapes}

    def on_nodes(self, values: Tensor) -> dict[str, Tensor]:
        """Values of the neurons by node, 0 at other entries."""
        zeros = values.new_zeros(values.shape[0], sum(self._sizes))
        return self._by_node(zeros.index_copy(1, self._columns, values))

    def slopes(self, pre: Interval) -> Tensor:
        """The tilts of the lower lines of least area."""
        tilts = {name: self._ops[name][0].minimum_area(part).lower for name, part in self._parts(pre).items()}
        return self.of(tilts, len(pre.lower))

    def unstable(self, pre: Interval) -> Tensor:
        """Where a neuron is not one line on its interval (bool)."""
        found = {name: _unstable(self._ops[name], part) for name, part in self._parts(pre).items()}
        return self.of(found, len(pre.lower)).bool()

    def _parts(self, pre: Interval) -> dict[str, Interval]:
        lower, upper = (self.on_nodes(end) for end in pre)
        return {name: Interval(lower[name], upper[name]) for name in self._shapes}

    def _by_node(self, flat: Tensor) -> dict[str, Tensor]:
        parts = zip(self._shapes.items(), flat.split(self._sizes, 1), strict=True)
        return {name: part.reshape(-1, *shape) for (name, shape), part in parts}

    def _flat(self, values: Mapping[str, Tensor], batch: int) -> Tensor:
        parts = [value.flatten(1) for value in values.values()]
        return torch.cat(parts, 1) if parts else self._none.expand(batch, 0)


def _users(network: Network, name: str) -> list[ElementwiseOp]:
    ops = (node.op for node in network.nodes if name in node.inputs)
    return [op for op in ops if isinstance(op, ElementwiseOp)]


def _unstable(ops: Sequence[ElementwiseOp], pre: Interval) -> Tensor:
    return torch.stack([~op.stable(pre) for op in ops]).any(0)
