"""The contract of an attack, for every one in the registry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from helpers import CASES, F64, build, case, margins64
from tightrope.core import registry
from tightrope.core.box import Box
from tightrope.core.protocols import Attack
from tightrope.core.spec import Spec, evaluate, worst_margin
from tightrope.errors import InputError, UnknownNameError

BATCH = 4
VARIANTS: list[dict[str, Any]] = [{}, {"loss": "margin", "steps": 5}, {"restarts": 3, "steps": 2}, {"steps": 0}]
each_attack = pytest.mark.parametrize("name", registry.names("attacks"))
each_variant = pytest.mark.parametrize("options", VARIANTS, ids=str)


def noise_of(attack: Attack, box: Box, seed: int = 0) -> Tensor:
    return attack.noise(box, torch.Generator().manual_seed(seed))


def margin_at(net: str, spec: Spec, x: Tensor) -> Tensor:
    return worst_margin(evaluate(spec, case(net).net(case(net).params, x)), spec.clause)


def run(name: str, net: str, radius: Any = 0.2, **options: Any) -> tuple[Tensor, Box, Spec, Tensor]:
    attack = build("attacks", name, **options)
    box, spec = tr.linf_box(case(net).inputs(BATCH), radius), margins64(BATCH)
    noise = noise_of(attack, box)
    return attack.perturb(case(net).net, case(net).params, box, spec, noise), box, spec, noise


@each_attack
@each_variant
@pytest.mark.parametrize("net", CASES)
def test_stays_in_the_box_and_is_never_worse_than_a_start(name: str, options: dict[str, Any], net: str) -> None:
    x, box, spec, noise = run(name, net, **options)
    assert torch.all((box.lower <= x) & (x <= box.upper))
    assert not x.requires_grad
    for start in noise:
        first = margin_at(net, spec, box.lower + start * (box.upper - box.lower))
        assert torch.all(margin_at(net, spec, x) <= first + 1e-12)


@each_attack
def test_start_noise_is_uniform_in_0_1(name: str) -> None:
    attack = build("attacks", name, restarts=50)
    noise = noise_of(attack, tr.linf_box(case("conv").inputs(BATCH), 0.1))
    assert noise.shape == (50, BATCH, 2, 5, 6)
    assert noise.dtype == F64
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert abs(noise.mean() - 0.5) < 4 * (1 / 12 / noise.numel()) ** 0.5


@each_attack
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_stays_in_the_box_in_float32(name: str, share: float) -> None:
    """Rounding must not carry a start, not even one at an end of the box, outside."""
    x = torch.rand((200, 50), generator=torch.Generator().manual_seed(0))
    net, params = tr.from_module(nn.Linear(50, 2), (50,))
    box, spec = tr.linf_box(x, "8/255"), tr.margin_spec(torch.zeros(200, dtype=torch.int64), 2)
    found = build("attacks", name, steps=0).perturb(net, params, box, spec, torch.full((1, 200, 50), share))
    assert torch.all(found >= box.lower)
    assert torch.all(found <= box.upper)


@each_attack
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("radius", [0.1, "per_feature"])
def test_finds_the_worst_corner_of_a_linear_model(name: str, loss: str, radius: Any) -> None:
    """The minimum of w x over a box is at the corner that the signs of w name."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).to(F64)
    net, params = tr.from_module(module, (2, 3))
    x = torch.rand((BATCH, 2, 3), dtype=F64)
    eps = torch.linspace(0, 0.3, 6, dtype=F64).reshape(2, 3) if radius == "per_feature" else radius
    box, spec = tr.linf_box(x, eps), margins64(BATCH, 2)
    attack = build("attacks", name, loss=loss)
    found = attack.perturb(net, params, box, spec, noise_of(attack, box))
    row = (spec.matrix @ module[1].weight).reshape(BATCH, 2, 3)
    worst = torch.where(row > 0, box.lower, box.upper)
    torch.testing.assert_close(found, worst.detach(), rtol=0, atol=1e-12)


