"""The seven-layer convolutional network with batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.models._layers import BatchNorms, Conv, Normalize, conv_net, image_size


class Cnn7(nn.Module):
    """Five convolutions and two linear layers with batch normalisation: the field's usual network.

    Conv(c, w, 3, 1, 1), Conv(w, w, 3, 1, 1), Conv(w, 2w, 3, 2, 1), Conv(2w, 2w, 3, 1, 1) twice, each followed
    by BatchNorm and ReLU; Flatten, Linear(., hidden), BatchNorm, ReLU, Linear; convolutions are (in, out,
    kernel, stride, padding) and w is the width. From 64 x 64 pixels on the last convolution has stride 2,
    which keeps the first linear layer as large as it is for 32 x 32.

    Args:
        input_shape: (channels, height, width) of one input, values in [0, 1].
        num_classes: number of logits.
        mean: channel means of the normalisation, which is part of the network.
        std: channel standard deviations of the normalisation.
        width: channels of the first convolution.
        hidden: neurons of the hidden linear layer.
        batch_norm: which hidden layers have a batch normalisation: ``"all"``, ``"convolutions"`` or ``"none"``.
        last_stride: of the last convolution; None for 2 from 64 x 64 pixels on, else 1.

    Raises:
        InputError: the input shape is not an image shape or too small, or a size is not positive.

    Example:
        >>> sum(p.numel() for p in Cnn7((1, 8, 8), 10, width=4).parameters())
        73918
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        width: int = 64,
        hidden: int = 512,
        batch_norm: BatchNorms = "all",
        last_stride: int | None = None,
    ) -> None:
        super().__init__()
        if last_stride is None:
            last_stride = 2 if min(image_size(input_shape)) >= 64 else 1
        elif last_stride < 1:
            raise InputError(f"last_stride must be at least 1, got {last_stride}.")
        convs = [
            Conv(width, 3, 1, 1),
            Conv(width, 3, 1, 1),
            Conv(2 * width, 3, 2, 1),
            Conv(2 * width, 3, 1, 1),
            Conv(2 * width, 3, last_stride, 1),
        ]
        self.normalize = Normalize(mean, std, input_shape)
        self.layers = conv_net(input_shape, num_classes, convs, hidden=hidden, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of inputs x (batch, *input_shape)."""
        logits: Tensor = self.layers(self.normalize(x))
        return logits
