"""Loss surfaces: directions, the smoothed loss against closed forms, and jumps that are there or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope.core.bounds import Metrics, Params
from tightrope.core.protocols import LossFn
from tightrope.errors import InputError
from tightrope.evaluation.directions import (
    difference,
    gradient_direction,
    length,
    principal_components,
    random_direction,
)
from tightrope.evaluation.jumps import RESOLUTION, find_jumps
from tightrope.evaluation.landscape import Scene, batch_loss, losses_at, smoothed_sample

F64 = torch.float64
PAIRS, STD = 150, 0.7
CENTRE = {"w": torch.tensor([0.3, -0.2, 0.5], dtype=F64), "fixed": torch.tensor([9.0], dtype=F64)}
SLOPE = torch.tensor([1.0, -2.0, 0.5], dtype=F64)


def linear(params: Params) -> tuple[Tensor, Metrics]:
    return (SLOPE * params["w"]).sum(), {}


def quadratic(params: Params) -> tuple[Tensor, Metrics]:
    return params["w"].square().sum(), {}


def step(params: Params) -> tuple[Tensor, Metrics]:
    return (params["w"][0] > 0).to(F64), {}


def scene(points: Sequence[float], seed: int = 0) -> Scene:
    return Scene.of(CENTRE, [{"w": SLOPE}], [(point,) for point in points], {"w": 1.0}, seed)


def samples(loss: LossFn, points: Sequence[float], std: float = STD, pairs: int = PAIRS, chunk: int = 4) -> Tensor:
    where = scene(points)
    return torch.stack([smoothed_sample(loss, where, std, pair, chunk) for pair in range(pairs)])


# ---------------------------------------------------------------------------------------------- smoothed losses

POINTS = (-1.0, -0.3, 0.0, 0.4, 0.9)
CLOSED: dict[LossFn, Callable[[Tensor], Tensor]] = {
    linear: lambda w: (SLOPE * w).sum(),
    quadratic: lambda w: w.square().sum() + 3 * STD**2,
    step: lambda w: (1 + torch.erf(w[0] / (STD * math.sqrt(2)))) / 2,
}


@pytest.mark.parametrize("loss", list(CLOSED), ids=lambda loss: loss.__name__)
def test_the_smoothed_loss_is_its_closed_form_within_four_standard_errors(loss: LossFn) -> None:
    found = samples(loss, POINTS)
    expected = torch.stack([CLOSED[loss](CENTRE["w"] + point * SLOPE) for point in POINTS])
    error = found.std(dim=0) / math.sqrt(PAIRS)
    assert ((found.mean(dim=0) - expected).abs() <= 4 * error + 1e-12).all()
    assert loss is linear or (error > 0).any()


def test_common_draws_leave_little_noise_in_differences_of_points() -> None:
    found = samples(quadratic, (0.0, 0.05))
    together = (found[:, 1] - found[:, 0]).var()
    assert together < 0.01 * (found[:, 0].var() + found[:, 1].var())


def test_all_std_and_losses_see_the_same_draws() -> None:
    """At w = 0 a sample of the square is the square of its noise."""
    at_zero = Scene.of({"w": torch.zeros(3, dtype=F64)}, [{"w": SLOPE}], [(0.0,)], {"w": 1.0}, 5)
    one, two = (smoothed_sample(quadratic, at_zero, std, 3, 1) for std in (0.1, 0.2))
    torch.testing.assert_close(two, 4 * one)


def test_noise_that_is_0_for_a_tensor_leaves_it_alone() -> None:
    """The smoothed square counts the tensors that have noise."""
    still = Scene.of(CENTRE, [{"w": SLOPE}], [(0.0,)], {"w": 0.0, "fixed": 1.0}, 0)
    assert torch.equal(smoothed_sample(quadratic, still, STD, 0, 1), losses_at(quadratic, still, still.points, 1))


# ----------------------------------------------------------------------------------------- losses of a network


@pytest.fixture(scope="module")
def sight() -> tuple[Callable[[str], LossFn], Scene]:
    """Certified losses of a small network with batch normalisation, on a plane."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    network, params = tr.from_module(module.eval(), (1, 2, 3))
    x, labels = torch.rand(5, 1, 2, 3, dtype=F64), torch.tensor([0, 1, 2, 0, 1])
    box, spec = tr.linf_box(x, 0.05), tr.margin_spec(labels, 3, dtype=F64)
    directions = [random_direction(params, network.trainable, 0, index) for index in range(2)]
    points = [(a, b) for a in (-0.5, 0.0, 0.5) for b in (-0.5, 0.2)]
    where = Scene.of(params, directions, points, dict.fromkeys(network.trainable, 1.0), 0)
    return lambda name: batch_loss(network, tr.relaxation(name), x, box, spec), where


def test_one_point_at_a_time_is_the_loss_itself(sight: tuple[Callable[[str], LossFn], Scene]) -> None:
    """To the last bit, at ``params + a d1 + b d2``."""
    make, where = sight
    loss = make("deeppoly")
    for point, value in zip(where.points, losses_at(loss, where, where.points, 1), strict=True):
        moved = {n: where.params[n] + torch.tensordot(point, axes, dims=1) for n, axes in where.axes.items()}
        assert float(loss({**where.params, **moved})[0]) == float(value)


