"""The options of the smoothers: closed forms of mean and variance on losses whose smoothing is known."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import F64
from tightrope.core import registry
from tightrope.core.bounds import Metrics, Params
from tightrope.core.noise import weight_noise
from tightrope.core.protocols import GradEstimate, Losses, Smoother, SmootherState, Std
from tightrope.core.ranks import ALONE, Ranks
from tightrope.errors import InputError
from tightrope.smoothers._population import Draws

STD, REPEATS, PAIRS = 0.3, 100, 4
A = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 2.0], dtype=F64)
D = 6
CUT = 0.4
TRAINABLE = ("w", "b")


def params() -> dict[str, Tensor]:
    w = torch.tensor([[0.5, -1.0], [0.25, 2.0]], dtype=F64)
    return {"w": w, "b": torch.tensor([0.1, -0.3], dtype=F64)}


def flat(of: Params) -> Tensor:
    return torch.cat([of["w"].flatten(), of["b"]])


def unflat(vector: Tensor) -> dict[str, Tensor]:
    return {"w": vector[:4].reshape(2, 2), "b": vector[4:]}


def linear(p: Params) -> tuple[Tensor, Metrics]:
    return flat(p) @ A + 2.0, {}


def quadratic(p: Params) -> tuple[Tensor, Metrics]:
    return (flat(p) ** 2 * A).sum(), {}


def step(p: Params) -> tuple[Tensor, Metrics]:
    """A jump and a slope."""
    return (p["w"][0, 0] > CUT).to(F64) + flat(p) @ A / 4, {}


def smoothed_step_gradient() -> Tensor:
    distance = (float(params()["w"][0, 0]) - CUT) / STD
    gradient = A / 4
    gradient[0] += math.exp(-(distance**2) / 2) / math.sqrt(2 * math.pi) / STD
    return gradient


def estimate(
    smoother: Smoother, loss: Losses, *, seed: int = 0, std: Std = STD, state: SmootherState | None = None, **more: Any
) -> GradEstimate:
    at = params()
    state = smoother.init(at, TRAINABLE) if state is None else state
    return smoother.estimate(loss, at, state, std=std, generator=torch.Generator().manual_seed(seed), **more)


def build(name: str, **options: Any) -> Any:
    return registry.create("smoothers", name, **({"pairs": PAIRS, "chunk": options.get("pairs", PAIRS)} | options))


def repeated(smoother: Smoother, loss: Losses, state: SmootherState | None = None, repeats: int = REPEATS) -> Tensor:
    return torch.stack([flat(estimate(smoother, loss, seed=seed, state=state).grad) for seed in range(repeats)])


def assert_mean(samples: Tensor, expected: Tensor | float) -> None:
    """The mean over axis 0 is within 4 standard errors, and these are small beside what is expected."""
    expected = torch.as_tensor(expected, dtype=samples.dtype)
    error = samples.std(dim=0) / math.sqrt(len(samples))
    assert torch.all((samples.mean(dim=0) - expected).abs() <= 4 * error + 1e-9)
    assert error.max() <= 0.45 * expected.abs().max() + 1e-9


def errors(samples: Tensor, centre: Tensor) -> Tensor:
    return (samples - centre).square().sum(dim=1)


# ----------------------------------------------------------------------------------- independent members


@pytest.mark.parametrize("baseline", [False, True])
def test_independent_members_are_unbiased_at_jumps(baseline: bool) -> None:
    smoother = build("pgpe", pairs=16, antithetic=False, baseline=baseline)
    assert_mean(repeated(smoother, step), smoothed_step_gradient())


def test_variance_of_independent_members() -> None:
    """z (c + sigma a.z) / sigma with c = L(theta): mean a, E |.|^2 = d c^2 / sigma^2 + (d + 2) |a|^2."""
    found = repeated(build("pgpe", antithetic=False), linear)
    c = flat(params()) @ A + 2.0
    predicted = (D * c**2 / STD**2 + (D + 1) * A.square().sum()) / (2 * PAIRS)
    assert_mean(errors(found, A), predicted)


def test_a_baseline_removes_the_offset() -> None:
    """The estimate with a baseline does not change when a constant is added to the loss; without one it does."""
    shifted: Callable[[Params], Any] = lambda p: (linear(p)[0] + 100.0, {})  # noqa: E731
    for baseline in (True, False):
        smoother = build("pgpe", antithetic=False, baseline=baseline)
        one, other = (flat(estimate(smoother, loss).grad) for loss in (linear, shifted))
        assert torch.allclose(one, other, atol=1e-9) == baseline


def test_baselines_of_antithetic_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="cancel every baseline"):
        build("pgpe", baseline=True)


def test_rgs_with_independent_members_is_unbiased_with_more_variance() -> None:
    """The gradient 2 a theta is linear: in pairs z, -z its noise cancels exactly, among independent members not."""
    expected = 2 * A * flat(params())
    found = repeated(build("rgs", antithetic=False), quadratic)
    assert_mean(found, expected)
    assert_mean(errors(found, expected), (2 * A * STD).square().sum() / (2 * PAIRS))


# ------------------------------------------------------------------------------------------- populations


@pytest.mark.parametrize("options", [{}, {"orthogonal": 3}, {"antithetic": False}])
def test_the_noise_of_a_pair_does_not_depend_on_how_pairs_are_cut(options: dict[str, Any]) -> None:
    std = {"w": 0.1, "b": 2.0}
    draws, whole = Draws(params(), std, 3, **options), Draws(params(), std, 3, **options).halves(range(21))
    for pairs in (range(5), range(4, 11), range(20, 21), range(3, 4)):
        for half, all_of in zip(draws.halves(pairs), whole, strict=True):
            for name in TRAINABLE:
                assert torch.equal(half.noise[name], all_of.noise[name][pairs.start : pairs.stop])


def test_one_pair_or_two_have_draws_of_their_own() -> None:
    """So that a population of so few costs no more draws than it needs."""
    std = {"w": 0.1, "b": 2.0}
    noise = Draws(params(), std, 3).halves(range(2))[0].noise
    for index in range(2):
        alone = weight_noise(params(), std, 3, index)
        assert all(torch.equal(noise[name][index], alone[name]) for name in TRAINABLE)


def test_no_two_pairs_have_the_same_noise() -> None:
    noise = Draws(params(), {"w": 0.1, "b": 0.1}, 3).halves(range(300))[0].noise
    assert torch.cat([z.flatten() for z in noise.values()]).unique().numel() == 300 * D


# --------------------------------------------------------------------------------- orthogonal directions


def test_orthogonal_noise_is_orthogonal_in_units_of_the_std() -> None:
    std = {"w": 0.1, "b": 2.0}
    noise = Draws(params(), std, 3, orthogonal=3).halves(range(6))[0].noise
    z = torch.cat([noise[name].flatten(1) / std[name] for name in TRAINABLE], dim=1)
    gram = z @ z.T
    for block in (gram[:3, :3], gram[3:, 3:]):
        assert (block - block.diagonal().diag()).abs().max() < 1e-12
    plain = Draws(params(), std, 3).halves(range(6))[0].noise
    lengths = torch.cat([plain[name].flatten(1) / std[name] for name in TRAINABLE], dim=1).norm(dim=1)
    torch.testing.assert_close(z.norm(dim=1), lengths)


@pytest.mark.parametrize("pairs", [3, 6])
def test_variance_of_orthogonal_directions(pairs: int) -> None:
    """A block of n: E |g - a|^2 = ((d + 2) / n - 1) |a|^2 instead of (d + 1) / n |a|^2; the mean is a."""
    found = repeated(build("pgpe", pairs=pairs, orthogonal=pairs), linear)
    assert_mean(found, A)
    assert_mean(errors(found, A), ((D + 2) / pairs - 1) * A.square().sum())


def test_orthogonal_directions_are_unbiased_at_jumps() -> None:
    assert_mean(repeated(build("pgpe", pairs=18, orthogonal=6), step), smoothed_step_gradient())


def test_orthogonal_directions_do_not_depend_on_chunks() -> None:
    one, two = (flat(estimate(build("pgpe", pairs=7, orthogonal=3, chunk=c), step).grad) for c in (1, 5))
    torch.testing.assert_close(one, two)


def test_too_many_orthogonal_directions_are_refused() -> None:
    with pytest.raises(InputError, match="7 orthogonal directions of 6 weights"):
        estimate(build("pgpe", orthogonal=7), linear)


# ------------------------------------------------------------------------------------------ rank shaping


def test_ranks_see_the_order_of_the_losses_only() -> None:
    warped: Callable[[Params], Any] = lambda p: (torch.exp(step(p)[0]), {})  # noqa: E731
    smoother = build("pgpe", pairs=8, shaping="ranks")
    one, two = (flat(estimate(smoother, loss).grad) for loss in (step, warped))
    torch.testing.assert_close(one, two)
    assert not torch.allclose(one, flat(estimate(replace(smoother, shaping="none"), step).grad))


# ---------------------------------------------------------------------------- parts of a mini-batch


@pytest.mark.parametrize(("name", "pairs"), [("none", 1), ("rgs", 4), ("pgpe", 4), ("hybrid", 4)])
def test_members_spread_over_losses_estimate_their_mean(name: str, pairs: int) -> None:
    def tilted(sign: float) -> Any:
        return lambda p: (linear(p)[0] + sign * flat(p).sum(), {"seen": torch.tensor(sign)})

    smoother = registry.create("smoothers", name, **({} if name == "none" else {"pairs": pairs, "chunk": pairs}))
    parts = [tilted(1.0), tilted(-1.0)]
    assert_mean(repeated(smoother, parts, repeats=20 if name in {"none", "rgs"} else REPEATS), A)
    assert float(estimate(smoother, parts).metrics["seen"]) == 0.0


# ------------------------------------------------------------------------------------- adaptation of std


def slope_of(factor: Tensor, rate: float) -> Tensor:
    return (1.0 - factor) / rate


@pytest.mark.parametrize("antithetic", [True, False])
def test_adaptation_descends_the_smoothed_loss(antithetic: bool) -> None:
    """sum a_i theta_i^2 has dL_sigma / d log sigma = 2 sigma^2 sum a over the weights that share the sigma."""
    rate = 1e-3  # small enough for no step to be cut
    smoother = build("pgpe", pairs=8, antithetic=antithetic, adapt=rate)
    factors = [estimate(smoother, quadratic, seed=seed).state.tensors for seed in range(REPEATS)]
    for name, share in unflat(A).items():
        found = torch.stack([slope_of(each[f"std_factor/{name}"], rate) for each in factors])
        error = found.std() / math.sqrt(REPEATS)
        assert (found.mean() - 2 * STD**2 * share.sum()).abs() < 4 * error


def test_adaptation_changes_the_std_by_a_fifth_at_most_and_keeps_the_floor() -> None:
    smoother = build("pgpe", adapt=1e6, adapt_floor=0.5)
    state, seen = smoother.init(params(), TRAINABLE), [1.0]
    for seed in range(8):
        state = estimate(smoother, lambda p: (100 * p["w"].square().sum(), {}), seed=seed, state=state).state
        seen.append(float(state.tensors["std_factor/w"]))
    ratios = [after / before for before, after in itertools.pairwise(seen)]
    assert all(0.8 - 1e-12 <= ratio <= 1.2 + 1e-12 for ratio in ratios)
    assert min(seen) == 0.5


def test_the_adapted_std_is_the_one_of_the_noise() -> None:
    smoother, seen = build("pgpe", pairs=200, adapt=1.0), []
    state = SmootherState(TRAINABLE, {f"std_factor/{name}": torch.tensor(0.5, dtype=F64) for name in TRAINABLE})

    def spy(p: Params) -> tuple[Tensor, Metrics]:
        seen.append(flat(p) - flat(params()))
        return linear(p)

    estimate(replace(smoother, chunk=1), spy, state=state)
    assert float(torch.stack(seen).std()) == pytest.approx(STD / 2, rel=0.1)


@pytest.mark.parametrize("options", [{"adapt": -1.0}, {"adapt": math.nan}, {"adapt_floor": 0.0}, {"adapt_floor": 2.0}])
def test_bad_adaptation_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="adapt"):
        build("pgpe", **options)


# ------------------------------------------------------------------------------------------------ hybrid


def with_control(smoother: Smoother, h: Tensor, recent: Tensor | None = None) -> SmootherState:
    state = smoother.init(params(), TRAINABLE)
    tensors = dict(state.tensors) | {f"control/{name}": value for name, value in unflat(h).items()}
    if recent is not None:
        rows = [unflat(row) for row in recent]
        tensors |= {f"recent/{name}": torch.stack([row[name] for row in rows]) for name in TRAINABLE}
    return SmootherState(TRAINABLE, tensors)


CONTROLS = {"0": torch.zeros(D, dtype=F64), "half": A / 2, "wrong": -A, "exact": A}


@pytest.mark.parametrize("control", CONTROLS)
def test_variance_falls_with_the_distance_of_the_control(control: str) -> None:
    """On a linear loss the mean is a whatever h is, and the variance (d + 1) / n |a - h|^2."""
    smoother, h = build("hybrid", control="previous"), CONTROLS[control]
    found = repeated(smoother, linear, with_control(smoother, h))
    assert_mean(found, A)
    assert_mean(errors(found, A), (D + 1) / PAIRS * (A - h).square().sum())


def test_leave_one_out_is_unbiased_at_jumps_with_less_variance_than_pgpe() -> None:
    smoother = build("hybrid", pairs=8)
    found = repeated(smoother, step)
    expected = smoothed_step_gradient()
    assert_mean(found, expected)
    assert errors(found, expected).mean() < 0.6 * errors(repeated(build("pgpe", pairs=8), step), expected).mean()
    blind = repeated(build("rgs", pairs=8), step, repeats=2)
    torch.testing.assert_close(blind, (A / 4).expand_as(blind))


def test_previous_control_is_unbiased_at_jumps() -> None:
    smoother = build("hybrid", pairs=8, control="previous")
    assert_mean(repeated(smoother, step, with_control(smoother, A / 4)), smoothed_step_gradient())


def basis_of(unbiased: str) -> Tensor:
    """Orthonormal rows that span the subspace, worked out by hand."""
    theta = flat(params())
    rows = torch.eye(D, dtype=F64)
    if unbiased == "layers":
        rows = torch.stack([theta * (torch.arange(D) < 4), theta * (torch.arange(D) >= 4)])
    if unbiased == "neurons":
        rows = torch.stack([theta * (torch.arange(D) // 2 == row) for row in range(2)] + [*torch.eye(D, dtype=F64)[4:]])
    if unbiased == "recent":
        rows = RECENT[:2]
    return torch.linalg.qr(rows.T)[0].T


RECENT = torch.tensor([[1.0, 2, 0, 1, 0, 1], [0, 1, 1, 0, 1, 3], [0, 0, 0, 0, 0, 0]], dtype=F64)


@pytest.mark.parametrize("unbiased", ["gradient", "recent", "layers", "neurons"])
def test_what_the_correction_is_unbiased_for(unbiased: str) -> None:
    """With r = a - h and P the projection onto k dimensions: mean h + P r, variance (k |r|^2 + |P r|^2) / n."""
    smoother, h = build("hybrid", control="previous", unbiased=unbiased, memory=3), A / 3
    found = repeated(smoother, linear, with_control(smoother, h, RECENT if unbiased == "recent" else None))
    basis, r = basis_of(unbiased), A - h
    inside = basis.T @ basis @ r
    assert_mean(found, h + inside)
    assert_mean(errors(found, h + inside), (len(basis) * r.square().sum() + inside.square().sum()) / PAIRS)


def test_recent_gradients_are_those_of_the_last_steps() -> None:
    smoother = build("hybrid", unbiased="recent", memory=2)
    state = smoother.init(params(), TRAINABLE)
    for factor in (1.0, 2.0, 3.0):
        loss = lambda p, factor=factor: (factor * linear(p)[0], {})  # noqa: E731
        state = estimate(smoother, loss, state=state).state
    torch.testing.assert_close(state.tensors["recent/b"], torch.stack([2 * A[4:], 3 * A[4:]]))


def test_the_control_is_a_running_mean() -> None:
    smoother = build("hybrid", control="previous", decay=0.75)
    state = estimate(smoother, linear).state
    torch.testing.assert_close(state.tensors["control/b"], A[4:] / 4)
    state = estimate(smoother, linear, state=state).state
    torch.testing.assert_close(state.tensors["control/b"], A[4:] / 4 + 3 / 16 * A[4:])


def test_shrinking_finds_the_factor_of_least_error() -> None:
    """A correction that is all noise goes to 0, one without noise stays, in between |b|^2 / (|b|^2 + v)."""
    smoother = build("hybrid", control="previous", shrink=True, decay=0.98, pairs=8)
    h, state, factors = A / 2, None, []
    for seed in range(REPEATS):
        state = with_control(smoother, h) if state is None else state
        found = estimate(smoother, linear, seed=seed, state=state)
        state = SmootherState(TRAINABLE, {**found.state.tensors, **{f"control/{k}": v for k, v in unflat(h).items()}})
        factors.append(float(found.metrics["correction_factor"]))
    assert factors[-1] == pytest.approx(1 / (1 + (D + 1) / 8), abs=0.1)


def test_bad_hybrids_are_refused() -> None:
    for options, match in (
        ({"control": "none"}, "control"),
        ({"unbiased": "nothing"}, "unbiased"),
        ({"decay": 1.0}, "decay"),
        ({"memory": 0}, "memory"),
        ({"orthogonal": 2}, "previous"),
        ({"orthogonal": 2, "control": "previous", "shrink": True}, "shrink"),
    ):
        with pytest.raises(InputError, match=match):
            build("hybrid", **options)


def test_a_hybrid_of_a_single_pair_is_pgpe() -> None:
    hybrid, pgpe = (estimate(build(name, pairs=1), linear) for name in ("hybrid", "pgpe"))
    torch.testing.assert_close(flat(hybrid.grad), flat(pgpe.grad))


# --------------------------------------------------------------------------------- what is known of the noise


@pytest.mark.parametrize("name", ["rgs", "pgpe", "hybrid"])
def test_the_reported_variance_is_that_of_the_estimate(name: str) -> None:
    """Of RGS on a quadratic loss with independent members, of the others on a linear one; never below 0."""
    options: dict[str, Any] = {"rgs": {"antithetic": False}, "pgpe": {}, "hybrid": {"control": "previous"}}[name]
    smoother, loss = build(name, **options), quadratic if name == "rgs" else linear
    found = [estimate(smoother, loss, seed=seed) for seed in range(REPEATS)]
    reported = torch.stack([each.metrics["grad_variance"] for each in found])
    grads = torch.stack([flat(each.grad) for each in found])
    torch.testing.assert_close(torch.stack([each.metrics["grad_power"] for each in found]), grads.square().sum(dim=1))
    actual = errors(grads, grads.mean(dim=0)).mean() * REPEATS / (REPEATS - 1)
    assert float(reported.mean()) == pytest.approx(float(actual), rel=0.25)
    assert float(reported.min()) >= 0.0


@pytest.mark.parametrize("name", ["rgs", "pgpe", "hybrid"])
def test_a_single_pair_says_nothing_of_the_variance(name: str) -> None:
    """Reported as 0, exactly, in any precision: no signal-to-noise ratio is made of rounding errors."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        given = {"w": torch.randn(50, generator=generator)}  # float32
        smoother, std = build(name, pairs=1), {"w": torch.tensor(0.3)}

        def loss(params: Params) -> tuple[Tensor, Metrics]:
            return params["w"].sin().sum(), {}

        found = smoother.estimate(loss, given, smoother.init(given, ("w",)), std=std, generator=generator)
        assert float(found.metrics["grad_variance"]) == 0.0


