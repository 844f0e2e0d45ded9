"""Every form of a coefficient is the dense matrix that it stands for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers import F64
from tightrope.core.bounds import Lines
from tightrope.core.coef import Coef, Dense, Factored, Patches, identity
from tightrope.core.frame import Frame, Window

SHAPE = (2, 4, 5)
BATCH, KINDS = 3, 2
GEOMETRIES = [
    pytest.param(Window((1, 1), (1, 1), (0, 0)), id="points"),
    pytest.param(Window((2, 3), (1, 2), (0, 0)), id="unpadded"),
    pytest.param(Window((3, 3), (2, 2), (1, 1)), id="padded"),
    pytest.param(Window((2, 2), (3, 3), (0, 1)), id="gaps"),
    pytest.param(Window((6, 7), (1, 1), (2, 3)), id="larger than the image"),
    pytest.param(Window((4, 5), (1, 1), (0, 0)), id="whole image"),
]
each_geometry = pytest.mark.parametrize("window", GEOMETRIES)
each_batch = pytest.mark.parametrize("batch", [1, BATCH])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def patches(window: Window, batch: int = 1, positions: int | None = None) -> Patches:
    """Random windows; what they hold outside the image must not matter, so it is large."""
    frame = Frame(SHAPE, window.extent, window.grid(SHAPE), window.stride, window.padding)
    value = normal(batch, positions or frame.positions, KINDS, frame.entries)
    coef = Patches(value, frame, clean=False)
    if positions == 1:  # one window for all positions: nothing of its own outside
        return coef
    inside = replace(coef, value=torch.ones_like(value)).masked().value
    return replace(coef, value=torch.where(inside > 0, value, 1e6))


def naive(coef: Patches) -> Tensor:
    """(batch, kinds * positions, *shape), entry by entry from the definition of a window."""
    (batch, _, kinds, _), frame = coef.value.shape, coef.frame
    channels, height, width = frame.shape
    value = coef.value.expand(batch, frame.positions, kinds, -1)
    value = value.reshape(batch, *frame.grid, kinds, channels, *frame.kernel)
    full = torch.zeros(batch, kinds, *frame.grid, *frame.shape, dtype=F64)
    for i, j, a, b in torch.cartesian_prod(*(torch.arange(n) for n in (*frame.grid, *frame.kernel))).tolist():
        row, column = i * frame.stride[0] - frame.padding[0] + a, j * frame.stride[1] - frame.padding[1] + b
        if 0 <= row < height and 0 <= column < width:
            full[:, :, i, j, :, row, column] = value[:, i, j, :, :, a, b]
    return full.reshape(batch, -1, *frame.shape)


def close(found: Coef | Tensor, expected: Coef | Tensor) -> None:
    one, two = (c if isinstance(c, Tensor) else c.dense().value for c in (found, expected))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@each_geometry
@each_batch
@pytest.mark.parametrize("positions", [None, 1])
def test_dense_is_the_definition(window: Window, batch: int, positions: int | None) -> None:
    coef = patches(window, batch, positions)
    close(coef.dense(), naive(coef))
    close(coef.masked(), naive(coef))
    assert coef.masked().clean
    assert coef.rows == coef.dense().rows == KINDS * coef.frame.positions


@each_geometry
@each_batch
@pytest.mark.parametrize("positions", [None, 1])
@pytest.mark.parametrize("samples", [1, BATCH])
def test_dot(window: Window, batch: int, positions: int | None, samples: int) -> None:
    coef, x = patches(window, batch, positions), normal(samples, *SHAPE, seed=1)
    dense = naive(coef).flatten(2)
    close(coef.dot(x), (dense * x.flatten(1)[:, None]).sum(-1))
    close(coef.dense().dot(x), (dense * x.flatten(1)[:, None]).sum(-1))
    close(coef.dot_abs(x.abs()), (dense.abs() * x.flatten(1).abs()[:, None]).sum(-1))
    close(coef.dense().dot_abs(x.abs()), (dense.abs() * x.flatten(1).abs()[:, None]).sum(-1))


@each_geometry
@each_batch
@pytest.mark.parametrize("factor", [2.0, (), (1, 1, 1), (2, 1, 1), (1, 4, 5), (2, 4, 5), (4, 5), (1, 5)], ids=str)
def test_times(window: Window, batch: int, factor: float | tuple[int, ...]) -> None:
    value = factor if isinstance(factor, float) else normal(*factor, seed=2)
    coef = patches(window, batch)
    close(coef.times(value), naive(coef) * value)
    close(coef.dense().times(value), naive(coef) * value)


@each_geometry
@each_batch
def test_plus(window: Window, batch: int) -> None:
    """Of the same windows, of others, and of dense rows; as many rows as there are."""
    coef, same = patches(window, batch), patches(window).times(0.5)
    close(coef.plus(same), naive(coef) + naive(same))
    dense = Dense(normal(1, coef.rows, *SHAPE, seed=3))
    close(coef.plus(dense), naive(coef) + dense.value)
    close(dense.plus(coef), naive(coef) + dense.value)
    wider = Window((window.extent[0] + 2, window.extent[1] + 2), window.stride, tuple(p + 1 for p in window.padding))
    assert wider.grid(SHAPE) == window.grid(SHAPE)
    other = patches(wider)
    close(coef.plus(other), naive(coef) + naive(other))


@each_geometry
@each_batch
@pytest.mark.parametrize("origin", [True, False])
@pytest.mark.parametrize("samples", [1, BATCH])
def test_through_lines(window: Window, batch: int, origin: bool, samples: int) -> None:
    """Positive coefficients take the upper line, negative ones the lower."""
    lower_slope, upper_slope, lower_bias, upper_bias = (normal(samples, *SHAPE, seed=s) for s in range(4))
    lines = Lines(lower_slope, None if origin else lower_bias, upper_slope, upper_bias)
    coef = patches(window, batch)
    positive, negative = naive(coef).clamp(min=0), naive(coef).clamp(max=0)
    slope = positive * upper_slope[:, None] + negative * lower_slope[:, None]
    bias = (positive * upper_bias[:, None]).flatten(2).sum(-1)
    if not origin:
        bias = bias + (negative * lower_bias[:, None]).flatten(2).sum(-1)
    for form in (coef, coef.dense()):
        pulled, constant = form.through(lines)
        close(pulled, slope)
        close(constant, bias)


@pytest.mark.parametrize("form", ["dense", "patches"])
@pytest.mark.parametrize("field", Lines._fields)
def test_nan_lines_do_not_vanish(form: str, field: str) -> None:
    """Whatever the sign of the coefficient: NaN in a line is NaN in the constant or in the new coefficient."""
    one = torch.ones(1, *SHAPE, dtype=F64)
    broken = one.clone()
    broken[0, 1, 2, 3] = torch.nan
    lines = Lines(one, one, one, one)._replace(**{field: broken})
    rows = identity(SHAPE, 0, SHAPE[0], one)
    pulled, constant = (rows if form == "patches" else rows.dense()).through(lines)
    total = constant + pulled.dot(one)
    touched = rows.dense().value[0, :, 1, 2, 3]
    side = touched < 0 if field.startswith("lower") else touched > 0
    assert total[0][side].isnan().all()


@each_geometry
@each_batch
@pytest.mark.parametrize("positions", [None, 1])
def test_chosen_rows(window: Window, batch: int, positions: int | None) -> None:
    """Of every sample others, some twice: they are those rows, and stay so in every operation."""
    coef, x = patches(window, batch, positions), normal(BATCH, *SHAPE, seed=1)
    generator = torch.Generator().manual_seed(9)
    index = torch.randint(coef.rows, (BATCH, 5), generator=generator)
    full = naive(coef).expand(BATCH, -1, *SHAPE)
    dense = full[torch.arange(BATCH)[:, None], index]
    lines = Lines(*(normal(BATCH, *SHAPE, seed=s) for s in range(4)))
    expected, constant = Dense(dense).through(lines)
    for chosen in (coef.select(index), coef.dense().select(index)):
        assert chosen.rows == 5
        close(chosen, dense)
        close(chosen.dot(x), (dense * x[:, None]).flatten(2).sum(-1))
        close(chosen.dot_abs(x.abs()), (dense * x[:, None]).abs().flatten(2).sum(-1))
        for factor in (2.0, normal(2, 1, 1), normal(*SHAPE)):
            close(chosen.times(factor), dense * factor)
        close(chosen.plus(chosen.times(0.5)), 1.5 * dense)
        close(chosen.plus(coef.dense().select(index)), 2 * dense)
        close(chosen.plus(coef.select(index)), 2 * dense)
        pulled, bias = chosen.through(lines)
        close(pulled, expected)
        close(bias, constant)


@pytest.mark.parametrize("pulled", [False, True])
def test_chosen_rows_of_factors(pulled: bool) -> None:
    coef, dense = factored(BATCH, pulled)
    index = torch.tensor([[0, 5], [7, 3], [2, 2]])
    close(coef.select(index), dense[torch.arange(BATCH)[:, None], index])


@pytest.mark.parametrize("shape", [(6,), (3, 2, 4)], ids=str)
@pytest.mark.parametrize(("first", "last"), [(0, 2), (1, 2)])
def test_identity(shape: tuple[int, ...], first: int, last: int) -> None:
    """Rows +x and -x of the entries (of an image: channels) asked for."""
    x = normal(BATCH, *shape)
    part = x[:, first:last].flatten(1)
    close(identity(shape, first, last, x).dot(x), torch.cat([part, -part], dim=1))


@each_geometry
@each_batch
@pytest.mark.parametrize(
    ("inner", "before"), [(Window((3, 2), (2, 1), (1, 1)), (3, 7, 4)), (Window((3, 3), (1, 1), (0, 1)), (3, 6, 5))]
)
def test_pull_through_a_convolution(window: Window, batch: int, inner: Window, before: tuple[int, ...]) -> None:
    """Against dense rows times the convolution's matrix. In the second case a position outside the image would
    reach the input, if it counted."""
    assert inner.grid(before) == SHAPE[1:]
    weight = normal(SHAPE[0], before[0], *inner.extent, seed=5)
    eye = torch.eye(math.prod(before), dtype=F64).reshape(-1, *before)
    matrix = F.conv2d(eye, weight, None, inner.stride, inner.padding).flatten(1)
    coef = patches(window, batch)
    pulled = coef.pull(inner, before, lambda x: F.conv_transpose2d(x, weight, None, inner.stride))
    close(pulled.dense().value.flatten(2), naive(coef).flatten(2) @ matrix.T)
    assert pulled.frame.kernel == inner.behind(coef.frame.kernel)
    index = torch.tensor([[0, 1]]) % coef.rows
    chosen = coef.select(index.expand(batch, -1)).pull(
        inner, before, lambda x: F.conv_transpose2d(x, weight, None, inner.stride)
    )
    close(chosen.dense().value.flatten(2), (naive(coef).flatten(2) @ matrix.T)[:, index[0]])


def factored(samples: int, pulled: bool) -> tuple[Factored, Tensor]:
    """A convolution's rows behind lines, as factors and dense; pulled through another convolution or not."""
    window, inner, before = Window((3, 2), (1, 2), (1, 1)), Window((3, 3), (2, 1), (1, 0)), (3, 7, 7)
    assert inner.grid(before) == SHAPE[1:]
    weight, below = normal(3, SHAPE[0], *window.extent), normal(SHAPE[0], before[0], *inner.extent, seed=5)
    lines = Lines(*(normal(samples, *SHAPE, seed=s) for s in range(4)))
    rows = identity((3, *window.grid(SHAPE)), 0, 3, weight).pull(
        window, SHAPE, lambda x: F.conv_transpose2d(x, weight, None, window.stride)
    )
    direct, constant = rows.dense().through(lines)
    factors, same = rows.through(lines)
    close(same, constant)
    assert isinstance(factors, Factored)
    if not pulled:
        return factors, direct.value
    found = factors.pull(inner, before, lambda x: F.conv_transpose2d(x, below, None, inner.stride))
    eye = torch.eye(math.prod(before), dtype=F64).reshape(-1, *before)
    matrix = F.conv2d(eye, below, None, inner.stride, inner.padding).flatten(1)
    assert isinstance(found, Factored)
    return found, (direct.value.flatten(2) @ matrix.T).unflatten(2, before)


