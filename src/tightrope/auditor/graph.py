"""A canonical graph as matrices: every affine op is a matrix and a vector on flattened values.

Values are vectors in row-major order. What an op does is written down here from its definition, once more and apart
from ``tightrope.ops``, so that a mistake there does not repeat itself here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Shape = tuple[int, ...]
Matrix = Any
"""(outputs, inputs): dense, or scipy's ``csr_array``."""

INPUT = "input"


@dataclass(frozen=True)
class Affine:
    """``sum of matrix @ value over the inputs, + bias``.

    Attributes:
        matrices: one for each input.
        bias: (outputs,).
        spread: bound of the relative error of every entry of the matrices, in units of 2^-53.
        bias_error: bound of the error of every entry of the bias.
        largest: whether the value is the larger one of its first two inputs.
    """

    matrices: tuple[Matrix, ...]
    bias: Array
    spread: int = 0
    bias_error: Array | float = 0.0
    largest: bool = False


@dataclass(frozen=True)
class Activation:
    """The same function of every entry: ``relu`` (max(x, slope x)), ``tanh`` or ``sigmoid``."""

    function: str
    slope: float = 0.0


@dataclass(frozen=True)
class Step:
    """One op of the graph."""

    name: str
    op: Affine | Activation
    inputs: tuple[str, ...]
    size: int


class GraphError(ValueError):
    """A graph that cannot be interpreted."""


class Graph:
    """The ops of a canonical graph with their weights, in order.

    Args:
        graph: see :class:`tightrope.records.certificate.Model`.
        weights: by name, of any floating-point type; they are read as float64, which changes none of them.

    Raises:
        GraphError, LookupError, TypeError, ValueError: it is not such a graph.
    """

    def __init__(self, graph: Mapping[str, Any], weights: Mapping[str, npt.NDArray[Any]]) -> None:
        self._weights = {name: _float64(name, value) for name, value in weights.items() if value.dtype.kind == "f"}
        self.shapes: dict[str, Shape] = {INPUT: tuple(int(n) for n in graph["input_shape"])}
        self.steps: dict[str, Step] = {}
        for node in graph["nodes"]:
            self._add(node)
        self.output = graph["nodes"][-1]["name"]
        if len(self.shapes[self.output]) != 1 or min(math.prod(shape) for shape in self.shapes.values()) < 1:
            raise GraphError("the output is not a vector, or a shape is empty")

    def size(self, name: str) -> int:
        """Number of entries of a value."""
        return math.prod(self.shapes[name])

    def pre_activations(self) -> list[str]:
        """Values that activations are applied to, in order."""
        found = (step.inputs[0] for step in self.steps.values() if isinstance(step.op, Activation))
        return list(dict.fromkeys(found))

    def _add(self, node: Mapping[str, Any]) -> None:
        name, inputs = str(node["name"]), tuple(node["inputs"])
        if name in self.shapes or not all(i in self.shapes for i in inputs) or not inputs:
            raise GraphError(f"node {name!r} is there twice, or uses a later one")
        if node["op"] not in OPS:
            raise GraphError(f"node {name!r} has the unknown op {node['op']!r}")
        op, shape = OPS[node["op"]](self, node["facts"], inputs)
        if len(inputs) != (len(op.matrices) if isinstance(op, Affine) else 1):
            raise GraphError(f"node {name!r} has {len(inputs)} inputs")
        if shape != tuple(node["shape"]):
            raise GraphError(f"node {name!r} has shape {shape}, not {tuple(node['shape'])}")
        self.shapes[name] = shape
        self.steps[name] = Step(name, op, inputs, math.prod(shape))

    # ------------------------------------------------------------------------------------------------ weights

    def weight(self, key: str) -> Array:
        """A tensor by name."""
        return self._weights[key]

    def bias(self, key: str | None, channels: int, positions: int) -> Array:
        """One number a channel, spread over its positions."""
        return np.repeat(np.zeros(channels) if key is None else self._weights[key].reshape(channels), positions)

    def constant(self, value: str | float, shape: Shape) -> Array:
        """A number or a tensor, broadcast to a sample."""
        constant = self._weights[value] if isinstance(value, str) else np.array(float(value))
        constant = constant[0] if constant.ndim > len(shape) else constant
        return np.broadcast_to(constant, shape).ravel()


def _float64(name: str, value: npt.NDArray[Any]) -> Array:
    if not np.isfinite(value).all():
        raise GraphError(f"the weights {name!r} have NaN or infinite entries")
    return value.astype(np.float64)


# ------------------------------------------------------------------------------------------------------- ops

Facts = Mapping[str, Any]
Found = tuple[Affine | Activation, Shape]