@pytest.mark.parametrize(("name", "more"), [("rgs", {}), ("pgpe", {}), ("hybrid", {"control": "previous"})])
def test_orthogonal_directions_say_nothing_of_the_variance(name: str, more: dict[str, Any]) -> None:
    metrics = estimate(build(name, pairs=6, orthogonal=3, **more), step).metrics
    assert float(metrics["grad_variance"]) == 0.0
    assert float(metrics["grad_power"]) > 0.0


# ------------------------------------------------------------------------------------------ dropped members


def broken_at(bad: int, value: float, loss: Callable[[Params], Any] = step) -> Callable[[Params], Any]:
    """The loss, but ``value`` at evaluation number ``bad``."""
    count = 0

    def wrapped(p: Params) -> tuple[Tensor, Metrics]:
        nonlocal count
        count += 1
        found, metrics = loss(p)
        return found * (value if count - 1 == bad else 1.0), {**metrics, "m": found.detach()}

    return wrapped


@pytest.mark.parametrize("name", ["rgs", "pgpe", "hybrid"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad", [6, 7])
def test_a_pair_with_a_loss_that_is_not_finite_is_left_out(name: str, value: float, bad: int) -> None:
    """The last pair of four is bad in one member: what is left is the estimate of the first three."""
    four = estimate(build(name, chunk=1), broken_at(bad, value))
    three = estimate(build(name, pairs=3, chunk=1), broken_at(-1, value))
    torch.testing.assert_close(flat(four.grad), flat(three.grad))
    torch.testing.assert_close(four.value, three.value)
    torch.testing.assert_close(four.metrics["m"], three.metrics["m"])
    assert (float(four.metrics["dropped"]), float(three.metrics["dropped"])) == (0.25, 0.0)


@pytest.mark.parametrize("shaping", [{"shaping": "ranks"}, {"antithetic": False, "baseline": True}])
def test_dropped_pairs_have_no_rank_and_no_part_in_the_baseline(shaping: dict[str, Any]) -> None:
    four = estimate(build("pgpe", chunk=1, **shaping), broken_at(7, math.nan))
    three = estimate(build("pgpe", pairs=3, chunk=1, **shaping), broken_at(-1, math.nan))
    torch.testing.assert_close(flat(four.grad), flat(three.grad))


@pytest.mark.parametrize("name", ["rgs", "hybrid"])
def test_a_gradient_that_is_not_finite_drops_its_pair(name: str) -> None:
    def loss(p: Params) -> tuple[Tensor, Metrics]:
        x = p["w"][0, 0] - 0.5
        return (x * (x > 0)).sqrt() + flat(p).sum(), {}  # the gradient of the root at 0 is infinite, times 0

    found = estimate(build(name, pairs=8), loss)
    assert float(found.metrics["dropped"]) > 0.0


@pytest.mark.parametrize("name", ["rgs", "pgpe", "hybrid"])
def test_without_a_finite_pair_the_estimate_is_nan(name: str) -> None:
    found = estimate(build(name), lambda p: (flat(p).sum() * math.nan, {}))
    assert flat(found.grad).isnan().all()
    assert float(found.metrics["dropped"]) == 1.0
    assert all(value.isfinite().all() for value in found.state.tensors.values())


# -------------------------------------------------------------------------------------------- many processes


class Meeting:
    """Sums over threads that stand for processes."""

    def __init__(self, size: int) -> None:
        self._barrier, self._given = threading.Barrier(size, timeout=20), [{}] * size

    def ranks(self, rank: int) -> Ranks:
        def total(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            self._given[rank] = dict(values)
            self._barrier.wait()
            sums = {name: sum((each[name] for each in self._given[1:]), self._given[0][name]) for name in values}
            assert all(each.keys() == values.keys() for each in self._given)
            self._barrier.wait()
            return sums

        return Ranks(rank, len(self._given), total)


def shared(smoother: Smoother, loss: Losses, size: int) -> list[GradEstimate]:
    meeting, found = Meeting(size), [None] * size

    def work(rank: int) -> None:
        found[rank] = estimate(smoother, loss, ranks=meeting.ranks(rank))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    "rgs": ("rgs", {}),
    "pgpe": ("pgpe", {"adapt": 0.01}),
    "ranks": ("pgpe", {"shaping": "ranks"}),
    "baseline": ("pgpe", {"antithetic": False, "baseline": True}),
    "orthogonal": ("pgpe", {"orthogonal": 3}),
    "hybrid": ("hybrid", {"shrink": True, "unbiased": "recent"}),
    "previous": ("hybrid", {"control": "previous"}),
}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", SHARED)
def test_the_estimate_does_not_depend_on_the_number_of_processes(case: str, size: int) -> None:
    name, options = SHARED[case]
    smoother = build(name, pairs=7, chunk=2, **options)
    alone = estimate(smoother, step)
    for found in shared(smoother, step, size):
        torch.testing.assert_close(flat(found.grad), flat(alone.grad))
        torch.testing.assert_close(found.value, alone.value)
        torch.testing.assert_close(found.metrics, alone.metrics)
        torch.testing.assert_close(dict(found.state.tensors), dict(alone.state.tensors))


def test_more_processes_than_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="1 pairs cannot be shared by 2"):
        estimate(build("pgpe", pairs=1), step, ranks=Ranks(0, 2, dict))


def test_shares_are_all_and_disjoint() -> None:
    for count in range(9):
        for size in range(1, 5):
            parts = [Ranks(rank, size, dict).share(count) for rank in range(size)]
            assert [index for part in parts for index in part] == list(range(count))
    assert ALONE.share(3) == range(3)
