"""Geometry of windows on images: how convolution-like maps move, and which window each position of a grid sees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tightrope.core.bounds import Shape

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

    def behind(self, extent: Pair) -> Pair:
        """What an extent of outputs sees of the input."""
        (height, width), (sh, sw), (eh, ew) = extent, self.stride, self.extent
        return (height - 1) * sh + eh, (width - 1) * sw + ew


@dataclass(frozen=True)
class Frame:
    """One window of a node for every position of a grid.

    The window of position (i, j) starts at row ``i * stride - padding`` of the node, and column likewise.

    Attributes:
        shape: (channels, height, width) of the node.
        kernel: height and width of the window; it has all channels.
        grid: positions per axis.
        stride, padding: of the windows, per axis.
    """

    shape: Shape
    kernel: Pair
    grid: Pair
    stride: Pair
    padding: Pair

    @property
    def positions(self) -> int:
        """Number of windows."""
        return math.prod(self.grid)

    @property
    def entries(self) -> int:
        """Entries of one window."""
        return self.shape[0] * math.prod(self.kernel)

    def behind(self, window: Window, shape: Shape) -> Frame:
        """The frame of the input (of ``shape``) of a convolution-like map, from that of its output."""
        (sh, sw), (ph, pw) = window.stride, window.padding
        stride = (self.stride[0] * sh, self.stride[1] * sw)
        padding = (self.padding[0] * sh + ph, self.padding[1] * sw + pw)
        return Frame(shape, window.behind(self.kernel), self.grid, stride, padding)

    def windows(self, value: Tensor) -> Tensor:
        """(batch, *shape) -> (batch, positions, entries); 0 outside the node."""
        padded = F.pad(value.flatten(1), (0, 1))  # the one entry more stands for everything outside
        return padded.index_select(1, self.index(value.device)).reshape(value.shape[0], self.positions, self.entries)

    def index(self, device: torch.device) -> Tensor:
        """The flat position in the node of every window entry, (positions * entries,); the node's size for outside."""
        channels, height, width = self.shape
        rows, columns = (self._offsets(axis, device) for axis in (0, 1))
        inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[None, :, None]
        flat = rows[:, None, :, None] * width + columns[None, :, None]
        channel = torch.arange(channels, device=device)[:, None, None] * (height * width)
        index = torch.where(inside[:, :, None], flat[:, :, None] + channel, channels * height * width)
        return index.flatten()

    def _offsets(self, axis: int, device: torch.device) -> Tensor:
        """Where every window lies along an axis: (grid, kernel)."""
        start = torch.arange(self.grid[axis], device=device) * self.stride[axis] - self.padding[axis]
        return start[:, None] + torch.arange(self.kernel[axis], device=device)
