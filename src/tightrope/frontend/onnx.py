"""From an ONNX file to a :class:`Network` and its params."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightrope.core.bounds import Shape
from tightrope.core.frame import Pair
from tightrope.core.network import INPUT, Network
from tightrope.core.op import Op
from tightrope.errors import TightropeError, UnsupportedLayerError
from tightrope.frontend import _onnx_windows as windows
from tightrope.frontend._builder import Builder
from tightrope.frontend._onnx_model import LARGEST_TENSOR, Array, OnnxGraph, OnnxNode, read_graph
from tightrope.ops.add import Add
from tightrope.ops.avgpool2d import AvgPool2d
from tightrope.ops.batchnorm import BatchNorm
from tightrope.ops.concat import Concat
from tightrope.ops.conv2d import Conv2d
from tightrope.ops.conv_transpose2d import ConvTranspose2d
from tightrope.ops.leaky_relu import LeakyRelu
from tightrope.ops.linear import Linear
from tightrope.ops.relu import Relu
from tightrope.ops.scale import Scale
from tightrope.ops.shift import Shift
from tightrope.ops.sigmoid import Sigmoid
from tightrope.ops.tanh import Tanh
from tightrope.ops.transpose import Transpose


def from_onnx(source: Path | str | bytes) -> tuple[Network, dict[str, Tensor]]:
    """Read an ONNX file as a network and its weights.

    The function is that of the file for one sample, in real arithmetic: stored numbers become the same numbers in
    float64, and constants are folded in float64. Dropout is left out and batch normalisation takes its statistics.

    Args:
        source: the file (``.onnx``, ``.onnx.gz``), or its bytes.

    Returns:
        The network, which takes samples of the shape of the input without its batch axis (an axis of size 1 or of no
        size that comes first, where there are others), and gives the output's entries as a vector; and its params.

    Raises:
        MissingExtraError: the package onnx is not installed.
        MissingDataError, CorruptDataError: no such file, or no valid ONNX model.
        UnsupportedLayerError: operators that are not supported, all of them named.
        InputError: weights in other files. NumericalError: NaN or infinite weights.

    Example:
        >>> net, params = from_onnx("net.onnx")  # doctest: +SKIP
    """
    graph = read_graph(source)
    _check_supported(graph)
    converter = _Converter(graph)
    network = converter.convert()
    network.check_params(converter.params)
    return network, converter.params


@dataclass(frozen=True)
class _Value:
    """What depends on the input: the node that has its entries in row-major order, and the shape of the ONNX tensor."""

    name: str
    shape: Shape


Operand = _Value | Array


class _Converter:
    """Follows the graph with a batch of one.

    Reshaping is only remembered; a node that needs another shape asks for it.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.builder = Builder(sample_shape(graph.input_shape))
        self.params: dict[str, Tensor] = {}
        self._trainable: list[str] = []
        self.name = ""

    def convert(self) -> Network:
        values: dict[str, Operand | None] = {"": None, **self.graph.tensors}
        values[self.graph.input] = _Value(INPUT, self.graph.input_shape)
        for node in self.graph.nodes:
            found = self._apply(node, [values[name] for name in node.inputs])
            values.update(zip(node.outputs, found, strict=False))
        output = values.get(self.graph.output)
        if not isinstance(output, _Value):
            raise UnsupportedLayerError(f"The output {self.graph.output!r} does not depend on the input.")
        name = self.builder.reshaped(output.name, (math.prod(output.shape),))
        if name == INPUT:
            raise UnsupportedLayerError("The network has no layers.")
        return self.builder.network(name, tuple(self._trainable))

    def _apply(self, node: OnnxNode, operands: list[Operand | None]) -> Sequence[Operand]:
        self.name = re.sub(r"\W", "_", node.name, flags=re.ASCII)[:60] or node.op
        try:
            found = _HANDLERS[node.op](self, node, *operands)
        except TightropeError:
            raise
        except (ValueError, TypeError, IndexError, ArithmeticError, MemoryError) as error:
            raise UnsupportedLayerError(f"{node} {error}.") from None
        results = found if isinstance(found, list) else [found]
        if any(name for name in node.outputs[len(results) :]):
            raise UnsupportedLayerError(f"{node} has {len(node.outputs)} outputs; only {len(results)} can be used.")
        return results

    # ------------------------------------------------------------------ what handlers build with

    def param(self, what: str, array: Array, *, trainable: bool = False) -> str:
        """Keep a tensor; its key."""
        key = f"{self.name}.{what}"
        while key in self.params:
            key = f"{key}_"
        self.params[key] = torch.from_numpy(np.array(array, dtype=np.float64))
        if trainable:
            self._trainable.append(key)
        return key

    def op(self, op: Op, x: _Value, shape: Shape | None = None) -> _Value:
        """An op of one value, whose result has the value's shape or ``shape``."""
        return _Value(self.builder.add(self.name, op, x.name), x.shape if shape is None else shape)

    def shaped(self, x: _Value, shape: Shape) -> str:
        """The node with the entries of a value as samples of that shape."""
        return self.builder.reshaped(x.name, shape)

    def with_constant(self, x: _Value, array: Array, build: Callable[[str, Shape], Op]) -> _Value:
        """An op that combines a value entry by entry with a constant."""
        shape = _joint_shape(x, array)
        array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
        constant = array.reshape(sample_shape(array.shape)) if sample_shape(shape) != shape else array
        constant = constant.reshape(1) if constant.ndim == 0 else constant
        name = self.shaped(x, sample_shape(shape))
        op = build(self.param("constant", constant), sample_shape(shape))
        return _Value(self.builder.add(self.name, op, name), shape)

    def along(self, x: _Value, axis: int, matrix: Array, bias: Array | None = None) -> _Value:
        """A matrix (m, n) applied along an axis of n entries, and a bias (m,)."""
        axis = _axis(axis, len(x.shape))
        rows, columns = matrix.shape
        if columns != x.shape[axis]:
            raise ValueError(f"applies a matrix {matrix.shape} to axis {axis} of a tensor of shape {x.shape}")
        before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
        shape = (*x.shape[:axis], rows, *x.shape[axis + 1 :])
        keys = self._affine(matrix if before * after == 1 else matrix[:, :, None, None], bias)
        if before * after == 1:
            return _Value(self.builder.add(self.name, Linear(*keys, rows), self.shaped(x, (columns,))), shape)
        name = self.shaped(x, (before, columns, after))
        if before > 1:
            name = self.builder.add(f"{self.name}_in", Transpose((1, 0, 2)), name)
        else:
            name = self.builder.reshaped(name, (columns, before, after))
        conv = Conv2d(*keys, (columns, before, after), rows, (1, 1), (1, 1), (0, 0), (1, 1), 1)
        name = self.builder.add(self.name, conv, name)
        if before > 1:
            name = self.builder.add(f"{self.name}_out", Transpose((1, 0, 2)), name)
        return _Value(name, shape)

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
        return self.builder.add(self.name, op, x)

    def _affine(self, weight: Array, bias: Array | None) -> tuple[str, str | None]:
        if weight.size > LARGEST_TENSOR:
            raise ValueError(f"needs a matrix of shape {weight.shape}, which is too large")
        if bias is not None and bias.shape != (weight.shape[0],):
            raise ValueError(f"has a bias {bias.shape} for {weight.shape[0]} outputs")
        key = self.param("weight", weight, trainable=True)
        return key, None if bias is None else self.param("bias", bias, trainable=True)

    def image(self, x: _Value, dims: int) -> str:
        """The node of a value of shape (1, channels, *dims spatial sizes) as an image; one axis is a row."""
        if len(x.shape) != dims + 2 or x.shape[0] != 1:
            raise ValueError(f"expects a batch of one sample with {dims} spatial axes, gets shape {x.shape}")
        return self.shaped(x, x.shape[1:] if dims == 2 else (x.shape[1], 1, x.shape[2]))

    def from_image(self, name: str, dims: int) -> _Value:
        """The other way round."""
        channels, height, width = self.builder.shapes[name]
        return _Value(name, (1, channels, height, width) if dims == 2 else (1, channels, width))


