"""Average pooling over windows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from tightrope.core.bounds import Params, Shape
from tightrope.core.coef import Coef
from tightrope.core.frame import Pair, Window
from tightrope.core.op import AffineOp
from tightrope.ops._windows import pair, pull_back


@dataclass(frozen=True)
class AvgPool2d(AffineOp):
    """The mean of each window, zero padding counted in."""

    input_shape: Shape
    kernel: Pair
    stride: Pair
    padding: Pair
    divisor: int

    modules = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)

    @classmethod
    def from_module(cls, module: nn.AvgPool2d | nn.AdaptiveAvgPool2d, path: str, shape: Shape) -> AvgPool2d:
        if len(shape) != 3:
            raise ValueError(f"expects (channels, height, width), gets samples of shape {shape}")
        if isinstance(module, nn.AdaptiveAvgPool2d):
            kernel = _adaptive_kernel(module.output_size, shape)
            return cls(shape, kernel, kernel, (0, 0), kernel[0] * kernel[1])
        kernel, stride, padding = (pair(v) for v in (module.kernel_size, module.stride, module.padding))
        if module.ceil_mode or (padding != (0, 0) and not module.count_include_pad):
            raise ValueError("uses ceil_mode or count_include_pad=False, whose windows have different divisors")
        if any(k > n + 2 * p for k, n, p in zip(kernel, shape[1:], padding, strict=True)):
            raise ValueError(f"has a window larger than its padded input of shape {shape}")
        return cls(shape, kernel, stride, padding, module.divisor_override or kernel[0] * kernel[1])

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [
            (nn.AvgPool2d(2), (2, 4, 5)),
            (nn.AvgPool2d((3, 2), stride=(1, 2), padding=(1, 1)), (1, 4, 6)),
            (nn.AdaptiveAvgPool2d(1), (3, 4, 2)),
        ]

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return F.avg_pool2d(inputs[0], self.kernel, self.stride, self.padding, divisor_override=self.divisor)

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return self.linear(params, *radii)

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        channels = self.input_shape[0]

        def transpose(x: Tensor, padding: Pair, remainder: Pair) -> Tensor:
            kernel = x.new_full((channels, 1, *self.kernel), 1.0 / self.divisor)
            return F.conv_transpose2d(x, kernel, None, self.stride, padding, remainder, groups=channels)

        return (pull_back(coef, self.window, self.input_shape, transpose),)

    def bias(self, params: Params) -> Tensor | None:
        return None

    def roundings(self, params: Params) -> int:
        return self.kernel[0] * self.kernel[1] + 2  # and the division

    def output_shape(self, *shapes: Shape) -> Shape:
        return (self.input_shape[0], *self.window.grid(self.input_shape))

    @property
    def window(self) -> Window:
        return Window(self.kernel, self.stride, self.padding)


def _adaptive_kernel(size: int | tuple[int | None, ...] | None, shape: Shape) -> Pair:
    sizes = size if isinstance(size, tuple) else (size, size)
    target = [t or n for t, n in zip(sizes, shape[1:], strict=True)]
    if any(n % t for n, t in zip(shape[1:], target, strict=True)):
        raise ValueError(f"pools {shape[1:]} to {tuple(target)}, which does not divide it; use AvgPool2d")
    return (shape[1] // target[0], shape[2] // target[1])
