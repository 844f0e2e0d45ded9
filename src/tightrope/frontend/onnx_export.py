"""From a :class:`Network` and its params to an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightrope.core.bounds import Params, Shape
from tightrope.core.extras import require
from tightrope.core.network import INPUT, Network, Node
from tightrope.core.op import Op, constant
from tightrope.errors import UnsupportedLayerError
from tightrope.frontend._onnx_model import Array
from tightrope.ops.add import Add
from tightrope.ops.avgpool2d import AvgPool2d
from tightrope.ops.batchnorm import BatchNorm
from tightrope.ops.concat import Concat
from tightrope.ops.conv2d import Conv2d
from tightrope.ops.conv_transpose2d import ConvTranspose2d
from tightrope.ops.leaky_relu import LeakyRelu
from tightrope.ops.linear import Linear
from tightrope.ops.maximum import Maximum
from tightrope.ops.relu import Relu
from tightrope.ops.reshape import Reshape
from tightrope.ops.scale import Scale
from tightrope.ops.shift import Shift
from tightrope.ops.sigmoid import Sigmoid
from tightrope.ops.tanh import Tanh
from tightrope.ops.tap import Tap
from tightrope.ops.transpose import Transpose

OPSET = 13


def to_onnx(network: Network, params: Params) -> bytes:
    """The network as an ONNX model of operator set 13: input ``X`` (N, *input shape), output ``Y`` (N, outputs).

    Weights are stored in their own precision if that is float32 or float64 for all of them, else in float64; the input
    has the same. Batch normalisation takes its statistics. A maximum over windows becomes Gather and Max.

    Args:
        network: the graph.
        params: weights by name.

    Raises:
        MissingExtraError: the package onnx is not installed.
        UnsupportedLayerError: an op that ONNX files cannot hold.

    Example:
        >>> import tightrope as tr
        >>> net, params = tr.from_module(torch.nn.Linear(2, 2), (2,))
        >>> again, _ = tr.from_onnx(to_onnx(net, params))  # doctest: +SKIP
    """
    onnx = require("onnx", "onnx")
    writer = _Writer(network, params)
    number = onnx.TensorProto.FLOAT if writer.dtype == np.float32 else onnx.TensorProto.DOUBLE
    describe = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        writer.nodes(),
        "tightrope",
        [describe("X", number, ["N", *network.input_shape])],
        [describe("Y", number, ["N", network.num_outputs])],
        [onnx.numpy_helper.from_array(array, name) for name, array in writer.tensors.items()],
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    made = onnx.helper.make_model(graph, producer_name="tightrope", opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(made)
    content: bytes = made.SerializeToString()
    return content


class _Writer:
    """One ONNX node a node, and the tensors that they need."""

    def __init__(self, network: Network, params: Params) -> None:
        self.params, self._network = params, network
        single = all(value.dtype == torch.float32 for value in params.values() if value.is_floating_point())
        self.dtype = np.float32 if single else np.float64
        self.tensors: dict[str, Array] = {}

    def nodes(self) -> list[Any]:
        """In order, those that only the excess of a maximum needs left out."""
        needed, kept = {self._network.output}, []
        for node in reversed(self._network.nodes):
            if node.name in needed:
                kept.append(self._node(node))
                needed.update(node.inputs[:2] if isinstance(node.op, Maximum) else node.inputs)
        return kept[::-1]

    def _node(self, node: Node) -> Any:
        if type(node.op) not in _WRITERS:
            raise UnsupportedLayerError(f"node {node.name!r} ({type(node.op).__name__}) has no form in ONNX files.")
        kind, tensors, attributes = _WRITERS[type(node.op)](self, node)
        inputs = node.inputs[:2] if isinstance(node.op, Maximum) else node.inputs
        names = [*(self._name(name) for name in inputs), *tensors]
        return require("onnx", "onnx").helper.make_node(kind, names, [self._name(node.name)], node.name, **attributes)

    def _name(self, name: str) -> str:
        """The boundary has names of its own; others cannot clash with it or with tensors."""
        return {INPUT: "X", self._network.output: "Y"}.get(name, f"node:{name}")

    def shape(self, node: Node) -> Shape:
        """Of samples of a node's first input."""
        return self._network.shapes[node.inputs[0]]

    def weight(self, key: str) -> str:
        """A stored tensor by its key."""
        return self.tensor(key, self.params[key].detach().numpy(force=True))

    def tensor(self, name: str, array: Array) -> str:
        """Store an array."""
        self.tensors[name] = np.ascontiguousarray(array, self.dtype if array.dtype.kind == "f" else np.int64)
        return name

    def constant(self, node: Node, key: str | float) -> str:
        """What is combined with every entry, with as many axes as a batch."""
        value = constant(self.params, key, len(self.shape(node)))
        array = value.detach().numpy(force=True) if isinstance(value, Tensor) else np.array(value)
        return self.tensor(
            f"{node.name}:constant", array.reshape((1,) * (len(self.shape(node)) + 1 - array.ndim) + array.shape)
        )