def sample_shape(shape: Shape) -> Shape:
    """The shape without its batch axis, if it has one; never empty.

    Example:
        >>> sample_shape((1, 3, 2)), sample_shape((4,)), sample_shape((1,)), sample_shape(())
        ((3, 2), (4,), (1,), (1,))
    """
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape or (1,)


def _check_supported(graph: OnnxGraph) -> None:
    unknown = Counter(node.op for node in graph.nodes if node.op not in _HANDLERS)
    if unknown:
        found = ", ".join(f"{op} ({count})" if count > 1 else op for op, count in sorted(unknown.items()))
        hint = " Softmax keeps the order of its inputs: cut it off to verify comparisons of outputs." * (
            "Softmax" in unknown
        )
        raise UnsupportedLayerError(
            f"The network uses operators that are not supported yet: {found}.{hint} "
            f"Supported: {', '.join(sorted(_HANDLERS))}."
        )


def _axis(axis: int, dims: int) -> int:
    if not -dims <= axis < dims:
        raise ValueError(f"has the axis {axis} for a tensor with {dims} axes")
    return axis % dims


def _joint_shape(x: _Value, array: Array) -> Shape:
    """Of a value and a constant that is stretched to it."""
    shape = tuple(np.broadcast_shapes(x.shape, array.shape))
    if math.prod(shape) != math.prod(x.shape):
        raise ValueError(f"stretches a value of shape {x.shape} to a constant of shape {array.shape}")
    return shape


