"""The penalties, against formulas written down again in NumPy with intervals of the naive oracle."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from helpers import F64, case, margins64
from reference.interval import node_intervals
from tightrope.core.bounds import Interval, Params
from tightrope.core.protocols import Batch
from tightrope.errors import InputError
from tightrope.methods._regularizers import Penalty, balance, tightness

BATCH = 5
NETS = ["mlp", "leaky", "residual", "conv", "normed"]
each_net = pytest.mark.parametrize("net", NETS)


def batch_of(net: str) -> Batch:
    return Batch(case(net).inputs(BATCH), margins64(BATCH))


def penalty(penalty: Penalty, net: str, eps: float, fading: float = 1.0, params: Params | None = None) -> torch.Tensor:
    params = case(net).params if params is None else params
    radius, share = torch.tensor(eps, dtype=F64), torch.tensor(fading, dtype=F64) if fading else None
    return penalty.loss(case(net).net, params, batch_of(net), radius, share)[0]


# ------------------------------------------------------------------------------------------------ by hand


class Layers(NamedTuple):
    """Intervals of a batch: those of the inputs, and of every pre-activation in turn, each (batch, neurons)."""

    inputs: tuple[np.ndarray, np.ndarray]
    pre: list[tuple[np.ndarray, np.ndarray]]


def naive_layers(net: str, eps: float) -> Layers:
    oracle = case(net).oracle
    x = case(net).inputs(BATCH).flatten(1).numpy()
    lower, upper = np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1)
    found = [node_intervals(oracle, low, high) for low, high in zip(lower, upper, strict=True)]
    feeds = [inputs[0] for _, layer, inputs in oracle.nodes if type(layer).__name__.endswith("Relu")]
    pre = [tuple(np.stack([bounds[name][side] for bounds in found]) for side in (0, 1)) for name in feeds]
    return Layers((lower, upper), pre)


def naive_tightness(layers: Layers, tolerance: float) -> float:
    """1 / (m tol) sum_i max(0, tol - E[width of the inputs] / E[width of layer i])."""
    first = (layers.inputs[1] - layers.inputs[0]).mean()
    return float(np.mean([max(0, tolerance - first / (high - low).mean()) / tolerance for low, high in layers.pre]))


def naive_balance(layers: Layers, tolerance: float) -> float:
    """1 / (m tol) sum_i of the shortfall of the two ratios of layer i below tol."""
    total = 0.0
    for low, high in layers.pre:
        centre, active, inactive = (low + high) / 2, low > 0, high < 0
        if not active.any() or not inactive.any():
            continue
        squares = (centre - centre.mean()) ** 2
        for on, off in (
            (centre[active].sum(), -centre[inactive].sum()),
            (squares[active].sum(), squares[inactive].sum()),
        ):
            total += max(0.0, tolerance - min(on / off, off / on)) / tolerance
    return total / len(layers.pre)


@each_net
@pytest.mark.parametrize("eps", [0.01, 0.1])
@pytest.mark.parametrize("tolerance", [0.2, 0.5, 2.0])
def test_regularisers_of_shi_equal_the_naive_formulas(net: str, eps: float, tolerance: float) -> None:
    layers = naive_layers(net, eps)
    expected = naive_tightness(layers, tolerance) + naive_balance(layers, tolerance)
    found, metrics = Penalty(shi=1.0, tolerance=tolerance).loss(
        case(net).net, case(net).params, batch_of(net), torch.tensor(eps, dtype=F64), 1.0
    )
    assert float(metrics["tightness"]) == pytest.approx(naive_tightness(layers, tolerance), rel=1e-9, abs=1e-12)
    assert float(metrics["balance"]) == pytest.approx(naive_balance(layers, tolerance), rel=1e-9, abs=1e-12)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_cases_exercise_both_regularisers() -> None:
    """Otherwise the comparison above would be one of zeros."""
    layers = [naive_layers(net, 0.01) for net in NETS]
    assert sum(naive_tightness(each, 0.5) > 0 for each in layers) >= 2
    assert sum(naive_balance(each, 0.5) > 0 for each in layers) >= 2


@each_net
def test_l1_is_the_sum_over_kernels(net: str) -> None:
    """Biases and everything that is not trained do not count."""
    trained = {name: value for name, value in case(net).module.named_parameters() if value.ndim > 1}
    expected = sum(float(value.detach().abs().sum()) for value in trained.values())
    assert float(penalty(Penalty(l1=0.25), net, 0.1)) == pytest.approx(0.25 * expected)


def test_parts_add_up_and_fade() -> None:
    l1, shi, both = (float(penalty(Penalty(*weights), "mlp", 0.05, 0.5)) for weights in ((2, 0), (0, 3), (2, 3)))
    assert both == pytest.approx(l1 + shi)
    assert shi == pytest.approx(1.5 * float(penalty(Penalty(0, 1), "mlp", 0.05)))
    assert float(penalty(Penalty(2, 3), "mlp", 0.05, fading=0.0)) == pytest.approx(l1)


def test_metrics_name_the_parts_that_are_there() -> None:
    def names(penalty: Penalty, fading: torch.Tensor | None) -> set[str]:
        return set(penalty.loss(case("mlp").net, case("mlp").params, batch_of("mlp"), torch.tensor(0.1), fading)[1])

    full = torch.tensor(1.0)
    assert names(Penalty(), full) == set()
    assert names(Penalty(l1=1), full) == {"l1"}
    assert names(Penalty(shi=1), full) == {"tightness", "balance"}
    assert names(Penalty(shi=1), None) == set()


# ----------------------------------------------------------------------------------------------- gradients


@each_net
@pytest.mark.parametrize("chosen", [Penalty(l1=0.1), Penalty(shi=1.0), Penalty(shi=1.0, tolerance=2.0)])
def test_gradients_are_those_of_finite_differences(net: str, chosen: Penalty) -> None:
    known = case(net)
    names = [name for name in known.net.trainable if known.params[name].ndim > 1]

    def value(*weights: torch.Tensor) -> torch.Tensor:
        return penalty(chosen, net, 0.05, params={**known.params, **dict(zip(names, weights, strict=True))})

    weights = [known.params[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(value, weights, eps=1e-7, atol=1e-5, fast_mode=True)


@each_net
def test_gradients_are_finite_at_radius_zero(net: str) -> None:
    """Where the ramp begins, all widths are 0."""
    params = {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in case(net).params.items()}
    penalty(Penalty(l1=1, shi=1), net, 0.0, params=params).backward()
    assert all(bool(torch.isfinite(value.grad).all()) for value in params.values() if value.grad is not None)
    assert any(value.grad is not None for value in params.values())


# ------------------------------------------------------------------------------------------ special layers


def interval(*pairs: tuple[float, float]) -> Interval:
    lower, upper = torch.tensor(pairs, dtype=F64).T
    return Interval(lower[None], upper[None])


def test_intervals_that_do_not_grow_cost_nothing() -> None:
    unit = interval((0, 1), (0, 1))
    assert float(tightness(unit, [interval((0, 1), (3, 4)), interval((0, 0.1), (0, 0.1))], 0.5)) == 0
    assert float(tightness(unit, [interval((0, 4), (0, 4))], 0.5)) == pytest.approx((0.5 - 0.25) / 0.5)


@pytest.mark.parametrize("layer", [interval((1, 2), (-1, 1)), interval((-2, -1), (-1, 1)), interval((-1, 1), (-2, 1))])
def test_layers_that_lack_active_or_inactive_neurons_do_not_count(layer: Interval) -> None:
    lower, upper = (bound.clone().requires_grad_() for bound in layer)
    value = balance([Interval(lower, upper)], 0.5)
    assert float(value.detach()) == 0
    value.backward()
    assert torch.equal(lower.grad, torch.zeros_like(lower))
    assert torch.equal(upper.grad, torch.zeros_like(upper))


def test_even_layers_cost_nothing_and_uneven_ones_the_same_either_way() -> None:
    assert float(balance([interval((1, 3), (-3, -1))], 0.5)) == 0
    one, other = interval((9, 11), (-1, -0.5)), interval((-11, -9), (0.5, 1))
    assert float(balance([one], 0.5)) == pytest.approx(float(balance([other], 0.5)))
    assert float(balance([one], 0.5)) > 0


@pytest.mark.parametrize(
    "weights", [{"l1": -1}, {"shi": -0.1}, {"tolerance": 0}, {"l1": float("nan")}, {"tolerance": float("nan")}]
)
def test_bad_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Penalty(**weights)
