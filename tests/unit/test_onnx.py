"""ONNX files: the network computes what onnxruntime computes, and what cannot be read is refused in one sentence."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import tightrope as tr
from tightrope.core import extras
from tightrope.errors import (
    CorruptDataError,
    InputError,
    MissingDataError,
    MissingExtraError,
    NumericalError,
    TightropeError,
    UnsupportedLayerError,
)
from tightrope.frontend.graph import from_json, to_json
from tightrope.frontend.onnx import from_onnx
from tightrope.frontend.onnx_runtime import run_onnx

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def node(op: str, inputs: str, output: str = "y", **attributes: Any) -> Any:
    """Names of inputs and outputs are separated by spaces; ``_`` is one that is left out."""
    return onnx.helper.make_node(op, [name.replace("_", "") for name in inputs.split()], output.split(), **attributes)


def model(
    nodes: Sequence[Any],
    shape: Sequence[int | str | None] | None,
    opset: int = 13,
    numbers: int = FLOAT,
    outputs: Sequence[str] = ("y",),
    inputs: Sequence[str] = ("x",),
    **tensors: Any,
) -> bytes:
    """A graph from x to y with stored tensors."""
    stored = [onnx.numpy_helper.from_array(narrow(value), name) for name, value in tensors.items()]
    graph = onnx.helper.make_graph(
        list(nodes),
        "graph",
        [onnx.helper.make_tensor_value_info(name, numbers, shape) for name in inputs],
        [onnx.helper.make_tensor_value_info(name, numbers, None) for name in outputs],
        stored,
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    content: bytes = made.SerializeToString()
    return content


def narrow(value: Any) -> Any:
    """Floats in float32, unless they are an array already."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 and not isinstance(value, np.ndarray) else array


def weights(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check_same(content: bytes, count: int = 3, tolerance: float = 1e-5) -> tuple[tr.Network, dict[str, torch.Tensor]]:
    """Outputs are those of onnxruntime on random inputs."""
    net, params = from_onnx(content)
    rng = np.random.default_rng(1)
    for _ in range(count):
        x, theirs = run_onnx(content, rng.normal(size=int(np.prod(net.input_shape))))
        ours = net(params, torch.from_numpy(x).reshape(1, *net.input_shape))[0].numpy()
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * max(1.0, np.abs(theirs).max()))
    assert from_json(to_json(net)) == net
    return net, params


class Case(NamedTuple):
    shape: Sequence[int | str]
    nodes: Sequence[Any]
    tensors: dict[str, Any] = {}
    opset: int = 13