Written = tuple[str, Sequence[str], Mapping[str, Any]]
"""Operator, tensors behind the inputs, attributes."""


def _plain(kind: str, **attributes: Any) -> Callable[[_Writer, Any], Written]:
    return lambda writer, node: (kind, (), attributes)


def _with_bias(writer: _Writer, op: Linear | Conv2d | ConvTranspose2d) -> list[str]:
    return [writer.weight(key) for key in (op.weight, op.bias_key) if key is not None]


def _linear(writer: _Writer, node: Any) -> Written:
    return "Gemm", _with_bias(writer, node.op), {"transB": 1}


def _conv(writer: _Writer, node: Any) -> Written:
    return "Conv", _with_bias(writer, node.op), _windows(node.op)


def _conv_transpose(writer: _Writer, node: Any) -> Written:
    return "ConvTranspose", _with_bias(writer, node.op), {**_windows(node.op), "output_padding": node.op.output_padding}


def _windows(op: Conv2d | ConvTranspose2d) -> dict[str, Any]:
    pads = (*op.padding, *op.padding)
    return {"strides": op.stride, "pads": pads, "dilations": op.dilation, "group": op.groups, "kernel_shape": op.kernel}


def _average(writer: _Writer, node: Any) -> Written:
    op: AvgPool2d = node.op
    if op.divisor != op.kernel[0] * op.kernel[1]:
        raise UnsupportedLayerError(
            f"node {node.name!r} (AvgPool2d) has a divisor of its own; ONNX knows only the mean."
        )
    pads = (*op.padding, *op.padding)
    return "AveragePool", (), {"kernel_shape": op.kernel, "strides": op.stride, "pads": pads, "count_include_pad": 1}


def _batch_norm(writer: _Writer, node: Any) -> Written:
    op: BatchNorm = node.op
    size = writer.params[op.mean].shape[0]
    scale = writer.weight(op.weight) if op.weight else writer.tensor(f"{node.name}:scale", np.ones(size))
    shift = writer.weight(op.bias_key) if op.bias_key else writer.tensor(f"{node.name}:shift", np.zeros(size))
    return "BatchNormalization", (scale, shift, writer.weight(op.mean), writer.weight(op.var)), {"epsilon": op.epsilon}


def _reshape(writer: _Writer, node: Any) -> Written:
    return "Reshape", (writer.tensor(f"{node.name}:shape", np.array([-1, *node.op.after])),), {}


def _tap(writer: _Writer, node: Any) -> Written:
    op: Tap = node.op
    positions = torch.arange(op.input_shape[op.axis], dtype=torch.float64)
    line = positions.reshape([-1 if axis == op.axis else 1 for axis in range(3)]).expand(op.input_shape)
    index = op.linear({}, line[None])[0].movedim(op.axis, 0)[:, 0, 0].long()
    return "Gather", (writer.tensor(f"{node.name}:positions", index.numpy()),), {"axis": op.axis + 1}


_WRITERS: dict[type[Op], Callable[[_Writer, Any], Written]] = {
    Add: lambda writer, node: ("Add" if node.op.sign > 0 else "Sub", (), {}),
    AvgPool2d: _average,
    BatchNorm: _batch_norm,
    Concat: lambda writer, node: ("Concat", (), {"axis": node.op.axis + 1}),
    Conv2d: _conv,
    ConvTranspose2d: _conv_transpose,
    LeakyRelu: lambda writer, node: ("LeakyRelu", (), {"alpha": node.op.negative_slope}),
    Linear: _linear,
    Maximum: _plain("Max"),
    Relu: _plain("Relu"),
    Reshape: _reshape,
    Scale: lambda writer, node: ("Div" if node.op.divide else "Mul", (writer.constant(node, node.op.factor),), {}),
    Shift: lambda writer, node: ("Add" if node.op.sign > 0 else "Sub", (writer.constant(node, node.op.offset),), {}),
    Sigmoid: _plain("Sigmoid"),
    Tanh: _plain("Tanh"),
    Tap: _tap,
    Transpose: lambda writer, node: ("Transpose", (), {"perm": (0, *(axis + 1 for axis in node.op.axes))}),
}
