"""ONNX operators that calculate: entry by entry, and with matrices."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tightrope.core.bounds import Shape
from tightrope.core.op import Op
from tightrope.frontend._onnx_converter import (
    Converter,
    Handlers,
    Operand,
    Value,
    constant_of,
    list_option,
    positive_axis,
    sample_shape,
    value_of,
    with_shape,
)
from tightrope.frontend._onnx_model import Array, OnnxNode
from tightrope.ops.add import Add
from tightrope.ops.leaky_relu import LeakyRelu
from tightrope.ops.relu import Relu
from tightrope.ops.scale import Scale
from tightrope.ops.shift import Shift
from tightrope.ops.sigmoid import Sigmoid
from tightrope.ops.tanh import Tanh


def _elementwise(op: Op) -> Callable[..., Operand]:
    return lambda c, node, x: c.op(op, value_of(x))


def _leaky_relu(c: Converter, node: OnnxNode, x: Operand) -> Operand:
    slope = node.get("alpha", 0.009999999776482582)  # 0.01 in float32, as the standard has it
    if not 0.0 <= slope <= 1.0:
        raise ValueError(f"has alpha = {slope}; it must be in [0, 1]")
    return c.op(LeakyRelu(slope), value_of(x))


def _folded(c: Converter, a: Array, b: Array, combine: Callable[[Array, Array], Array]) -> Array:
    c.made(np.broadcast_shapes(a.shape, b.shape))
    with np.errstate(all="ignore"):  # what comes of it is refused as a weight
        return np.asarray(combine(a, b))


def _add(c: Converter, node: OnnxNode, a: Operand, b: Operand, sign: int = 1) -> Operand:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _folded(c, a, b, np.add if sign > 0 else np.subtract)
    if isinstance(a, Value) and isinstance(b, Value):
        x, y, shape = _aligned(c, a, b)
        return Value(c.builder.add(c.name, Add(sign), x, y), shape)
    if isinstance(a, Value):
        return c.with_constant(a, constant_of(b), lambda key, shape: Shift(key, shape, sign))
    b = value_of(b)
    b = b if sign > 0 else _negate(c, node, b)
    return c.with_constant(value_of(b), constant_of(a), Shift)


def _aligned(c: Converter, a: Value, b: Value) -> tuple[str, str, Shape]:
    """Two values as nodes of one shape."""
    shape = tuple(np.broadcast_shapes(a.shape, b.shape))
    if not math.prod(shape) == math.prod(a.shape) == math.prod(b.shape):
        raise ValueError(f"stretches values of shapes {a.shape} and {b.shape} to each other")
    return c.shaped(a, sample_shape(shape)), c.shaped(b, sample_shape(shape)), shape


def _sub(c: Converter, node: OnnxNode, a: Operand, b: Operand) -> Operand:
    return _add(c, node, a, b, -1)


def _sum(c: Converter, node: OnnxNode, first: Operand, *rest: Operand) -> Operand:
    for other in rest:
        first = _add(c, node, first, other)
    return first


def _mul(c: Converter, node: OnnxNode, a: Operand, b: Operand) -> Operand:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _folded(c, a, b, np.multiply)
    if isinstance(a, np.ndarray):
        a, b = b, a
    if isinstance(b, Value):
        raise ValueError("multiplies two values that both depend on the input")
    return c.with_constant(value_of(a), constant_of(b), Scale)


def _div(c: Converter, node: OnnxNode, a: Operand, b: Operand) -> Operand:
    if isinstance(b, Value):
        raise ValueError("divides by what depends on the input")
    if not np.all(b):
        raise ValueError("divides by 0")
    if isinstance(a, np.ndarray):
        whole = a.dtype == b.dtype == np.int64
        return _folded(c, a, b, (lambda x, y: np.sign(x) * np.sign(y) * (abs(x) // abs(y))) if whole else np.divide)
    return c.with_constant(a, b, lambda key, shape: Scale(key, shape, divide=True))


def _negate(c: Converter, node: OnnxNode, x: Operand) -> Operand:
    return np.asarray(-x) if isinstance(x, np.ndarray) else c.op(Scale(-1.0, c.builder.shapes[x.name]), x)


def _max(c: Converter, node: OnnxNode, first: Operand, *rest: Operand) -> Operand:
    for other in rest:
        first = _larger(c, first, other)
    return first


def _larger(c: Converter, a: Operand, b: Operand) -> Operand:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _folded(c, a, b, np.maximum)
    if isinstance(a, Value) and isinstance(b, Value):
        x, y, shape = _aligned(c, a, b)
        return Value(c.builder.maximum(c.name, x, y), shape)
    value, limit = (a, constant_of(b)) if isinstance(a, Value) else (value_of(b), a)
    if not limit.any():
        return c.op(Relu(), value)
    excess = c.op(Relu(), c.with_constant(value, limit, lambda key, shape: Shift(key, shape, -1)))
    return c.with_constant(excess, limit, Shift)


def _min(c: Converter, node: OnnxNode, *operands: Operand) -> Operand:
    return _negate(c, node, _max(c, node, *(_negate(c, node, operand) for operand in operands)))


def _clip(c: Converter, node: OnnxNode, x: Operand, low: Operand | None = None, high: Operand | None = None) -> Operand:
    limits = [
        np.array(node.get(key, 0.0)) if key in node.attributes else operand
        for key, operand in (("min", low), ("max", high))
    ]
    x = x if limits[0] is None else _larger(c, x, constant_of(limits[0]))
    return x if limits[1] is None else _min(c, node, x, constant_of(limits[1]))


def _gemm(c: Converter, node: OnnxNode, a: Operand, b: Operand, offset: Operand | None = None) -> Operand:
    flips = bool(node.get("transA", 0)), bool(node.get("transB", 0))
    a, b = (_flipped(c, x) if flip else x for x, flip in zip((a, b), flips, strict=True))
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise ValueError(f"multiplies tensors of shapes {a.shape} and {b.shape}; matrices are needed")
    bias = None if offset is None else node.get("beta", 1.0) * constant_of(offset)
    alpha = node.get("alpha", 1.0)
    if isinstance(b, np.ndarray):
        if bias is not None and len(value_of(a).shape) == 2 and a.shape[0] == 1 and bias.size in (1, b.shape[1]):
            bias = np.broadcast_to(bias.reshape(-1), (b.shape[1],))
            return c.along(value_of(a), 1, alpha * b.T, bias)
        product = c.along(value_of(a), 1, alpha * b.T)
    else:
        product = c.along(b, 0, alpha * constant_of(a))
    return product if bias is None else c.with_constant(product, bias, Shift)


def _flipped(c: Converter, x: Operand) -> Operand:
    if isinstance(x, np.ndarray):
        return x.T
    if len(x.shape) != 2 or 1 not in x.shape:
        raise ValueError(f"transposes a value of shape {x.shape}; use Transpose")
    return Value(x.name, (x.shape[1], x.shape[0]))


def _matmul(c: Converter, node: OnnxNode, a: Operand, b: Operand) -> Operand:
    left = isinstance(a, np.ndarray)
    matrix, x = (constant_of(a), value_of(b)) if left else (constant_of(b), value_of(a))
    if matrix.ndim == 1:
        found = c.along(x, -2 if left and len(x.shape) > 1 else -1, matrix[None])
        axis = len(x.shape) - (2 if left and len(x.shape) > 1 else 1)
        return with_shape(found, (*x.shape[:axis], *x.shape[axis + 1 :]))
    if math.prod(matrix.shape[:-2]) != 1:
        raise ValueError(f"has a stack of matrices of shape {matrix.shape}; one matrix is supported")
    extra = (1,) * max(0, matrix.ndim - max(2, len(x.shape)))
    matrix = matrix.reshape(matrix.shape[-2:])
    found = c.along(x, -2 if left and len(x.shape) > 1 else -1, matrix if left else matrix.T)
    return with_shape(found, (*extra, *found.shape))


def _mean(c: Converter, node: OnnxNode, x: Operand, axes: Operand | None = None) -> Operand:
    return _reduced(c, node, value_of(x), axes, mean=True)


def _total(c: Converter, node: OnnxNode, x: Operand, axes: Operand | None = None) -> Operand:
    return _reduced(c, node, value_of(x), axes, mean=False)


def _reduced(c: Converter, node: OnnxNode, x: Value, axes: Operand | None, *, mean: bool) -> Operand:
    found = list_option(node, "axes", axes)
    if not found and node.get("noop_with_empty_axes", 0):
        return x
    chosen = sorted({positive_axis(axis, len(x.shape)) for axis in found or range(len(x.shape))})
    for axis in chosen:
        count = x.shape[axis]
        if count > 1:
            x = c.along(x, axis, np.ones((1, count)))
            x = c.with_constant(x, np.array(float(count)), divided) if mean else x
    keep = node.get("keepdims", 1)
    return x if keep else with_shape(x, [n for axis, n in enumerate(x.shape) if axis not in chosen])


def divided(key: str, shape: Shape) -> Op:
    return Scale(key, shape, divide=True)


HANDLERS: Handlers = {
    "Add": _add,
    "Clip": _clip,
    "Div": _div,
    "Gemm": _gemm,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "Max": _max,
    "Min": _min,
    "Mul": _mul,
    "Neg": _negate,
    "ReduceMean": _mean,
    "ReduceSum": _total,
    "Relu": _elementwise(Relu()),
    "Sigmoid": _elementwise(Sigmoid()),
    "Sub": _sub,
    "Sum": _sum,
    "Tanh": _elementwise(Tanh()),
}
