"""The loss of every training method against its paper's equations in ``reference/losses.py``, and its limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from helpers import CLASSES, F64, Case, build, case, labels_for, margins64, randomise, relaxation
from reference import losses as naive
from reference.interval import ibp
from reference.network import Affine, Array, Net, output, sequential
from reference.sampling import corners
from tightrope.attacks.pgd import Pgd
from tightrope.core.bounds import Interval, Metrics
from tightrope.core.protocols import Batch, TrainingMethod
from tightrope.core.spec import evaluate, margin_cross_entropy
from tightrope.errors import InputError
from tightrope.methods._fusion import fused_cross_entropy
from tightrope.methods._latent import connected
from tightrope.methods._small_box import interval_margins

BATCH = 4
NETS = ["mlp", "leaky", "conv", "normed"]
each_net = pytest.mark.parametrize("net", NETS)
RADII = [0.0, 0.05, 0.3]
each_radius = pytest.mark.parametrize("eps", RADII)
ATTACK = Pgd(steps=3, loss="margin")


def batch_of(net: str) -> Batch:
    return Batch(case(net).inputs(BATCH), margins64(BATCH))


class Watched:
    """An attack that remembers what it found."""

    def __init__(self, attack: Pgd) -> None:
        self.attack, self.found = attack, []

    def noise(self, *args: Any) -> Tensor:
        return self.attack.noise(*args)

    def perturb(self, *args: Any) -> Tensor:
        self.found.append(self.attack.perturb(*args))
        return self.found[-1]


def run(name: str, net: str, eps: float, *, fading: float = 0.0, **options: Any) -> tuple[Tensor, Metrics]:
    made: TrainingMethod = build("methods", name, **{"attack": ATTACK, "search": ATTACK, "split": -1, **options})
    known, radius, batch = case(net), torch.tensor(eps, dtype=F64), batch_of(net)
    draws = made.draws(known.net, batch, radius, torch.Generator().manual_seed(0), fading=fading)
    return made.loss(known.net, known.params, batch, radius, draws)


def loss(name: str, net: str, eps: float, **options: Any) -> float:
    return float(run(name, net, eps, **options)[0])


def mean(net: str, each: Callable[[Net, Array, int], float]) -> float:
    """Of a naive loss ``each(net, flat x, label)`` over the batch."""
    x = case(net).inputs(BATCH).flatten(1).numpy()
    return float(np.mean([each(case(net).oracle, x[i], int(labels_for(BATCH)[i])) for i in range(BATCH)]))


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def naive_margins(net: Net, x: Array, label: int) -> Array:
    return naive.rows_of(label, CLASSES) @ output(net, x)


def naive_bounds(net: Net, x: Array, label: int, eps: float) -> Array:
    return ibp(net, *naive.ball(x, eps), naive.rows_of(label, CLASSES)).margins


# ------------------------------------------------------------------------------------- points and intervals


@each_net
def test_standard_is_the_cross_entropy(net: str) -> None:
    expected = mean(net, lambda oracle, x, label: naive.cross_entropy(output(oracle, x), label))
    assert loss("standard", net, 0.1) == near(expected)


@each_net
@each_radius
def test_certified_by_intervals(net: str, eps: float) -> None:
    expected = mean(net, lambda o, x, label: naive.ibp_loss(o, *naive.ball(x, eps), label, CLASSES))
    assert loss("certified", net, eps, relaxation=relaxation("ibp")) == near(expected)


@each_net
@each_radius
def test_pgd_at_the_points_that_it_found(net: str, eps: float) -> None:
    watched = Watched(ATTACK)
    found = loss("pgd", net, eps, attack=watched)
    points = iter(watched.found[0].flatten(1).numpy())
    assert found == near(mean(net, lambda o, x, label: naive.cross_entropy(output(o, next(points)), label)))


@each_net
@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_trades_at_the_points_that_it_found(net: str, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found, maximise = [], Pgd.maximise

    def watched(*args: Any) -> Tensor:
        found.append(maximise(*args))
        return found[-1]

    monkeypatch.setattr(Pgd, "maximise", watched)
    value = loss("trades", net, 0.2, weight=weight, steps=3)
    assert torch.all((found[0] - case(net).inputs(BATCH)).abs() <= 0.2 + 1e-9)
    points = iter(found[0].flatten(1).numpy())
    expected = mean(net, lambda o, x, label: naive.trades(output(o, x), output(o, next(points)), label, weight))
    assert value == near(expected)


def test_trades_ascends_the_divergence() -> None:
    values = [loss("trades", "mlp", 0.3, steps=steps) for steps in (0, 1, 10)]
    assert values[0] < values[1] <= values[2] + 1e-12


@pytest.mark.parametrize("step", [0.0, 0.3])
def test_edac_is_the_loss_at_extragradient_weights(step: float) -> None:
    """theta' by finite differences of the naive certainty; the second attack starts anew at theta'."""
    watched = Watched(ATTACK)
    found = loss("edac", "leaky", 0.2, attack=watched, step=step)
    before, after = (points.flatten(1).numpy() for points in watched.found)
    gradient = naive.certainty_gradient(case("leaky").oracle, list(before))
    ahead = naive.shifted(case("leaky").oracle, {key: -step * value for key, value in gradient.items()})
    points = iter(after)
    expected = mean("leaky", lambda o, x, label: naive.cross_entropy(output(ahead, next(points)), label))
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_gradient_of_edac_is_the_one_ahead() -> None:
    """The shift is a constant: the gradient with respect to theta is that of the loss at theta'."""
    known, made = case("leaky"), build("methods", "edac", attack=Pgd(steps=0), step=0.3)
    batch, radius = batch_of("leaky"), torch.tensor(0.0, dtype=F64)
    draws = made.draws(known.net, batch, radius, torch.Generator().manual_seed(0))

    def at(params: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        value = made.loss(known.net, leaves, batch, radius, draws)[0]
        return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))

    ahead = {name: value.detach() for name, value in made._ahead(known.net, known.params, batch.x).items()}
    leaves = {name: value.requires_grad_() for name, value in ahead.items()}
    plain = margin_cross_entropy(evaluate(batch.spec, known.net(leaves, batch.x)), batch.spec.clause).mean()
    for found, expected in zip(
        at(known.params).values(), torch.autograd.grad(plain, list(leaves.values())), strict=True
    ):
        torch.testing.assert_close(found, expected)