def _bounded(shape: Sequence[int]) -> Shape:
    """A shape that is small enough to be computed with."""
    if min(shape, default=0) < 0 or math.prod(shape) > LARGEST_TENSOR:
        raise ValueError(f"makes a tensor of shape {tuple(shape)}")
    return tuple(int(n) for n in shape)


def _value(x: Operand | None) -> _Value:
    if not isinstance(x, _Value):
        raise ValueError("is applied to a constant, not to the input")
    return x


def _constant(x: Operand | None) -> Array:
    if not isinstance(x, np.ndarray):
        raise ValueError("needs a constant where it has something that depends on the input, or nothing")
    return x


def _ints(x: Operand | None) -> tuple[int, ...]:
    """A constant as a list of integers."""
    array = _constant(x)
    if array.dtype != np.int64 or array.ndim > 1:
        raise ValueError("needs a list of integers")
    return tuple(int(n) for n in array.reshape(-1))


def _number(x: Operand | None) -> float:
    array = _constant(x)
    if array.size != 1:
        raise ValueError(f"needs a number, gets a tensor of shape {array.shape}")
    return float(array.reshape(()))


def _list_option(node: OnnxNode, key: str, operand: Operand | None) -> tuple[int, ...] | None:
    """Integers that later operator sets take as an input, earlier ones as an attribute."""
    if operand is not None:
        return _ints(operand)
    return node.get(key, ()) if key in node.attributes else None


# ------------------------------------------------------------------------------------- constants and shapes


def _stored(c: _Converter, node: OnnxNode) -> Operand:
    """Constant."""
    if isinstance(node.attributes.get("value"), np.ndarray):
        return _constant(node.attributes["value"])
    for key in ("value_int", "value_ints", "value_float", "value_floats"):
        if key in node.attributes:
            value = node.attributes[key]
            return np.array(value, dtype=np.int64 if "int" in key else np.float64)
    raise ValueError("has no number")


def _filled(c: _Converter, node: OnnxNode, shape: Operand | None) -> Operand:
    """ConstantOfShape."""
    value = node.attributes.get("value", np.zeros(1))
    return np.full(_bounded(_ints(shape)), value.reshape(()), dtype=value.dtype)


def _identity(c: _Converter, node: OnnxNode, x: Operand, *_: Operand | None) -> Operand:
    return x


def _dropout(c: _Converter, node: OnnxNode, x: Operand, ratio: Any = None, training: Any = None) -> Operand:
    if training is not None and _number(training) != 0:
        raise ValueError("is in training mode; export the network in evaluation mode")
    return x


def _cast(c: _Converter, node: OnnxNode, x: Operand) -> Operand:
    """Floats stay what they are: the network is one of real numbers."""
    floating = node.get("to", 0) in (1, 10, 11)
    if isinstance(x, _Value):
        if not floating:
            raise ValueError("rounds what depends on the input to integers")
        return x
    return x.astype(np.float64 if floating else np.int64)


def _shape(c: _Converter, node: OnnxNode, x: Operand) -> Operand:
    end = node.get("end", len(x.shape))
    return np.array(x.shape[node.get("start", 0) : end], dtype=np.int64)


def _with_shape(x: Operand, shape: Sequence[int]) -> Operand:
    shape = tuple(int(n) for n in shape)
    if min(shape, default=1) < 0 or math.prod(shape) != math.prod(x.shape):
        raise ValueError(f"cannot give a tensor of shape {tuple(x.shape)} the shape {shape}")
    return _Value(x.name, shape) if isinstance(x, _Value) else x.reshape(shape)


def _reshape(c: _Converter, node: OnnxNode, x: Operand, shape: Operand | None = None) -> Operand:
    target = list(_list_option(node, "shape", shape) or ())
    if not node.get("allowzero", 0):
        target = [x.shape[axis] if n == 0 else n for axis, n in enumerate(target)]
    if target.count(-1) == 1:
        known = -math.prod(target)
        target[target.index(-1)] = math.prod(x.shape) // known if known else 0
    return _with_shape(x, target)


