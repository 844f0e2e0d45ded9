"""Windows of convolution and pooling as ONNX describes them; one axis is a row of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tightrope.core.frame import Pair
from tightrope.frontend._builder import PoolAxis, pool_axis
from tightrope.frontend._onnx_model import LARGEST_TENSOR, Array, OnnxNode


class Windows(NamedTuple):
    """How windows move over an image, (rows, columns) each; ``begin`` and ``end`` are zeros before and behind it."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    begin: Pair
    end: Pair

    @property
    def extent(self) -> Pair:
        """What a window reaches over."""
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return (dh * (kh - 1) + 1, dw * (kw - 1) + 1)


def on_both_axes(values: Sequence[int], neutral: int) -> Pair:
    """One number an axis; a row of an image has the neutral one on the other axis.

    Raises:
        ValueError: not one or two numbers.
    """
    if len(values) not in (1, 2):
        raise ValueError(f"has {len(values)} spatial axes; 1 and 2 are supported")
    return (neutral if len(values) == 1 else int(values[0]), int(values[-1]))


def identity(begin: Sequence[int], end: Sequence[int]) -> Windows:
    """Windows of one entry, with padding."""
    return Windows((1, 1), (1, 1), (1, 1), on_both_axes(begin, 0), on_both_axes(end, 0))


def read(node: OnnxNode, image: Sequence[int], kernel: Sequence[int]) -> Windows:
    """From the attributes of Conv, ConvTranspose, MaxPool and AveragePool.

    Args:
        node: the application.
        image: its height and width.
        kernel: sizes, one an axis.

    Raises:
        ValueError: attributes that do not fit.
    """
    dims = len(kernel)
    stride = on_both_axes(node.get("strides", (1,) * dims), 1)
    dilation = on_both_axes(node.get("dilations", (1,) * dims), 1)
    pads = node.get("pads", (0,) * (2 * dims))
    if len(pads) != 2 * dims:
        raise ValueError(f"has pads {pads} for {dims} spatial axes")
    begin, end = on_both_axes(pads[:dims], 0), on_both_axes(pads[dims:], 0)
    facts = Windows(on_both_axes(kernel, 1), stride, dilation, begin, end)
    if min(*facts.kernel, *stride, *dilation) < 1 or min(*begin, *end) < 0:
        raise ValueError("has a kernel, stride or dilation below 1, or negative pads")
    if max(*facts.extent, *stride, *begin, *end) > LARGEST_TENSOR:
        raise ValueError("has a window or pads that are too large")
    return _automatic(facts, node.get("auto_pad", "NOTSET"), image)


def _automatic(facts: Windows, rule: str, image: Sequence[int]) -> Windows:
    if rule == "NOTSET":
        return facts
    if rule == "VALID":
        return facts._replace(begin=(0, 0), end=(0, 0))
    if rule not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"has auto_pad {rule!r}")
    triples = zip(image, facts.stride, facts.extent, strict=True)
    totals = [max(0, (-(-n // s) - 1) * s + extent - n) for n, s, extent in triples]
    less, more = (totals[0] // 2, totals[1] // 2), (-(-totals[0] // 2), -(-totals[1] // 2))
    begin, end = (less, more) if rule == "SAME_UPPER" else (more, less)
    return facts._replace(begin=begin, end=end)


def padded_shape(kernel: Sequence[int], facts: Windows) -> tuple[int, ...]:
    """The shape of the kernel that :func:`evenly_padded` makes, known before it is made."""
    if facts.begin == facts.end:
        return tuple(kernel)
    extra = (abs(end - begin) for begin, end in zip(facts.begin, facts.end, strict=True))
    return (*kernel[:2], *(n + more for n, more in zip(facts.extent, extra, strict=True)))


def evenly_padded(kernel: Array, facts: Windows) -> tuple[Array, Pair, Pair]:
    """The same convolution with as many zeros before the image as behind it: kernel, padding, dilation.

    The kernel gets zeros on the side with less padding; with dilation it is spread out first.
    """
    if facts.begin == facts.end:
        return kernel, facts.begin, facts.dilation
    spread = np.zeros((*kernel.shape[:2], *facts.extent))
    spread[:, :, :: facts.dilation[0], :: facts.dilation[1]] = kernel
    sides = list(zip(facts.begin, facts.end, strict=True))
    widths = [(0, 0), (0, 0), *((max(0, end - begin), max(0, begin - end)) for begin, end in sides)]
    padding = (max(sides[0]), max(sides[1]))
    return np.pad(spread, widths), padding, (1, 1)


def pool_axes(facts: Windows, image: Sequence[int], *, ceil: bool) -> tuple[PoolAxis, PoolAxis]:
    """Windows of pooling, along rows and columns.

    Raises:
        ValueError: they do not fit.
    """
    rows, columns = (
        pool_axis(n, (k, s, d), (begin, end), ceil=ceil) for n, k, s, d, begin, end in zip(image, *facts, strict=True)
    )
    return rows, columns


def pool_sizes(facts: Windows, image: Sequence[int], grid: Sequence[int], padded: bool) -> Array:
    """How many entries each window averages, (rows, columns), with those of the padding or without."""
    if padded:
        return np.full(tuple(grid), float(np.prod(facts.kernel)))
    counts = []
    for n, k, s, begin, places in zip(image, facts.kernel, facts.stride, facts.begin, grid, strict=True):
        starts = s * np.arange(places) - begin
        counts.append(np.maximum(0.0, np.minimum(starts + k, n) - np.maximum(starts, 0)))
    sizes: Array = np.multiply.outer(*counts)
    if not sizes.all():
        raise ValueError("has a window that sees nothing but padding")
    return sizes