# ------------------------------------------------------------------------------------------------- CROWN-IBP


@each_net
@pytest.mark.parametrize("fused", [False, True])
def test_the_way_from_crown_ibp_to_ibp(net: str, fused: bool) -> None:
    """All of the one at the start of the ramp, all of the other from its end on, a mean in between."""
    options = {"relaxation": relaxation("crown_ibp"), "fused": fused}
    start, end = loss("certified", net, 0.1, **options), loss("certified", net, 0.1, relaxation=relaxation("ibp"))
    on_the_way = [
        loss("certified", net, 0.1, towards_ibp=True, fading=fading, **options) for fading in (1.0, 0.25, 0.0)
    ]
    assert on_the_way[0] == near(start)
    assert on_the_way[2] == near(end)
    if fused:
        assert on_the_way[1] == near(0.25 * start + 0.75 * end)
    else:
        batch, known = batch_of(net), case(net)
        box = tr.linf_box(batch.x, 0.1)
        tight, loose = (
            relaxation(name).bounds(known.net, known.params, box, batch.spec).margins for name in ("crown_ibp", "ibp")
        )
        mixed = margin_cross_entropy(0.25 * tight + 0.75 * loose, batch.spec.clause).mean()
        assert on_the_way[1] == near(float(mixed))


@pytest.mark.parametrize("net", ["mlp", "leaky", "residual"])
@pytest.mark.parametrize("eps", [0.02, 0.1, 0.3])
def test_the_fused_loss_lies_between_the_worst_case_and_the_unfused(net: str, eps: float) -> None:
    """The exact worst case from below; from above the unfused loss of IBP, whose margins the exponentials are bounded
    with: the fused row is bounded by the better of its own bound and theirs."""
    known, batch = case(net), batch_of(net)
    box = tr.linf_box(batch.x, eps)
    fused, _ = fused_cross_entropy(known.net, known.params, box, batch.spec, relaxation("ibp"))
    unfused = margin_cross_entropy(
        relaxation("ibp").bounds(known.net, known.params, box, batch.spec).margins, batch.spec.clause
    )
    assert torch.all(fused <= unfused + 1e-9)
    for i in range(BATCH):
        lower, upper = (end[i].numpy() for end in box)
        points = np.concatenate([corners(lower, upper, np.random.default_rng(0)), *grid(lower, upper)])
        worst = max(naive.cross_entropy(logits, int(labels_for(BATCH)[i])) for logits in output(known.oracle, points))
        assert worst <= float(fused[i]) + 1e-9