def _flatten(c: _Converter, node: OnnxNode, x: Operand) -> Operand:
    axis = node.get("axis", 1)
    axis = axis if axis == len(x.shape) else _axis(axis, len(x.shape))
    return _with_shape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _squeeze(c: _Converter, node: OnnxNode, x: Operand, axes: Operand | None = None) -> Operand:
    found = _list_option(node, "axes", axes)
    dropped = {i for i, n in enumerate(x.shape) if n == 1}
    if found is not None:
        chosen = {_axis(axis, len(x.shape)) for axis in found}
        if not chosen <= dropped:
            raise ValueError(f"drops the axes {found} of a tensor of shape {tuple(x.shape)}")
        dropped = chosen
    return _with_shape(x, [n for i, n in enumerate(x.shape) if i not in dropped])


def _unsqueeze(c: _Converter, node: OnnxNode, x: Operand, axes: Operand | None = None) -> Operand:
    found = _list_option(node, "axes", axes) or ()
    dims = len(x.shape) + len(found)
    if dims > 32:
        raise ValueError(f"makes a tensor with {dims} axes")
    places = {_axis(axis, dims) for axis in found}
    rest = iter(x.shape)
    return _with_shape(x, [1 if i in places else next(rest, 0) for i in range(dims)])


def _transpose(c: _Converter, node: OnnxNode, x: Operand) -> Operand:
    dims = len(x.shape)
    order = node.get("perm", tuple(reversed(range(dims))))
    if sorted(order) != list(range(dims)):
        raise ValueError(f"has perm {order} for a tensor of shape {tuple(x.shape)}")
    if isinstance(x, np.ndarray):
        return x.transpose(order)
    shape = tuple(x.shape[axis] for axis in order)
    wide = [axis for axis in range(dims) if x.shape[axis] > 1]
    moved = [axis for axis in order if x.shape[axis] > 1]
    if moved == wide:
        return _Value(x.name, shape)
    name = c.shaped(x, tuple(x.shape[axis] for axis in wide))
    return _Value(c.builder.add(c.name, Transpose(tuple(wide.index(axis) for axis in moved)), name), shape)


def _taken(c: _Converter, x: Operand, axis: int, positions: Array) -> Operand:
    """Entries along an axis by their positions."""
    if isinstance(x, np.ndarray):
        _bounded((*x.shape[:axis], len(positions), *x.shape[axis + 1 :]))
        return x.take(positions, axis)
    count = x.shape[axis]
    if len(positions) == count and bool((positions == np.arange(count)).all()):
        return x
    if len(positions) == 0:
        raise ValueError("takes nothing")
    matrix = np.zeros(_bounded((len(positions), count)))
    matrix[np.arange(len(positions)), positions] = 1.0
    return c.along(x, axis, matrix)


def _gather(c: _Converter, node: OnnxNode, x: Operand, index: Operand) -> Operand:
    axis, index = _axis(node.get("axis", 0), len(x.shape)), _constant(index)
    count = x.shape[axis]
    if index.dtype != np.int64 or bool(((index < -count) | (index >= count)).any()):
        raise ValueError(f"takes entries that an axis of {count} does not have")
    found = _taken(c, x, axis, index.reshape(-1) % count)
    return _with_shape(found, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _slice(c: _Converter, node: OnnxNode, x: Operand, *operands: Operand | None) -> Operand:
    options = dict(zip(("starts", "ends", "axes", "steps"), (*operands, None, None, None, None), strict=False))
    starts, ends, axes, steps = (_list_option(node, key, value) for key, value in options.items())
    if starts is None or ends is None:
        raise ValueError("has no starts or ends")
    axes = tuple(range(len(starts))) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps or (1,) * len(starts), strict=True):
        axis = _axis(axis, len(x.shape))
        stop = None if step < 0 and end < -x.shape[axis] else end
        x = _taken(c, x, axis, np.arange(x.shape[axis])[slice(start, stop, step)])
    return x


