"""Max-pooling as what its windows see, offset by offset and one axis at a time."""

from __future__ import annotations

from torch import nn

from tightrope.core.bounds import Shape
from tightrope.ops.tap import Tap


def max_pool_taps(module: nn.MaxPool2d, axis: int, shape: Shape) -> list[Tap]:
    """The entries of the windows along the rows (axis 1) or the columns (axis 2) of an image of that shape.

    Raises:
        ValueError: positions are asked for as well, or the windows do not fit.
    """
    if len(shape) != 3:
        raise ValueError(f"expects (channels, height, width), gets samples of shape {shape}")
    if module.return_indices:
        raise ValueError("returns indices, which have no bounds; use return_indices=False")
    facts = module.kernel_size, module.stride, module.padding, module.dilation
    kernel, stride, padding, dilation = (value if isinstance(value, int) else value[axis - 1] for value in facts)
    free = shape[axis] + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-free // stride) if module.ceil_mode else free // stride) + 1
    if module.ceil_mode and (count - 1) * stride >= shape[axis] + padding:
        count -= 1  # as in torch: no window starts behind the image
    if count < 1:
        raise ValueError(f"has a window larger than its padded input of shape {shape}")
    return [Tap(shape, axis, count, kernel, stride, padding, dilation, offset) for offset in range(kernel)]