def grid(lower: Array, upper: Array) -> Iterator[Array]:
    """11 points along each axis, so that kinks inside the box are not missed by much."""
    axes = [np.linspace(a, b, 11) for a, b in zip(lower, upper, strict=True)]
    yield np.array(list(itertools.product(*axes)))


# ------------------------------------------------------------------------------------------------------ SABR


@each_net
@each_radius
@pytest.mark.parametrize(("ratio", "keep"), [(0.4, 1.0), (0.4, 0.8), (0.9, 0.5), (0.0, 1.0)])
def test_sabr(net: str, eps: float, ratio: float, keep: float) -> None:
    watched = Watched(ATTACK)
    found = loss("sabr", net, eps, attack=watched, ratio=ratio, shrink=keep)
    centres = iter(watched.found[0].flatten(1).numpy())

    def each(oracle: Net, x: Array, label: int) -> float:
        box = naive.small_box(x, eps, ratio, next(centres))
        return naive.shrunken_loss(oracle, *box, label, CLASSES, keep)

    assert found == near(mean(net, each))


@each_net
@each_radius
def test_sabr_with_the_whole_box_is_ibp(net: str, eps: float) -> None:
    assert loss("sabr", net, eps, ratio=1.0) == near(loss("certified", net, eps, relaxation=relaxation("ibp")))


@each_net
def test_sabr_with_a_point_is_pgd(net: str) -> None:
    watched = Watched(ATTACK)
    found = loss("sabr", net, 0.2, attack=watched, ratio=0.0)
    points = iter(watched.found[0].flatten(1).numpy())
    assert found == near(mean(net, lambda o, x, label: naive.cross_entropy(output(o, next(points)), label)))


def test_small_boxes_and_shrunken_activations_lower_the_loss() -> None:
    boxes = [loss("sabr", "mlp", 0.3, ratio=ratio) for ratio in (0.1, 0.5, 1.0)]
    shrunk = [loss("sabr", "mlp", 0.3, shrink=keep) for keep in (0.5, 0.8, 1.0)]
    assert boxes == sorted(boxes)
    assert shrunk == sorted(shrunk)
    assert boxes[0] < boxes[2]
    assert shrunk[0] < shrunk[2]


# ------------------------------------------------------------------------------------------------------ TAPS

LATENT = Pgd(steps=40, step_size=0.25, loss="margin", restarts=2)


def affine_tail() -> Case:
    """A network that ends in two affine layers, so that the second part has its worst case at a corner."""
    layers = [nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, CLASSES)]
    return Case(randomise(nn.Sequential(*layers), 3), (3,))


@pytest.mark.parametrize("at", [-2, -1, 2, 4, "1", "3"])
@each_radius
def test_taps_where_its_attacks_are_exact(at: int | str, eps: float) -> None:
    """With an affine second part, that of no layers included, the estimate is that of the latent box's corners."""
    known = affine_tail()
    made = build("methods", "taps", attack=LATENT, split=at)
    batch, radius = Batch(known.inputs(BATCH), margins64(BATCH)), torch.tensor(eps, dtype=F64)
    draws = made.draws(known.net, batch, radius, torch.Generator().manual_seed(0))
    found = made.loss(known.net, known.params, batch, radius, draws)[0]
    count = {-2: 2, -1: 3, 2: 2, 4: 4, "1": 2, "3": 4}[at]
    first, second = naive.split(known.oracle, count)
    stem, act, inner, head = (node.layer for node in known.oracle.nodes)
    merged = sequential([stem, act, Affine(head.weight @ inner.weight, head.weight @ inner.bias + head.bias)])
    expected = []
    for x, label in zip(known.inputs(BATCH).numpy(), labels_for(BATCH).tolist(), strict=True):
        ends = naive.ball(x, eps)
        margins = naive.taps_margins(first, second, *ends, naive.rows_of(label, CLASSES))
        expected.append(naive.margin_loss(margins) * naive.ibp_loss(merged, *ends, label, CLASSES))
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-6)


