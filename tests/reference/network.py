"""A network as plain float64 matrices on flattened vectors: the common language of the reference oracles.

Nothing here or in the sibling modules imports the library under test. A network is a list of nodes
``(name, layer, inputs)`` in topological order; the box the network is studied on is called ``"input"`` and
the last node is the output. Everything affine (convolution, pooling, batch normalisation) becomes one dense
matrix, written down entry by entry from its definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
PreBounds = Mapping[str, tuple[Array, Array]]  # activation node name -> bounds of what enters it
INPUT = "input"


@dataclass(frozen=True, eq=False)
class Affine:
    """x -> weight @ x + bias."""

    weight: Array
    bias: Array


@dataclass(frozen=True)
class Relu:
    """x -> max(x, 0), that is a leaky ReLU of slope 0."""

    slope: ClassVar[float] = 0.0


@dataclass(frozen=True)
class LeakyRelu:
    """x -> max(x, slope * x), convex because 0 <= slope < 1."""

    slope: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.slope < 1.0:
            raise ValueError(f"the reference covers slopes in [0, 1), got {self.slope}")


@dataclass(frozen=True)
class SShaped:
    """x -> tanh(x), or the logistic sigmoid 1 / (1 + exp(-x))."""

    kind: Literal["tanh", "sigmoid"]

    def __call__(self, x: Array) -> Array:
        return np.tanh(x) if self.kind == "tanh" else 1.0 / (1.0 + np.exp(-x))

    def derivative(self, x: float) -> float:
        """f'(x)."""
        value = float(self(np.array(x)))
        return 1.0 - value**2 if self.kind == "tanh" else value * (1.0 - value)


@dataclass(frozen=True)
class Add:
    """(x, y) -> x + y: the join of a residual block."""


Activation = Relu | LeakyRelu | SShaped
Layer = Affine | Relu | LeakyRelu | SShaped | Add


class Node(NamedTuple):
    """One step of the network; ``inputs`` are names of earlier nodes or ``"input"``."""

    name: str
    layer: Layer
    inputs: tuple[str, ...]


class Bounds(NamedTuple):
    """What every relaxation returns: bounds before each activation, and lower bounds of the margins."""

    pre: dict[str, tuple[Array, Array]]
    margins: Array


@dataclass(frozen=True)
class Net:
    """Nodes in topological order; the last one is the output."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        known = {INPUT}
        for node in self.nodes:
            arity = 2 if isinstance(node.layer, Add) else 1
            if len(node.inputs) != arity or not known.issuperset(node.inputs) or node.name in known:
                raise ValueError(f"node {node.name!r}: wrong number of inputs, unknown input or name taken")
            known.add(node.name)

    @property
    def output(self) -> str:
        """Name of the last node."""
        return self.nodes[-1].name


def sequential(layers: Sequence[Layer]) -> Net:
    """A feed-forward net; the nodes are called "0", "1", ..."""
    names = [INPUT, *map(str, range(len(layers)))]
    return Net(tuple(Node(names[i + 1], layer, (names[i],)) for i, layer in enumerate(layers)))


def graph(nodes: Iterable[tuple[str, Layer, Sequence[str]]]) -> Net:
    """A net from triples (name, layer, inputs)."""
    return Net(tuple(Node(name, layer, tuple(inputs)) for name, layer, inputs in nodes))


def evaluate(net: Net, x: Array) -> dict[str, Array]:
    """The value of every node at x, of shape (features,) or (points, features)."""
    values = {INPUT: np.asarray(x, dtype=np.float64)}
    for name, layer, inputs in net.nodes:
        first = values[inputs[0]]
        if isinstance(layer, Affine):
            values[name] = first @ layer.weight.T + layer.bias
        elif isinstance(layer, Add):
            values[name] = first + values[inputs[1]]
        else:
            values[name] = activate(layer, first)
    return values


def activate(layer: Activation, x: Array) -> Array:
    """The activation's value at every entry."""
    return layer(x) if isinstance(layer, SShaped) else np.maximum(x, layer.slope * x)


def output(net: Net, x: Array) -> Array:
    """f(x)."""
    return evaluate(net, x)[net.output]


def sizes(net: Net, input_size: int) -> dict[str, int]:
    """Number of entries of the input and of every node."""
    return {name: value.size for name, value in evaluate(net, np.zeros(input_size)).items()}


def offsets(rows: Array, offset: Array | None) -> Array:
    """The constant of each specification row; none given means 0."""
    return np.zeros(len(rows)) if offset is None else np.asarray(offset, dtype=np.float64)


