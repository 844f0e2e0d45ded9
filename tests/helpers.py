"""Small networks for the tests, each as a torch module and, written down independently, as an oracle network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tightrope as tr
from reference import network as ref
from tightrope.core import registry
from tightrope.core.bounds import Bounds, Interval
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.precision import float32_products
from tightrope.core.protocols import Relaxation
from tightrope.core.spec import Spec

F64 = torch.float64
CLASSES = 3


# ------------------------------------------------------------------------------------------------- modules


class Normalise(nn.Module):
    """(x - mean) / std with constants per channel, as networks normalise their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(0.3, 0.6, channels).reshape(1, channels, 1, 1))
        self.register_buffer("std", torch.linspace(0.2, 0.5, channels).reshape(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Residual(nn.Module):
    """A linear stem, a block with a skip around it, and a linear head."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.inner = nn.Sequential(nn.ReLU(), nn.Linear(width, width))
        self.act = nn.ReLU()
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.act(x + self.inner(x)))


class Branches(nn.Module):
    """A linear stem and a branch of it side by side, as in networks with dense connections."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.stem, self.inner = nn.Linear(inputs, width), nn.Linear(width, 2)
        self.act, self.head = nn.LeakyReLU(0.1), nn.Linear(width + 2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([self.inner(self.act(x)), x], 1).relu())


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Float64, eval mode, Gaussian weights of a size that makes neurons cross, arbitrary batch statistics."""
    generator = torch.Generator().manual_seed(seed)
    module = module.to(F64).eval()
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not name.endswith(("mean", "std", "var")):
            fan_in = value[0].numel() if value.ndim > 1 else 4
            value.copy_(torch.randn(value.shape, generator=generator, dtype=F64) * (1.4 / fan_in**0.5))
        if name.endswith("running_mean"):
            value.copy_(torch.randn(value.shape, generator=generator, dtype=F64) * 0.3)
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator, dtype=F64) + 0.5)
    return module


# -------------------------------------------------------------------------------------- modules as oracles


def _numpy(value: Tensor | None) -> np.ndarray | None:
    return None if value is None else value.detach().to(F64).numpy()


def _layer(module: nn.Module, shape: tuple[int, ...]) -> tuple[list[ref.Layer], tuple[int, ...]]:
    """One torch layer as oracle layers on flattened samples of ``shape``, and the shape after it."""
    if isinstance(module, nn.Linear):
        bias = np.zeros(module.out_features) if module.bias is None else _numpy(module.bias)
        return [ref.Affine(_numpy(module.weight), bias)], (module.out_features,)
    if isinstance(module, nn.Conv2d):
        sizes = module.kernel_size, module.stride, module.padding, module.dilation
        after = ref.conv_output_shape(shape, module.out_channels, *sizes)
        weight, bias = _numpy(module.weight), _numpy(module.bias)
        return [ref.conv_matrix(weight, bias, shape, *sizes[1:], groups=module.groups)], after
    if isinstance(module, nn.ConvTranspose2d):
        sizes = module.stride, module.padding, module.output_padding, module.dilation
        layer = ref.conv_transpose_matrix(_numpy(module.weight), _numpy(module.bias), shape, *sizes, module.groups)
        return [layer], tuple(module(torch.zeros((1, *shape), dtype=F64)).shape[1:])
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        facts = (_numpy(t) for t in (module.weight, module.bias, module.running_mean, module.running_var))
        return [ref.batchnorm_affine(*facts, module.eps, shape)], shape
    if isinstance(module, nn.AvgPool2d):
        sizes = module.kernel_size, module.stride, module.padding
        return [ref.avgpool_matrix(shape, *sizes)], ref.conv_output_shape(shape, shape[0], *sizes)
    if isinstance(module, Normalise):
        mean, std = (np.broadcast_to(_numpy(t).reshape(-1, 1, 1), shape).ravel() for t in (module.mean, module.std))
        return [ref.Affine(np.diag(1 / std), -mean / std)], shape
    if isinstance(module, nn.ReLU):
        return [ref.Relu()], shape
    if isinstance(module, nn.LeakyReLU):
        return [ref.LeakyRelu(module.negative_slope)], shape
    if isinstance(module, nn.Tanh | nn.Sigmoid):
        return [ref.SShaped("tanh" if isinstance(module, nn.Tanh) else "sigmoid")], shape
    if isinstance(module, nn.Flatten):
        return [], (int(np.prod(shape)),)
    raise NotImplementedError(type(module).__name__)


def _chain(modules: Sequence[nn.Module], shape: tuple[int, ...]) -> list[ref.Layer]:
    layers: list[ref.Layer] = []
    for module in modules:
        more, shape = _layer(module, shape)
        layers += more
    return layers


def as_oracle(module: nn.Module, shape: tuple[int, ...]) -> ref.Net:
    """The module as dense float64 matrices, by its definition and without the library under test."""
    if isinstance(module, Residual):
        stem, inner, head = (_chain([m], ())[0] for m in (module.stem, module.inner[1], module.head))
        return ref.graph(
            [
                ("stem", stem, (ref.INPUT,)),
                ("act0", ref.Relu(), ("stem",)),
                ("inner", inner, ("act0",)),
                ("sum", ref.Add(), ("stem", "inner")),
                ("act1", ref.Relu(), ("sum",)),
                ("head", head, ("act1",)),
            ]
        )
    if isinstance(module, Branches):
        stem, inner, head = (_chain([m], ())[0] for m in (module.stem, module.inner, module.head))
        width, places = module.stem.out_features, np.eye(module.head.in_features)
        return ref.graph(
            [
                ("stem", stem, (ref.INPUT,)),
                ("act", ref.LeakyRelu(0.1), ("stem",)),
                ("inner", inner, ("act",)),
                ("first", ref.Affine(places[:, :2], np.zeros(width + 2)), ("inner",)),
                ("second", ref.Affine(places[:, 2:], np.zeros(width + 2)), ("stem",)),
                ("both", ref.Add(), ("first", "second")),
                ("relu", ref.Relu(), ("both",)),
                ("head", head, ("relu",)),
            ]
        )
    assert isinstance(module, nn.Sequential)
    return ref.sequential(_chain(list(module), shape))


# --------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True, eq=False)
class Case:
    """A network with three outputs in every form that the tests need."""

    module: nn.Module
    shape: tuple[int, ...]

    @cached_property
    def oracle(self) -> ref.Net:
        return as_oracle(self.module, self.shape)

    @cached_property
    def _converted(self) -> tuple[Network, dict[str, Tensor]]:
        return tr.from_module(self.module, self.shape)

    @property
    def net(self) -> Network:
        return self._converted[0]

    @property
    def params(self) -> dict[str, Tensor]:
        return dict(self._converted[1])

    def inputs(self, batch: int, seed: int = 0) -> Tensor:
        """Samples in [0, 1], some features on the edge of the range."""
        x = torch.rand((batch, *self.shape), generator=torch.Generator().manual_seed(seed), dtype=F64)
        return (1.3 * x - 0.15).clamp(0, 1)


_BUILD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, CLASSES)
        ),
        (3,),
        0,
    ),
    "leaky": (
        lambda: nn.Sequential(
            nn.Linear(3, 5), nn.LeakyReLU(0.1), nn.Linear(5, 4), nn.LeakyReLU(0.3), nn.Linear(4, CLASSES)
        ),
        (3,),
        1,
    ),
    "residual": (lambda: Residual(3, 5, CLASSES), (3,), 2),
    "conv": (
        lambda: nn.Sequential(
            Normalise(2),
            nn.Conv2d(2, 3, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(3, 2, 2, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        ),
        (2, 5, 6),
        3,
    ),
    "grouped": (
        lambda: nn.Sequential(
            nn.AvgPool2d(3, stride=1, padding=(0, 1)),
            nn.Conv2d(2, 4, (2, 3), stride=(1, 2), padding=(0, 1), dilation=(2, 1), groups=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24, 4),
            nn.LeakyReLU(0.2),
            nn.Linear(4, CLASSES),
        ),
        (2, 6, 5),
        4,
    ),
    "normed": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            nn.AvgPool2d(2, stride=1, padding=1),
            nn.Flatten(),
            nn.Linear(32, 4),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.Linear(4, CLASSES),
        ),
        (1, 4, 4),
        5,
    ),
    "branches": (lambda: Branches(3, 4, CLASSES), (3,), 9),
    "decoder": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            nn.Conv2d(2, 2, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(18, CLASSES),
        ),
        (1, 4, 4),
        11,
    ),
    "tanh": (
        lambda: nn.Sequential(
            nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, CLASSES)
        ),
        (3,),
        6,
    ),
    "sigmoid": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2),
            nn.Sigmoid(),
            nn.Conv2d(2, 2, 2),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(8, 4),
            nn.LeakyReLU(0.1),
            nn.Linear(4, CLASSES),
        ),
        (1, 4, 4),
        7,
    ),
}
CASES = list(_BUILD)
TINY = ["mlp", "leaky", "residual", "branches"]
"""Cases with few enough neurons for exact enumeration."""

_CACHE: dict[str, Case] = {}


def case(name: str) -> Case:
    """A network by name; the same object every time, not to be changed."""
    if name not in _CACHE:
        build, shape, seed = _BUILD[name]
        _CACHE[name] = Case(randomise(build(), seed), shape)
    return _CACHE[name]


# -------------------------------------------------------------------------------------------------- values


def relaxation(name: str, **options: Any) -> Relaxation:
    return registry.create("relaxations", name, **options)


def labels_for(batch: int, classes: int = CLASSES) -> Tensor:
    return torch.arange(batch) % classes


def margins64(batch: int, classes: int = CLASSES) -> Spec:
    return tr.margin_spec(labels_for(batch, classes), classes, dtype=F64)


def rows_at(spec: Spec, outputs: Tensor) -> Tensor:
    """The rows of a spec at outputs (points, batch, outputs): (points, batch, rows)."""
    return (spec.matrix @ outputs[..., None])[..., 0] + spec.offset


def corner_points(box: Box, count: int, generator: torch.Generator) -> Tensor:
    """Random corners of each sample's box, the two extreme ones among them: (count, batch, *shape)."""
    choice = torch.rand((count, *box.lower.shape), generator=generator) < 0.5
    choice[0], choice[1] = False, True
    return torch.where(choice, box.upper, box.lower)


def random_points(box: Box, count: int, generator: torch.Generator) -> Tensor:
    share = torch.rand((count, *box.lower.shape), generator=generator, dtype=box.lower.dtype)
    return torch.clamp(box.lower + share * (box.upper - box.lower), box.lower, box.upper)


def attacked_points(net: Network, params: dict[str, Tensor], box: Box, spec: Spec) -> Tensor:
    """The end points of plain signed gradient descent on every row, from the centre: (rows, batch, *shape)."""
    found = []
    for row in range(spec.matrix.shape[1]):
        x = (box.lower + box.upper) / 2
        for share in (0.5, 0.5, 0.25, 0.25, 0.1, 0.1, 0.05):
            x = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(rows_at(spec, net(params, x))[:, row].sum(), x)
            x = torch.clamp(x - share * grad.sign() * (box.upper - box.lower), box.lower, box.upper)
        found.append(x.detach())
    return torch.stack(found)


def evaluate_points(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """function on (points, batch, *shape), as if on one batch."""
    values = function(points.flatten(0, 1))
    return values.reshape(*points.shape[:2], *values.shape[1:])


def stacked(params: dict[str, Tensor], members: int, scale: float = 0.2, seed: int = 7) -> dict[str, Tensor]:
    """A population around params: every floating tensor gets a leading axis and noise."""
    generator = torch.Generator().manual_seed(seed)
    population = {}
    for name, value in params.items():
        many = value.expand(members, *value.shape).clone()
        if value.is_floating_point():
            noise = torch.randn(many.shape, generator=generator, dtype=value.dtype) * scale
            many = many * (1 + noise.abs()) if name.endswith(("var", "std")) else many + noise
        population[name] = many
    return population


def member(population: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    return {name: value[index] for name, value in population.items()}


def assert_bounds_close(found: Bounds, expected: Bounds, *, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found.margins, expected.margins, rtol=rtol, atol=atol)
    assert found.pre.keys() == expected.pre.keys()
    for name, interval in expected.pre.items():
        torch.testing.assert_close(Interval(*found.pre[name]), interval, rtol=rtol, atol=atol)


_PRODUCTS = (
    ("cuda", "matmul"),
    ("cudnn", "conv"),
    ("cudnn", "rnn"),
    ("mkldnn", "matmul"),
    ("mkldnn", "conv"),
    ("mkldnn", "rnn"),
)
FULL_PRECISION = ("highest", False, *["ieee"] * len(_PRODUCTS), False)


def precision() -> tuple[Any, ...]:
    """Everything that lowers the precision of float32 products, as torch has it now: old names, new names, autocast."""
    settings: list[Any] = []
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            settings.append(read())
        except RuntimeError:  # its parts differ
            settings.append("mixed")
    each = [getattr(getattr(torch.backends, backend), product).fp32_precision for backend, product in _PRODUCTS]
    return (*settings, *each, torch.is_autocast_enabled("cpu"))


@contextmanager
def careless_process() -> Iterator[None]:
    """A process in which somebody asked for speed: bfloat16 and TF32 products, and autocast."""
    with float32_products("medium"), torch.autocast("cpu", dtype=torch.bfloat16):
        before = precision()
        yield
        assert precision() == before, "the settings of the process were changed"


def build(kind: str, name: str, **options: Any) -> Any:
    """A plug-in with those of the options that it has."""
    cls = registry.find(kind, name)
    known = {field.name for field in fields(cls)} if is_dataclass(cls) else set()
    return registry.create(kind, name, **{key: value for key, value in options.items() if key in known})
