"""The contract of a training method, for every one in the registry, with every relaxation and smoother."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tightrope as tr
from helpers import F64, build, case, labels_for, margins64, relaxation
from tightrope.core import registry
from tightrope.core.bounds import Metrics, Params
from tightrope.core.protocols import Batch, LossFn, TrainingMethod
from tightrope.core.spec import Spec, evaluate, margin_cross_entropy
from tightrope.errors import InputError, UnknownNameError
from tightrope.methods._fusion import fused_cross_entropy

BATCH = 4
EPS = torch.tensor(0.1, dtype=F64)
ATTACK = registry.create("attacks", "pgd", steps=3)
OPTIONS = {"attack": ATTACK, "search": ATTACK, "split": -2}
NO_SHIFT = {"edac": {"step": 0.0}}  # otherwise the loss is that at other weights
PRODUCTS = {"taps", "staps"}  # of two losses


def options_of(name: str) -> set[str]:
    return {field.name for field in fields(registry.find("methods", name))}


VARIANTS = [
    pytest.param(name, choice, id=name if choice is None else f"{name}-{choice}")
    for name in registry.names("methods")
    for choice in (registry.names("relaxations") if "relaxation" in options_of(name) else [None])
]
each_method = pytest.mark.parametrize(("name", "choice"), VARIANTS)


def method(name: str, choice: str | None, **options: Any) -> TrainingMethod:
    """A method with the options that it asks for."""
    bounds = relaxation(choice) if choice else None
    return build("methods", name, relaxation=bounds, **{**OPTIONS, **options})


def batch_of(net: str) -> Batch:
    return Batch(case(net).inputs(BATCH), margins64(BATCH))


def loss_of(made: TrainingMethod, net: str, eps: Tensor = EPS, seed: int = 0) -> LossFn:
    batch, network = batch_of(net), case(net).net
    draws = made.draws(network, batch, eps, torch.Generator().manual_seed(seed))
    return lambda params: made.loss(network, params, batch, eps, draws)


def gradient(loss: LossFn, params: Params) -> dict[str, Tensor]:
    leaves = {key: value.detach().requires_grad_() for key, value in params.items() if value.is_floating_point()}
    value, _ = loss({**params, **leaves})
    grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


@each_method
@pytest.mark.parametrize("net", ["mlp", "residual", "normed"])
def test_loss_is_pure(name: str, choice: str | None, net: str) -> None:
    """The same result twice, params and draws untouched, no global randomness."""
    made, batch, params = method(name, choice), batch_of(net), case(net).params
    draws = made.draws(case(net).net, batch, EPS, torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in (params | draws).items()}
    state = torch.get_rng_state()
    first, metrics = made.loss(case(net).net, params, batch, EPS, draws)
    again, _ = made.loss(case(net).net, params, batch, EPS, draws)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in before.items():
        assert torch.equal(value, (params | draws)[key])
    assert first.shape == ()
    assert all(metric.shape == () and not metric.requires_grad for metric in metrics.values())


@each_method
def test_draws_follow_the_generator(name: str, choice: str | None) -> None:
    made, batch, net = method(name, choice), batch_of("mlp"), case("mlp").net
    one, two, other = (made.draws(net, batch, EPS, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one.keys() == two.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], two[key])
        assert not torch.equal(one[key], other[key])


@each_method
@pytest.mark.parametrize("net", ["mlp", "residual", "conv", "normed"])
def test_gradient_is_finite_and_not_zero(name: str, choice: str | None, net: str) -> None:
    grads = gradient(loss_of(method(name, choice), net), case(net).params)
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    assert any(grads[key].abs().max() > 0 for key in case(net).net.trainable)


@each_method
@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_limit_of_radius_zero_is_the_standard_loss(name: str, choice: str | None, net: str) -> None:
    """Value and gradient are those of the cross-entropy of the torch module, or of its square for products."""
    known = case(net)
    loss = loss_of(method(name, choice, **NO_SHIFT.get(name, {})), net, torch.tensor(0.0, dtype=F64))

    def standard(params: Params) -> tuple[Tensor, Metrics]:
        logits = torch.func.functional_call(known.module, dict(params), (known.inputs(BATCH),))
        losses = F.cross_entropy(logits, labels_for(BATCH), reduction="none")
        return (losses**2 if name in PRODUCTS else losses).mean(), {}

    torch.testing.assert_close(loss(known.params)[0], standard(known.params)[0], rtol=1e-9, atol=1e-9)
    expected = gradient(standard, known.params)
    for key, grad in gradient(loss, known.params).items():
        torch.testing.assert_close(grad, expected[key], rtol=1e-7, atol=1e-9)


@each_method
@pytest.mark.parametrize("net", ["mlp", "normed"])
def test_metrics(name: str, choice: str | None, net: str) -> None:
    """Natural metrics are those of the clean batch; a robust method adds those of its surrogate, and nothing else that
    could be taken for robustness."""
    made, known = method(name, choice, **NO_SHIFT.get(name, {})), case(net)
    value, metrics = loss_of(made, net)(known.params)
    with torch.no_grad():
        logits = known.module(known.inputs(BATCH))
    labels = labels_for(BATCH)
    torch.testing.assert_close(metrics["natural_loss"], F.cross_entropy(logits, labels))
    accuracy = (logits.argmax(dim=1) == labels).to(F64).mean()
    torch.testing.assert_close(metrics["natural_accuracy"], accuracy)
    robust = {"surrogate_loss", "surrogate_accuracy"} if made.robust else set()
    assert metrics.keys() == {"natural_loss", "natural_accuracy"} | robust
    if made.robust:
        torch.testing.assert_close(metrics["surrogate_loss"], value)
        assert name in PRODUCTS or metrics["surrogate_loss"] >= metrics["natural_loss"] - 1e-9
        assert metrics["surrogate_accuracy"] <= metrics["natural_accuracy"]


@pytest.mark.parametrize(("name", "choice"), [v for v in VARIANTS if "robust_weight" in options_of(v.values[0])])
def test_robust_weight_mixes_linearly(name: str, choice: str | None) -> None:
    natural, mixed, robust = (
        loss_of(method(name, choice, robust_weight=w), "mlp")(case("mlp").params)[0] for w in (0.0, 0.25, 1.0)
    )
    torch.testing.assert_close(mixed, 0.75 * natural + 0.25 * robust)
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="robust_weight"):
            method(name, choice, robust_weight=bad)


@pytest.mark.parametrize("choice", registry.names("relaxations"))
@pytest.mark.parametrize("fused", [False, True])
def test_certified_bounds_every_adversarial_loss(choice: str, fused: bool) -> None:
    """An upper bound of the cross-entropy at any input of the box, here at attacked ones."""
    certified, _ = loss_of(method("certified", choice, fused=fused), "mlp")(case("mlp").params)
    adversarial, _ = loss_of(method("pgd", None), "mlp")(case("mlp").params)
    assert certified >= adversarial - 1e-9


@pytest.mark.parametrize("choice", registry.names("relaxations"))
@pytest.mark.parametrize("eps", [0.0, 1e-9, 1e-3, 0.05, 0.3, 1.0])
def test_a_fused_loss_is_sound_at_every_radius(choice: str, eps: float) -> None:
    """Above the loss at corners and random points, exact at radius 0; its certificates hold there."""
    known, x = case("residual"), case("residual").inputs(BATCH)
    box, spec = tr.linf_box(x, eps), margins64(BATCH)
    losses, certified = fused_cross_entropy(known.net, known.params, box, spec, relaxation(choice))
    share = torch.rand(200, *x.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    share[100:] = share[100:].round()
    for part in share:
        rows = evaluate(spec, known.net(known.params, box.lower + part * (box.upper - box.lower)))
        assert torch.all(losses >= margin_cross_entropy(rows, spec.clause) - 1e-9)
        assert torch.all((rows > 0).all(1) | ~certified)
    if eps == 0:
        rows = evaluate(spec, known.net(known.params, x))
        torch.testing.assert_close(losses, margin_cross_entropy(rows, spec.clause), rtol=1e-5, atol=1e-6)


def test_fused_losses_of_large_margins_do_not_overflow() -> None:
    known, spec = case("mlp"), margins64(BATCH)
    params = {key: value * 1e4 for key, value in known.params.items()}
    loss = tr.certified_loss(
        known.net, relaxation("crown_ibp"), tr.linf_box(known.inputs(BATCH), 0.3), spec, fused=True
    )
    grads = gradient(loss, params)
    assert torch.isfinite(loss(params)[0])
    assert all(torch.isfinite(grad).all() for grad in grads.values())


def test_fusion_gradient_is_the_derivative() -> None:
    known, box = case("leaky"), tr.linf_box(case("leaky").inputs(BATCH), 0.05)
    loss = tr.certified_loss(known.net, relaxation("crown_ibp"), box, margins64(BATCH), fused=True)
    names = list(known.net.trainable)

    def value(*weights: Tensor) -> Tensor:
        return loss({**known.params, **dict(zip(names, weights, strict=True))})[0]

    at = tuple(known.params[name].clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(value, at, eps=1e-7, atol=1e-5, fast_mode=True)


def test_disjunctions_cannot_be_fused() -> None:
    spec = margins64(BATCH)._replace(clause=(0, 0))
    with pytest.raises(InputError, match="fused=False"):
        tr.certified_loss(
            case("mlp").net, relaxation("ibp"), tr.linf_box(case("mlp").inputs(BATCH), 0.1), spec, fused=True
        )


@each_method
def test_steps_lower_the_loss(name: str, choice: str | None) -> None:
    loss, params = loss_of(method(name, choice), "leaky"), case("leaky").params
    start, _ = loss(params)
    for _ in range(20):
        grads = gradient(loss, params)
        params = {key: value - 0.05 * grads[key] for key, value in params.items()}
    assert loss(params)[0] < start - 0.01


@each_method
@pytest.mark.parametrize("smoother", registry.names("smoothers"))
@pytest.mark.parametrize("net", ["residual", "normed"])
def test_works_under_every_smoother(name: str, choice: str | None, smoother: str, net: str) -> None:
    """Members evaluated one by one and in chunks through vmap give the same finite estimate."""
    known, loss, estimates = case(net), loss_of(method(name, choice), net), []
    for chunk in (1, 2):
        made = build("smoothers", smoother, pairs=2, chunk=chunk)
        state = made.init(known.params, known.net.trainable)
        generator = torch.Generator().manual_seed(0)
        estimates.append(made.estimate(loss, known.params, state, std=0.01, generator=generator))
    one, many = estimates
    assert set(one.grad) == set(known.net.trainable)
    assert one.metrics.keys() == loss(known.params)[1].keys()
    for key in one.grad:
        assert torch.isfinite(one.grad[key]).all()
        torch.testing.assert_close(many.grad[key], one.grad[key], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(many.value, one.value)


@pytest.mark.parametrize("choice", [None, *registry.names("relaxations")])
def test_any_property_can_be_trained(choice: str | None) -> None:
    """Clauses of several rows instead of labels: the loss is log(1 + sum over clauses of exp(-best row))."""
    known = case("mlp")
    generator = torch.Generator().manual_seed(0)
    spec = Spec(
        torch.randn((BATCH, 3, 3), generator=generator, dtype=F64), torch.zeros((BATCH, 3), dtype=F64), (0, 0, 1)
    )
    made = method("certified", choice) if choice else method("standard", None)
    eps = torch.tensor(0.0, dtype=F64)
    value, metrics = made.loss(known.net, known.params, Batch(known.inputs(BATCH), spec), eps, {})
    with torch.no_grad():
        rows = torch.einsum("bro,bo->br", spec.matrix, known.module(known.inputs(BATCH)))
    best = torch.stack([rows[:, :2].amax(dim=1), rows[:, 2]], dim=1)
    torch.testing.assert_close(value, (1 + best.neg().exp().sum(dim=1)).log().mean())
    torch.testing.assert_close(metrics["natural_accuracy"], (best > 0).all(dim=1).to(F64).mean())


# ------------------------------------------------------------------------------------ tr.certified_loss


@pytest.mark.parametrize("choice", registry.names("relaxations"))
@pytest.mark.parametrize("as_spec", [False, True])
def test_certified_loss_of_a_fixed_batch(choice: str, as_spec: bool) -> None:
    """Equals the cross-entropy of the vector (0, -margins), from labels and from the spec that they stand for."""
    known, box = case("mlp"), tr.linf_box(case("mlp").inputs(BATCH), "1/20")
    target = margins64(BATCH) if as_spec else labels_for(BATCH)
    value, metrics = tr.certified_loss(known.net, relaxation(choice), box, target)(known.params)
    margins = relaxation(choice).bounds(known.net, known.params, box, margins64(BATCH)).margins
    expected = (1 + margins.neg().exp().sum(dim=1)).log().mean()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(metrics["certified_accuracy"], (margins > 0).all(dim=1).to(F64).mean())
    torch.testing.assert_close(metrics["certified_loss"], expected)


BAD_TARGETS: Mapping[str, Any] = {
    "too few labels": torch.zeros(BATCH - 1, dtype=torch.int64),
    "label out of range": torch.tensor([0, 1, 2, 3]),
    "negative label": torch.tensor([0, 1, 2, -1]),
    "another number of outputs": margins64(BATCH, 4),
    "another batch": margins64(BATCH + 1),
}


@pytest.mark.parametrize("label", BAD_TARGETS)
def test_certified_loss_refuses_bad_targets(label: str) -> None:
    box = tr.linf_box(case("mlp").inputs(BATCH), 0.1)
    with pytest.raises(InputError):
        tr.certified_loss(case("mlp").net, relaxation("ibp"), box, BAD_TARGETS[label])


def test_certified_loss_refuses_a_box_of_another_shape() -> None:
    box = tr.linf_box(torch.rand((BATCH, 5), dtype=F64), 0.1)
    with pytest.raises(InputError, match=r"\(5,\).*\(3,\)"):
        tr.certified_loss(case("mlp").net, relaxation("ibp"), box, labels_for(BATCH))


def test_methods_need_their_options() -> None:
    with pytest.raises(InputError, match="relaxation"):
        registry.create("methods", "certified")
    with pytest.raises(UnknownNameError, match="robust_weight"):
        registry.create("methods", "certified", relaxation=relaxation("ibp"), robust_wieght=0.5)