def test_taps_with_an_empty_second_part_is_the_box_estimate_of_the_outputs() -> None:
    """That is bounds of the outputs, then of their differences: IBP without merging the last layer into the margins.
    The network here ends in an activation: nothing is merged anyway, and the product is the square of the IBP loss."""
    known = Case(randomise(nn.Sequential(nn.Linear(3, CLASSES), nn.ReLU()), 1), (3,))
    batch, eps = Batch(known.inputs(BATCH), margins64(BATCH)), torch.tensor(0.2, dtype=F64)
    made = build("methods", "taps", attack=LATENT, split=len(known.net.nodes))
    draws = made.draws(known.net, batch, eps, torch.Generator().manual_seed(0))
    found = made.loss(known.net, known.params, batch, eps, draws)[0]
    rows = relaxation("ibp").bounds(known.net, known.params, tr.linf_box(batch.x, 0.2), batch.spec).margins
    expected = (margin_cross_entropy(rows, batch.spec.clause) ** 2).mean()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_taps_with_an_empty_first_part_attacks_the_input_for_each_margin() -> None:
    """Exactly, if the network is linear, where IBP is exact too."""
    known = Case(randomise(nn.Sequential(nn.Linear(3, CLASSES)), 1), (3,))
    batch, eps = Batch(known.inputs(BATCH), margins64(BATCH)), torch.tensor(0.2, dtype=F64)
    made = build("methods", "taps", attack=LATENT, split=0)
    draws = made.draws(known.net, batch, eps, torch.Generator().manual_seed(0))
    found = made.loss(known.net, known.params, batch, eps, draws)[0]
    losses = [
        naive.ibp_loss(known.oracle, *naive.ball(x, 0.2), label, CLASSES)
        for x, label in zip(batch.x.numpy(), labels_for(BATCH).tolist(), strict=True)
    ]
    assert float(found) == pytest.approx(np.mean(np.square(losses)), rel=1e-9)


@each_net
@pytest.mark.parametrize("name", ["taps", "staps"])
def test_during_the_ramp_there_are_intervals_only(name: str, net: str) -> None:
    found = loss(name, net, 0.1, fading=0.5, ratio=0.4, shrink=0.8)
    expected = loss("sabr", net, 0.1, ratio=0.4 if name == "staps" else 1.0, shrink=0.8)
    assert found == near(expected)


@each_net
def test_staps_with_the_whole_box_is_taps(net: str) -> None:
    """But for the draws, which do not matter where the attacks find the corner."""
    options = {"attack": LATENT, "split": -1}
    assert loss("staps", net, 0.1, ratio=1.0, **options) == pytest.approx(loss("taps", net, 0.1, **options), rel=1e-6)


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
def test_the_weight_multiplies_the_gradient_of_the_estimate_alone(weight: float) -> None:
    """grad = weight L_IBP grad L_TAPS + L_TAPS grad L_IBP, linear in the weight; the value does not change."""
    known, batch, eps = case("mlp"), batch_of("mlp"), torch.tensor(0.1, dtype=F64)

    def at(weight: float) -> tuple[Tensor, Tensor]:
        made = build("methods", "taps", attack=ATTACK, split=-1, gradient_weight=weight)
        draws = made.draws(known.net, batch, eps, torch.Generator().manual_seed(0))
        leaf = known.params["0.weight"].clone().requires_grad_()
        value = made.loss(known.net, {**known.params, "0.weight": leaf}, batch, eps, draws)[0]
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    (value, gradient), (base, box_part), (_, both) = at(weight), at(0.0), at(1.0)
    assert float(value) == float(base)
    torch.testing.assert_close(gradient, box_part + weight * (both - box_part))


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_connector_is_rectified_and_linear(threshold: float, share: float) -> None:
    lower, upper = (torch.tensor([[end]], dtype=F64, requires_grad=True) for end in (-1.0, 3.0))
    point = torch.tensor([[-1.0 + 4 * share]], dtype=F64)
    value = connected(point, Interval(lower, upper), threshold)
    assert torch.equal(value, point)
    found = torch.autograd.grad(value.sum(), (lower, upper))
    if threshold > 0:
        expected = naive.connector(float(point), -1.0, 3.0, threshold)
    else:  # the limit: only the ends themselves
        expected = (float(share == 0), float(share == 1))
    assert [float(each) for each in found] == near(expected)


