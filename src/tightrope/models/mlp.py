"""The fully connected network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.models._layers import Normalize, dense_net


class Mlp(nn.Module):
    """Flatten, then linear layers with ReLU between them; takes inputs of any shape.

    Args:
        input_shape: shape of one input, values in [0, 1].
        num_classes: number of logits.
        mean: means of the normalisation, which is part of the network: one, or one for each channel of
            inputs (c, h, w).
        std: standard deviations of the normalisation, as `mean`.
        width: number of neurons of each hidden layer; empty for an affine network.

    Raises:
        InputError: the input shape is empty, or a size is not positive.

    Example:
        >>> sum(p.numel() for p in Mlp((2,), 2, width=(3,)).parameters())
        17
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        width: Sequence[int] = (32, 32),
    ) -> None:
        super().__init__()
        if not input_shape:
            raise InputError("The model 'mlp' needs an input shape with at least one dimension, got ().")
        self.normalize = Normalize(mean, std, input_shape)
        self.layers = dense_net(math.prod(input_shape), num_classes, width)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of inputs x (batch, *input_shape)."""
        logits: Tensor = self.layers(self.normalize(x))
        return logits
