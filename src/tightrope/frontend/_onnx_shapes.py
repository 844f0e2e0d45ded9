"""ONNX operators that keep numbers as they are: constants, shapes, and where entries go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tightrope.frontend._onnx_converter import (
    Converter,
    Handlers,
    Operand,
    Value,
    constant_of,
    ints_of,
    list_option,
    number_of,
    positive_axis,
    sample_shape,
    value_of,
    with_shape,
)
from tightrope.frontend._onnx_model import Array, OnnxNode
from tightrope.ops.concat import Concat
from tightrope.ops.transpose import Transpose


def _stored(c: Converter, node: OnnxNode) -> Operand:
    """Constant."""
    if isinstance(node.attributes.get("value"), np.ndarray):
        return constant_of(node.attributes["value"])
    for key in ("value_int", "value_ints", "value_float", "value_floats"):
        if key in node.attributes:
            value = node.attributes[key]
            return np.array(value, dtype=np.int64 if "int" in key else np.float64)
    raise ValueError("has no number")


def _filled(c: Converter, node: OnnxNode, shape: Operand | None) -> Operand:
    """ConstantOfShape."""
    value = node.attributes.get("value", np.zeros(1))
    return np.full(c.made(ints_of(shape)), value.reshape(()), dtype=value.dtype)


def _identity(c: Converter, node: OnnxNode, x: Operand, *_: Operand | None) -> Operand:
    return x


def _dropout(c: Converter, node: OnnxNode, x: Operand, ratio: Any = None, training: Any = None) -> Operand:
    if training is not None and number_of(training) != 0:
        raise ValueError("is in training mode; export the network in evaluation mode")
    return x


def _cast(c: Converter, node: OnnxNode, x: Operand) -> Operand:
    """Floats stay what they are: the network is one of real numbers."""
    floating = node.get("to", 0) in (1, 10, 11)
    if isinstance(x, Value):
        if not floating:
            raise ValueError("rounds what depends on the input to integers")
        return x
    return x.astype(np.float64 if floating else np.int64)


def _shape(c: Converter, node: OnnxNode, x: Operand) -> Operand:
    end = node.get("end", len(x.shape))
    return np.array(x.shape[node.get("start", 0) : end], dtype=np.int64)


def _reshape(c: Converter, node: OnnxNode, x: Operand, shape: Operand | None = None) -> Operand:
    target = list(list_option(node, "shape", shape) or ())
    if not node.get("allowzero", 0):
        target = [x.shape[axis] if n == 0 else n for axis, n in enumerate(target)]
    if target.count(-1) == 1:
        known = -math.prod(target)
        target[target.index(-1)] = math.prod(x.shape) // known if known else 0
    return with_shape(x, target)


def _flatten(c: Converter, node: OnnxNode, x: Operand) -> Operand:
    axis = node.get("axis", 1)
    axis = axis if axis == len(x.shape) else positive_axis(axis, len(x.shape))
    return with_shape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _squeeze(c: Converter, node: OnnxNode, x: Operand, axes: Operand | None = None) -> Operand:
    found = list_option(node, "axes", axes)
    dropped = {i for i, n in enumerate(x.shape) if n == 1}
    if found is not None:
        chosen = {positive_axis(axis, len(x.shape)) for axis in found}
        if not chosen <= dropped:
            raise ValueError(f"drops the axes {found} of a tensor of shape {tuple(x.shape)}")
        dropped = chosen
    return with_shape(x, [n for i, n in enumerate(x.shape) if i not in dropped])


def _unsqueeze(c: Converter, node: OnnxNode, x: Operand, axes: Operand | None = None) -> Operand:
    found = list_option(node, "axes", axes) or ()
    dims = len(x.shape) + len(found)
    if dims > 32:
        raise ValueError(f"makes a tensor with {dims} axes")
    places = {positive_axis(axis, dims) for axis in found}
    rest = iter(x.shape)
    return with_shape(x, [1 if i in places else next(rest, 0) for i in range(dims)])


def _transpose(c: Converter, node: OnnxNode, x: Operand) -> Operand:
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
        return Value(x.name, shape)
    name = c.shaped(x, tuple(x.shape[axis] for axis in wide))
    return Value(c.builder.add(c.name, Transpose(tuple(wide.index(axis) for axis in moved)), name), shape)


def _taken(c: Converter, x: Operand, axis: int, positions: Array) -> Operand:
    """Entries along an axis by their positions."""
    if isinstance(x, np.ndarray):
        c.made((*x.shape[:axis], len(positions), *x.shape[axis + 1 :]))
        return x.take(positions, axis)
    count = x.shape[axis]
    if len(positions) == count and bool((positions == np.arange(count)).all()):
        return x
    if len(positions) == 0:
        raise ValueError("takes nothing")
    matrix = np.zeros(c.made((len(positions), count)))
    matrix[np.arange(len(positions)), positions] = 1.0
    return c.along(x, axis, matrix)


def _gather(c: Converter, node: OnnxNode, x: Operand, index: Operand) -> Operand:
    axis, index = positive_axis(node.get("axis", 0), len(x.shape)), constant_of(index)
    count = x.shape[axis]
    if index.dtype != np.int64 or bool(((index < -count) | (index >= count)).any()):
        raise ValueError(f"takes entries that an axis of {count} does not have")
    found = _taken(c, x, axis, index.reshape(-1) % count)
    return with_shape(found, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _slice(c: Converter, node: OnnxNode, x: Operand, *operands: Operand | None) -> Operand:
    options = dict(zip(("starts", "ends", "axes", "steps"), (*operands, None, None, None, None), strict=False))
    starts, ends, axes, steps = (list_option(node, key, value) for key, value in options.items())
    if starts is None or ends is None:
        raise ValueError("has no starts or ends")
    axes = tuple(range(len(starts))) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps or (1,) * len(starts), strict=True):
        axis = positive_axis(axis, len(x.shape))
        stop = None if step < 0 and end < -x.shape[axis] else end
        x = _taken(c, x, axis, np.arange(x.shape[axis])[slice(start, stop, step)])
    return x


def _split(c: Converter, node: OnnxNode, x: Operand, sizes: Operand | None = None) -> list[Operand]:
    axis = positive_axis(node.get("axis", 0), len(x.shape))
    parts = list_option(node, "split", sizes)
    if parts is None:
        count = len(node.outputs)
        size = -(-x.shape[axis] // count)
        parts = (*[size] * (count - 1), x.shape[axis] - size * (count - 1))
    if min(parts) < 1 or sum(parts) != x.shape[axis]:
        raise ValueError(f"splits {x.shape[axis]} entries into {parts}")
    ends = np.cumsum(parts)
    return [_taken(c, x, axis, np.arange(end - n, end)) for n, end in zip(parts, ends, strict=True)]


def _concat(c: Converter, node: OnnxNode, *parts: Operand | None) -> Operand:
    if all(isinstance(part, np.ndarray) for part in parts):
        arrays = [constant_of(part) for part in parts]
        c.made((sum(array.size for array in arrays),))
        return np.concatenate(arrays, node.get("axis", 0))
    values = [value_of(part) for part in parts]
    dims = len(values[0].shape)
    axis = positive_axis(node.get("axis", 0), dims)
    shapes = [sample_shape(value.shape) for value in values]
    offset = dims - len(shapes[0])
    if axis < offset or any(
        len(value.shape) != dims or len(s) != dims - offset for value, s in zip(values, shapes, strict=True)
    ):
        raise ValueError(f"joins {', '.join(str(value.shape) for value in values)} along the batch")
    op = Concat(axis - offset, tuple(shape[axis - offset] for shape in shapes))
    names = (c.shaped(value, shape) for value, shape in zip(values, shapes, strict=True))
    name = c.builder.add(c.name, op, *names)
    return Value(name, (*(1,) * offset, *c.builder.shapes[name]))


def _expand(c: Converter, node: OnnxNode, x: Operand, shape: Operand) -> Operand:
    target = np.broadcast_shapes(tuple(x.shape), ints_of(shape))
    return np.broadcast_to(x, c.made(target)) if isinstance(x, np.ndarray) else with_shape(x, target)


HANDLERS: Handlers = {
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _stored,
    "ConstantOfShape": _filled,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
