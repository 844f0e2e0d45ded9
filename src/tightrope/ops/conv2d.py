"""Two-dimensional convolution with stride, zero padding, dilation and groups."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from tightrope.core.bounds import Params, Shape
from tightrope.core.coef import Coef
from tightrope.core.frame import Pair, Window
from tightrope.core.lowering import conv_transpose, image_layout
from tightrope.core.op import AffineOp
from tightrope.ops._windows import pair, pull_back


@dataclass(frozen=True)
class Conv2d(AffineOp):
    """Cross-correlation, as ``torch.nn.Conv2d`` computes it."""

    weight: str
    bias_key: str | None
    input_shape: Shape
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    modules = (nn.Conv2d,)

    @classmethod
    def from_module(cls, module: nn.Conv2d, path: str, shape: Shape) -> Conv2d:
        if len(shape) != 3 or shape[0] != module.in_channels:
            raise ValueError(f"expects ({module.in_channels}, height, width), gets samples of shape {shape}")
        if module.padding_mode != "zeros":
            raise ValueError(f"has padding_mode {module.padding_mode!r}; only 'zeros' is supported")
        bias = f"{path}bias" if module.bias is not None else None
        kernel, stride, dilation = (pair(v) for v in (module.kernel_size, module.stride, module.dilation))
        padding = _padding(module.padding, kernel, dilation)
        op = cls(
            f"{path}weight",
            bias,
            shape,
            module.out_channels,
            kernel,
            stride,
            padding,
            dilation,
            module.groups,
        )
        if min(op.output_shape(shape)) < 1:
            raise ValueError(f"has a kernel larger than its padded input of shape {shape}")
        return op

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [
            (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 6, 5)),
            (nn.Conv2d(4, 4, (3, 2), stride=(1, 3), padding=(0, 1), dilation=(2, 1), groups=2), (4, 7, 6)),
            (nn.Conv2d(1, 2, 3, padding="same", bias=False), (1, 4, 4)),
        ]

    def forward(self, params: Params, *inputs: Tensor) -> Tensor:
        bias = None if self.bias_key is None else params[self.bias_key]
        return self._convolve(inputs[0], params[self.weight], bias)

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return self._convolve(inputs[0], params[self.weight], None)

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return self._convolve(radii[0], params[self.weight].abs(), None)

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        def transpose(x: Tensor, padding: Pair, remainder: Pair) -> Tensor:
            return conv_transpose(x, params[self.weight], self.stride, padding, remainder, self.groups, self.dilation)

        return (pull_back(coef, self.window, self.input_shape, transpose),)

    def bias(self, params: Params) -> Tensor | None:
        return None if self.bias_key is None else params[self.bias_key][:, None, None]

    def roundings(self, params: Params) -> int:
        channels = max(self.input_shape[0], self.out_channels) // self.groups
        return channels * self.kernel[0] * self.kernel[1]

    def output_shape(self, *shapes: Shape) -> Shape:
        return (self.out_channels, *self.window.grid(self.input_shape))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = F.conv2d(image_layout(x), weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return image_layout(found)

    @property
    def window(self) -> Window:
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return Window((dh * (kh - 1) + 1, dw * (kw - 1) + 1), self.stride, self.padding)


def _padding(padding: str | int | tuple[int, ...], kernel: Pair, dilation: Pair) -> Pair:
    if padding == "valid":
        return (0, 0)
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(t % 2 for t in total):
            raise ValueError("has padding='same' with an even kernel, which pads unevenly; give numbers instead")
        return (total[0] // 2, total[1] // 2)
    assert not isinstance(padding, str)
    return pair(padding)
