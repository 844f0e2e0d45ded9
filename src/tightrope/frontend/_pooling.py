"""Max-pooling modules as windows along rows and columns."""

from __future__ import annotations

from torch import nn

from tightrope.core.bounds import Shape
from tightrope.frontend._builder import PoolAxis, pool_axis


def max_pool_axis(module: nn.MaxPool2d, axis: int, shape: Shape) -> PoolAxis:
    """The windows along the rows (axis 1) or the columns (axis 2) of an image of that shape.

    Raises:
        ValueError: positions are asked for as well, or the windows do not fit.
    """
    if len(shape) != 3:
        raise ValueError(f"expects (channels, height, width), gets samples of shape {shape}")
    if module.return_indices:
        raise ValueError("returns indices, which have no bounds; use return_indices=False")
    facts = module.kernel_size, module.stride, module.padding, module.dilation
    kernel, stride, padding, dilation = (value if isinstance(value, int) else value[axis - 1] for value in facts)
    return pool_axis(shape[axis], (kernel, stride, dilation), (padding, padding), ceil=module.ceil_mode)
