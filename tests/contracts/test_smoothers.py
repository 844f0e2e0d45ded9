"""The contract of a smoother, for every one in the registry: closed forms on losses whose smoothing is known.

A mean of independent estimates is compared within 4 standard errors, whose size is predicted where it is known and
measured where it is not. All draws are seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from helpers import F64, build
from tightrope.core import registry
from tightrope.core.bounds import Metrics, Params
from tightrope.core.protocols import GradEstimate, LossFn, Smoother, SmootherState, Std
from tightrope.errors import InputError

NAMES = registry.names("smoothers")
BLIND = {"none", "rgs"}
"""Smoothers that average gradients, and so miss jumps; every other one is held to the gradient of the smoothed loss."""
UNSMOOTHED = {"none"}
STD = 0.3
REPEATS = 400
PAIRS = 3

each = pytest.mark.parametrize("name", NAMES)
each_smoothing = pytest.mark.parametrize("name", [name for name in NAMES if name not in UNSMOOTHED])
each_gradient = pytest.mark.parametrize("name", [n for n in NAMES if registry.find("smoothers", n).needs_gradient])
each_chunked = pytest.mark.parametrize(
    "name", [n for n in NAMES if "chunk" in {field.name for field in fields(registry.find("smoothers", n))}]
)
each_noisy = pytest.mark.parametrize("name", [n for n in NAMES if registry.find("smoothers", n).needs_noise])


def params() -> dict[str, Tensor]:
    """Two trainable tensors, and one that is not."""
    return {
        "w": torch.tensor([[0.5, -1.0], [0.25, 2.0]], dtype=F64),
        "b": torch.tensor([0.1, -0.3], dtype=F64),
        "fixed": torch.tensor([3.0, 4.0], dtype=F64),
    }


TRAINABLE = ("w", "b")
DIMENSION = 6


def flat(of: Params) -> Tensor:
    return torch.cat([of["w"].flatten(), of["b"]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(
    name: str, loss: LossFn, *, std: Std = STD, seed: int = 0, at: Params | None = None, **options: Any
) -> GradEstimate:
    smoother: Smoother = build("smoothers", name, **({"pairs": PAIRS} | options))
    at = params() if at is None else at
    return smoother.estimate(loss, at, smoother.init(at, TRAINABLE), std=std, generator=seeded(seed))


class Repeats(NamedTuple):
    """Independent estimates: gradients (repeats, DIMENSION) and values (repeats,)."""

    grads: Tensor
    values: Tensor


@cache
def repeated(name: str, loss: LossFn, per_tensor: bool = False) -> Repeats:
    std = {"w": 0.1, "b": 0.4} if per_tensor else STD
    found = [run(name, loss, std=std, seed=seed, chunk=PAIRS) for seed in range(REPEATS)]
    return Repeats(torch.stack([flat(e.grad) for e in found]), torch.stack([e.value for e in found]))


def assert_mean(samples: Tensor, expected: Tensor, variance: Tensor | None = None) -> None:
    """The mean over axis 0 is within 4 standard errors of what is expected, and exact where they do not vary."""
    variance = samples.var(dim=0) if variance is None else variance
    slack = 4 * (variance / len(samples)).sqrt() + 1e-9
    assert torch.all((samples.mean(dim=0) - expected).abs() <= slack)


# --------------------------------------------------------------------------------------------------- losses

A = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 2.0], dtype=F64)
H = torch.diag(torch.tensor([1.0, 2.0, 0.5, 1.5, 3.0, 1.0], dtype=F64)) + 0.3
CUT = 0.4


def linear(p: Params) -> tuple[Tensor, Metrics]:
    value = flat(p) @ A
    return value, {"doubled": 2 * value.detach()}


def quadratic(p: Params) -> tuple[Tensor, Metrics]:
    theta = flat(p)
    return theta @ H @ theta / 2 + theta @ A, {}


def cubic(p: Params) -> tuple[Tensor, Metrics]:
    return (flat(p) ** 3).sum(), {}


def step(p: Params) -> tuple[Tensor, Metrics]:
    """1 where the first weight is above CUT: no gradient anywhere, a jump in between."""
    above = (p["w"][0, 0] > CUT).to(F64)
    return above + 0.0 * flat(p).sum(), {}


# --------------------------------------------------------------------------------------------- closed forms


@each
@pytest.mark.parametrize("per_tensor", [False, True])
def test_linear_loss_mean(name: str, per_tensor: bool) -> None:
    found = repeated(name, linear, per_tensor)
    assert_mean(found.grads, A)
    assert_mean(found.values, flat(params()) @ A)


@each
def test_linear_loss_variance(name: str) -> None:
    """Smoothers that differentiate are exact; from loss values alone E |g - a|^2 = (d + 1) / n |a|^2."""
    error = ((repeated(name, linear).grads - A) ** 2).sum(dim=1)
    if registry.find("smoothers", name).needs_gradient:
        assert error.max() < 1e-20
        return
    predicted = (DIMENSION + 1) / PAIRS * A.square().sum()
    assert_mean(error, predicted)
    assert error.std() / math.sqrt(REPEATS) < 0.1 * predicted  # the comparison above means something


@pytest.mark.parametrize("name", ["pgpe"])
def test_linear_loss_variance_per_coordinate(name: str) -> None:
    """With std s_i of coordinate i: variance (sum_k s_k^2 a_k^2 + s_i^2 a_i^2) / (n s_i^2)."""
    std = torch.tensor([0.1] * 4 + [0.4] * 2, dtype=F64)
    energy = (std * A) ** 2
    predicted = (energy.sum() + energy) / (PAIRS * std**2)
    assert_mean((repeated(name, linear, True).grads - A) ** 2, predicted)


@each
def test_quadratic_loss(name: str) -> None:
    """Smoothing adds std^2 / 2 trace H to the value and leaves the gradient H theta + a."""
    theta, found = flat(params()), repeated(name, quadratic)
    assert_mean(found.grads, H @ theta + A)
    extra = 0.0 if name in UNSMOOTHED else STD**2 / 2 * H.trace()
    assert_mean(found.values, theta @ H @ theta / 2 + theta @ A + extra)
    if registry.find("smoothers", name).needs_gradient:  # a pair z, -z cancels the noise of a linear gradient
        assert (found.grads - (H @ theta + A)).abs().max() < 1e-9


@each
def test_cubic_loss(name: str) -> None:
    """The smoothed gradient differs from the plain one: 3 theta^2 + 3 std^2. It is in autograd units."""
    theta = flat(params())
    expected = 3 * theta**2 + (0.0 if name in UNSMOOTHED else 3 * STD**2)
    found = repeated(name, cubic).grads
    assert_mean(found, expected)
    if name not in UNSMOOTHED:
        assert (found.mean(dim=0) - 3 * theta**2).abs().max() > 0.5 * 3 * STD**2


@each
def test_step_function(name: str) -> None:
    """The smoothed step is a Gaussian distribution function, its gradient the density. Averaged gradients are 0."""
    found = repeated(name, step)
    distance = (float(params()["w"][0, 0]) - CUT) / STD
    density = math.exp(-(distance**2) / 2) / math.sqrt(2 * math.pi) / STD
    expected = torch.zeros(DIMENSION, dtype=F64)
    if name in BLIND:
        assert torch.equal(found.grads, expected.expand_as(found.grads))
    else:
        expected[0] = density
        assert_mean(found.grads, expected)
        assert found.grads[:, 0].std() / math.sqrt(REPEATS) < 0.1 * density
    if name not in UNSMOOTHED:
        assert_mean(found.values, torch.tensor((1 + math.erf(distance / math.sqrt(2))) / 2, dtype=F64))


# ------------------------------------------------------------------------------------------------ mechanics


@each
def test_metrics_are_means_over_the_members(name: str) -> None:
    estimate = run(name, linear)
    torch.testing.assert_close(estimate.metrics["doubled"], 2 * estimate.value)
    assert not estimate.value.requires_grad
    assert estimate.value.shape == ()


@each
def test_gradient_has_the_form_of_the_params(name: str) -> None:
    estimate = run(name, quadratic)
    assert set(estimate.grad) == set(TRAINABLE)
    for key, grad in estimate.grad.items():
        assert grad.shape == params()[key].shape
        assert grad.dtype == F64
        assert not grad.requires_grad
    assert isinstance(estimate.state, SmootherState)


@each
def test_state_is_handed_on(name: str) -> None:
    smoother: Smoother = build("smoothers", name, pairs=PAIRS)
    state, generator = smoother.init(params(), TRAINABLE), seeded()
    for _ in range(3):
        estimate = smoother.estimate(quadratic, params(), state, std=STD, generator=generator)
        state = estimate.state
        assert torch.isfinite(flat(estimate.grad)).all()


@each
def test_params_are_not_changed(name: str) -> None:
    at = {key: value.requires_grad_() for key, value in params().items()}
    run(name, quadratic, at=at)
    for key, value in params().items():
        assert torch.equal(at[key].detach(), value)
        assert at[key].grad is None
        assert at[key].requires_grad


@each
def test_generator_determines_the_estimate(name: str) -> None:
    first, again, other = (run(name, cubic, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(flat(first.grad), flat(again.grad))
    assert torch.equal(first.value, again.value)
    assert name in UNSMOOTHED or not torch.equal(flat(first.grad), flat(other.grad))


@each_smoothing
def test_steps_draw_fresh_noise(name: str) -> None:
    smoother: Smoother = build("smoothers", name, pairs=PAIRS)
    generator, state = seeded(), smoother.init(params(), TRAINABLE)
    one, two = (smoother.estimate(cubic, params(), state, std=STD, generator=generator) for _ in range(2))
    assert not torch.equal(flat(one.grad), flat(two.grad))


@each
def test_global_random_state_is_neither_read_nor_written(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run(name, cubic)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(flat(first.grad), flat(run(name, cubic).grad))


def spy(seen: list[dict[str, Tensor]]) -> LossFn:
    def loss(p: Params) -> tuple[Tensor, Metrics]:
        seen.append({key: value.detach().clone() for key, value in p.items()})
        return cubic(p)

    return loss


@each
def test_only_trainable_params_are_perturbed(name: str) -> None:
    seen: list[dict[str, Tensor]] = []
    run(name, spy(seen))
    for p in seen:
        assert torch.equal(p["fixed"], params()["fixed"])
    assert name in UNSMOOTHED or len({tuple(p["w"].flatten().tolist()) for p in seen}) == len(seen) > 1


@each_smoothing
def test_members_come_in_antithetic_pairs(name: str) -> None:
    """Every evaluated point has its mirror image in the params, so that the points' mean is the params."""
    seen: list[dict[str, Tensor]] = []
    run(name, spy(seen))
    offsets = torch.stack([flat(p) for p in seen]) - flat(params())
    mirrored = (offsets[:, None] + offsets[None]).abs().amax(dim=-1) < 1e-12
    assert torch.all(mirrored.sum(dim=1) == 1)


