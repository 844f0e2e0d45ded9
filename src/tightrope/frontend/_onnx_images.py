"""ONNX operators on images: convolution, pooling, padding, batch normalisation."""

from __future__ import annotations

import math

import numpy as np

from tightrope.frontend import _onnx_windows as windows
from tightrope.frontend._onnx_arithmetic import divided
from tightrope.frontend._onnx_converter import (
    Converter,
    Handlers,
    Operand,
    Value,
    constant_of,
    list_option,
    number_of,
    value_of,
)
from tightrope.frontend._onnx_model import LARGEST_TENSOR, Array, OnnxNode
from tightrope.ops.avgpool2d import AvgPool2d
from tightrope.ops.batchnorm import BatchNorm
from tightrope.ops.conv_transpose2d import ConvTranspose2d


def _conv(c: Converter, node: OnnxNode, x: Operand, weight: Operand, bias: Operand | None = None) -> Operand:
    kernel, offset = _kernel(node, weight), None if bias is None else constant_of(bias)
    name = c.image(value_of(x), kernel.ndim - 2)
    facts = windows.read(node, c.builder.shapes[name][1:], constant_of(weight).shape[2:])
    kernel = _as_image(kernel)
    c.made(windows.padded_shape(kernel.shape, facts))
    kernel, padding, dilation = windows.evenly_padded(kernel, facts)
    found = c.convolved(name, kernel, offset, facts.stride, padding, dilation, node.get("group", 1))
    return c.from_image(found, constant_of(weight).ndim - 2)


def _kernel(node: OnnxNode, weight: Operand) -> Array:
    kernel = constant_of(weight)
    if kernel.ndim not in (3, 4):
        raise ValueError(f"has {kernel.ndim - 2} spatial axes; 1 and 2 are supported")
    if node.get("kernel_shape", tuple(kernel.shape[2:])) != tuple(kernel.shape[2:]) or node.get("group", 1) < 1:
        raise ValueError(f"has weights of shape {kernel.shape} that do not fit its attributes")
    return kernel


def _as_image(kernel: Array) -> Array:
    return kernel if kernel.ndim == 4 else kernel[:, :, None]


def _conv_transpose(c: Converter, node: OnnxNode, x: Operand, weight: Operand, bias: Operand | None = None) -> Operand:
    kernel, groups = _kernel(node, weight), node.get("group", 1)
    dims = kernel.ndim - 2
    name = c.image(value_of(x), dims)
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
    offset = None if bias is None else constant_of(bias)
    if offset is not None and offset.shape != (channels,):
        raise ValueError(f"has a bias {offset.shape} for {channels} channels")
    bias_key = None if offset is None else c.param("bias", offset, trainable=True)
    size = (int(kernel.shape[2]), int(kernel.shape[3]))
    op = ConvTranspose2d(key, bias_key, shape, channels, size, facts.stride, facts.begin, extra, facts.dilation, groups)
    if min(op.output_shape(shape)) < 1:
        raise ValueError(f"has more padding than output for images {shape}")
    c.worked(math.prod(shape) * math.prod(kernel.shape[1:]))
    return c.from_image(c.builder.add(c.name, op, name), dims)


def _max_pool(c: Converter, node: OnnxNode, x: Operand) -> Operand:
    dims = len(value_of(x).shape) - 2
    name = c.image(value_of(x), dims)
    facts = windows.read(node, c.builder.shapes[name][1:], node.get("kernel_shape", ()))
    rows, columns = windows.pool_axes(facts, c.builder.shapes[name][1:], ceil=bool(node.get("ceil_mode", 0)))
    return c.from_image(c.builder.max_pool(c.name, name, rows, columns), dims)


def _average_pool(c: Converter, node: OnnxNode, x: Operand) -> Operand:
    dims = len(value_of(x).shape) - 2
    name = c.image(value_of(x), dims)
    shape = c.builder.shapes[name]
    facts = windows.read(node, shape[1:], node.get("kernel_shape", ()))
    if facts.dilation != (1, 1):
        raise ValueError("has dilated windows")
    axes = windows.pool_axes(facts, shape[1:], ceil=bool(node.get("ceil_mode", 0)))
    if any(axis != plain for axis, plain in zip(axes, windows.pool_axes(facts, shape[1:], ceil=False), strict=True)):
        raise ValueError("has windows that reach outside (ceil_mode)")
    if facts.begin == facts.end == (0, 0):
        c.worked(shape[0] * axes[0].number * axes[1].number * math.prod(facts.kernel))
        op = AvgPool2d(shape, facts.kernel, facts.stride, (0, 0), math.prod(facts.kernel))
        return c.from_image(c.builder.add(c.name, op, name), dims)
    c.made(windows.padded_shape((shape[0], 1, *facts.kernel), facts))
    ones, padding, _ = windows.evenly_padded(np.ones((shape[0], 1, *facts.kernel)), facts)
    total = c.from_image(c.convolved(name, ones, None, facts.stride, padding, (1, 1), shape[0]), dims)
    counted = bool(node.get("count_include_pad", 0))
    sizes = windows.pool_sizes(facts, shape[1:], total.shape[-2:] if dims == 2 else (1, total.shape[-1]), counted)
    return c.with_constant(total, sizes if dims == 2 else sizes[0], divided)


def _global_average_pool(c: Converter, node: OnnxNode, x: Operand) -> Operand:
    dims = len(value_of(x).shape) - 2
    name = c.image(value_of(x), dims)
    shape = c.builder.shapes[name]
    size = (shape[1], shape[2])
    return c.from_image(c.builder.add(c.name, AvgPool2d(shape, size, size, (0, 0), math.prod(size)), name), dims)


def _pad(
    c: Converter,
    node: OnnxNode,
    x: Operand,
    pads: Operand | None = None,
    fill: Operand | None = None,
    axes: Operand | None = None,
) -> Operand:
    value, amounts = value_of(x), list_option(node, "pads", pads)
    number = node.get("value", 0.0) if fill is None else number_of(fill)
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
    channels = c.builder.shapes[name][0]
    facts = windows.identity(amounts[2:dims], amounts[dims + 2 :])
    c.made(windows.padded_shape((channels, 1, 1, 1), facts))
    kernel, padding, _ = windows.evenly_padded(np.ones((channels, 1, 1, 1)), facts)
    return c.from_image(c.convolved(name, kernel, None, (1, 1), padding, (1, 1), channels), dims - 2)


def _batch_norm(
    c: Converter, node: OnnxNode, x: Operand, scale: Operand, bias: Operand, mean: Operand, var: Operand
) -> Operand:
    value, arrays = value_of(x), [constant_of(array) for array in (scale, bias, mean, var)]
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
    return Value(c.builder.add(c.name, op, name), value.shape)


HANDLERS: Handlers = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_average_pool,
    "MaxPool": _max_pool,
    "Pad": _pad,
}
