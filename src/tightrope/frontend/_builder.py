"""The nodes of a network in the making."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from tightrope.core.bounds import Shape
from tightrope.core.network import INPUT, Network, Node
from tightrope.core.op import Op
from tightrope.ops.add import Add
from tightrope.ops.maximum import Maximum
from tightrope.ops.relu import Relu
from tightrope.ops.reshape import Reshape
from tightrope.ops.tap import Tap

MOST_ENTRIES = 2**27
"""Of one sample at all nodes together: a gigabyte in float64."""
MOST_NODES = 100_000
LONGEST_WINDOW = 1024
_UNDERSCORES = 8


class PoolAxis(NamedTuple):
    """Windows along one axis of an image: how many, and what each sees."""

    number: int
    kernel: int
    stride: int
    padding: int
    dilation: int


def pool_axis(size: int, windows: tuple[int, int, int], pads: tuple[int, int], *, ceil: bool) -> PoolAxis:
    """Windows along an axis of that size.

    Args:
        size: of the axis.
        windows: kernel, stride and dilation.
        pads: before and behind.
        ceil: whether there is a window more where the last one leaves something over.

    Raises:
        ValueError: the windows do not fit.
    """
    kernel, stride, dilation = windows
    begin, end = pads
    free = size + begin + end - dilation * (kernel - 1) - 1
    number = (-(-free // stride) if ceil else free // stride) + 1
    if ceil and (number - 1) * stride >= size + begin:
        number -= 1  # no window starts behind the image
    if number < 1:
        raise ValueError(f"has a window larger than its padded input of size {size}")
    return PoolAxis(number, kernel, stride, begin, dilation)


class Builder:
    """Adds nodes one after the other; every method returns the name of the node with the result.

    Attributes:
        shapes: of a sample at every node, the input included.
    """

    def __init__(self, input_shape: Shape) -> None:
        self.shapes: dict[str, Shape] = {INPUT: input_shape}
        self._nodes: list[Node] = []
        self._entries = math.prod(input_shape)
        self._repeated: Counter[str] = Counter()

    def add(self, name: str, op: Op, *inputs: str) -> str:
        """One node; a name that is taken is changed.

        Raises:
            ValueError: shapes that do not fit, or more than a sample may take.
        """
        shape = op.output_shape(*(self.shapes[source] for source in inputs))
        self._entries += math.prod(shape)
        if self._entries > MOST_ENTRIES or len(self._nodes) >= MOST_NODES:
            raise ValueError(f"makes the network too large, with samples of shape {shape} there")
        name = self._free(name)
        self._nodes.append(Node(name, op, inputs))
        self.shapes[name] = shape
        return name

    def _free(self, name: str) -> str:
        """The name; with underscores, and from a few on with a number, if it is taken."""
        count = self._repeated[name]
        self._repeated[name] += 1
        found = name + ("_" * count if count < _UNDERSCORES else f"_{count}")
        while found in self.shapes:
            found += "_"
        return found

    def reshaped(self, name: str, shape: Shape) -> str:
        """The same entries in that shape."""
        if self.shapes[name] == shape:
            return name
        if math.prod(self.shapes[name]) != math.prod(shape):
            raise ValueError(f"cannot give samples of shape {self.shapes[name]} the shape {shape}")
        return self.add(f"{name}_reshaped", Reshape(self.shapes[name], shape), name)

    def maximum(self, name: str, a: str, b: str) -> str:
        """The larger of two values, entry by entry."""
        difference = self.add(f"{name}_difference", Add(-1), b, a)
        excess = self.add(f"{name}_excess", Relu(), difference)
        return self.add(name, Maximum(), a, b, excess)

    def max_pool(self, name: str, x: str, rows: PoolAxis, columns: PoolAxis) -> str:
        """The largest of each window of an image as a tree of pairs: over its rows, then over its columns."""
        if max(rows.kernel, columns.kernel) > LONGEST_WINDOW:
            raise ValueError(f"has a window of more than {LONGEST_WINDOW} entries along an axis")
        for axis, windows in ((1, rows), (2, columns)):
            taps = [Tap(self.shapes[x], axis, *windows, offset) for offset in range(windows.kernel)]
            parts = [self.add(f"{name}_tap", tap, x) for tap in taps]
            while len(parts) > 1:
                first, second, *rest = parts
                parts = [*rest, self.maximum(name, first, second)]
            x = parts[0]
        return x

    def network(self, output: str, trainable: tuple[str, ...]) -> Network:
        """What is needed of all this for that output."""
        needed, kept = {output}, list[Node]()
        for node in reversed(self._nodes):
            if node.name in needed:
                needed.update(node.inputs)
                kept.append(node)
        used = {key for node in kept for key in vars(node.op).values() if isinstance(key, str)}
        return Network(tuple(reversed(kept)), self.shapes[INPUT], tuple(key for key in trainable if key in used))
