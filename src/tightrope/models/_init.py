"""Initial weights, drawn from an explicit generator, so that a network is reproducible from a seed."""

from __future__ import annotations

import math

import torch
from torch import nn


def _affine_layers(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def default_init(module: nn.Module, generator: torch.Generator) -> None:
    """Give linear and convolutional layers PyTorch's default weights, in place.

    Weights and biases are uniform in +-1 / sqrt(fan_in), drawn in the order of the layers: the same numbers
    as building the module right after seeding the global generator. Other layers are left as they are.

    Args:
        module: any network.
        generator: source of the draws, on the device of the weights.
    """
    for layer in _affine_layers(module):
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
        if layer.bias is not None:
            limit = 1.0 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.bias, -limit, limit, generator=generator)


def shi_init(module: nn.Module, generator: torch.Generator) -> None:
    """Give all affine layers but the last the initialisation of Shi et al., in place.

    Weights are normal with **standard deviation** sqrt(2 pi) / fan_in, which keeps the width of interval
    bounds about constant from layer to layer; biases are zero. The last affine layer (in order of
    definition) keeps its weights.

    Args:
        module: any network.
        generator: source of the draws, on the device of the weights.

    Reference:
        Shi, Wang, Zhang, Yi, Hsieh: "Fast Certified Robust Training with Short Warmup", NeurIPS 2021.
    """
    for layer in _affine_layers(module)[:-1]:
        fan_in = layer.weight[0].numel()
        nn.init.normal_(layer.weight, std=math.sqrt(2.0 * math.pi) / fan_in, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