@each_smoothing
def test_noise_has_the_std(name: str) -> None:
    """Also per tensor; a tensor with std 0, or without one, is untouched."""
    seen: list[dict[str, Tensor]] = []
    run(name, spy(seen), std={"w": 0.01, "b": 2.0}, pairs=300)
    for key, std in (("w", 0.01), ("b", 2.0)):
        z = (torch.stack([p[key] for p in seen])[::2] - params()[key]) / std
        assert_mean(z.square().flatten(), torch.tensor(1.0, dtype=F64))
    for untouched in ({"w": 0.5, "b": 0.0}, {"w": 0.5}):
        seen.clear()
        estimate = run(name, spy(seen), std=untouched)
        assert all(torch.equal(p["b"], params()["b"]) for p in seen)
        assert torch.isfinite(estimate.grad["b"]).all()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in UNSMOOTHED and n in BLIND])
def test_untouched_tensors_keep_their_gradient(name: str) -> None:
    grad = run(name, cubic, std={"w": 0.5}).grad
    torch.testing.assert_close(grad["b"], 3 * params()["b"] ** 2)


@pytest.mark.parametrize("name", ["pgpe"])
def test_untouched_tensors_have_no_estimate(name: str) -> None:
    grad = run(name, cubic, std={"w": 0.5}).grad
    assert torch.equal(grad["b"], torch.zeros(2, dtype=F64))


