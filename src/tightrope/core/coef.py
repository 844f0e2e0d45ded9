"""Coefficients of linear bounds as small linear operators: dense, or one window per output position.

A row of a bound is ``coef . value`` for the value of one node, (*shape). Every form holds the rows of a whole batch;
the batch axis has size 1 while the rows do not depend on the sample. Rows that belong to the positions of a convolution
only touch a window of the earlier layer: :class:`Patches` stores that window alone, so that back-substitution through
convolutions is a few large matrix products instead of convolutions of mostly zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tightrope.core.bounds import Lines, Shape

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """How a convolution-like map moves over an image.

    Attributes:
        extent: height and width that one output sees, dilation included.
        stride: between outputs.
        padding: zeros before and after.
    """

    extent: Pair
    stride: Pair
    padding: Pair

    def free(self, shape: Shape) -> Pair:
        """How far it can move over an image (channels, height, width)."""
        (eh, ew), (ph, pw) = self.extent, self.padding
        return shape[1] + 2 * ph - eh, shape[2] + 2 * pw - ew

    def grid(self, shape: Shape) -> Pair:
        """Outputs per axis; below 1 if the window does not fit."""
        (fh, fw), (sh, sw) = self.free(shape), self.stride
        return fh // sh + 1, fw // sw + 1

    def remainder(self, shape: Shape) -> Pair:
        """Trailing rows and columns that no window reaches: what the adjoint has to add."""
        (fh, fw), (sh, sw) = self.free(shape), self.stride
        return fh % sh, fw % sw


@dataclass(frozen=True)
class Dense:
    """Every coefficient stored.

    Attributes:
        value: (batch or 1, rows, *shape).
    """

    value: Tensor

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.value.shape[1]

    def dense(self) -> Dense:
        """Itself."""
        return self

    def times(self, factor: Tensor | float) -> Dense:
        """Coefficients of x, from those of ``factor * x``; the factor broadcasts against the shape."""
        return Dense(self.value * factor)

    def plus(self, other: Coef) -> Dense:
        """The sum."""
        return Dense(self.value + other.dense().value)

    def dot(self, value: Tensor) -> Tensor:
        """(batch, *shape) -> (batch, rows)."""
        return _dot(self.value.flatten(2), value.flatten(1))

    def dot_abs(self, radius: Tensor) -> Tensor:
        """|coef| . radius, (batch, *shape) -> (batch, rows)."""
        return _dot(self.value.flatten(2).abs(), radius.flatten(1))

    def through(self, lines: Lines) -> tuple[Dense, Tensor]:
        """Lower bounds in terms of the input of a non-linear op: the new coefficients and the constant."""
        slope = torch.where(self.value > 0, lines.lower_slope[:, None], lines.upper_slope[:, None])
        bias = _dot(self.value.clamp(max=0).flatten(2), lines.upper_bias.flatten(1))
        if lines.lower_bias is not None:
            bias = bias + _dot(self.value.clamp(min=0).flatten(2), lines.lower_bias.flatten(1))
        return Dense(self.value * slope), bias


@dataclass(frozen=True)
class Patches:
    """A window of coefficients for every kind of row and position of a grid.

    The window of position (i, j) starts at row ``i * stride - padding`` of the node, and column likewise. Entries
    outside the node mean nothing until :meth:`masked` has made them 0. Rows count as (kinds, *grid) in row-major order.

    Attributes:
        value: (batch or 1, positions or 1, kinds, entries of a window).
        shape: (channels, height, width) of the node.
        kernel: height and width of the window; it has all channels.
        grid: positions per axis.
        stride, padding: of the windows, per axis.
        clean: whether entries outside the node are 0.
    """

    value: Tensor
    shape: Shape
    kernel: Pair
    grid: Pair
    stride: Pair
    padding: Pair
    clean: bool

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.value.shape[2] * math.prod(self.grid)

    def dense(self) -> Dense:
        """Every coefficient stored, zeros included."""
        batch, _, kinds, entries = self.value.shape
        positions, size = math.prod(self.grid), math.prod(self.shape)
        index = self._index().reshape(1, positions, 1, entries)
        value = self.value.expand(batch, positions, kinds, entries)
        full = self.value.new_zeros(batch, positions, kinds, size + 1).scatter(3, index.expand_as(value), value)
        rows = full[..., :-1].transpose(1, 2)  # without the entry that took what lies outside
        return Dense(rows.reshape(batch, kinds * positions, *self.shape))

    def masked(self) -> Patches:
        """The same rows with entries outside the node set to 0."""
        if self.clean:
            return self
        inside = self._windows(self.value.new_ones(1, *self.shape))
        return replace(self, value=torch.where(inside[:, :, None] > 0, self.value, 0.0), clean=True)

    def times(self, factor: Tensor | float) -> Patches:
        """See :meth:`Dense.times`."""
        if isinstance(factor, Tensor) and factor.ndim > 0:
            if factor.shape[-2:] == (1, 1):  # per channel: the same in every window
                factor = factor.expand(self.shape[0], *self.kernel).flatten()
            else:
                factor = self._windows(factor.expand(self.shape)[None])[:, :, None]
        return replace(self, value=self.value * factor)

    def plus(self, other: Coef) -> Coef:
        """The sum; dense where the windows differ."""
        if isinstance(other, Patches) and self._geometry() == other._geometry():
            return replace(self, value=self.value + other.value, clean=self.clean and other.clean)
        return Dense(self.dense().value + other.dense().value)

    def dot(self, value: Tensor) -> Tensor:
        """See :meth:`Dense.dot`."""
        return self._dot(self.value, self._windows(value))

    def dot_abs(self, radius: Tensor) -> Tensor:
        """See :meth:`Dense.dot_abs`."""
        return self._dot(self.value.abs(), self._windows(radius))

    def through(self, lines: Lines) -> tuple[Patches, Tensor]:
        """See :meth:`Dense.through`. The slopes outside the node are 0, which masks."""
        lower, upper = self._windows(lines.lower_slope)[:, :, None], self._windows(lines.upper_slope)[:, :, None]
        pulled = self.value * torch.where(self.value > 0, lower, upper)
        bias = self._dot(self.value.clamp(max=0), self._windows(lines.upper_bias))
        if lines.lower_bias is not None:
            bias = bias + self._dot(self.value.clamp(min=0), self._windows(lines.lower_bias))
        return replace(self, value=pulled, clean=True), bias

    def pull(self, window: Window, shape: Shape, transpose: Callable[[Tensor], Tensor]) -> Patches:
        """Coefficients of the input of a convolution-like map, from those of its output: one matrix product.

        Args:
            window: of the map.
            shape: of its input.
            transpose: the map's adjoint without padding, (n, channels, *kernel) -> (n, input channels, *larger).
        """
        entries = self.value.shape[3]
        eye = torch.eye(entries, dtype=self.value.dtype, device=self.value.device)
        matrix = transpose(eye.reshape(entries, self.shape[0], *self.kernel)).reshape(entries, -1)
        (sh, sw), (ph, pw) = window.stride, window.padding
        return Patches(
            self.masked().value @ matrix,
            shape,
            self.pulled_kernel(window),
            self.grid,
            (self.stride[0] * sh, self.stride[1] * sw),
            (self.padding[0] * sh + ph, self.padding[1] * sw + pw),
            clean=False,
        )

    def pulled_kernel(self, window: Window) -> Pair:
        """Extent of the windows that :meth:`pull` gives."""
        (height, width), (sh, sw), (eh, ew) = self.kernel, window.stride, window.extent
        return (height - 1) * sh + eh, (width - 1) * sw + ew

    def _geometry(self) -> tuple[Pair, Pair, Pair, Pair]:
        return self.kernel, self.grid, self.stride, self.padding

    def _windows(self, value: Tensor) -> Tensor:
        """(batch, *shape) -> (batch, positions, entries); 0 outside the node."""
        padded = F.pad(value.flatten(1), (0, 1))  # the one entry more stands for everything outside
        return padded.index_select(1, self._index()).reshape(value.shape[0], math.prod(self.grid), -1)

    def _index(self) -> Tensor:
        """The flat position in the node of every window entry, (positions * entries,); the node's size for outside."""
        channels, height, width = self.shape
        rows, columns = (self._offsets(axis) for axis in (0, 1))
        inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[None, :, None]
        flat = rows[:, None, :, None] * width + columns[None, :, None]
        channel = torch.arange(channels, device=flat.device)[:, None, None] * (height * width)
        index = torch.where(inside[:, :, None], flat[:, :, None] + channel, channels * height * width)
        return index.flatten()

    def _offsets(self, axis: int) -> Tensor:
        """Where every window lies along an axis: (grid, kernel)."""
        device = self.value.device
        start = torch.arange(self.grid[axis], device=device) * self.stride[axis] - self.padding[axis]
        return start[:, None] + torch.arange(self.kernel[axis], device=device)

    def _dot(self, coef: Tensor, windows: Tensor) -> Tensor:
        """(batch or 1, positions or 1, kinds, entries) times (batch or 1, positions, entries) -> (batch, rows)."""
        if coef.shape[:2] == (1, 1):
            found = windows @ coef[0, 0].T
        elif coef.shape[0] == 1:
            found = torch.einsum("pke,bpe->bpk", coef[0].expand(windows.shape[1], -1, -1), windows)
        elif windows.shape[0] == 1:
            found = torch.einsum("bpke,pe->bpk", coef, windows[0])
        else:
            found = torch.matmul(coef, windows[..., None])[..., 0]
        return found.transpose(1, 2).flatten(1)


Coef = Dense | Patches


def identity(shape: Shape, first: int, last: int, like: Tensor) -> Coef:
    """Rows +x and then -x of a node, for its entries (of an image: channels) from ``first`` to before ``last``."""
    index = torch.arange(first, last, device=like.device)
    rows = F.one_hot(index, shape[0]).to(like.dtype)
    both = torch.cat([rows, -rows])[None]
    if len(shape) == 3:
        return Patches(both[:, None], shape, (1, 1), (shape[1], shape[2]), (1, 1), (0, 0), clean=True)
    return Dense(both)


def _dot(coef: Tensor, x: Tensor) -> Tensor:
    """(batch or 1, rows, n) times (batch or 1, n) -> (batch or 1, rows)."""
    if coef.shape[0] == 1:  # one matrix for the whole batch
        return x @ coef[0].T
    if x.shape[0] == 1:
        return coef @ x[0]
    return torch.matmul(coef, x[:, :, None])[:, :, 0]
