"""An ONNX file as plain values: nodes, stored tensors, one input, one output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tightrope.core.bounds import Shape
from tightrope.core.extras import require
from tightrope.errors import CorruptDataError, InputError, UnsupportedLayerError
from tightrope.frontend._source import read_limited

Array = npt.NDArray[Any]
T = TypeVar("T", int, float, str, tuple[int, ...])

OPSETS = range(7, 25)
LARGEST_FILE = 2**31 - 1
LARGEST_TENSOR = 2**27
_FLOATS = {"FLOAT", "DOUBLE", "FLOAT16"}
_INTEGERS = {"INT64", "INT32", "INT16", "INT8", "UINT8", "UINT16", "UINT32", "BOOL"}


@dataclass(frozen=True)
class OnnxNode:
    """One application of an ONNX operator; an input or output that is left out is ""."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def get(self, key: str, default: T) -> T:
        """An attribute, of the type of its default.

        Raises:
            ValueError: of another type.
        """
        value = self.attributes.get(key, default)
        if isinstance(default, float) and isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"has the attribute {key} = {value}")
        if type(value) is not type(default):
            raise ValueError(f"has an attribute {key} of type {type(value).__name__}, not {type(default).__name__}")
        return value  # type: ignore[no-any-return]

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.op})"


@dataclass(frozen=True)
class OnnxGraph:
    """What is needed of an ONNX graph.

    Attributes:
        nodes: in order; those that the output does not need are left out.
        tensors: stored ones by name, floating point ones in float64, others in int64.
        input, output: their names.
        input_shape: of the tensor with a batch of one, where it has a batch axis.
    """

    nodes: tuple[OnnxNode, ...]
    tensors: Mapping[str, Array]
    input: str
    output: str
    input_shape: Shape


def read_graph(source: Path | str | bytes) -> OnnxGraph:
    """Read an ONNX file (``.onnx``, ``.onnx.gz``) or its bytes.

    Raises:
        MissingExtraError, MissingDataError: no package, no file.
        CorruptDataError: not an ONNX model.
        InputError, UnsupportedLayerError: external data, several inputs or outputs, other kinds of numbers.
    """
    onnx = require("onnx", "onnx")
    data = source if isinstance(source, bytes) else read_limited(source, LARGEST_FILE)
    where = "The model" if isinstance(source, bytes) else str(source)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # of protobuf, whose classes differ from version to version
        raise CorruptDataError(f"{where} is not an ONNX file ({' '.join(str(error).split())[:200]}).") from None
    if not model.graph.node:
        raise CorruptDataError(f"{where} is not an ONNX file: it has no graph with nodes.")
    _check_opset(model, where)
    return _graph(model.graph, where)


def _check_opset(model: Any, where: str) -> None:
    versions = [entry.version for entry in model.opset_import if _text(entry.domain) in ("", "ai.onnx")]
    if len(versions) != 1 or versions[0] not in OPSETS:
        found = ", ".join(map(str, versions)) or "none"
        raise UnsupportedLayerError(
            f"{where} uses operator set {found}; {OPSETS[0]} to {OPSETS[-1]} are supported. Export it again with one "
            "of these, or convert it with onnx.version_converter."
        )