def _split(c: _Converter, node: OnnxNode, x: Operand, sizes: Operand | None = None) -> list[Operand]:
    axis = _axis(node.get("axis", 0), len(x.shape))
    parts = _list_option(node, "split", sizes)
    if parts is None:
        count = len(node.outputs)
        size = -(-x.shape[axis] // count)
        parts = (*[size] * (count - 1), x.shape[axis] - size * (count - 1))
    if min(parts) < 1 or sum(parts) != x.shape[axis]:
        raise ValueError(f"splits {x.shape[axis]} entries into {parts}")
    ends = np.cumsum(parts)
    return [_taken(c, x, axis, np.arange(end - n, end)) for n, end in zip(parts, ends, strict=True)]


def _concat(c: _Converter, node: OnnxNode, *parts: Operand | None) -> Operand:
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate([_constant(part) for part in parts], node.get("axis", 0))
    values = [_value(part) for part in parts]
    dims = len(values[0].shape)
    axis = _axis(node.get("axis", 0), dims)
    shapes = [sample_shape(value.shape) for value in values]
    offset = dims - len(shapes[0])
    if axis < offset or any(
        len(value.shape) != dims or len(s) != dims - offset for value, s in zip(values, shapes, strict=True)
    ):
        raise ValueError(f"joins {', '.join(str(value.shape) for value in values)} along the batch")
    op = Concat(axis - offset, tuple(shape[axis - offset] for shape in shapes))
    names = (c.shaped(value, shape) for value, shape in zip(values, shapes, strict=True))
    name = c.builder.add(c.name, op, *names)
    return _Value(name, (*(1,) * offset, *c.builder.shapes[name]))


def _expand(c: _Converter, node: OnnxNode, x: Operand, shape: Operand) -> Operand:
    target = np.broadcast_shapes(tuple(x.shape), _ints(shape))
    return np.broadcast_to(x, _bounded(target)) if isinstance(x, np.ndarray) else _with_shape(x, target)


# ---------------------------------------------------------------------------------------------- arithmetic


def _folded(a: Array, b: Array, combine: Callable[[Array, Array], Array]) -> Array:
    _bounded(np.broadcast_shapes(a.shape, b.shape))
    with np.errstate(all="ignore"):  # what comes of it is refused as a weight
        return combine(a, b)


def _add(c: _Converter, node: OnnxNode, a: Operand, b: Operand, sign: int = 1) -> Operand:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _folded(a, b, np.add if sign > 0 else np.subtract)
    if isinstance(a, _Value) and isinstance(b, _Value):
        x, y, shape = _aligned(c, a, b)
        return _Value(c.builder.add(c.name, Add(sign), x, y), shape)
    if isinstance(a, _Value):
        return c.with_constant(a, _constant(b), lambda key, shape: Shift(key, shape, sign))
    b = _value(b)
    b = b if sign > 0 else _negate(c, node, b)
    return c.with_constant(_value(b), _constant(a), Shift)


def _aligned(c: _Converter, a: _Value, b: _Value) -> tuple[str, str, Shape]:
    """Two values as nodes of one shape."""
    shape = tuple(np.broadcast_shapes(a.shape, b.shape))
    if not math.prod(shape) == math.prod(a.shape) == math.prod(b.shape):
        raise ValueError(f"stretches values of shapes {a.shape} and {b.shape} to each other")
    return c.shaped(a, sample_shape(shape)), c.shaped(b, sample_shape(shape)), shape


def _sub(c: _Converter, node: OnnxNode, a: Operand, b: Operand) -> Operand:
    return _add(c, node, a, b, -1)


def _sum(c: _Converter, node: OnnxNode, first: Operand, *rest: Operand) -> Operand:
    for other in rest:
        first = _add(c, node, first, other)
    return first


def _mul(c: _Converter, node: OnnxNode, a: Operand, b: Operand) -> Operand:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _folded(a, b, np.multiply)
    if isinstance(a, np.ndarray):
        a, b = b, a
    if isinstance(b, _Value):
        raise ValueError("multiplies two values that both depend on the input")
    return c.with_constant(_value(a), _constant(b), Scale)


def _div(c: _Converter, node: OnnxNode, a: Operand, b: Operand) -> Operand:
    if isinstance(b, _Value):
        raise ValueError("divides by what depends on the input")
    if not np.all(b):
        raise ValueError("divides by 0")
    if isinstance(a, np.ndarray):
        whole = a.dtype == b.dtype == np.int64
        return _folded(a, b, (lambda x, y: np.sign(x) * np.sign(y) * (abs(x) // abs(y))) if whole else np.divide)
    return c.with_constant(a, b, lambda key, shape: Scale(key, shape, divide=True))


def _negate(c: _Converter, node: OnnxNode, x: Operand) -> Operand:
    return -x if isinstance(x, np.ndarray) else c.op(Scale(-1.0, c.builder.shapes[x.name]), x)


def _max(c: _Converter, node: OnnxNode, first: Operand, *rest: Operand) -> Operand:
    for other in rest:
        first = _larger(c, first, other)
    return first


def _larger(c: _Converter, a: Operand, b: Operand) -> Operand:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _folded(a, b, np.maximum)
    if isinstance(a, _Value) and isinstance(b, _Value):
        x, y, shape = _aligned(c, a, b)
        return _Value(c.builder.maximum(c.name, x, y), shape)
    value, limit = (a, _constant(b)) if isinstance(a, _Value) else (_value(b), a)
    if not limit.any():
        return c.op(Relu(), value)
    excess = c.op(Relu(), c.with_constant(value, limit, lambda key, shape: Shift(key, shape, -1)))
    return c.with_constant(excess, limit, Shift)


def _min(c: _Converter, node: OnnxNode, *operands: Operand) -> Operand:
    return _negate(c, node, _max(c, node, *(_negate(c, node, operand) for operand in operands)))


def _clip(
    c: _Converter, node: OnnxNode, x: Operand, low: Operand | None = None, high: Operand | None = None
) -> Operand:
    limits = [
        np.array(node.get(key, 0.0)) if key in node.attributes else operand
        for key, operand in (("min", low), ("max", high))
    ]
    x = x if limits[0] is None else _larger(c, x, _constant(limits[0]))
    return x if limits[1] is None else _min(c, node, x, _constant(limits[1]))


# ----------------------------------------------------------------------------------------- general linear maps


def _gemm(c: _Converter, node: OnnxNode, a: Operand, b: Operand, offset: Operand | None = None) -> Operand:
    flips = bool(node.get("transA", 0)), bool(node.get("transB", 0))
    a, b = (_flipped(c, x) if flip else x for x, flip in zip((a, b), flips, strict=True))
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise ValueError(f"multiplies tensors of shapes {a.shape} and {b.shape}; matrices are needed")
    bias = None if offset is None else node.get("beta", 1.0) * _constant(offset)
    alpha = node.get("alpha", 1.0)
    if isinstance(b, np.ndarray):
        if bias is not None and len(_value(a).shape) == 2 and a.shape[0] == 1 and bias.size in (1, b.shape[1]):
            bias = np.broadcast_to(bias.reshape(-1), (b.shape[1],))
            return c.along(_value(a), 1, alpha * b.T, bias)
        product = c.along(_value(a), 1, alpha * b.T)
    else:
        product = c.along(b, 0, alpha * _constant(a))
    return product if bias is None else c.with_constant(product, bias, Shift)


def _flipped(c: _Converter, x: Operand) -> Operand:
    if isinstance(x, np.ndarray):
        return x.T
    if len(x.shape) != 2 or 1 not in x.shape:
        raise ValueError(f"transposes a value of shape {x.shape}; use Transpose")
    return _Value(x.name, (x.shape[1], x.shape[0]))


def _matmul(c: _Converter, node: OnnxNode, a: Operand, b: Operand) -> Operand:
    left = isinstance(a, np.ndarray)
    matrix, x = (_constant(a), _value(b)) if left else (_constant(b), _value(a))
    if matrix.ndim == 1:
        found = c.along(x, -2 if left and len(x.shape) > 1 else -1, matrix[None])
        axis = len(x.shape) - (2 if left and len(x.shape) > 1 else 1)
        return _with_shape(found, (*x.shape[:axis], *x.shape[axis + 1 :]))
    if math.prod(matrix.shape[:-2]) != 1:
        raise ValueError(f"has a stack of matrices of shape {matrix.shape}; one matrix is supported")
    extra = (1,) * max(0, matrix.ndim - max(2, len(x.shape)))
    matrix = matrix.reshape(matrix.shape[-2:])
    found = c.along(x, -2 if left and len(x.shape) > 1 else -1, matrix if left else matrix.T)
    return _with_shape(found, (*extra, *found.shape))


def _mean(c: _Converter, node: OnnxNode, x: Operand, axes: Operand | None = None) -> Operand:
    return _reduced(c, node, _value(x), axes, mean=True)


def _total(c: _Converter, node: OnnxNode, x: Operand, axes: Operand | None = None) -> Operand:
    return _reduced(c, node, _value(x), axes, mean=False)


def _reduced(c: _Converter, node: OnnxNode, x: _Value, axes: Operand | None, *, mean: bool) -> Operand:
    found = _list_option(node, "axes", axes)
    if not found and node.get("noop_with_empty_axes", 0):
        return x
    chosen = sorted({_axis(axis, len(x.shape)) for axis in found or range(len(x.shape))})
    for axis in chosen:
        count = x.shape[axis]
        if count > 1:
            x = c.along(x, axis, np.ones((1, count)))
            x = c.with_constant(x, np.array(float(count)), _divided) if mean else x
    keep = node.get("keepdims", 1)
    return x if keep else _with_shape(x, [n for axis, n in enumerate(x.shape) if axis not in chosen])


def _divided(key: str, shape: Shape) -> Op:
    return Scale(key, shape, divide=True)


def _batch_norm(
    c: _Converter, node: OnnxNode, x: Operand, scale: Operand, bias: Operand, mean: Operand, var: Operand
) -> Operand:
    value, arrays = _value(x), [_constant(array) for array in (scale, bias, mean, var)]
    if node.get("training_mode", 0) or not node.get("spatial", 1):
        raise ValueError("is in training mode or normalises positions by themselves")
    if len(value.shape) < 2 or value.shape[0] != 1 or any(array.shape != (value.shape[1],) for array in arrays):
        raise ValueError(f"has statistics that do not fit a batch of one sample of shape {value.shape}")
    epsilon = node.get("epsilon", 1e-5)
    if not np.all(arrays[3] + epsilon > 0):
        raise ValueError("has variances that are not positive")
    weight, shift = (c.param(what, a, trainable=True) for what, a in zip(("weight", "bias"), arrays, strict=False))
    keys = (c.param("running_mean", arrays[2]), c.param("running_var", arrays[3]))
    name = c.shaped(value, value.shape[1:])
    op = BatchNorm(weight, shift, *keys, epsilon, 0.1, value.shape[1:])
    return _Value(c.builder.add(c.name, op, name), value.shape)


# ------------------------------------------------------------------------------------------------- windows


def _conv(c: _Converter, node: OnnxNode, x: Operand, weight: Operand, bias: Operand | None = None) -> Operand:
    kernel, offset = _kernel(node, weight), None if bias is None else _constant(bias)
    name = c.image(_value(x), kernel.ndim - 2)
    facts = windows.read(node, c.builder.shapes[name][1:], _constant(weight).shape[2:])
    kernel, padding, dilation = windows.evenly_padded(_as_image(kernel), facts)
    found = c.convolved(name, kernel, offset, facts.stride, padding, dilation, node.get("group", 1))
    return c.from_image(found, _constant(weight).ndim - 2)


def _kernel(node: OnnxNode, weight: Operand) -> Array:
    kernel = _constant(weight)
    if kernel.ndim not in (3, 4):
        raise ValueError(f"has {kernel.ndim - 2} spatial axes; 1 and 2 are supported")
    if node.get("kernel_shape", tuple(kernel.shape[2:])) != tuple(kernel.shape[2:]) or node.get("group", 1) < 1:
        raise ValueError(f"has weights of shape {kernel.shape} that do not fit its attributes")
    return kernel


def _as_image(kernel: Array) -> Array:
    return kernel if kernel.ndim == 4 else kernel[:, :, None]


def _conv_transpose(c: _Converter, node: OnnxNode, x: Operand, weight: Operand, bias: Operand | None = None) -> Operand:
    kernel, groups = _kernel(node, weight), node.get("group", 1)
    dims = kernel.ndim - 2
    name = c.image(_value(x), dims)
    shape = c.builder.shapes[name]
    facts = windows.read(node, shape[1:], kernel.shape[2:])
    if "output_shape" in node.attributes or node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ValueError("has output_shape or auto_pad; give pads instead")
    kernel = _as_image(kernel)
    if kernel.shape[0] != shape[0] or shape[0] % groups:
        raise ValueError(f"has weights {kernel.shape} in {groups} groups for images {shape}")
    extra = windows.on_both_axes(node.get("output_padding", (0,) * dims), 0)
    extra = (extra[0] + facts.begin[0] - facts.end[0], extra[1] + facts.begin[1] - facts.end[1])
    limits = [max(s, d) for s, d in zip(facts.stride, facts.dilation, strict=True)]
    if any(not 0 <= e < limit for e, limit in zip(extra, limits, strict=True)):
        raise ValueError("pads its two sides too differently")
    channels = kernel.shape[1] * groups
    key = c.param("weight", kernel, trainable=True)
    offset = None if bias is None else _constant(bias)
    if offset is not None and offset.shape != (channels,):
        raise ValueError(f"has a bias {offset.shape} for {channels} channels")
    bias_key = None if offset is None else c.param("bias", offset, trainable=True)
    size = (int(kernel.shape[2]), int(kernel.shape[3]))
    op = ConvTranspose2d(key, bias_key, shape, channels, size, facts.stride, facts.begin, extra, facts.dilation, groups)
    if min(op.output_shape(shape)) < 1:
        raise ValueError(f"has more padding than output for images {shape}")
    _bounded(op.output_shape(shape))
    return c.from_image(c.builder.add(c.name, op, name), dims)


def _max_pool(c: _Converter, node: OnnxNode, x: Operand) -> Operand:
    dims = len(_value(x).shape) - 2
    name = c.image(_value(x), dims)
    facts = windows.read(node, c.builder.shapes[name][1:], node.get("kernel_shape", ()))
    rows, columns = windows.pool_axes(facts, c.builder.shapes[name][1:], ceil=bool(node.get("ceil_mode", 0)))
    return c.from_image(c.builder.max_pool(c.name, name, rows, columns), dims)


def _average_pool(c: _Converter, node: OnnxNode, x: Operand) -> Operand:
    dims = len(_value(x).shape) - 2
    name = c.image(_value(x), dims)
    shape = c.builder.shapes[name]
    facts = windows.read(node, shape[1:], node.get("kernel_shape", ()))
    if facts.dilation != (1, 1):
        raise ValueError("has dilated windows")
    axes = windows.pool_axes(facts, shape[1:], ceil=bool(node.get("ceil_mode", 0)))
    if any(axis != plain for axis, plain in zip(axes, windows.pool_axes(facts, shape[1:], ceil=False), strict=True)):
        raise ValueError("has windows that reach outside (ceil_mode)")
    if facts.begin == facts.end == (0, 0):
        op = AvgPool2d(shape, facts.kernel, facts.stride, (0, 0), math.prod(facts.kernel))
        return c.from_image(c.builder.add(c.name, op, name), dims)
    ones, padding, _ = windows.evenly_padded(np.ones((shape[0], 1, *facts.kernel)), facts)
    total = c.from_image(c.convolved(name, ones, None, facts.stride, padding, (1, 1), shape[0]), dims)
    counted = bool(node.get("count_include_pad", 0))
    sizes = windows.pool_sizes(facts, shape[1:], total.shape[-2:] if dims == 2 else (1, total.shape[-1]), counted)
    return c.with_constant(total, sizes if dims == 2 else sizes[0], _divided)


def _global_average_pool(c: _Converter, node: OnnxNode, x: Operand) -> Operand:
    dims = len(_value(x).shape) - 2
    name = c.image(_value(x), dims)
    shape = c.builder.shapes[name]
    size = (shape[1], shape[2])
    return c.from_image(c.builder.add(c.name, AvgPool2d(shape, size, size, (0, 0), math.prod(size)), name), dims)


def _pad(
    c: _Converter,
    node: OnnxNode,
    x: Operand,
    pads: Operand | None = None,
    fill: Operand | None = None,
    axes: Operand | None = None,
) -> Operand:
    value, amounts = _value(x), _list_option(node, "pads", pads)
    number = node.get("value", 0.0) if fill is None else _number(fill)
    if node.get("mode", "constant") != "constant" or number != 0 or axes is not None:
        raise ValueError("pads with something else than 0")
    dims = len(value.shape)
    if amounts is None or len(amounts) != 2 * dims or min(amounts) < 0 or max(amounts) > LARGEST_TENSOR:
        raise ValueError(f"pads a tensor of shape {value.shape} by {amounts}")
    if not any(amounts):
        return value
    if dims not in (3, 4) or any(amounts[i] for i in (0, 1, dims, dims + 1)):
        raise ValueError("pads batch or channels; only images can be padded")
    name = c.image(value, dims - 2)
    channels, height, width = c.builder.shapes[name]
    facts = windows.identity(amounts[2:dims], amounts[dims + 2 :])
    _bounded((channels, height + facts.begin[0] + facts.end[0], width + facts.begin[1] + facts.end[1]))
    kernel, padding, _ = windows.evenly_padded(np.ones((channels, 1, 1, 1)), facts)
    return c.from_image(c.convolved(name, kernel, None, (1, 1), padding, (1, 1), channels), dims - 2)


# ------------------------------------------------------------------------------------------- the operators


def _elementwise(op: Op) -> Callable[..., Operand]:
    return lambda c, node, x: c.op(op, _value(x))


def _leaky_relu(c: _Converter, node: OnnxNode, x: Operand) -> Operand:
    slope = node.get("alpha", 0.009999999776482582)  # 0.01 in float32, as the standard has it
    if not 0.0 <= slope <= 1.0:
        raise ValueError(f"has alpha = {slope}; it must be in [0, 1]")
    return c.op(LeakyRelu(slope), _value(x))


_HANDLERS: dict[str, Callable[..., Operand | list[Operand]]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _stored,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _div,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "Max": _max,
    "MaxPool": _max_pool,
    "Min": _min,
    "Mul": _mul,
    "Neg": _negate,
    "Pad": _pad,
    "ReduceMean": _mean,
    "ReduceSum": _total,
    "Relu": _elementwise(Relu()),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _elementwise(Sigmoid()),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _sub,
    "Sum": _sum,
    "Tanh": _elementwise(Tanh()),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