# ------------------------------------------------------------------------------------- layers as matrices


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def conv_output_shape(
    input_shape: tuple[int, int, int],
    channels: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
) -> tuple[int, int, int]:
    """(channels, height, width) after a sliding window: floor((n + 2 p - d (k - 1) - 1) / s) + 1 per axis."""
    windows = zip(input_shape[1:], _pair(kernel), _pair(stride), _pair(padding), _pair(dilation), strict=True)
    height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in windows)
    return channels, height, width


def conv_matrix(
    weight: Array,
    bias: Array | None,
    input_shape: tuple[int, int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Affine:
    """Cross-correlation with zero padding; weight is (out, in / groups, kernel height, kernel width).

    y[o, r, q] = bias[o] + sum_{c, a, b} weight[o, c, a, b] x[g + c, s r - p + d a, s q - p + d b],
    where g is the first input channel of o's group and x is 0 outside the image.
    """
    weight = np.asarray(weight, dtype=np.float64)
    out_channels, group_in, *kernel = weight.shape
    (s_h, s_w), (p_h, p_w), (d_h, d_w) = _pair(stride), _pair(padding), _pair(dilation)
    shape = conv_output_shape(input_shape, out_channels, (kernel[0], kernel[1]), stride, padding, dilation)
    _, in_height, in_width = input_shape
    matrix = np.zeros((*shape, *input_shape))
    for o, r, q in np.ndindex(shape):
        group = o // (out_channels // groups)
        for c, a, b in product(range(group_in), range(kernel[0]), range(kernel[1])):
            i, j = s_h * r - p_h + d_h * a, s_w * q - p_w + d_w * b
            if 0 <= i < in_height and 0 <= j < in_width:
                matrix[o, r, q, group * group_in + c, i, j] += weight[o, c, a, b]
    shift = np.zeros(out_channels) if bias is None else np.asarray(bias, dtype=np.float64)
    size = int(np.prod(shape))
    return Affine(matrix.reshape(size, -1), np.repeat(shift, shape[1] * shape[2]))


def conv_transpose_matrix(
    weight: Array,
    bias: Array | None,
    input_shape: tuple[int, int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Affine:
    """Every input entry adds its multiple of the kernel; weight is (in, out / groups, kernel height, kernel width).

    y[g + o, s i - p + d a, s j - p + d b] += weight[c, o, a, b] x[c, i, j], where g is the first output channel of c's
    group; what falls outside the output is lost.
    """
    in_channels, group_out, *kernel = weight.shape
    facts = zip(
        *(input_shape[1:], kernel, _pair(stride), _pair(padding), _pair(output_padding), _pair(dilation)), strict=True
    )
    height, width = ((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, o, d in facts)
    (s_h, s_w), (p_h, p_w), (d_h, d_w) = _pair(stride), _pair(padding), _pair(dilation)
    matrix = np.zeros((group_out * groups, height, width, *input_shape))
    for c, i, j in np.ndindex(input_shape):
        group = c // (in_channels // groups)
        for o, a, b in product(range(group_out), range(kernel[0]), range(kernel[1])):
            r, q = s_h * i - p_h + d_h * a, s_w * j - p_w + d_w * b
            if 0 <= r < height and 0 <= q < width:
                matrix[group * group_out + o, r, q, c, i, j] += weight[c, o, a, b]
    shift = np.zeros(group_out * groups) if bias is None else np.asarray(bias, dtype=np.float64)
    return Affine(matrix.reshape(-1, int(np.prod(input_shape))), np.repeat(shift, height * width))


def avgpool_matrix(
    input_shape: tuple[int, int, int],
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Affine:
    """Average pooling (padding counts as zeros): every channel alone convolved with 1 / window size."""
    k_h, k_w = _pair(kernel)
    weight = np.full((input_shape[0], 1, k_h, k_w), 1.0 / (k_h * k_w))
    step = kernel if stride is None else stride
    return conv_matrix(weight, None, input_shape, step, padding, groups=input_shape[0])


def batchnorm_affine(
    weight: Array, bias: Array, mean: Array, var: Array, eps: float, input_shape: tuple[int, ...]
) -> Affine:
    """Evaluation mode: y[c] = weight[c] (x[c] - mean[c]) / sqrt(var[c] + eps) + bias[c], c the first axis."""
    scale = np.asarray(weight, dtype=np.float64) / np.sqrt(np.asarray(var, dtype=np.float64) + eps)
    shift = np.asarray(bias, dtype=np.float64) - scale * np.asarray(mean, dtype=np.float64)
    repeats = int(np.prod(input_shape[1:]))
    return Affine(np.diag(np.repeat(scale, repeats)), np.repeat(shift, repeats))