# ------------------------------------------------------------------------------------------ in between


@each_net
@pytest.mark.parametrize("name", ["mtl_ibp", "cc_ibp", "exp_ibp"])
@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_expressive_losses(name: str, net: str, alpha: float, factor: float) -> None:
    watched = Watched(ATTACK)
    found = loss(name, net, 0.1, attack=watched, alpha=alpha, attack_factor=factor)
    assert torch.all((watched.found[0] - case(net).inputs(BATCH)).abs() <= 0.1 * factor + 1e-9)
    points = iter(watched.found[0].flatten(1).numpy())

    def each(oracle: Net, x: Array, label: int) -> float:
        adversarial = naive_margins(oracle, next(points), label)
        return getattr(naive, name)(adversarial, naive_bounds(oracle, x, label, 0.1), alpha)

    assert found == near(mean(net, each))


@each_net
@pytest.mark.parametrize("name", ["mtl_ibp", "cc_ibp", "exp_ibp"])
def test_ends_of_the_expressive_losses_are_pgd_and_ibp(name: str, net: str) -> None:
    assert loss(name, net, 0.1, alpha=0.0) == near(loss("pgd", net, 0.1))
    assert loss(name, net, 0.1, alpha=1.0) == near(loss("certified", net, 0.1, relaxation=relaxation("ibp")))


@pytest.mark.parametrize("name", ["mtl_ibp", "cc_ibp", "exp_ibp"])
def test_expressive_losses_grow_with_alpha(name: str) -> None:
    """De Palma et al. 2024, definition 3.1: continuous and monotonic from the attack to the bound."""
    values = [loss(name, "mlp", 0.2, alpha=alpha) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert values == sorted(values)
    assert values[0] < values[-1]


@pytest.mark.parametrize("scale", [1e-3, 1e3, 1e6])
def test_exp_ibp_is_finite_where_a_loss_vanishes(scale: float) -> None:
    """In float32 the cross-entropy of a large margin is 0, whose power has no gradient."""
    net, params = tr.from_module(nn.Linear(2, 2), (2,))
    params = {"weight": scale * torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": scale * torch.tensor([2.0, -2.0])}
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    batch = Batch(torch.rand(3, 2), tr.margin_spec(torch.zeros(3, dtype=torch.int64), 2))
    made = build("methods", "exp_ibp", attack=ATTACK)
    radius = torch.tensor(0.1, dtype=F64)
    draws = made.draws(net, batch, radius, torch.Generator().manual_seed(0))
    value = made.loss(net, leaves, batch, radius, draws)[0]
    assert math.isfinite(float(value.detach()))
    assert all(bool(torch.isfinite(g).all()) for g in torch.autograd.grad(value, list(leaves.values())))


# ----------------------------------------------------------------------------------------- refused options

BAD: list[tuple[str, dict[str, Any]]] = [
    ("sabr", {"ratio": 1.1}),
    ("sabr", {"shrink": -0.1}),
    ("taps", {"threshold": 2.0}),
    ("taps", {"gradient_weight": -1.0}),
    ("staps", {"ratio": float("nan")}),
    ("mtl_ibp", {"alpha": 1.5}),
    ("cc_ibp", {"attack_factor": -1.0}),
    ("exp_ibp", {"attack_factor": float("inf")}),
    ("edac", {"step": -0.1}),
    ("trades", {"weight": float("nan")}),
    ("trades", {"steps": -1}),
]


@pytest.mark.parametrize(("name", "options"), BAD, ids=lambda value: str(value))
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        build("methods", name, **{"attack": ATTACK, "search": ATTACK, "split": -1, **options})


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_shrunken_intervals_lie_in_the_sound_ones(keep: float) -> None:
    batch, known = batch_of("mlp"), case("mlp")
    box = tr.linf_box(batch.x, 0.2)
    sound = relaxation("ibp").bounds(known.net, known.params, box, batch.spec).margins
    found = interval_margins(known.net, known.params, box, batch.spec, keep)
    assert torch.all(found >= sound - 1e-12)
    assert keep < 1 or torch.equal(found, sound)
