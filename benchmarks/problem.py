"""What is computed: networks with random weights, and a batch of random images to certify.

MNIST shape, eps 0.1, images uniform in [0, 1]. The networks are taken without their normalisation layer, which would be
the identity here: auto_LiRPA's patches cannot pass one. Batch normalisation has fixed statistics, those of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import tightrope as tr
from benchmarks.case import Prepared
from tightrope.core import registry
from tightrope.core.compiled import Compiled
from tightrope.core.protocols import LossFn
from tightrope.core.spec import Spec

SHAPE, CLASSES, EPS, STD, SEED = (1, 28, 28), 10, 0.1, 0.01, 0

# After the name of a relaxation: the loss is bounded as a whole instead of every margin.
FUSED = "_fused"
COMPILED = ", compiled"

# Widths that the field uses, and for "mlp" that of a network small enough for large populations; others are 16.
WIDTHS = {"cnn7": 64, "mlp": 12}


class Problem(NamedTuple):
    """A network with a batch to certify."""

    module: nn.Module
    box: tr.Box
    labels: Tensor


def width_of(network: str, asked: int | None) -> int:
    """The channels of the first convolution."""
    return asked or WIDTHS.get(network, 16)


def problem(setting: Mapping[str, Any], batch: int) -> Problem:
    """The network and images of a setting.

    Weights and images are the same on every device, in every process.

    Args:
        setting: ``network``, ``width`` and ``device``; ``depth`` (hidden layers, 2 by default) for the network "mlp".
        batch: number of images.
    """
    network, device, width = setting["network"], setting["device"], setting["width"]
    if network == "mlp":
        width = (width,) * setting.get("depth", 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = registry.create("models", network, input_shape=SHAPE, num_classes=CLASSES, width=width)
        x, labels = torch.rand(batch, *SHAPE), torch.randint(CLASSES, (batch,))
    module = _with_statistics(model.layers, x[:8]).to(device)
    return Problem(module, tr.linf_box(x.to(device), EPS), labels.to(device))


def loss_of(net: tr.Network, relaxation: str, box: tr.Box, target: Tensor | Spec) -> LossFn:
    """The certified loss by the name of its relaxation, with loss fusion if that ends in ``_fused``."""
    if relaxation.endswith(FUSED):
        bounds = registry.create("relaxations", relaxation.removesuffix(FUSED))
        return tr.certified_loss(net, bounds, box, target, fused=True)
    return tr.certified_loss(net, registry.create("relaxations", relaxation), box, target)


def training_step(made: Problem, relaxation: str, target: Tensor | Spec | None = None) -> Callable[[], object]:
    """Loss and gradient of all weights: a training step without the optimiser.

    Args:
        made: the network and its images.
        relaxation: by name; compiled, as by ``train.compile=true``, if that ends so.
        target: another property than that the labels win.
    """
    net, params = tr.from_module(made.module, SHAPE)
    loss = loss_of(net, relaxation.removesuffix(COMPILED), made.box, made.labels if target is None else target)
    if relaxation.endswith(COMPILED):
        loss = Compiled(loss)()
    leaves = {name: params[name].requires_grad_() for name in net.trainable}

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss({**params, **leaves})[0], list(leaves.values()))

    return run


def smoother_step(
    loss: LossFn, net: tr.Network, params: Mapping[str, Tensor], pairs: int, chunk: int | str
) -> Prepared:
    """One PGPE estimate, with the same noise in every step; its gradient and the loss itself as facts."""
    pgpe = registry.create("smoothers", "pgpe", pairs=pairs, chunk=chunk)
    state = pgpe.init(params, net.trainable)
    device = next(iter(params.values())).device

    def run() -> dict[str, Tensor]:
        generator = torch.Generator(device).manual_seed(SEED)
        grad: dict[str, Tensor] = pgpe.estimate(loss, params, state, std=STD, generator=generator).grad
        return grad

    def facts() -> dict[str, Tensor]:
        return {"gradient": torch.cat([g.flatten() for g in run().values()]), "loss": loss(params)[0]}

    return Prepared(run, facts)


@torch.no_grad()
def _with_statistics(module: nn.Module, x: Tensor) -> nn.Module:
    """The module in evaluation mode, its batch normalisations with the statistics of x."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum = 1.0
    module.train()
    module(x)
    return module.eval()