def _graph(graph: Any, where: str) -> OnnxGraph:
    if graph.sparse_initializer:
        raise UnsupportedLayerError(f"{where} has sparse weights, which are not supported; store them as dense ones.")
    stored = {_text(tensor.name) for tensor in graph.initializer}
    inputs = [value for value in graph.input if _text(value.name) not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        names = ", ".join(_text(value.name) for value in [*inputs, *graph.output])
        raise UnsupportedLayerError(
            f"{where} has {len(inputs)} inputs and {len(graph.output)} outputs ({names[:200]}); one of each is "
            "supported."
        )
    begin, end = _text(inputs[0].name), _text(graph.output[0].name)
    nodes = _needed([_node(node, index) for index, node in enumerate(graph.node)], end)
    used = {name for node in nodes for name in node.inputs} | {end}
    tensors = {_text(t.name): tensor_array(t) for t in graph.initializer if _text(t.name) in used}
    _check_order(nodes, {begin, *tensors}, end, where)
    return OnnxGraph(nodes, tensors, begin, end, _input_shape(inputs[0], where))


def _text(value: str | bytes) -> str:
    """Protobuf hands over bytes where they are not UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def _node(node: Any, index: int) -> OnnxNode:
    op, domain = _text(node.op_type), _text(node.domain)
    inputs, outputs = (tuple(_text(name) for name in names) for names in (node.input, node.output))
    attributes = {_text(attribute.name): _attribute(attribute) for attribute in node.attribute}
    name = _text(node.name) or (outputs[0] if outputs else f"number {index}")
    return OnnxNode(name, op if domain in ("", "ai.onnx") else f"{domain}::{op}", inputs, outputs, attributes)


def _attribute(attribute: Any) -> Any:
    kinds = attribute.AttributeType
    readers: dict[int, Callable[[], Any]] = {
        kinds.INT: lambda: int(attribute.i),
        kinds.FLOAT: lambda: float(attribute.f),
        kinds.STRING: lambda: attribute.s.decode("utf-8", "replace"),
        kinds.INTS: lambda: tuple(attribute.ints),
        kinds.FLOATS: lambda: tuple(attribute.floats),
        kinds.TENSOR: lambda: tensor_array(attribute.t),
    }
    return readers[attribute.type]() if attribute.type in readers else None


def tensor_array(tensor: Any) -> Array:
    """A stored tensor, in float64 or int64, which hold every number of the narrower types exactly.

    Raises:
        InputError: its numbers are in another file. UnsupportedLayerError: numbers of another type.
        CorruptDataError: shape and content do not fit.
    """
    onnx, numpy_helper = require("onnx", "onnx"), require("onnx.numpy_helper", "onnx")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise InputError(
            f"The tensor {tensor.name!r} is stored in another file (external data), which is not read. Store all "
            "in one file: onnx.save_model(onnx.load(path), new_path)."
        )
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    kind = names.get(tensor.data_type, str(tensor.data_type))
    if kind not in _FLOATS | _INTEGERS:
        raise UnsupportedLayerError(f"The tensor {tensor.name!r} has numbers of type {kind}; floats and integers only.")
    if any(n < 0 for n in tensor.dims) or math.prod(tensor.dims) > LARGEST_TENSOR:
        raise CorruptDataError(f"The tensor {tensor.name!r} cannot have the shape {tuple(tensor.dims)}.")
    try:
        array: Array = numpy_helper.to_array(tensor)
    except Exception as error:
        raise CorruptDataError(f"The tensor {tensor.name!r} is damaged: {str(error)[:200]}.") from None
    with np.errstate(all="ignore"):  # NaN is refused where it is a weight
        return np.array(array, dtype=np.float64 if kind in _FLOATS else np.int64)


def _needed(nodes: list[OnnxNode], output: str) -> tuple[OnnxNode, ...]:
    """Those that the output depends on, in their order."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if needed.intersection(node.outputs) - {""}:
            needed.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))


def _check_order(nodes: Iterable[OnnxNode], known: set[str], output: str, where: str) -> None:
    """Every value is there before it is used, and is made once."""
    known = {*known, ""}
    for node in nodes:
        if lost := [name for name in node.inputs if name not in known]:
            raise CorruptDataError(
                f"{where}: {node} uses {lost[0]!r}, which is no input, no stored tensor and no result of an earlier "
                "node: something is missing, or the graph has a cycle."
            )
        made = [name for name in node.outputs if name]
        if twice := [name for index, name in enumerate(made) if name in known or name in made[:index]]:
            raise CorruptDataError(f"{where}: {node} makes {twice[0]!r}, which is there already.")
        known.update(made)
    if output not in known:
        raise CorruptDataError(f"{where}: no node makes the output {output!r}.")


def _input_shape(value: Any, where: str) -> Shape:
    onnx = require("onnx", "onnx")
    kind = value.type.tensor_type
    if kind.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16):
        raise UnsupportedLayerError(f"{where}: the input {value.name!r} is not a floating point tensor.")
    sizes = [int(dim.dim_value) for dim in kind.shape.dim]
    if len(sizes) > 1 and sizes[0] == 0:
        sizes[0] = 1  # a batch axis of any size
    if not kind.HasField("shape") or not sizes or min(sizes) < 1 or math.prod(sizes) > LARGEST_TENSOR:
        shown = [dim.dim_param or dim.dim_value or "?" for dim in kind.shape.dim]
        raise UnsupportedLayerError(
            f"{where}: the input {value.name!r} has the shape {shown}. All sizes must be given but that of the batch, "
            "which comes first; fix them with onnx.tools.update_model_dims."
        )
    return tuple(sizes)