@pytest.mark.parametrize("name", ["ibp", "crown_ibp", "deeppoly"])
def test_chunks_change_nothing_but_rounding(sight: tuple[Callable[[str], LossFn], Scene], name: str) -> None:
    make, where = sight
    one, four = (smoothed_sample(make(name), where, 0.1, 0, chunk) for chunk in (1, 4))
    torch.testing.assert_close(one, four, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------------ jumps


def grid(low: float, high: float, points: int = 11) -> Tensor:
    return torch.linspace(low, high, points, dtype=F64)


@pytest.mark.parametrize("slope", [-40.0, 0.0, 0.3, 40.0])
@pytest.mark.parametrize("height", [-0.5, 1e-3, 2.0])
def test_planted_jumps_are_found(slope: float, height: float) -> None:
    """Also where the slope changes the function by more than the jump: at the right place, with the right height."""
    places = torch.tensor([-0.61, 0.07, 0.83], dtype=F64)

    def stairs(t: Tensor) -> Tensor:
        return slope * t + height * (t[:, None] > places).sum(dim=1)

    found = find_jumps(stairs, grid(-1.0, 1.0), stairs(grid(-1.0, 1.0)), RESOLUTION[F64])
    assert [jump.position for jump in found] == pytest.approx(places.tolist(), abs=1e-6)
    assert [jump.after - jump.before for jump in found] == pytest.approx([height] * 3, abs=1e-5)


@pytest.mark.parametrize("function", [torch.sin, torch.exp, torch.abs, torch.zeros_like, lambda t: (30 * t).tanh()])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_continuous_function_has_none(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Not even where it has kinks or is steep, up to the rounding of the type."""

    def rounded(t: Tensor) -> Tensor:
        return function(t.to(dtype)).double()

    points = grid(-1.03, 1.0)
    assert find_jumps(rounded, points, rounded(points), RESOLUTION[dtype]) == ()


def test_values_that_are_not_finite_are_no_jumps() -> None:
    def pole(t: Tensor) -> Tensor:
        return torch.where(t > 0.2, torch.inf, t)

    assert find_jumps(pole, grid(-1.0, 1.0), pole(grid(-1.0, 1.0)), RESOLUTION[F64]) == ()


# ------------------------------------------------------------------------------------------------- directions


def test_filters_of_a_random_direction_are_as_long_as_those_of_the_weights() -> None:
    torch.manual_seed(1)
    params = {"conv": torch.randn(4, 2, 3, 3), "linear": torch.randn(5, 7), "bias": torch.randn(5)}
    params["conv"][1] = 0.0
    found = random_direction(params, tuple(params), seed=3)
    assert set(found) == {"conv", "linear"}
    for name, part in found.items():
        torch.testing.assert_close(part.flatten(1).norm(dim=1), params[name].flatten(1).norm(dim=1))
    other = random_direction(params, tuple(params), seed=3, index=1)
    assert not torch.allclose(found["linear"], other["linear"])


def test_the_gradient_direction_is_uphill_and_as_long_as_the_weights() -> None:
    found = gradient_direction(quadratic, CENTRE, ("w",))
    torch.testing.assert_close(found["w"], CENTRE["w"])
    with pytest.raises(InputError, match="length 0"):
        gradient_direction(lambda params: (0.0 * params["w"].sum(), {}), CENTRE, ("w",))


def test_a_difference_leads_from_one_to_the_other() -> None:
    other = {"w": SLOPE, "fixed": CENTRE["fixed"]}
    torch.testing.assert_close(CENTRE["w"] + difference(CENTRE, other, ("w", "fixed"))["w"], SLOPE)
    with pytest.raises(InputError, match="length 0"):
        difference(CENTRE, CENTRE, ("w",))


def test_principal_components_are_those_of_the_covariance() -> None:
    torch.manual_seed(2)
    rows = torch.randn(6, 10, dtype=F64)
    checkpoints = [{"a": row[:4].reshape(2, 2), "b": row[4:]} for row in rows]
    centre = {"a": torch.ones(2, 2, dtype=F64), "b": torch.zeros(6, dtype=F64)}
    found = principal_components(centre, checkpoints, ("a", "b"), 2)
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    flat = torch.stack([torch.cat([d["a"].flatten(), d["b"]]) for d in found.directions])
    torch.testing.assert_close((flat @ vectors.flip(1)[:, :2]).abs(), torch.eye(2, dtype=F64), rtol=0, atol=1e-9)
    assert found.shares == pytest.approx((values.flip(0)[:2] / values.sum()).tolist())
    torch.testing.assert_close(found.path, (rows - torch.cat([centre["a"].flatten(), centre["b"]])) @ flat.T)
    assert all(length(each) == pytest.approx(1.0) for each in found.directions)


def test_checkpoints_on_a_line_have_one_component_only() -> None:
    line = [{"w": CENTRE["w"] + k * SLOPE} for k in (0.0, 1.0, 3.0)]
    found = principal_components(CENTRE, line, ("w",), 1)
    assert found.shares == pytest.approx((1.0,))
    assert found.path[0] < found.path[-1]
    with pytest.raises(InputError, match="do not span 2"):
        principal_components(CENTRE, line, ("w",), 2)
    with pytest.raises(InputError, match="need 3 checkpoints"):
        principal_components(CENTRE, line[:2], ("w",), 2)