def _linear(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    weight = graph.weight(facts["weight"])
    return Affine((weight,), graph.bias(facts["bias_key"], len(weight), 1)), (len(weight),)


def _conv2d(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    weight, shape = graph.weight(facts["weight"]), graph.shapes[inputs[0]]
    grid = _grid(shape, weight.shape[2:], facts["stride"], facts["padding"], facts["dilation"])
    matrix = _convolution(weight, shape, grid, facts)
    return Affine((matrix,), graph.bias(facts["bias_key"], len(weight), math.prod(grid))), (len(weight), *grid)


def _conv_transpose2d(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    weight, (_, height, width) = graph.weight(facts["weight"]), graph.shapes[inputs[0]]
    channels = weight.shape[1] * facts["groups"]
    extent = (
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, k, s, p, o, d in zip(
            (height, width),
            weight.shape[2:],
            *(facts[name] for name in ("stride", "padding", "output_padding", "dilation")),
            strict=True,
        )
    )
    after = (channels, *extent)
    matrix = _convolution(weight, after, (height, width), facts).T.tocsr()
    return Affine((matrix,), graph.bias(facts["bias_key"], channels, math.prod(after[1:]))), after


def _avgpool2d(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    shape, kernel = graph.shapes[inputs[0]], tuple(facts["kernel"])
    geometry = {**facts, "dilation": (1, 1), "groups": shape[0]}
    grid = _grid(shape, kernel, facts["stride"], facts["padding"], (1, 1))
    weight = np.full((shape[0], 1, *kernel), 1.0 / facts["divisor"])
    matrix = _convolution(weight, shape, grid, geometry)
    return Affine((matrix,), np.zeros(matrix.shape[0]), spread=1), (shape[0], *grid)


def _batchnorm(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    """(x - mean) weight / sqrt(var + epsilon) + bias; five roundings to the factor, seven to the constant."""
    shape = graph.shapes[inputs[0]]
    channels, positions = shape[0], math.prod(shape[1:])
    scale = 1.0 / np.sqrt(graph.weight(facts["var"]) + facts["epsilon"])
    scale = scale if facts["weight"] is None else scale * graph.weight(facts["weight"])
    shift = graph.weight(facts["mean"]) * scale
    bias = graph.bias(facts["bias_key"], channels, 1)
    size = np.abs(shift) + np.abs(bias)
    spread = [np.repeat(value, positions) for value in (scale, bias - shift, 10 * 2.0**-53 * size)]
    return Affine((_diagonal(spread[0]),), spread[1], spread=8, bias_error=spread[2]), shape


def _scale(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    shape = graph.shapes[inputs[0]]
    factor = graph.constant(facts["factor"], shape)
    factor = 1.0 / factor if facts["divide"] else factor
    return Affine((_diagonal(factor),), np.zeros(factor.size), spread=int(facts["divide"])), shape


def _shift(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    shape = graph.shapes[inputs[0]]
    offset = _sign(facts["sign"]) * graph.constant(facts["offset"], shape)
    return Affine((_diagonal(np.ones(offset.size)),), offset), shape


def _reshape(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    size, after = graph.size(inputs[0]), tuple(facts["after"])
    if math.prod(after) != size:
        raise GraphError(f"{size} entries cannot have the shape {after}")
    return Affine((_diagonal(np.ones(size)),), np.zeros(size)), after


def _transpose(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    shape = graph.shapes[inputs[0]]
    order = np.arange(math.prod(shape)).reshape(shape).transpose(facts["axes"])
    return Affine((_selection(order.ravel(), order.size),), np.zeros(order.size)), order.shape


def _add(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    first, second = (graph.shapes[name] for name in inputs)
    if first != second:
        raise GraphError(f"samples of shapes {first} and {second} cannot be added")
    ones = np.ones(math.prod(first))
    return Affine((_diagonal(ones), _diagonal(_sign(facts["sign"]) * ones)), 0.0 * ones), first


def _concat(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    axis, shapes = facts["axis"], [graph.shapes[name] for name in inputs]
    sizes = [math.prod(shape) for shape in shapes]
    starts = np.cumsum([0, *sizes])
    parts = [np.arange(*ends).reshape(shape) for ends, shape in zip(pairwise(starts), shapes, strict=True)]
    order = np.concatenate(parts, axis)  # which entry of the inputs, one after the other, comes where
    matrix = _selection(order.ravel(), starts[-1]).tocsc()
    pieces = tuple(matrix[:, first:last].tocsr() for first, last in pairwise(starts))
    return Affine(pieces, np.zeros(order.size)), order.shape


def _tap(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    """The entry at ``offset`` of every window along an axis; if that is outside, the nearest one inside."""
    shape, axis = graph.shapes[inputs[0]], facts["axis"]
    chosen = []
    for window in range(facts["count"]):
        start = window * facts["stride"] - facts["padding"]
        taps = [k for k in range(facts["kernel"]) if 0 <= start + facts["dilation"] * k < shape[axis]]
        chosen.append(start + facts["dilation"] * min(taps, key=lambda k: abs(k - facts["offset"])))
    order = np.arange(math.prod(shape)).reshape(shape).take(chosen, axis)
    return Affine((_selection(order.ravel(), math.prod(shape)),), np.zeros(order.size)), order.shape


def _maximum(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    """a + r, which is max(a, b) because r has to be relu(b - a)."""
    first, second, excess = inputs
    relu = graph.steps.get(excess)
    below = graph.steps.get(relu.inputs[0]) if relu is not None and relu.op == Activation("relu") else None
    ones = _diagonal(np.ones(graph.size(first)))
    is_difference = (
        below is not None
        and isinstance(below.op, Affine)
        and below.inputs == (second, first)
        and _equal(below.op.matrices[0], ones)
        and _equal(below.op.matrices[1], -ones)
        and not below.op.bias.any()
    )
    if not is_difference:
        raise GraphError("a maximum of a and b needs relu(b - a) as its third input")
    return Affine((ones, 0.0 * ones, ones), np.zeros(ones.shape[0]), largest=True), graph.shapes[first]


def _relu(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    return Activation("relu"), graph.shapes[inputs[0]]


def _leaky_relu(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    slope = float(facts["negative_slope"])
    if not 0.0 <= slope <= 1.0:
        raise GraphError(f"a leaky ReLU needs a slope in [0, 1], not {slope}")
    return Activation("relu", slope), graph.shapes[inputs[0]]


def _tanh(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    return Activation("tanh"), graph.shapes[inputs[0]]


def _sigmoid(graph: Graph, facts: Facts, inputs: tuple[str, ...]) -> Found:
    return Activation("sigmoid"), graph.shapes[inputs[0]]


OPS: dict[str, Callable[[Graph, Facts, tuple[str, ...]], Found]] = {
    "add": _add,
    "avgpool2d": _avgpool2d,
    "batchnorm": _batchnorm,
    "concat": _concat,
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "leaky_relu": _leaky_relu,
    "linear": _linear,
    "maximum": _maximum,
    "relu": _relu,
    "reshape": _reshape,
    "scale": _scale,
    "shift": _shift,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "tap": _tap,
    "transpose": _transpose,
}


# -------------------------------------------------------------------------------------------------- matrices


def _convolution(weight: Array, shape: Shape, grid: Shape, facts: Facts) -> Matrix:
    """Cross-correlation of images of ``shape``, with ``grid`` positions of the kernel, as a matrix."""
    groups = facts["groups"]
    outputs, taken = weight.shape[0] // groups, weight.shape[1]
    positions = math.prod(shape[1:])
    rows, columns, values = [], [], []
    for (i, j), where, seen in _taps(shape, weight.shape[2:], grid, facts):
        for group in range(groups):
            out = group * outputs + np.arange(outputs)[:, None, None]
            into = group * taken + np.arange(taken)[None, :, None]
            entries = weight[out[:, :, 0], into[:, :, 0] - group * taken, i, j][:, :, None]
            full = (outputs, taken, len(where))
            rows.append(np.broadcast_to(out * math.prod(grid) + where, full).ravel())
            columns.append(np.broadcast_to(into * positions + seen, full).ravel())
            values.append(np.broadcast_to(entries, full).ravel())
    size = (weight.shape[0] * math.prod(grid), shape[0] * positions)
    if taken * groups != shape[0]:
        raise GraphError(f"a convolution of {taken * groups} channels is applied to samples of shape {shape}")
    return sparse.csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=size)


def _taps(shape: Shape, kernel: Shape, grid: Shape, facts: Facts) -> Iterator[tuple[tuple[int, int], Ints, Ints]]:
    """For each entry of the kernel: the positions of the grid at which it lies inside the image, and where there."""
    (sh, sw), (ph, pw), (dh, dw) = (facts[name] for name in ("stride", "padding", "dilation"))
    _, height, width = shape
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            row = np.arange(grid[0]) * sh - ph + i * dh
            column = np.arange(grid[1]) * sw - pw + j * dw
            inside = ((row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))
            yield (i, j), np.flatnonzero(inside), (row[:, None] * width + column)[inside]


def _grid(shape: Shape, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Shape:
    facts = zip(shape[1:], kernel, stride, padding, dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in facts)


def _diagonal(values: Array) -> Matrix:
    return sparse.csr_array((values, (np.arange(values.size), np.arange(values.size))), shape=(values.size,) * 2)


def _selection(order: Ints, size: int) -> Matrix:
    """y[i] = x[order[i]]."""
    return sparse.csr_array((np.ones(order.size), (np.arange(order.size), order)), shape=(order.size, size))


def _equal(first: Matrix, second: Matrix) -> bool:
    return bool(sparse.issparse(first) and first.shape == second.shape and (first != second).nnz == 0)


def _sign(value: int) -> int:
    if value not in (1, -1):
        raise GraphError(f"a sign is 1 or -1, not {value}")
    return value
