"""How the heavy operations run on a device: chosen by what a tensor is (device, type, shape), never by its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tightrope.core.frame import Pair

_ONEDNN = torch.backends.mkldnn.is_available()
# Below so many multiplications the library call of a plain product costs less than what a better kernel saves.
_LARGE = 2**24
# Entries of the largest coefficient tensor, above which rows are bounded in chunks. On a CPU 64 MiB in float32: smaller
# chunks give products too small to be fast (measured from 2**18 on), larger ones more memory to no gain.
_CHUNK = {"cpu": 2**24}
_CHUNK_ELSEWHERE = 2**28
# Entries of the largest coefficients of all rows of a node up to which what the backward pass needs is kept, about four
# tensors of that size. Computing it anew takes a third more time.
_KEPT = {"cpu": 2**28}
_KEPT_ELSEWHERE = 2**31


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, for a (..., k) and a matrix b (k, n).

    Large float32 products on a CPU run as a 1 x 1 convolution: that of oneDNN uses AVX-512 on every processor that has
    it, the matrix product of MKL does not (on an AMD EPYC it took 2.1 times as long).
    """
    (k, n), rows = b.shape, a.numel() // max(1, a.shape[-1])
    if not _has_onednn(a) or min(k, n) < 16 or rows < 256 or rows * k * n < _LARGE:
        return a @ b
    image = a.reshape(1, rows, 1, k).permute(0, 3, 1, 2)  # a view: pixels are rows, channels their entries
    product = F.conv2d(image, b.t().reshape(n, k, 1, 1))
    return product.permute(0, 2, 3, 1).reshape(*a.shape[:-1], n)


def row_dot(rows: Tensor, x: Tensor) -> Tensor:
    """The products of each sample's rows (batch, rows, n) with its vector (batch or 1, n): (batch, rows)."""
    x = x.expand(rows.shape[0], -1)
    if not torch.is_grad_enabled() and runs_plainly():  # calling it as a function of autograd costs more than itself
        return _RowDot.forward(rows, x)
    found: Tensor = _RowDot.apply(rows, x)  # type: ignore[no-untyped-call]
    return found


class _RowDot(torch.autograd.Function):
    """One pass over the rows in each direction. As a matrix product with one column, or differentiated as the product
    with one row that it is here, it costs a CPU up to ten."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, x: Tensor) -> Tensor:
        return torch.bmm(x[:, None], rows.transpose(1, 2))[:, 0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        rows, x = ctx.saved_tensors
        return grad[:, :, None] * x[:, None], torch.bmm(grad[:, None], rows)[:, 0]


def conv_transpose(
    x: Tensor, weight: Tensor, stride: Pair, padding: Pair, output_padding: Pair, groups: int, dilation: Pair
) -> Tensor:
    """``conv_transpose2d``; into fewer channels than a vector register has, by plain convolutions where they do it.

    Every offset of the stride is one plain convolution with every stride-th tap: their outputs fill the register.
    """
    few = weight.shape[1] < 8 and groups == 1 and dilation == (1, 1) and max(stride) > 1
    if not (few and _has_onednn(x)):
        return F.conv_transpose2d(x, weight, None, stride, padding, output_padding, groups, dilation)
    (sh, sw), (ph, pw), (channels, out, kh, kw) = stride, padding, weight.shape
    th, tw = -(-kh // sh), -(-kw // sw)  # taps of each offset
    taps = F.pad(weight, (0, tw * sw - kw, 0, th * sh - kh)).reshape(channels, out, th, sh, tw, sw)
    taps = taps.flip(2, 4).permute(3, 5, 1, 0, 2, 4).reshape(-1, channels, th, tw)
    found = F.conv2d(x, image_layout(taps), None, 1, (th - 1, tw - 1))
    count, _, rows, columns = found.shape
    found = found.permute(0, 2, 3, 1).reshape(count, rows, columns, sh, sw, out).transpose(2, 3)
    found = found.reshape(count, rows * sh, columns * sw, out).permute(0, 3, 1, 2)
    height = (x.shape[2] - 1) * sh - 2 * ph + kh + output_padding[0]
    width = (x.shape[3] - 1) * sw - 2 * pw + kw + output_padding[1]
    short = (max(0, pw + width - columns * sw), max(0, ph + height - rows * sh))
    found = F.pad(found, (0, short[0], 0, short[1])) if max(short) > 0 else found
    return found[:, :, ph : ph + height, pw : pw + width]


def image_layout(x: Tensor) -> Tensor:
    """(n, channels, height, width) in the memory layout in which convolutions on its device are fastest.

    On a CPU the channels lie innermost: transposed convolutions are three to five times as fast.
    """
    if not _has_onednn(x):
        return x
    if x.shape[1] == 1:  # either layout is the other, and only the strides tell a convolution which to answer in
        return x.squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2)
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def flat_rows(rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (batch, rows, *shape) and values (batch, *shape) with the axes of the shape as one.

    In the order in which the rows lie in memory, as they are many and the values few.
    """
    if rows.ndim == 5 and rows.stride(2) < rows.stride(4):
        rows, x = rows.movedim(2, -1), x.movedim(1, -1)
    return rows.flatten(2), x.flatten(1)


def chunk_entries(device: torch.device) -> int:
    """Entries of the largest coefficient tensor above which rows are bounded in chunks."""
    return _CHUNK.get(device.type, _CHUNK_ELSEWHERE)


def keeps(entries: int, device: torch.device) -> bool:
    """Whether what the backward pass needs of coefficients with so many entries in all is kept, or computed anew."""
    return entries <= _KEPT.get(device.type, _KEPT_ELSEWHERE)


def can_recompute() -> bool:
    """Whether gradients are taken, by plain autograd: mapped code cannot run again, and compilers decide themselves."""
    return torch.is_grad_enabled() and runs_plainly()


def runs_plainly() -> bool:
    """Whether code is run as it is written: neither compiled nor mapped nor differentiated by ``torch.func``."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None


def gradient_of(objective: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient at x of the first value, a number, and the second value; neither has a graph of its own.

    ``torch.func`` where the code is mapped or compiled; plain autograd elsewhere, which is faster, and does not load
    the compiler (a second and more of a process's start).
    """
    if not runs_plainly():
        found: tuple[Tensor, Tensor] = torch.func.grad(objective, has_aux=True)(x)
        return found
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value, rest = objective(point)
    return torch.autograd.grad(value, point)[0], rest.detach()


def _has_onednn(x: Tensor) -> bool:
    return _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32
