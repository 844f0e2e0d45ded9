"""What the architectures share: the normalisation layer and the builders of layer stacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tightrope.errors import InputError


class Normalize(nn.Module):
    """(x - mean) / std, as a part of the network, so that eps and boxes always live in input units.

    Args:
        mean: one value, or one for each channel.
        std: as `mean`, positive.
        input_shape: shape of one input. The buffers are (c, 1, 1) for images (c, h, w), scalars otherwise.

    Raises:
        InputError: the number of values fits neither one nor the channels, or a std is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], input_shape: Sequence[int]) -> None:
        super().__init__()
        if not all(value > 0.0 for value in std):
            raise InputError(f"The std of a normalisation must be positive, got {tuple(std)}.")
        self.register_buffer("mean", _channel_values("mean", mean, input_shape))
        self.register_buffer("std", _channel_values("std", std, input_shape))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised inputs, in the shape of x (batch, *input_shape)."""
        return (x - self.mean) / self.std


def _channel_values(name: str, values: Sequence[float], input_shape: Sequence[int]) -> Tensor:
    is_image = len(input_shape) == 3
    channels = input_shape[0] if is_image else 1
    if len(values) not in (1, channels):
        raise InputError(
            f"The {name} of a normalisation needs one value or one for each of the {channels} channel(s) of "
            f"inputs {tuple(input_shape)}, got {len(values)}."
        )
    tensor = torch.tensor(tuple(values), dtype=torch.get_default_dtype())
    return tensor.expand(channels).clone().view(channels, 1, 1) if is_image else tensor.view(())


BatchNorms = Literal["all", "convolutions", "none"]
"""Which hidden layers have a batch normalisation before their ReLU."""


class Conv(NamedTuple):
    """One convolution of a stack: output channels, then kernel, stride and padding in pixels."""

    channels: int
    kernel: int
    stride: int
    padding: int


def dense_net(features: int, num_classes: int, widths: Sequence[int]) -> nn.Sequential:
    """Flatten, then linear layers with ReLU between them.

    Args:
        features: number of values in one input.
        num_classes: number of logits.
        widths: number of neurons of each hidden layer.

    Raises:
        InputError: a size is not positive.
    """
    _check_positive("features", features)
    _check_positive("num_classes", num_classes)
    _check_positive("width", *widths)
    layers: list[nn.Module] = [nn.Flatten()]
    for width in widths:
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


def conv_net(
    input_shape: Sequence[int],
    num_classes: int,
    convs: Sequence[Conv],
    *,
    hidden: int | None = None,
    batch_norm: BatchNorms = "none",
) -> nn.Sequential:
    """Convolutions with ReLU, flatten, an optional hidden linear layer with ReLU, and the logits.

    Args:
        input_shape: (channels, height, width) of one input.
        num_classes: number of logits.
        convs: the convolutions in order.
        hidden: neurons of the hidden linear layer; None for none.
        batch_norm: the hidden layers with a batch normalisation before their ReLU.

    Raises:
        InputError: the shape is not (c, h, w) or too small for the stack, or a size is not positive.
    """
    _check_positive("num_classes", num_classes)
    features = _feature_count(input_shape, convs)
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for conv in convs:
        layers.append(nn.Conv2d(channels, conv.channels, conv.kernel, conv.stride, conv.padding))
        layers += [nn.ReLU()] if batch_norm == "none" else [nn.BatchNorm2d(conv.channels), nn.ReLU()]
        channels = conv.channels
    layers.append(nn.Flatten())
    if hidden is not None:
        layers.append(nn.Linear(features, hidden))
        layers += [nn.BatchNorm1d(hidden), nn.ReLU()] if batch_norm == "all" else [nn.ReLU()]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


def image_size(input_shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of an image shape.

    Raises:
        InputError: the shape is not (channels, height, width) with positive entries.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise InputError(
            "A convolutional network needs an input shape (channels, height, width) of positive sizes, got "
            f"{tuple(input_shape)}. For flat inputs use the model 'mlp'."
        )
    return input_shape[1], input_shape[2]


def _feature_count(input_shape: Sequence[int], convs: Sequence[Conv]) -> int:
    """Values that reach the flatten layer: by arithmetic, since a dry run would need real weights."""
    size = image_size(input_shape)
    for position, conv in enumerate(convs, start=1):
        _check_positive("width", conv.channels)
        size = _conv_size(size[0], conv), _conv_size(size[1], conv)
        if min(size) < 1:
            raise InputError(
                f"Inputs of shape {tuple(input_shape)} are too small for this network: nothing is left after "
                f"convolution {position} (kernel {conv.kernel}, stride {conv.stride}, padding "
                f"{conv.padding}). Use larger images, a shallower network, or the model 'mlp'."
            )
    return convs[-1].channels * math.prod(size)


def _conv_size(size: int, conv: Conv) -> int:
    return (size + 2 * conv.padding - conv.kernel) // conv.stride + 1


def _check_positive(name: str, *sizes: int) -> None:
    if any(size < 1 for size in sizes):
        raise InputError(f"Every {name} of a network must be at least 1, got {', '.join(map(str, sizes))}.")
