"""What convolution and pooling share: their adjoint on both forms of coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from tightrope.core.bounds import Shape
from tightrope.core.coef import Coef, Dense
from tightrope.core.frame import Pair, Window
from tightrope.core.lowering import image_layout

Transpose = Callable[[Tensor, Pair, Pair], Tensor]
"""The transposed map of (n, channels, height, width), given its padding and output padding."""


def pull_back(coef: Coef, window: Window, shape: Shape, transpose: Transpose) -> Coef:
    """Coefficients of the input (of ``shape``) from those of the output of a map with that window.

    Windows stay windows while they are smaller than the image.
    """
    if not isinstance(coef, Dense) and math.prod(window.behind(coef.frame.kernel)) < math.prod(shape[1:]):
        return coef.pull(window, shape, lambda x: transpose(x, (0, 0), (0, 0)))
    value = coef.dense().value
    rows = image_layout(value.flatten(0, 1))
    pulled = image_layout(transpose(rows, window.padding, window.remainder(shape)))
    return Dense(pulled.unflatten(0, value.shape[:2]))


def pair(value: int | tuple[int, ...]) -> Pair:
    """One number for both axes, or one each."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
