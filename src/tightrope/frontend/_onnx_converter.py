"""Follows an ONNX graph node by node and builds the network."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tightrope.core.bounds import Shape
from tightrope.core.deadline import check_time
from tightrope.core.frame import Pair
from tightrope.core.network import INPUT, Network
from tightrope.core.op import Op
from tightrope.errors import TightropeError, UnsupportedLayerError
from tightrope.frontend._builder import Builder
from tightrope.frontend._onnx_model import Array, OnnxGraph, OnnxNode
from tightrope.ops.conv2d import Conv2d
from tightrope.ops.linear import Linear
from tightrope.ops.transpose import Transpose


@dataclass(frozen=True)
class Value:
    """What depends on the input: the node that has its entries in row-major order, and the shape of the ONNX tensor."""

    name: str
    shape: Shape


Operand = Value | Array
Handlers = Mapping[str, Callable[..., Operand | list[Operand]]]
"""By operator: called with the converter, the node and its operands; raises ValueError where it cannot."""
LARGEST_MADE = 2**25
"""Entries of all constants that are made beyond those of the file: 256 MiB."""
_COPIES = 4
"""How often a number of the file may be turned into another one."""
MOST_WORK = 2**36
"""Products that one evaluation may take; VGG16 takes a quarter of that."""
_WITH_GAPS = {"Clip", "Dropout", "Pad", "Slice"}


class Converter:
    """Follows the graph with a batch of one.

    Reshaping is only remembered; a node that needs another shape asks for it.
    """

    def __init__(self, graph: OnnxGraph, handlers: Handlers) -> None:
        self._graph, self._handlers = graph, handlers
        self.builder = Builder(sample_shape(graph.input_shape))
        self.params: dict[str, Tensor] = {}
        self._trainable: list[str] = []
        self._room = LARGEST_MADE + _COPIES * sum(array.size for array in graph.tensors.values())
        self._work = 0
        self.name = ""

    def convert(self) -> Network:
        values: dict[str, Operand | None] = {"": None, **self._graph.tensors}
        values[self._graph.input] = Value(INPUT, self._graph.input_shape)
        for node in self._graph.nodes:
            check_time()
            found = self._apply(node, [values[name] for name in node.inputs])
            values.update(zip(node.outputs, found, strict=False))
        output = values.get(self._graph.output)
        if not isinstance(output, Value):
            raise UnsupportedLayerError(f"The output {self._graph.output!r} does not depend on the input.")
        name = self.builder.reshaped(output.name, (math.prod(output.shape),))
        if name == INPUT:
            raise UnsupportedLayerError("The network has no layers.")
        return self.builder.network(name, tuple(self._trainable))

    def _apply(self, node: OnnxNode, operands: list[Operand | None]) -> Sequence[Operand]:
        self.name = re.sub(r"\W", "_", node.name, flags=re.ASCII)[:60] or node.op
        try:
            if node.op not in _WITH_GAPS and any(operand is None for operand in operands):
                raise ValueError("leaves out an input that it needs")
            found = self._handlers[node.op](self, node, *operands)
        except TightropeError:
            raise
        except TypeError:
            raise UnsupportedLayerError(f"{node} has {len(node.inputs)} inputs, too few, too many or others.") from None
        except (ValueError, IndexError, ArithmeticError, MemoryError) as error:
            raise UnsupportedLayerError(f"{node} {error}.") from None
        results = found if isinstance(found, list) else [found]
        if any(name for name in node.outputs[len(results) :]):
            raise UnsupportedLayerError(f"{node} has {len(node.outputs)} outputs; only {len(results)} can be used.")
        return results

    # ------------------------------------------------------------------ what handlers build with

    def made(self, shape: Sequence[int]) -> Shape:
        """A shape that there is room for, before a constant of it is made.

        Raises:
            ValueError: there is none: all constants together would take more than the file explains.
        """
        self._room -= math.prod(shape)
        if min(shape, default=0) < 0 or self._room < 0:
            raise ValueError(f"makes a tensor of shape {tuple(shape)}, with which constants are too large")
        return tuple(int(n) for n in shape)

    def worked(self, products: int) -> None:
        """Count what an evaluation costs.

        Raises:
            ValueError: too much: no step of it could be interrupted.
        """
        self._work += products
        if self._work > MOST_WORK:
            raise ValueError(f"makes the network too slow: an evaluation takes more than {MOST_WORK:.0e} products")

    def param(self, what: str, array: Array, *, trainable: bool = False) -> str:
        """Keep a tensor; its key."""
        key = f"{self.name}.{what}"
        while key in self.params:
            key = f"{key}_"
        self.made(array.shape)
        self.params[key] = torch.from_numpy(np.array(array, dtype=np.float64))
        if trainable:
            self._trainable.append(key)
        return key

    def op(self, op: Op, x: Value, shape: Shape | None = None) -> Value:
        """An op of one value, whose result has the value's shape or ``shape``."""
        return Value(self.builder.add(self.name, op, x.name), x.shape if shape is None else shape)

    def shaped(self, x: Value, shape: Shape) -> str:
        """The node with the entries of a value as samples of that shape."""
        return self.builder.reshaped(x.name, shape)

    def with_constant(self, x: Value, array: Array, build: Callable[[str, Shape], Op]) -> Value:
        """An op that combines a value entry by entry with a constant."""
        shape = _joint_shape(x, array)
        array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
        constant = array.reshape(sample_shape(array.shape)) if sample_shape(shape) != shape else array
        constant = constant.reshape(1) if constant.ndim == 0 else constant
        name = self.shaped(x, sample_shape(shape))
        op = build(self.param("constant", constant), sample_shape(shape))
        return Value(self.builder.add(self.name, op, name), shape)

    def along(self, x: Value, axis: int, matrix: Array, bias: Array | None = None) -> Value:
        """A matrix (m, n) applied along an axis of n entries, and a bias (m,)."""
        axis = positive_axis(axis, len(x.shape))
        rows, columns = matrix.shape
        if columns != x.shape[axis]:
            raise ValueError(f"applies a matrix {matrix.shape} to axis {axis} of a tensor of shape {x.shape}")
        before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
        self.worked(rows * columns * before * after)
        shape = (*x.shape[:axis], rows, *x.shape[axis + 1 :])
        keys = self._affine(matrix if before * after == 1 else matrix[:, :, None, None], bias)
        if before * after == 1:
            return Value(self.builder.add(self.name, Linear(*keys, rows), self.shaped(x, (columns,))), shape)
        name = self.shaped(x, (before, columns, after))
        if before > 1:
            name = self.builder.add(f"{self.name}_in", Transpose((1, 0, 2)), name)
        else:
            name = self.builder.reshaped(name, (columns, before, after))
        conv = Conv2d(*keys, (columns, before, after), rows, (1, 1), (1, 1), (0, 0), (1, 1), 1)
        name = self.builder.add(self.name, conv, name)
        if before > 1:
            name = self.builder.add(f"{self.name}_out", Transpose((1, 0, 2)), name)
        return Value(name, shape)

    def convolved(
        self, x: str, weight: Array, bias: Array | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> str:
        """A convolution of an image."""
        shape = self.builder.shapes[x]
        if weight.shape[1] * groups != shape[0] or weight.shape[0] % groups:
            raise ValueError(f"has weights {weight.shape} in {groups} groups for images {shape}")
        kernel = (int(weight.shape[2]), int(weight.shape[3]))
        keys = self._affine(weight, bias)
        op = Conv2d(*keys, shape, weight.shape[0], kernel, stride, padding, dilation, groups)
        if min(op.output_shape(shape)) < 1:
            raise ValueError(f"has a kernel {kernel} larger than its padded input of shape {shape}")
        self.worked(math.prod(op.output_shape(shape)) * math.prod(weight.shape[1:]))
        return self.builder.add(self.name, op, x)

    def _affine(self, weight: Array, bias: Array | None) -> tuple[str, str | None]:
        if bias is not None and bias.shape != (weight.shape[0],):
            raise ValueError(f"has a bias {bias.shape} for {weight.shape[0]} outputs")
        key = self.param("weight", weight, trainable=True)
        return key, None if bias is None else self.param("bias", bias, trainable=True)

    def image(self, x: Value, dims: int) -> str:
        """The node of a value of shape (1, channels, *dims spatial sizes) as an image; one axis is a row."""
        if len(x.shape) != dims + 2 or x.shape[0] != 1:
            raise ValueError(f"expects a batch of one sample with {dims} spatial axes, gets shape {x.shape}")
        return self.shaped(x, x.shape[1:] if dims == 2 else (x.shape[1], 1, x.shape[2]))

    def from_image(self, name: str, dims: int) -> Value:
        """The other way round."""
        channels, height, width = self.builder.shapes[name]
        return Value(name, (1, channels, height, width) if dims == 2 else (1, channels, width))


def sample_shape(shape: Shape) -> Shape:
    """The shape without its batch axis, if it has one; never empty.

    Example:
        >>> sample_shape((1, 3, 2)), sample_shape((4,)), sample_shape((1,)), sample_shape(())
        ((3, 2), (4,), (1,), (1,))
    """
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape or (1,)


def positive_axis(axis: int, dims: int) -> int:
    if not -dims <= axis < dims:
        raise ValueError(f"has the axis {axis} for a tensor with {dims} axes")
    return axis % dims


def _joint_shape(x: Value, array: Array) -> Shape:
    """Of a value and a constant that is stretched to it."""
    shape = tuple(np.broadcast_shapes(x.shape, array.shape))
    if math.prod(shape) != math.prod(x.shape):
        raise ValueError(f"stretches a value of shape {x.shape} to a constant of shape {array.shape}")
    return shape


def value_of(x: Operand | None) -> Value:
    if not isinstance(x, Value):
        raise ValueError("is applied to a constant, not to the input")
    return x


def constant_of(x: Operand | None) -> Array:
    if not isinstance(x, np.ndarray):
        raise ValueError("needs a constant where it has something that depends on the input, or nothing")
    return x


def ints_of(x: Operand | None) -> tuple[int, ...]:
    """A constant as a list of integers."""
    array = constant_of(x)
    if array.dtype != np.int64 or array.ndim > 1:
        raise ValueError("needs a list of integers")
    return tuple(int(n) for n in array.reshape(-1))


def number_of(x: Operand | None) -> float:
    array = constant_of(x)
    if array.size != 1:
        raise ValueError(f"needs a number, gets a tensor of shape {array.shape}")
    return float(array.reshape(()))


def list_option(node: OnnxNode, key: str, operand: Operand | None) -> tuple[int, ...] | None:
    """Integers that later operator sets take as an input, earlier ones as an attribute."""
    if operand is not None:
        return ints_of(operand)
    return node.get(key, ()) if key in node.attributes else None


def with_shape(x: Operand, shape: Sequence[int]) -> Operand:
    shape = tuple(int(n) for n in shape)
    if min(shape, default=1) < 0 or math.prod(shape) != math.prod(x.shape):
        raise ValueError(f"cannot give a tensor of shape {tuple(x.shape)} the shape {shape}")
    return Value(x.name, shape) if isinstance(x, Value) else x.reshape(shape)