@each_attack
def test_finds_the_minimum_of_a_small_net(name: str) -> None:
    """On one input dimension, against a fine grid."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 2)).to(F64)
    net, params = tr.from_module(module, (1,))
    box, spec = tr.linf_box(torch.full((2, 1), 0.5, dtype=F64), 0.4), margins64(2, 2)
    attack = build("attacks", name, restarts=10, steps=30, decay=((15, 0.1),))
    x = attack.perturb(net, params, box, spec, noise_of(attack, box))
    found = evaluate(spec, net(params, x))[:, 0]
    grid = torch.linspace(0.1, 0.9, 2001, dtype=F64)[:, None, None].expand(-1, 2, 1)
    least = torch.stack([evaluate(spec, net(params, point))[:, 0] for point in grid]).amin(dim=0)
    assert torch.all(found <= least + 0.01)


@each_attack
@each_variant
def test_is_determined_by_the_noise(name: str, options: dict[str, Any]) -> None:
    case("mlp")  # whose weights are drawn once
    state = torch.get_rng_state()
    first, again = (run(name, "mlp", **options)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    attack = build("attacks", name, **options)
    box = tr.linf_box(case("mlp").inputs(BATCH), 0.1)
    assert torch.equal(noise_of(attack, box, 1), noise_of(attack, box, 1))
    assert not torch.equal(noise_of(attack, box, 1), noise_of(attack, box, 2))


@each_attack
def test_radius_zero_returns_the_input(name: str) -> None:
    x, box, _, _ = run(name, "mlp", 0)
    assert torch.equal(x, box.lower)


@each_attack
@pytest.mark.parametrize("net", ["mlp", "normed"])
def test_nan_weights_leave_a_point_of_the_box(name: str, net: str) -> None:
    known = case(net)
    box, spec = tr.linf_box(known.inputs(BATCH), 0.1), margins64(BATCH)
    params = {key: value * torch.nan if value.is_floating_point() else value for key, value in known.params.items()}
    attack = build("attacks", name)
    x = attack.perturb(known.net, params, box, spec, noise_of(attack, box))
    assert torch.all((box.lower <= x) & (x <= box.upper))


@each_attack
def test_samples_do_not_see_each_other(name: str) -> None:
    x, box, spec, noise = run(name, "mlp")
    one = slice(1, 2)
    alone = build("attacks", name).perturb(
        case("mlp").net,
        case("mlp").params,
        Box(box.lower[one], box.upper[one]),
        Spec(spec.matrix[one], spec.offset[one], spec.clause),
        noise[:, one],
    )
    torch.testing.assert_close(alone, x[one], rtol=1e-12, atol=1e-12)


@each_attack
def test_one_bad_sample_does_not_spoil_the_others(name: str) -> None:
    """A sample whose rows are NaN stays alone with that."""
    x, box, spec, noise = run(name, "mlp")
    matrix = spec.matrix.clone()
    matrix[0] = torch.nan
    found = build("attacks", name).perturb(
        case("mlp").net, case("mlp").params, box, Spec(matrix, spec.offset, spec.clause), noise
    )
    torch.testing.assert_close(found[1:], x[1:])


@each_attack
def test_respects_clauses(name: str) -> None:
    """With all rows in one clause (their OR), the best row has to fall: margins are the largest row's."""
    known, box = case("mlp"), tr.linf_box(case("mlp").inputs(BATCH), 0.3)
    spec = margins64(BATCH)._replace(clause=(0, 0))
    attack = build("attacks", name, loss="margin")
    noise = noise_of(attack, box)
    x = attack.perturb(known.net, known.params, box, spec, noise)
    start = box.lower + noise[0] * (box.upper - box.lower)
    rows, first = (evaluate(spec, known.net(known.params, p)).amax(dim=1) for p in (x, start))
    assert torch.all(rows <= first + 1e-12)
    assert torch.any(rows < first - 0.01)


@each_attack
def test_vmap_over_params_is_a_loop(name: str) -> None:
    known, attack = case("residual"), build("attacks", name)
    box, spec = tr.linf_box(known.inputs(BATCH), 0.2), margins64(BATCH)
    noise = noise_of(attack, box)
    population = {key: torch.stack([value, 1.1 * value, 0.7 * value]) for key, value in known.params.items()}
    found = torch.func.vmap(lambda params: attack.perturb(known.net, params, box, spec, noise))(population)
    for index in range(3):
        params = {key: value[index] for key, value in population.items()}
        torch.testing.assert_close(found[index], attack.perturb(known.net, params, box, spec, noise))


@pytest.mark.parametrize("options", [{"steps": -1}, {"restarts": 0}, {"step_size": 0.0}, {"step_size": float("nan")}])
def test_pgd_refuses_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        registry.create("attacks", "pgd", **options)


def test_pgd_offers_the_closest_loss() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'margin'"):
        registry.create("attacks", "pgd", loss="margins")
