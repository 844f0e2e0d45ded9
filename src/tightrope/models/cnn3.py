"""The three-layer convolutional network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tightrope.models._layers import BatchNorms, Conv, Normalize, conv_net


class Cnn3(nn.Module):
    """Two convolutions and a linear layer; the second convolution doubles the channels.

    Conv(c, w, 5, 2, 2), ReLU, Conv(w, 2w, 4, 2, 1), ReLU, Flatten, Linear; convolutions are
    (in, out, kernel, stride, padding) and w is the width.

    Args:
        input_shape: (channels, height, width) of one input, values in [0, 1].
        num_classes: number of logits.
        mean: channel means of the normalisation, which is part of the network.
        std: channel standard deviations of the normalisation.
        width: channels of the first convolution.
        batch_norm: which hidden layers have a batch normalisation: ``"none"``, ``"convolutions"`` or ``"all"``.

    Raises:
        InputError: the input shape is not an image shape or too small, or a size is not positive.

    Example:
        >>> sum(p.numel() for p in Cnn3((1, 28, 28), 10).parameters())
        24330
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        width: int = 16,
        batch_norm: BatchNorms = "none",
    ) -> None:
        super().__init__()
        convs = [Conv(width, 5, 2, 2), Conv(2 * width, 4, 2, 1)]
        self.normalize = Normalize(mean, std, input_shape)
        self.layers = conv_net(input_shape, num_classes, convs, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of inputs x (batch, *input_shape)."""
        logits: Tensor = self.layers(self.normalize(x))
        return logits
