"""Weight noise is a function of (seed, index, name) and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tightrope.core.noise import derive_seed, derived_generator, draw_seed, drawn_together, weight_noise

PARAMS = {"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.float64), "c": torch.zeros(())}
STD = {"a": 0.5, "b": 2.0, "c": 1.0}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_noise_is_reproducible_and_varies_with_every_part() -> None:
    first = weight_noise(PARAMS, STD, 1, 2)
    assert same(first, weight_noise(PARAMS, STD, 1, 2))
    for other in (weight_noise(PARAMS, STD, 2, 2), weight_noise(PARAMS, STD, 1, 3)):
        assert not any(torch.equal(first[key], other[key]) for key in first)
    two = weight_noise({"a": PARAMS["a"], "z": PARAMS["a"]}, {"a": 1.0, "z": 1.0}, 1, 2)
    assert not torch.equal(two["a"], two["z"])


def test_noise_of_a_tensor_does_not_depend_on_the_others() -> None:
    alone = weight_noise({"b": PARAMS["b"]}, {"b": 2.0}, 1, 2)
    assert torch.equal(alone["b"], weight_noise(PARAMS, dict(reversed(STD.items())), 1, 2)["b"])


def test_noise_does_not_touch_or_read_the_global_generator() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = weight_noise(PARAMS, STD, 1, 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert same(first, weight_noise(PARAMS, STD, 1, 2))


def test_shape_and_dtype_are_those_of_the_params() -> None:
    for key, value in weight_noise(PARAMS, STD, 0, 0).items():
        assert value.shape == PARAMS[key].shape
        assert value.dtype == PARAMS[key].dtype


def test_std_scales_and_zero_leaves_out() -> None:
    one, two = (weight_noise(PARAMS, {"a": std, "b": 0.0}, 4, 5) for std in (1.0, 3.0))
    assert set(one) == {"a"}
    torch.testing.assert_close(two["a"], 3 * one["a"])


@pytest.mark.parametrize("power", [1, 2, 4])
def test_noise_is_standard_normal(power: int) -> None:
    """Moments over indices within 4 standard errors: 0, 1, 3."""
    like = {"w": torch.zeros(50, dtype=torch.float64)}
    z = torch.stack([weight_noise(like, {"w": 1.0}, 0, index)["w"] for index in range(400)]).flatten() ** power
    expected = {1: 0.0, 2: 1.0, 4: 3.0}[power]
    assert abs(z.mean() - expected) < 4 * z.std() / len(z) ** 0.5


def test_neighbouring_indices_are_independent() -> None:
    like = {"w": torch.zeros(50, dtype=torch.float64)}
    z = torch.stack([weight_noise(like, {"w": 1.0}, 0, index)["w"] for index in range(400)])
    products = (z[1:] * z[:-1]).flatten()
    assert abs(products.mean()) < 4 / len(products) ** 0.5


def test_members_drawn_together_are_standard_normal_and_independent() -> None:
    z = weight_noise({"w": torch.zeros(50, dtype=torch.float64)}, {"w": 1.0}, 0, 64, members=400)["w"]
    for power, expected in ((1, 0.0), (2, 1.0), (4, 3.0)):
        moment = z.flatten() ** power
        assert abs(moment.mean() - expected) < 4 * moment.std() / len(moment) ** 0.5
    for products in ((z[1:] * z[:-1]).flatten(), (z[:, 1:] * z[:, :-1]).flatten()):
        assert abs(products.mean()) < 4 / len(products) ** 0.5


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**5), st.integers(0, 10**8))
def test_every_pair_lies_in_one_block_that_is_not_much_larger_than_what_is_before_it(index: int, weights: int) -> None:
    block = drawn_together(index, weights)
    assert index in block
    assert all(drawn_together(other, weights) == block for other in (block.start, block.stop - 1))
    assert len(block) <= max(1, block.start)
    assert len(block) == 1 or len(block) * weights <= 2**18


parts = st.lists(st.integers(-5, 10**6) | st.text(max_size=4), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(parts, parts)
def test_seeds_differ_where_the_parts_do(one: list[int | str], two: list[int | str]) -> None:
    assert 0 <= derive_seed(*one) < 2**63
    assert (derive_seed(*one) == derive_seed(*two)) == (one == two)


def test_seeds_are_the_same_on_every_machine() -> None:
    """Written down once: stored runs depend on it."""
    assert derive_seed(0, "noise", 3) == derive_seed(0, "noise", 3)
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed("1") != derive_seed(1)
    assert derive_seed(0) == 3581690635855307741


def test_derived_generators_do_not_share_state() -> None:
    one, two = derived_generator("cpu", 0, "x"), derived_generator("cpu", 0, "x")
    first = torch.rand(3, generator=one)
    assert torch.equal(first, torch.rand(3, generator=two))
    assert not torch.equal(first, torch.rand(3, generator=one))


def test_draw_seed_advances_the_generator() -> None:
    generator = torch.Generator().manual_seed(0)
    seeds = [draw_seed(generator) for _ in range(100)]
    assert len(set(seeds)) == 100
    assert seeds[0] == draw_seed(torch.Generator().manual_seed(0))
