"""Population throughput: one PGPE estimate of the gradient of a certified loss, noise generation included.

Counted are loss evaluations times images. Contenders: our smoother with several chunk sizes, a plain Python loop that
perturbs the weights in place, evotorch's PGPE around the same loss, and, as the mark to reach, as many images at
unperturbed weights, forward only, in passes of several sizes: the best of those is what the headline ratio is against.
On a small network the largest chunk is compiled too. A second kind of group holds the peak memory of few pairs against
that of many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tightrope as tr
from benchmarks import evolution
from benchmarks.case import Case, Prepared
from benchmarks.problem import (
    CLASSES,
    COMPILED,
    EPS,
    SEED,
    SHAPE,
    STD,
    WIDTHS,
    Problem,
    loss_of,
    problem,
    smoother_step,
    width_of,
)
from benchmarks.protocol import Agreement, Contender, Group, ours
from tightrope.core.compiled import Compiled
from tightrope.core.protocols import LossFn
from tightrope.core.spec import Spec, margin_cross_entropy

LOOP = "naive loop"
BEST, BEST_PLAIN, BEST_EVOTORCH = "best chunk", "best plain", "best evotorch"

# Where one step with the usual numbers would take minutes on a CPU. The memory cases take one step with many pairs.
PAIRS = {"deeppoly": 8}
SMALL = "mlp"  # where they take milliseconds, larger chunks pay, and so does compiling them
SMALL_CHUNK = 64
MEMORY_IMAGES = {"ibp": 64, "crown_ibp": 16, "deeppoly": 2}


@dataclass(frozen=True)
class Options:
    """Size of the population and of its batch, the chunks and the plain passes to try."""

    device: str
    threads: int | None = None
    networks: Sequence[str] = ("cnn3", SMALL)
    relaxations: Sequence[str] = ("ibp", "crown_ibp", "deeppoly")
    pairs: int | None = None
    images: int = 64
    chunks: Sequence[int] = (1, 4, 16)
    passes: Sequence[int] = (64, 256, 1024)
    memory_pairs: Sequence[int] = (16, 1024)
    width: int | None = None


def groups(options: Options) -> list[Group]:
    """For each network and relaxation one of speed and one of memory."""
    return [
        make(options, network, relaxation)
        for network in options.networks
        for make in (_speed, _memory)
        for relaxation in options.relaxations
    ]


def prepare(case: Case) -> Prepared:
    """Set one contender up."""
    setting, name = case.setting, case.contender
    made = problem(setting, setting["images"])
    if name == LOOP:
        return _loop(made, setting)
    if name.startswith(evolution.PREFIX):
        return _evotorch(made, setting)
    if "images_per_pass" in setting:
        return _plain(made, setting)
    return _smoother(made, setting)


def _speed(options: Options, network: str, relaxation: str) -> Group:
    small = network == SMALL
    pairs = options.pairs or (64 if small else PAIRS.get(relaxation, 64))
    setting = _setting(options, network, relaxation, options.images) | {"pairs": pairs}
    chunks = [size for size in (*options.chunks, *[SMALL_CHUNK] * small) if size <= pairs]
    total = 2 * pairs * options.images
    passes = sorted({size for size in options.passes if total % size == 0 == size % options.images} | {total})
    smoothed = {f"chunk={size}": ours({"chunk": size}) for size in chunks}
    plain = {f"plain, {size} a pass": ours({"images_per_pass": size}) for size in passes}
    peers = {f"{evolution.PREFIX}chunk={size}": _evotorch_contender(size) for size in chunks if size > 1}
    if evolution.VERSION is None:
        peers = {}
    families = {BEST: tuple(smoothed), BEST_PLAIN: tuple(plain), BEST_EVOTORCH: tuple(peers)}
    references = (BEST_PLAIN, LOOP, *([BEST_EVOTORCH] if peers else []))
    first, *others = smoothed
    last = f"chunk={chunks[-1]}"
    worth_it = small and setting["width"] >= WIDTHS[SMALL]
    compiled = {last + COMPILED: ours({"chunk": chunks[-1], "compiled": True})} if worth_it else {}
    return Group(
        __name__,
        f"PGPE, {relaxation}, {_described(setting)}, {pairs} pairs",
        setting,
        smoothed | compiled | {LOOP: Contender("plain PyTorch")} | plain | peers,
        total,
        "image evaluations/s",
        tuple((BEST, over) for over in references)
        + tuple((name, BEST_PLAIN) for name in smoothed)
        + tuple((name, last) for name in compiled),
        families,
        tuple(Agreement("gradient", first, name, 1e-3) for name in (*others, *compiled))
        + tuple(Agreement("loss", first, name) for name in (LOOP, *plain, *peers)),
    )


def _memory(options: Options, network: str, relaxation: str) -> Group:
    few, many = (f"{pairs} pairs" for pairs in options.memory_pairs)
    images = min(options.images, MEMORY_IMAGES.get(relaxation, 1))
    setting = _setting(options, network, relaxation, images) | {"chunk": min(4, *options.memory_pairs)}
    counts = dict(zip((few, many), options.memory_pairs, strict=True))
    return Group(
        __name__,
        f"peak memory of PGPE, {relaxation}, {_described(setting)}, chunk {setting['chunk']}",
        setting,
        {name: ours({"pairs": pairs}) for name, pairs in counts.items()},
        images,
        "image evaluations/s",
        ((many, few),),
        timed=False,
    )


def _setting(options: Options, network: str, relaxation: str, images: int) -> dict[str, Any]:
    return {
        "network": network,
        "width": width_of(network, options.width),
        "relaxation": relaxation,
        "images": images,
        "eps": EPS,
        "std": STD,
        "device": options.device,
        "threads": options.threads,
    }


def _described(setting: Mapping[str, Any]) -> str:
    return f"{setting['network']}, width {setting['width']}, {setting['images']} images"


def _evotorch_contender(chunk: int) -> Contender:
    return Contender(f"{evolution.PREFIX}{evolution.VERSION}", {"chunk": chunk})


def _loss_of(made: Problem, relaxation: str, repeats: int = 1) -> tuple[LossFn, tr.Network, dict[str, Tensor]]:
    net, params = tr.from_module(made.module, SHAPE)
    box = tr.Box(made.box.lower.repeat(repeats, 1, 1, 1), made.box.upper.repeat(repeats, 1, 1, 1))
    return loss_of(net, relaxation, box, made.labels.repeat(repeats)), net, dict(params)


def _smoother(made: Problem, setting: Mapping[str, Any]) -> Prepared:
    loss, net, params = _loss_of(made, setting["relaxation"])
    if not setting.get("compiled", False):
        return smoother_step(loss, net, params, setting["pairs"], setting["chunk"])
    prepared = smoother_step(Compiled(loss)(), net, params, setting["pairs"], setting["chunk"])
    prepared.run()  # so that compiling counts as set-up
    return prepared


def _plain(made: Problem, setting: Mapping[str, Any]) -> Prepared:
    per_pass = setting["images_per_pass"]
    loss, _, params = _loss_of(made, setting["relaxation"], per_pass // setting["images"])
    passes = 2 * setting["pairs"] * setting["images"] // per_pass

    @torch.no_grad()
    def run() -> list[Tensor]:
        return [loss(params)[0] for _ in range(passes)]

    return Prepared(run, lambda: {"loss": loss(params)[0].detach()})


def _evotorch(made: Problem, setting: Mapping[str, Any]) -> Prepared:
    loss, net, params = _loss_of(made, setting["relaxation"])
    peer = evolution.Evotorch(
        lambda own: loss(own)[0], params, net.trainable, pairs=setting["pairs"], chunk=setting["chunk"], std=STD
    )
    return Prepared(peer.step, lambda: {"loss": peer.value(peer.centre).detach()})


def _loop(made: Problem, setting: Mapping[str, Any]) -> Prepared:
    """PGPE as it is written without a library: weights changed in place, one member after the other.

    For interval bounds the loss is written without a library too; the other relaxations are ours.
    """
    pairs, spec = setting["pairs"], tr.margin_spec(made.labels, CLASSES)
    loss, net, params = _loss_of(made, setting["relaxation"])
    weights = [params[name].detach() for name in net.trainable]
    generator = torch.Generator(made.labels.device).manual_seed(SEED)
    if setting["relaxation"] == "ibp":
        weights = [weight.detach() for weight in made.module.parameters()]

    def value() -> Tensor:
        return interval_loss(made.module, made.box, spec) if setting["relaxation"] == "ibp" else loss(params)[0]

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

    return Prepared(run, lambda: {"loss": value().detach()})


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
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            centre, radius = layer(centre), (layer(radius) - layer(torch.zeros_like(radius))).abs()
        elif isinstance(layer, nn.ReLU):
            lower, upper = (centre - radius).relu(), (centre + radius).relu()
            centre, radius = (lower + upper) / 2, (upper - lower) / 2
        else:
            centre, radius = layer(centre), layer(radius)
    rows = spec.matrix @ last.weight
    margins = torch.einsum("bri,bi->br", rows, centre) - torch.einsum("bri,bi->br", rows.abs(), radius)
    return margin_cross_entropy(margins + spec.matrix @ last.bias, spec.clause).mean()