@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("samples", [1, BATCH])
def test_factors_are_the_rows_that_they_stand_for(samples: int, pulled: bool) -> None:
    coef, dense = factored(samples, pulled)
    assert coef.rows == dense.shape[1]
    close(coef, dense)
    for batch in (1, BATCH):
        x = normal(batch, *dense.shape[2:], seed=7)
        close(coef.dot(x), (dense * x[:, None]).flatten(2).sum(-1))
        close(coef.dot_abs(x.abs()), (dense * x[:, None]).abs().flatten(2).sum(-1))
    for factor in (2.0, normal(dense.shape[2], 1, 1), normal(*dense.shape[2:])):
        close(coef.times(factor), dense * factor)
    close(coef.plus(coef), 2 * dense)
    close(coef.plus(Dense(dense)), 2 * dense)
    windows = coef.patches()
    for found in (coef.plus(windows), windows.plus(coef)):
        assert isinstance(found, Patches)
        close(found, 2 * dense)
    lines = Lines(*(normal(samples, *dense.shape[2:], seed=s) for s in range(4)))
    close(coef.through(lines)[0], Dense(dense).through(lines)[0])
    close(coef.through(lines)[1], Dense(dense).through(lines)[1])


@pytest.mark.parametrize("samples", [1, BATCH])
def test_factors_through_two_convolutions(samples: int) -> None:
    """With padding between them: what lies outside the image there must not count."""
    coef, dense = factored(samples, pulled=True)
    outer, weight = Window((2, 3), (2, 1), (1, 1)), normal(3, 2, 2, 3, seed=9)
    before = (2, 12, 7)
    assert outer.grid(before) == (7, 7)
    eye = torch.eye(math.prod(before), dtype=F64).reshape(-1, *before)
    matrix = F.conv2d(eye, weight, None, outer.stride, outer.padding).flatten(1)
    found = coef.pull(outer, before, lambda x: F.conv_transpose2d(x, weight, None, outer.stride))
    close(found, (dense.flatten(2) @ matrix.T).unflatten(2, before))
