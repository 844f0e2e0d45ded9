"""Population throughput: one PGPE estimate of the gradient of the certified loss (IBP), noise generation included.

Counted are loss evaluations times images. Contenders: our smoother with several chunk sizes, a plain Python loop that
perturbs the weights of an ``nn.Module`` in place, and, as the mark to reach, as many images at unperturbed weights, in
one batch and in batches of the population's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tightrope as tr
from benchmarks.protocol import Agreement, Case, Group, Prepared
from benchmarks.training import CLASSES, EPS, SEED, SHAPE, Problem, problem
from tightrope.core import registry
from tightrope.core.spec import Spec, margin_cross_entropy

STD = 0.01
LOOP, ONE_BATCH, BATCHES = "naive loop", "plain, one batch", "plain, batches"


@dataclass(frozen=True)
class Options:
    """Size of the population and of its batch, and the chunks to try."""

    device: str
    threads: int | None = None
    network: str = "cnn3"
    pairs: int = 16
    images: int = 64
    chunks: Sequence[int] = (1, 4, 16)
    width: int = 16


def groups(options: Options) -> list[Group]:
    """One group."""
    chunked = [f"chunk={size}" for size in options.chunks if size <= options.pairs]
    setting: dict[str, Any] = {"network": options.network, "width": options.width, "eps": EPS, "std": STD}
    setting |= {"relaxation": "ibp", "pairs": options.pairs, "images": options.images}
    library = dict.fromkeys(chunked, "tightrope")
    library |= {LOOP: "plain PyTorch", ONE_BATCH: "tightrope", BATCHES: "tightrope"}
    name = f"PGPE, {options.network}, width {options.width}, {options.pairs} pairs, {options.images} images"
    group = Group(
        "population",
        name,
        setting | {"device": options.device, "threads": options.threads},
        library,
        2 * options.pairs * options.images,
        "image evaluations/s",
        tuple((name, over) for over in (LOOP, ONE_BATCH, BATCHES) for name in chunked),
        tuple(Agreement("gradient", chunked[0], name, 1e-3) for name in chunked[1:])
        + tuple(Agreement("loss", chunked[0], name) for name in (LOOP, ONE_BATCH, BATCHES)),
    )
    return [group]


def prepare(case: Case) -> Prepared:
    """Set one contender up."""
    setting, name = case.setting, case.contender
    made = problem(setting["network"], setting["width"], setting["images"], setting["device"])
    if name == LOOP:
        return _loop(made, setting["pairs"])
    if name == ONE_BATCH:
        return _plain(made, 2 * setting["pairs"], 1)
    if name == BATCHES:
        return _plain(made, 1, 2 * setting["pairs"])
    return _smoother(made, setting["pairs"], int(name.removeprefix("chunk=")))


def _loss_of(made: Problem, repeats: int = 1) -> tuple[Callable[..., Any], tr.Network, dict[str, Tensor]]:
    net, params = tr.from_module(made.module, SHAPE)
    box = tr.Box(made.box.lower.repeat(repeats, 1, 1, 1), made.box.upper.repeat(repeats, 1, 1, 1))
    return tr.certified_loss(net, registry.create("relaxations", "ibp"), box, made.labels.repeat(repeats)), net, params


def _smoother(made: Problem, pairs: int, chunk: int) -> Prepared:
    loss, net, params = _loss_of(made)
    pgpe = registry.create("smoothers", "pgpe", pairs=pairs, chunk=chunk)
    state = pgpe.init(params, net.trainable)
    device = made.labels.device

    def run() -> dict[str, Tensor]:
        generator = torch.Generator(device).manual_seed(SEED)
        grad: dict[str, Tensor] = pgpe.estimate(loss, params, state, std=STD, generator=generator).grad
        return grad

    def facts() -> dict[str, Tensor]:
        return {"gradient": torch.cat([g.flatten() for g in run().values()]), "loss": loss(params)[0]}

    return Prepared(run, facts)


def _plain(made: Problem, repeats: int, passes: int) -> Prepared:
    loss, _, params = _loss_of(made, repeats)

    @torch.no_grad()
    def run() -> list[Tensor]:
        return [loss(params)[0] for _ in range(passes)]

    return Prepared(run, lambda: {"loss": run()[0]})


def _loop(made: Problem, pairs: int) -> Prepared:
    """PGPE as it is written without a library: weights of a module changed in place, one member after the other."""
    weights = list(made.module.parameters())
    spec = tr.margin_spec(made.labels, CLASSES)
    generator = torch.Generator(made.labels.device).manual_seed(SEED)

    def value() -> Tensor:
        return interval_loss(made.module, made.box, spec)

    @torch.no_grad()
    def run() -> list[Tensor]:
        grad = [torch.zeros_like(w) for w in weights]
        saved = [w.clone() for w in weights]
        for _ in range(pairs):
            noise = [torch.randn(w.shape, generator=generator, device=w.device).mul_(STD) for w in weights]
            values = []
            for sign in (1.0, -1.0):
                for weight, centre, z in zip(weights, saved, noise, strict=True):
                    torch.add(centre, z, alpha=sign, out=weight)
                values.append(value())
            for total, z in zip(grad, noise, strict=True):
                total.add_(z * ((values[0] - values[1]) / (2 * pairs * STD**2)))
        for weight, centre in zip(weights, saved, strict=True):
            weight.copy_(centre)
        return grad

    return Prepared(run, lambda: {"loss": value()})


@torch.no_grad()
def interval_loss(module: nn.Module, box: tr.Box, spec: Spec) -> Tensor:
    """Certified loss by interval bounds of a sequence of layers, the last linear one merged with the spec."""
    *layers, last = module.children()
    assert isinstance(last, nn.Linear)
    centre, radius = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            centre = layer(centre)
            radius = F.conv2d(radius, layer.weight.abs(), None, layer.stride, layer.padding)
        elif isinstance(layer, nn.Linear):
            centre, radius = layer(centre), F.linear(radius, layer.weight.abs())
        elif isinstance(layer, nn.ReLU):
            lower, upper = (centre - radius).relu(), (centre + radius).relu()
            centre, radius = (lower + upper) / 2, (upper - lower) / 2
        else:
            centre, radius = layer(centre), layer(radius)
    rows = spec.matrix @ last.weight
    margins = torch.einsum("bri,bi->br", rows, centre) - torch.einsum("bri,bi->br", rows.abs(), radius)
    return margin_cross_entropy(margins + spec.matrix @ last.bias, spec.clause).mean()
