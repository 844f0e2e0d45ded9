"""What the windows of a pooling layer see at one of their offsets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tightrope.core.bounds import Params, Shape
from tightrope.core.coef import Coef, Dense
from tightrope.core.frame import Pair, Window
from tightrope.core.op import AffineOp
from tightrope.ops._windows import pull_back


@dataclass(frozen=True)
class Tap(AffineOp):
    """Entry number ``offset`` of every window that moves along one axis (1: rows, 2: columns) of an image.

    Where it lies outside the image, the nearest entry of the same window that lies inside is taken: to the largest of a
    window, an entry that comes twice is what padding with -inf is.

    Attributes:
        input_shape: (channels, height, width).
        axis, count: along which the windows lie, and how many.
        kernel, stride, padding, dilation: of the windows, along that axis.
        offset: from 0 to below ``kernel``.
    """

    input_shape: Shape
    axis: int
    count: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    offset: int

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [
            (nn.MaxPool2d(2), (2, 4, 5)),
            (nn.MaxPool2d((2, 1), stride=(1, 2)), (1, 5, 6)),
            (nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0)), (2, 4, 3)),
        ]

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return inputs[0].index_select(self.axis + 1, self._positions(inputs[0].device))

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return self.linear(params, *radii)

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        if self.window is not None:
            return (pull_back(coef, self.window, self.input_shape, self._transposed),)
        value, dim = coef.dense().value, self.axis + 2
        empty = value.new_zeros((*value.shape[:2], *self.input_shape))
        return (Dense(empty.index_add(dim, self._positions(value.device), value)),)

    def bias(self, params: Params) -> Tensor | None:
        return None

    def roundings(self, params: Params) -> int:
        return self.count if self.window is None else 0  # where windows reach outside, entries stand for several

    def output_shape(self, *shapes: Shape) -> Shape:
        shape = list(self.input_shape)
        if shapes[0] != self.input_shape or len(shape) != 3 or self.axis not in (1, 2):
            raise ValueError(f"expects images {self.input_shape}, gets samples of shape {shapes[0]}")
        if not 0 <= self.offset < self.kernel or min(self.count, self.stride, self.dilation) < 1:
            raise ValueError("has no such entry in its windows")
        for start in range(-self.padding, self.count * self.stride - self.padding, self.stride):
            if not any(0 <= start + self.dilation * k < shape[self.axis] for k in range(self.kernel)):
                raise ValueError("has a window that sees nothing but padding")
        shape[self.axis] = self.count
        return tuple(shape)

    @property
    def window(self) -> Window | None:
        """None where some windows reach outside: those are not the others moved."""
        extent = self.dilation * (self.kernel - 1) + 1
        if self.padding > 0 or (self.count - 1) * self.stride + extent > self.input_shape[self.axis]:
            return None
        return Window(self._along(extent), self._along(self.stride), (0, 0))

    def _positions(self, device: torch.device) -> Tensor:
        """Of the entry in every window, along the axis."""
        last, start = self.input_shape[self.axis] - 1, self.dilation * self.offset - self.padding
        found = torch.arange(self.count, device=device) * self.stride + start
        inside = torch.where(found < 0, found.remainder(self.dilation), found)
        return torch.where(found > last, last - (last - found).remainder(self.dilation), inside)

    def _transposed(self, x: Tensor, padding: Pair, remainder: Pair) -> Tensor:
        channels, (height, width) = self.input_shape[0], self._along(self.dilation * (self.kernel - 1) + 1)
        tap = torch.arange(height * width, device=x.device) == self.dilation * self.offset
        kernel = tap.to(x.dtype).reshape(1, 1, height, width).expand(channels, 1, height, width)
        return F.conv_transpose2d(x, kernel, None, self._along(self.stride), padding, remainder, groups=channels)

    def _along(self, value: int) -> Pair:
        """A value on the axis, 1 on the other."""
        return (value, 1) if self.axis == 1 else (1, value)
