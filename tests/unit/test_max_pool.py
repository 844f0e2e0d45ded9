"""Max-pooling as pairs of ReLUs: the same function, exact intervals, and exact bounds once every sign is known."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tightrope as tr
from helpers import F64, assert_bounds_close, margins64, member, random_points, randomise, relaxation, rows_at, stacked
from tightrope.core import registry
from tightrope.core.bounds import Interval
from tightrope.core.network import Network
from tightrope.core.spec import Spec
from tightrope.errors import UnsupportedLayerError
from tightrope.frontend import graph

POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d((3, 2), stride=(1, 2)),
    nn.MaxPool2d(3, stride=2, padding=1),
    nn.MaxPool2d(4, stride=3, padding=2),
    nn.MaxPool2d(2, stride=3),
    nn.MaxPool2d((1, 5), padding=(0, 2)),
    nn.MaxPool2d(3, stride=1, padding=1, dilation=2),
    nn.MaxPool2d((2, 3), dilation=(3, 2), padding=(1, 1)),
    nn.MaxPool2d(3, stride=2, ceil_mode=True),
    nn.MaxPool2d(2, stride=3, padding=1, ceil_mode=True),
    nn.MaxPool2d(1, stride=2),
]
SHAPE = (2, 7, 8)
each_pool = pytest.mark.parametrize("pool", POOLS, ids=repr)
each_relaxation = pytest.mark.parametrize("name", registry.names("relaxations"))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=F64)


@each_pool
def test_is_torchs_function_also_where_everything_is_negative(pool: nn.MaxPool2d) -> None:
    """Padding is -inf, not 0: it never wins."""
    net, params = tr.from_module(nn.Sequential(pool, nn.Flatten()), SHAPE)
    for x in (normal(3, *SHAPE), normal(3, *SHAPE) - 100):
        torch.testing.assert_close(net(params, x), pool(x).flatten(1), rtol=1e-12, atol=1e-12)


@each_pool
def test_intervals_are_exact(pool: nn.MaxPool2d) -> None:
    """Both ends of the largest are the largest of the ends, as nothing else is known of the inputs."""
    net, params = tr.from_module(nn.Sequential(pool, nn.Flatten(), nn.ReLU()), SHAPE)
    box = tr.linf_box(normal(2, *SHAPE), normal(1, *SHAPE).abs(), data_range=None)
    pre = relaxation("ibp").bounds(net, params, box, identity_spec(net, 2)).pre[net.nodes[-1].inputs[0]]
    torch.testing.assert_close(pre.lower, pool(box.lower).flatten(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pre.upper, pool(box.upper).flatten(1), rtol=1e-12, atol=1e-12)


def test_margins_of_intervals_start_at_the_pool() -> None:
    """The range of the pool itself is taken, not that of the ReLUs that it is made of."""
    pool = nn.MaxPool2d(2)
    net, params = tr.from_module(nn.Sequential(pool, nn.Flatten()), (1, 4, 4))
    box = tr.linf_box(normal(2, 1, 4, 4), 0.5, data_range=None)
    margins = relaxation("ibp").bounds(net, params, box, identity_spec(net, 2)).margins
    torch.testing.assert_close(margins, pool(box.lower).flatten(1), rtol=1e-12, atol=1e-12)


def identity_spec(net: Network, batch: int) -> Spec:
    matrix = torch.eye(net.num_outputs, dtype=F64).expand(batch, -1, -1)
    return Spec(matrix, torch.zeros(matrix.shape[:2], dtype=F64), tuple(range(net.num_outputs)))


def pooled() -> tuple[nn.Module, Network, dict[str, Tensor]]:
    layers = nn.Conv2d(1, 2, 2), nn.MaxPool2d(2, stride=1, padding=1), nn.Conv2d(2, 2, 2), nn.MaxPool2d(2), nn.Flatten()
    module = randomise(nn.Sequential(*layers, nn.Linear(2, 3)), 3)
    return module, *tr.from_module(module, (1, 3, 3))


@each_relaxation
def test_bounds_are_below_samples_and_exact_at_a_point(name: str) -> None:
    module, net, params = pooled()
    for radius in (0.0, 0.05, 0.3):
        box, spec = tr.linf_box(normal(2, 1, 3, 3), radius, data_range=None), margins64(2)
        points = random_points(box, 2000, torch.Generator().manual_seed(1))
        seen = rows_at(spec, module(points.flatten(0, 1)).unflatten(0, (2000, 2))).amin(0)
        found = relaxation(name).bounds(net, params, box, spec).margins
        assert torch.all(found <= seen + 1e-9)
        if radius == 0.0:
            torch.testing.assert_close(found, seen, rtol=1e-9, atol=1e-9)


@each_relaxation
def test_vmap_over_params_is_a_loop(name: str) -> None:
    _, net, params = pooled()
    box, spec = tr.linf_box(normal(2, 1, 3, 3), 0.1, data_range=None), margins64(2)
    population = stacked(params, 2)
    found = torch.func.vmap(lambda own: relaxation(name).bounds(net, own, box, spec))(population)
    for index in range(2):
        one = relaxation(name).bounds(net, member(population, index), box, spec)
        assert_bounds_close(
            found._replace(
                margins=found.margins[index],
                pre={k: Interval(i.lower[index], i.upper[index]) for k, i in found.pre.items()},
            ),
            one,
        )


def test_known_signs_make_bounds_exact() -> None:
    """Split at 0, every difference has a sign: the least bound of all parts is the exact minimum of the pool."""
    net, params = tr.from_module(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), (1, 2, 2))
    box = tr.linf_box(normal(1, 1, 2, 2), 2.0, data_range=None)
    spec = Spec(-torch.ones((1, 1, 1), dtype=F64), torch.zeros((1, 1), dtype=F64), (0,))
    own = relaxation("deeppoly").bounds(net, params, box, spec)
    exact = -box.upper.amax()
    assert own.margins < exact - 0.1
    parts = []
    for signs in product((True, False), repeat=len(own.pre)):
        halves = [
            Interval(i.lower.clamp(min=0), i.upper) if positive else Interval(i.lower, i.upper.clamp(max=0))
            for positive, i in zip(signs, own.pre.values(), strict=True)
        ]
        pre = dict(zip(own.pre, halves, strict=True))
        parts.append(relaxation("deeppoly").bounds(net, params, box, spec, pre=pre).margins)
    torch.testing.assert_close(torch.stack(parts).amin(), exact)


def test_functional_forms_and_json() -> None:
    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True)
            return torch.maximum(x, F.max_pool2d(x, kernel_size=1)).flatten(1)

    net, params = tr.from_module(Functional(), SHAPE)
    x = normal(2, *SHAPE)
    torch.testing.assert_close(net(params, x), Functional()(x), rtol=1e-12, atol=1e-12)
    assert graph.from_json(graph.to_json(net)) == net
    assert len({node.name for node in net.nodes}) == len(net.nodes)


@pytest.mark.parametrize(
    ("pool", "shape", "reason"),
    [
        (nn.MaxPool2d(2, return_indices=True), SHAPE, "indices"),
        (nn.MaxPool2d(9), SHAPE, "larger than its padded input"),
        (nn.MaxPool2d(2), (4, 4), "expects"),
        (nn.MaxPool2d(2, padding=1, dilation=4), (1, 3, 3), "padding"),
    ],
)
def test_what_has_no_bounds_is_refused(pool: nn.MaxPool2d, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=reason):
        tr.from_module(nn.Sequential(pool, nn.Flatten()), shape)
