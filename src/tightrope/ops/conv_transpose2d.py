"""Transposed convolution, as decoders upsample with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from tightrope.core.bounds import Params, Shape
from tightrope.core.coef import Coef, Dense
from tightrope.core.frame import Pair
from tightrope.core.lowering import image_layout
from tightrope.core.op import AffineOp
from tightrope.ops._windows import pair


@dataclass(frozen=True)
class ConvTranspose2d(AffineOp):
    """The transposed matrix of a convolution, as ``torch.nn.ConvTranspose2d`` computes it; its adjoint convolves.

    Which entries of the input a window of the output sees depends on where it lies between the strides: coefficients
    become dense here.
    """

    weight: str
    bias_key: str | None
    input_shape: Shape
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    output_padding: Pair
    dilation: Pair
    groups: int

    modules = (nn.ConvTranspose2d,)

    @classmethod
    def from_module(cls, module: nn.ConvTranspose2d, path: str, shape: Shape) -> ConvTranspose2d:
        if len(shape) != 3 or shape[0] != module.in_channels:
            raise ValueError(f"expects ({module.in_channels}, height, width), gets samples of shape {shape}")
        assert not isinstance(module.padding, str)  # torch refuses these for transposed convolutions
        bias = f"{path}bias" if module.bias is not None else None
        op = cls(
            f"{path}weight",
            bias,
            shape,
            module.out_channels,
            pair(module.kernel_size),
            pair(module.stride),
            pair(module.padding),
            pair(module.output_padding),
            pair(module.dilation),
            module.groups,
        )
        if min(op.output_shape(shape)) < 1:
            raise ValueError(f"has more padding than output for an input of shape {shape}")
        return op

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [
            (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 3, 4)),
            (nn.ConvTranspose2d(4, 2, (3, 2), stride=(1, 3), padding=(1, 0), dilation=(2, 1), groups=2), (4, 3, 2)),
            (nn.ConvTranspose2d(1, 2, 2, dilation=3, output_padding=2, bias=False), (1, 3, 3)),
        ]

    def forward(self, params: Params, *inputs: Tensor) -> Tensor:
        bias = None if self.bias_key is None else params[self.bias_key]
        return self._spread(inputs[0], params[self.weight], bias)

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return self._spread(inputs[0], params[self.weight], None)

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return self._spread(radii[0], params[self.weight].abs(), None)

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        value = coef.dense().value
        rows, (height, width) = image_layout(value.flatten(0, 1)), self.input_shape[1:]
        pulled = F.conv2d(rows, params[self.weight], None, self.stride, self.padding, self.dilation, self.groups)
        # Output padding of a stride or more leaves room for further windows, which no input entry has.
        return (Dense(pulled[..., :height, :width].unflatten(0, value.shape[:2])),)

    def bias(self, params: Params) -> Tensor | None:
        return None if self.bias_key is None else params[self.bias_key][:, None, None]

    def roundings(self, params: Params) -> int:
        channels = max(self.input_shape[0], self.out_channels) // self.groups
        return channels * self.kernel[0] * self.kernel[1]

    def output_shape(self, *shapes: Shape) -> Shape:
        facts = zip(
            self.input_shape[1:],
            self.kernel,
            self.stride,
            self.padding,
            self.output_padding,
            self.dilation,
            strict=True,
        )
        height, width = ((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, o, d in facts)
        return (self.out_channels, height, width)

    def _spread(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = F.conv_transpose2d(
            image_layout(x), weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )
        return image_layout(found)