@each_chunked
@pytest.mark.parametrize("loss", [cubic, step])
def test_chunks_do_not_change_the_estimate(name: str, loss: LossFn) -> None:
    """One by one, in uneven pieces, and all at once through vmap."""
    one, *others = (run(name, loss, pairs=7, chunk=chunk) for chunk in (1, 3, 7, 100))
    for other in others:
        torch.testing.assert_close(flat(other.grad), flat(one.grad), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.value, one.value, rtol=1e-12, atol=1e-12)


@each_chunked
def test_more_pairs_keep_the_first_ones(name: str) -> None:
    """A pair's noise depends on the step and its own index only."""
    few: list[dict[str, Tensor]] = []
    many: list[dict[str, Tensor]] = []
    run(name, spy(few), pairs=2)
    run(name, spy(many), pairs=5)
    for p, q in zip(few, many, strict=False):
        assert torch.equal(flat(p), flat(q))


# ------------------------------------------------------------------------------------- std 0 and bad input


@each_gradient
@pytest.mark.parametrize("std", [0.0, {"w": 0.0}, {}])
def test_std_zero_is_the_plain_gradient(name: str, std: Std) -> None:
    if registry.find("smoothers", name).needs_noise:
        pytest.skip("refuses, see below")
    estimate = run(name, cubic, std=std)
    plain = run("none", cubic)
    torch.testing.assert_close(flat(estimate.grad), flat(plain.grad), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(estimate.value, plain.value, rtol=1e-12, atol=1e-12)


@each_noisy
@pytest.mark.parametrize("std", [0.0, {"w": 0.0, "b": 0.0}, {}])
def test_std_zero_is_refused_where_noise_is_needed(name: str, std: Std) -> None:
    with pytest.raises(InputError, match="std = 0"):
        run(name, cubic, std=std)


@each_smoothing
@pytest.mark.parametrize("std", [-0.1, math.nan, math.inf, {"w": -1.0}, {"b": math.nan}, {"w": 0.1, "b": -1e-9}])
def test_bad_std_is_refused(name: str, std: Std) -> None:
    with pytest.raises(InputError, match="std = "):
        run(name, cubic, std=std)


@each_smoothing
@pytest.mark.parametrize("key", ["fixed", "nobody"])
def test_std_of_an_unknown_tensor_is_refused(name: str, key: str) -> None:
    with pytest.raises(InputError, match=key):
        run(name, cubic, std={"w": 0.1, key: 0.1})


@each_chunked
@pytest.mark.parametrize("options", [{"pairs": 0}, {"pairs": -1}, {"chunk": 0}, {"pairs": 2.5}, {"pairs": True}])
def test_bad_counts_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        registry.create("smoothers", name, **options)


# ---------------------------------------------------------------------------------- who may differentiate


class Opaque(torch.autograd.Function):
    """The identity, with a derivative that must not be asked for."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise AssertionError("differentiated with respect to the params")


def opaque(p: Params) -> tuple[Tensor, Metrics]:
    return (Opaque.apply(p["w"]) ** 2).sum(), {}


def no_graph(p: Params) -> tuple[Tensor, Metrics]:
    assert not any(value.requires_grad for value in p.values())
    value, _ = cubic(p)
    assert not value.requires_grad
    return value, {}


@each
@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("loss", [opaque, no_graph])
def test_needs_gradient_trait(name: str, chunk: int, loss: LossFn) -> None:
    """Smoothers without the trait never differentiate with respect to the params; those with it do."""
    at = {key: value.requires_grad_() for key, value in params().items()}
    if registry.find("smoothers", name).needs_gradient:
        with pytest.raises(AssertionError):
            run(name, loss, at=at, chunk=chunk)
    else:
        assert torch.isfinite(flat(run(name, loss, at=at, chunk=chunk).grad)).all()


@each
@pytest.mark.parametrize("chunk", [1, 2])
def test_the_loss_may_differentiate_its_input(name: str, chunk: int) -> None:
    """As attacks do, whoever the smoother is: here d/dx of (w . x)^2 at x = 1 is an ordinary value."""

    def loss(p: Params) -> tuple[Tensor, Metrics]:
        def inner(x: Tensor) -> Tensor:
            return ((p["w"] @ x) ** 2).sum()

        gradient: Callable[[Tensor], Tensor] = torch.func.grad(inner)
        return gradient(torch.ones(2, dtype=F64)).square().sum() + p["b"].sum(), {}

    assert flat(run(name, loss, chunk=chunk).grad).abs().min() > 0
