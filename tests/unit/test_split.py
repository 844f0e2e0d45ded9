"""Splitting a network: the parts one after the other are the whole."""

from __future__ import annotations

import pytest
import torch

from helpers import CASES, case
from tightrope.errors import InputError

SEQUENTIAL = [name for name in CASES if name not in {"residual", "branches"}]


@pytest.mark.parametrize("net", SEQUENTIAL)
def test_the_parts_one_after_the_other_are_the_whole(net: str) -> None:
    known, x = case(net), case(net).inputs(3)
    count = len(known.net.nodes)
    for at in range(-count, count + 1):
        first, second = known.net.split(at)
        assert len(first.nodes) == at % (count + 1) if at >= 0 else len(second.nodes) == -at
        assert torch.equal(second(known.params, first(known.params, x)), known.net(known.params, x))
        assert second.input_shape == first.shapes[first.output]
        assert set(first.trainable) | set(second.trainable) == set(known.net.trainable)


@pytest.mark.parametrize("net", CASES)
def test_a_node_is_named_as_its_module(net: str) -> None:
    known = case(net)
    for node in known.net.nodes:
        path = next((p for p, _ in known.module.named_modules() if p and p.replace(".", "_") in node.name), None)
        try:
            parts = known.net.split(node.name)
        except InputError:
            continue  # inside a block
        assert parts[0].output == node.name
        assert path is None or node.name.lstrip("_") != path.replace(".", "_") or known.net.split(path) == parts


def test_a_connection_around_the_place_is_named() -> None:
    with pytest.raises(InputError, match="'stem'"):
        case("residual").net.split("inner.1")
    first, _ = case("residual").net.split("add")
    assert first.output == "add"


@pytest.mark.parametrize("at", ["nowhere", "", 99, -99])
def test_places_that_are_not_there_are_refused(at: int | str) -> None:
    with pytest.raises(InputError, match="nodes in order"):
        case("mlp").net.split(at)