W, B = weights(5, 4), weights(5, seed=1)
IMAGE = (1, 3, 7, 6)
KERNEL = weights(4, 3, 3, 2)
CASES = {
    "gemm": Case((1, 4), [node("Gemm", "x w b", transB=1)], {"w": W, "b": B}),
    "gemm, alpha and beta": Case((1, 4), [node("Gemm", "x w b", alpha=0.5, beta=-2.0)], {"w": W.T, "b": B[None]}),
    "gemm, scalar": Case((1, 4), [node("Gemm", "x w b", transB=1)], {"w": W, "b": weights(1)}),
    "gemm without bias": Case((1, 4), [node("Gemm", "x w", transB=1)], {"w": W}),
    "gemm, constant first": Case((4, 1), [node("Gemm", "w x b")], {"w": W, "b": B[:, None]}),
    "gemm, input transposed": Case((4, 1), [node("Gemm", "x w b", transA=1)], {"w": W.T, "b": B}),
    "gemm of rows": Case((3, 4), [node("Gemm", "x w b", transB=1)], {"w": W, "b": B}),
    "matmul": Case(("N", 4), [node("MatMul", "x w", "a"), node("Add", "b a")], {"w": W.T, "b": B}),
    "matmul, constant first": Case((4, 1), [node("MatMul", "w x")], {"w": W}),
    "matmul of rows": Case((1, 3, 4), [node("MatMul", "x w")], {"w": W.T}),
    "two layers of rows": Case(
        (1, 3, 4),
        [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "v b")],
        {"w": W.T, "v": weights(2, 3)},
    ),
    "matmul of columns": Case((1, 4, 3), [node("MatMul", "w x")], {"w": W}),
    "matmul of a vector": Case((4,), [node("MatMul", "x w")], {"w": W.T}),
    "matmul with a vector": Case((1, 3, 4), [node("MatMul", "x w")], {"w": weights(4)}),
    "matmul with a vector first": Case((1, 4, 3), [node("MatMul", "w x")], {"w": weights(4)}),
    "matmul with a stack of one": Case((1, 4), [node("MatMul", "x w")], {"w": W.T[None]}),
    "one number": Case((1,), [node("MatMul", "x w", "a"), node("Relu", "a")], {"w": [[-1.5]]}),
    "subtract and divide": Case(
        ("N", 1, 1, 5), [node("Sub", "x m", "a"), node("Div", "a s")], {"m": weights(5), "s": weights(1, 5, seed=2)}
    ),
    "constants first": Case(
        (1, 5), [node("Sub", "m x", "a"), node("Mul", "m a", "b"), node("Neg", "b")], {"m": weights(1, 5)}
    ),
    "per channel": Case(IMAGE, [node("Mul", "x m")], {"m": weights(3, 1, 1)}),
    "residual": Case(
        (1, 4),
        [node("Gemm", "x w", "a"), node("Relu", "a", "b"), node("Add", "b x", "c"), node("Sub", "x c")],
        {"w": weights(4, 4)},
    ),
    "sum": Case((1, 4), [node("Relu", "x", "a"), node("Sum", "a x m a")], {"m": weights(4)}),
    "conv": Case(IMAGE, [node("Conv", "x w b", pads=[1, 1, 1, 1], strides=[2, 1])], {"w": KERNEL, "b": weights(4)}),
    "conv, uneven pads": Case(IMAGE, [node("Conv", "x w", pads=[0, 2, 1, 0], strides=[2, 2])], {"w": KERNEL}),
    "conv, uneven pads, dilated": Case(
        IMAGE, [node("Conv", "x w", pads=[3, 0, 1, 2], strides=[1, 2], dilations=[2, 3])], {"w": KERNEL}
    ),
    "conv, same upper": Case(IMAGE, [node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 3])], {"w": KERNEL}),
    "conv, same lower": Case(IMAGE, [node("Conv", "x w", auto_pad="SAME_LOWER", strides=[1, 2])], {"w": KERNEL}),
    "conv, valid": Case(IMAGE, [node("Conv", "x w", auto_pad="VALID", kernel_shape=[3, 2])], {"w": KERNEL}),
    "conv, groups": Case(IMAGE, [node("Conv", "x w", group=3, dilations=[2, 2])], {"w": weights(6, 1, 2, 3)}),
    "conv along a row": Case(
        (1, 3, 9), [node("Conv", "x w b", pads=[1, 2], strides=[2], dilations=[2])], {"w": KERNEL[..., 0], "b": B[:4]}
    ),
    "conv transposed": Case(
        IMAGE,
        [node("ConvTranspose", "x w b", pads=[1, 0, 1, 0], strides=[2, 3], output_padding=[1, 2])],
        {"w": weights(3, 2, 3, 2), "b": weights(2)},
    ),
    "conv transposed, uneven pads": Case(
        IMAGE, [node("ConvTranspose", "x w", pads=[1, 1, 0, 0], strides=[2, 2])], {"w": weights(3, 2, 3, 3)}
    ),
    "conv transposed, row": Case((1, 3, 4), [node("ConvTranspose", "x w", strides=[2])], {"w": weights(3, 2, 3)}),
    "leaky relu": Case((1, 4), [node("LeakyRelu", "x", alpha=0.2)]),
    "leaky relu by default": Case((1, 4), [node("LeakyRelu", "x")]),
    "sigmoid and tanh": Case((1, 4), [node("Sigmoid", "x", "a"), node("Tanh", "a")]),
    "batch norm": Case(
        (1, 3, 2, 2),
        [node("BatchNormalization", "x s b m v", epsilon=0.01)],
        {"s": weights(3), "b": weights(3, seed=1), "m": weights(3, seed=2), "v": abs(weights(3, seed=3))},
    ),
    "batch norm of vectors": Case(
        (1, 3),
        [node("BatchNormalization", "x s b m v")],
        {"s": weights(3), "b": weights(3, seed=1), "m": weights(3, seed=2), "v": abs(weights(3, seed=3))},
    ),
    "max pool": Case(IMAGE, [node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])]),
    "max pool, uneven pads": Case(
        IMAGE, [node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1])]
    ),
    "max pool, rounded up": Case(IMAGE, [node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)]),
    "max pool, dilated": Case(IMAGE, [node("MaxPool", "x", kernel_shape=[2, 2], dilations=[3, 2])]),
    "max pool along a row": Case((1, 3, 8), [node("MaxPool", "x", kernel_shape=[3], strides=[2], pads=[1, 1])]),
    "average pool": Case(IMAGE, [node("AveragePool", "x", kernel_shape=[3, 2], strides=[2, 2])]),
    "average pool, padded": Case(
        IMAGE, [node("AveragePool", "x", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 1, 0, 0])]
    ),
    "average pool, pads counted": Case(
        IMAGE, [node("AveragePool", "x", kernel_shape=[3, 2], pads=[1, 1, 1, 1], count_include_pad=1)]
    ),
    "average pool along a row": Case((1, 3, 8), [node("AveragePool", "x", kernel_shape=[3], pads=[1, 1])]),
    "global average pool": Case(IMAGE, [node("GlobalAveragePool", "x")]),
    "means": Case(IMAGE, [node("ReduceMean", "x", "a", axes=[2, 3]), node("ReduceSum", "a n", keepdims=0)], {"n": [1]}),
    "mean of channels": Case(IMAGE, [node("ReduceMean", "x", axes=[1], keepdims=0)]),
    "pad": Case(IMAGE, [node("Pad", "x p")], {"p": [0, 0, 1, 2, 0, 0, 0, 3]}),
    "pad by attribute": Case(IMAGE, [node("Pad", "x", pads=[0, 0, 1, 1, 0, 0, 1, 1])], {}, 10),
    "flatten": Case(IMAGE, [node("Flatten", "x")]),
    "flatten everything": Case((2, 3), [node("Flatten", "x", axis=0)]),
    "reshape": Case(
        IMAGE,
        [node("Reshape", "x s", "a"), node("Relu", "a", "b"), node("Reshape", "b t")],
        {"s": [0, -1], "t": [1, 6, 21]},
    ),
    "squeeze": Case(
        (1, 784 // 16, 1), [node("Squeeze", "x a", "b"), node("Unsqueeze", "b c")], {"a": [2], "c": [0, -1]}
    ),
    "squeeze by attribute": Case((1, 5, 1, 1), [node("Squeeze", "x", "a"), node("Unsqueeze", "a", axes=[1])], {}, 11),
    "channels last": Case(
        ("N", 6, 5, 3),
        [
            node("Transpose", "x", "a", perm=[0, 3, 1, 2]),
            node("Conv", "a w", "b"),
            node("Relu", "b", "c"),
            node("Transpose", "c", "d", perm=[0, 2, 3, 1]),
            node("Reshape", "d s", "e"),
            node("MatMul", "e m"),
        ],
        {"w": KERNEL, "s": [-1, 64], "m": weights(64, 3)},
    ),
    "matrix transposed": Case((3, 4), [node("Transpose", "x")]),
    "concat": Case(
        (1, 2, 3), [node("Relu", "x", "a"), node("Concat", "x a x", "b", axis=-2), node("Concat", "b b", axis=2)]
    ),
    "gather": Case((1, 5), [node("Gather", "x i", axis=1)], {"i": [[4, -1], [0, 2]]}),
    "gather one": Case((1, 5, 2), [node("Gather", "x i", axis=1)], {"i": np.array(3)}),
    "slice": Case((1, 3, 8), [node("Slice", "x s e a t")], {"s": [-1, 1], "e": [-99, 7], "a": [2, 1], "t": [-2, 1]}),
    "slice by attributes": Case((1, 8), [node("Slice", "x", starts=[2], ends=[99], axes=[1])], {}, 9),
    "split": Case((1, 6), [node("Split", "x n", "a b", axis=1), node("Sub", "a b", "y")], {"n": [3, 3]}),
    "split evenly": Case((1, 6), [node("Split", "x", "a b c", axis=-1), node("Concat", "c a b", axis=1)]),
    "clip": Case((1, 6), [node("Clip", "x l h")], {"l": np.float32(-0.3), "h": np.float32(0.5)}),
    "clip above": Case((1, 6), [node("Clip", "x _ h")], {"h": np.float32(0.5)}),
    "clip by attributes": Case((1, 6), [node("Clip", "x", min=0.0, max=0.6)], {}, 9),
    "max and min": Case(
        (1, 4),
        [node("Gemm", "x w", "a"), node("Max", "x a m", "b"), node("Min", "b x n")],
        {"w": weights(4, 4), "m": weights(4), "n": np.float32(0.1)},
    ),
    "shape arithmetic": Case(
        ("N", 2, 6),
        [
            node("Shape", "x", "a"),
            node("Gather", "a zero", "b"),
            node("Unsqueeze", "b axes", "c"),
            node("Slice", "a one three", "d"),
            node("ReduceSum", "x axes2", "z"),
            node("Concat", "c minus", "e", axis=0),
            node("Cast", "e", "f", to=INT64),
            node("Reshape", "x f"),
        ],
        {"zero": np.array(0), "axes": [0], "axes2": [1], "one": [1], "three": [3], "minus": [-1]},
    ),
    "constants folded": Case(
        (1, 4),
        [
            node("Constant", "", "a", value=onnx.numpy_helper.from_array(weights(4))),
            node("Constant", "", "b", value_float=2.5),
            node("ConstantOfShape", "n", "c", value=onnx.numpy_helper.from_array(np.float32([3.0]))),
            node("Mul", "a b", "d"),
            node("Div", "d c", "e"),
            node("Sub", "e a", "f"),
            node("Neg", "f", "g"),
            node("Expand", "g m", "h"),
            node("Add", "x h"),
        ],
        {"n": [4], "m": [1, 1]},
    ),
    "left out": Case((1, 4), [node("Dropout", "x", "a"), node("Identity", "a", "b"), node("Relu", "b")]),
    "twice": Case((1, 4), [node("Relu", "x", "a"), node("Add", "a a")]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_network_computes_what_onnxruntime_does(case: Case) -> None:
    check_same(model(case.nodes, case.shape, case.opset, **case.tensors))


@pytest.mark.parametrize("opset", [9, 13, 17, 20])
def test_operator_sets(opset: int) -> None:
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Flatten", "b", "c"), node("Gemm", "c v u", "y")]
    check_same(model(nodes, (1, 3, 4, 3), opset, w=KERNEL, v=weights(16, 2), u=weights(2)))


@pytest.mark.parametrize(("dtype", "numbers"), [(np.float32, FLOAT), (np.float64, onnx.TensorProto.DOUBLE)])
def test_weights_are_the_same_numbers(dtype: Any, numbers: int) -> None:
    w = np.random.default_rng(0).normal(size=(4, 3)).astype(dtype)
    net, params = check_same(model([node("Gemm", "x w")], (1, 4), numbers=numbers, w=w))
    [stored] = params.values()
    assert stored.dtype == torch.float64
    assert torch.equal(stored, torch.from_numpy(w.T.astype(np.float64)))
    assert net.trainable == tuple(params)


def test_stored_tensors_may_be_listed_as_inputs() -> None:
    made = onnx.load_model_from_string(model([node("Gemm", "x w")], (1, 4), w=weights(4, 2)))
    made.graph.input.append(onnx.helper.make_tensor_value_info("w", FLOAT, (4, 2)))
    check_same(made.SerializeToString())


def test_nodes_that_the_output_does_not_need_are_left_out() -> None:
    net, params = from_onnx(model([node("Gemm", "x w"), node("Loop", "x", "z")], (1, 4), w=weights(4, 2)))
    assert len(net.nodes) == len(params) == 1


def test_files_compressed_or_not(tmp_path: Path) -> None:
    content = model([node("Relu", "x")], (1, 4))
    (tmp_path / "net.onnx").write_bytes(content)
    (tmp_path / "net.onnx.gz").write_bytes(gzip.compress(content))
    assert from_onnx(tmp_path / "net.onnx")[0] == from_onnx(tmp_path / "net.onnx.gz")[0] == from_onnx(content)[0]


@pytest.mark.parametrize("name", ["deeppoly", "crown_ibp", "ibp"])
@pytest.mark.parametrize("case", ["channels last", "conv, uneven pads", "two layers of rows", "max and min", "slice"])
def test_bounds_of_imported_networks_hold(case: str, name: str) -> None:
    content = model(CASES[case].nodes, CASES[case].shape, CASES[case].opset, **CASES[case].tensors)
    net, params = from_onnx(content)
    x = torch.randn(1, *net.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    box = tr.linf_box(x, 0.2, data_range=None)
    spec = tr.Spec(
        torch.eye(net.num_outputs, dtype=torch.float64)[None],
        torch.zeros(1, net.num_outputs, dtype=torch.float64),
        tuple(range(net.num_outputs)),
    )
    lower = tr.relaxation(name).bounds(net, params, box, spec).margins
    points = torch.cat([box.lower, box.upper, x, *(box.lower + torch.rand_like(x) * 0.4 for _ in range(50))])
    points = torch.minimum(points, box.upper)
    assert bool((net(params, points) >= lower - 1e-9).all())


# --------------------------------------------------------------------------------------------- bad input


def test_all_unsupported_operators_are_named_at_once() -> None:
    nodes = [node("Erf", "x", "a"), node("Erf", "a", "b"), node("LSTM", "b", "c"), node("Softmax", "c")]
    with pytest.raises(UnsupportedLayerError, match=r"Erf \(2\), LSTM, Softmax\..*cut it off.*Supported: Add, "):
        from_onnx(model(nodes, (1, 4)))


def test_operators_of_other_domains_are_unsupported() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"com\.example::Relu"):
        from_onnx(model([node("Relu", "x", domain="com.example")], (1, 4)))


def external() -> bytes:
    made = onnx.load_model_from_string(model([node("Gemm", "x w")], (1, 4), w=weights(4, 2)))
    tensor = made.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    content: bytes = made.SerializeToString()
    return content


def altered(**facts: Any) -> bytes:
    """A layer whose stored weights have other facts."""
    made = onnx.load_model_from_string(model([node("Gemm", "x w")], (1, 4), w=weights(4, 2)))
    for name, value in facts.items():
        if name == "dims":
            made.graph.initializer[0].dims[:] = value
        else:
            setattr(made.graph.initializer[0], name, value)
    content: bytes = made.SerializeToString()
    return content


GEMM = model([node("Gemm", "x w")], (1, 4), w=weights(4, 2))
REFUSED = {
    "no bytes": (b"", CorruptDataError, "not an ONNX file"),
    "text": (b"(assert (<= X_0 1))", CorruptDataError, "not an ONNX file"),
    "truncated": (GEMM[: len(GEMM) // 2], CorruptDataError, "not an ONNX file|damaged|no "),
    "external data": (external(), InputError, "external data"),
    "shape without content": (altered(dims=[2**40, 2**20]), CorruptDataError, "cannot have the shape"),
    "content of another size": (altered(dims=[4, 3]), CorruptDataError, "damaged"),
    "complex numbers": (altered(data_type=14), UnsupportedLayerError, "COMPLEX64"),
    "negative sizes": (altered(dims=[-4, -2]), CorruptDataError, "cannot have the shape"),
    "NaN": (model([node("Gemm", "x w")], (1, 4), w=[[np.nan] * 2] * 4), NumericalError, "NaN"),
    "infinity": (model([node("Add", "x w")], (1, 4), w=[np.inf] * 4), NumericalError, "infinite"),
    "no such value": (model([node("Relu", "lost")], (1, 4)), CorruptDataError, "'lost'.*cycle"),
    "cycle": (
        model([node("Relu", "b", "a"), node("Add", "a x", "b"), node("Relu", "b")], (1, 4)),
        CorruptDataError,
        "cycle",
    ),
    "made twice": (
        model([node("Relu", "x", "a"), node("Tanh", "x", "a"), node("Relu", "a")], (1, 4)),
        CorruptDataError,
        "already",
    ),
    "no output": (model([node("Relu", "x", "z")], (1, 4)), CorruptDataError, "no node makes"),
    "constant output": (model([node("Add", "w w")], (1, 4), w=[1.0]), UnsupportedLayerError, "does not depend"),
    "no layers": (model([node("Identity", "x")], (4,)), UnsupportedLayerError, "no layers"),
    "two inputs": (model([node("Add", "x z")], (1, 4), inputs=("x", "z")), UnsupportedLayerError, "2 inputs"),
    "two outputs": (
        model([node("Relu", "x"), node("Tanh", "x", "z")], (1, 4), outputs=("y", "z")),
        UnsupportedLayerError,
        "2 outputs",
    ),
    "integers": (model([node("Relu", "x")], (1, 4), numbers=INT64), UnsupportedLayerError, "not a floating point"),
    "no sizes": (model([node("Relu", "x")], (1, "n", "m")), UnsupportedLayerError, r"\[1, 'n', 'm'\]"),
    "no shape": (model([node("Relu", "x")], None), UnsupportedLayerError, "All sizes must be given"),
    "old operators": (model([node("Relu", "x")], (1, 4), opset=6), UnsupportedLayerError, "operator set 6"),
    "loop": (model([node("Loop", "x")], (1, 4)), UnsupportedLayerError, "Loop"),
    "a batch of images": (model([node("Conv", "x w")], (8, 3, 7, 6), w=KERNEL), UnsupportedLayerError, "batch of one"),
    "channels": (model([node("Conv", "x w")], (1, 2, 7, 6), w=KERNEL), UnsupportedLayerError, "for images"),
    "large kernel": (model([node("Conv", "x w")], (1, 3, 2, 2), w=KERNEL), UnsupportedLayerError, "larger than"),
    "huge pads": (
        model([node("Conv", "x w", pads=[0, 0, 2**26, 2**26])], IMAGE, w=KERNEL),
        UnsupportedLayerError,
        "too large",
    ),
    "huge window": (
        model([node("MaxPool", "x", kernel_shape=[10**6, 1], pads=[5 * 10**5, 0] * 2)], IMAGE),
        UnsupportedLayerError,
        "window of more than",
    ),
    "huge averages": (
        model([node("AveragePool", "x", kernel_shape=[8000, 8000], pads=[0, 0, 8000, 8000])], IMAGE),
        UnsupportedLayerError,
        "too large",
    ),
    "wide gaps": (
        model([node("Conv", "x w", dilations=[9000, 9000], pads=[9000, 9000, 9001, 9000])], IMAGE, w=KERNEL),
        UnsupportedLayerError,
        "too large",
    ),
    "slow": (
        model([node("AveragePool", "x", kernel_shape=[2000, 2000], pads=[1900] * 4)], (1, 1, 200, 200)),
        UnsupportedLayerError,
        "too slow",
    ),
    "constants again and again": (
        model(
            [
                node("ConstantOfShape", "n", "c0"),
                *(node("Add", f"c{i} c{i}", f"c{i + 1}") for i in range(40)),
                node("Add", "x c40"),
            ],
            (1, 2**20),
            n=[2**20],
        ),
        UnsupportedLayerError,
        "too large",
    ),
    "samples again and again": (
        model(
            [node("Concat", " ".join(f"y{i}" if i else "x" for _ in range(8)), f"y{i + 1}", axis=1) for i in range(9)]
            + [node("Relu", "y9")],
            (1, 8),
        ),
        UnsupportedLayerError,
        "too large",
    ),
    "huge constant": (
        model([node("ConstantOfShape", "n", "a"), node("Add", "x a")], (1, 4), n=[2**40]),
        UnsupportedLayerError,
        "makes a tensor",
    ),
    "huge sum": (
        model([node("Add", "a b", "c"), node("Add", "x c")], (1, 4), a=np.zeros((2**15, 1)), b=np.zeros((1, 2**15))),
        UnsupportedLayerError,
        "makes a tensor",
    ),
    "matrix": (model([node("MatMul", "x w")], (1, 4), w=W), UnsupportedLayerError, "applies a matrix"),
    "product": (model([node("Mul", "x x")], (1, 4)), UnsupportedLayerError, "multiplies two values"),
    "quotient": (model([node("Div", "w x")], (1, 4), w=[1.0]), UnsupportedLayerError, "divides by what"),
    "by zero": (model([node("Div", "x w")], (1, 4), w=[1.0, 0.0, 1.0, 1.0]), UnsupportedLayerError, "divides by 0"),
    "stretched": (model([node("Add", "x w")], (1, 4), w=np.zeros((3, 4))), UnsupportedLayerError, "stretches"),
    "rounding": (model([node("Cast", "x", to=INT64)], (1, 4)), UnsupportedLayerError, "rounds"),
    "missing operand": (model([node("Gemm", "x")], (1, 4)), UnsupportedLayerError, "inputs"),
    "gap": (model([node("Gemm", "_ x")], (1, 4)), UnsupportedLayerError, "leaves out"),
    "attribute": (model([node("Flatten", "x", axis="one")], (1, 4)), UnsupportedLayerError, "attribute axis"),
    "axis": (model([node("Flatten", "x", axis=7)], (1, 4)), UnsupportedLayerError, "axis 7"),
    "reshape": (model([node("Reshape", "x s")], (1, 4), s=[3, -1]), UnsupportedLayerError, "cannot give"),
    "index": (model([node("Gather", "x i", axis=1)], (1, 4), i=[4]), UnsupportedLayerError, "does not have"),
    "used indices": (
        model([node("MaxPool", "x", "a y", kernel_shape=[2, 2])], IMAGE),
        UnsupportedLayerError,
        "2 outputs",
    ),
}


@pytest.mark.parametrize(("content", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(content: bytes, error: type[TightropeError], words: str) -> None:
    with pytest.raises(error, match=words):
        from_onnx(content)


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError):
        from_onnx(tmp_path / "net.onnx")
    with pytest.raises(MissingDataError, match="folder"):
        from_onnx(tmp_path)
    (tmp_path / "net.onnx.gz").write_bytes(gzip.compress(GEMM)[:-20])
    with pytest.raises(CorruptDataError, match=r"no valid \.gz"):
        from_onnx(tmp_path / "net.onnx.gz")


def test_any_damage_ends_in_one_of_our_errors_or_a_network() -> None:
    """Bytes of a file changed at random: no other exception, and no network of NaN."""
    rng = np.random.default_rng(0)
    content = model(CASES["channels last"].nodes, (1, 6, 5, 3), **CASES["channels last"].tensors)
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        try:
            net, params = from_onnx(bytes(damaged))
        except TightropeError:
            continue
        assert all(bool(torch.isfinite(value).all()) for value in params.values())
        net(params, torch.zeros(1, *net.input_shape, dtype=torch.float64))


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'tightrope\[onnx\]'"):
        from_onnx(GEMM)
