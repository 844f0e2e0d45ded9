"""Graphs as JSON: what is written is data, and whatever is read becomes a network or a CorruptDataError."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import tightrope as tr
from helpers import CASES, F64, assert_bounds_close, case, margins64, relaxation
from tightrope.core.network import Network
from tightrope.errors import CorruptDataError
from tightrope.frontend.graph import from_json, to_json

each_net = pytest.mark.parametrize("net", CASES)


def text_of(net: str) -> str:
    return json.dumps(to_json(case(net).net))


@each_net
def test_the_graph_read_back_computes_and_bounds_the_same(net: str) -> None:
    known, again = case(net), from_json(json.loads(text_of(net)))
    assert again == known.net
    assert again.trainable == known.net.trainable
    x, spec = known.inputs(3), margins64(3)
    assert torch.equal(again(known.params, x), known.net(known.params, x))
    box = tr.linf_box(x, "1/20")
    bounds = [relaxation("deeppoly").bounds(network, known.params, box, spec) for network in (again, known.net)]
    assert_bounds_close(*bounds, rtol=0, atol=0)


@each_net
def test_the_text_is_plain_json_without_weights(net: str) -> None:
    assert json.loads(json.dumps(to_json(case(net).net), allow_nan=False)) == json.loads(text_of(net))
    numbers = [value for value in leaves(json.loads(text_of(net))) if isinstance(value, float)]
    weights = torch.cat([value.flatten().to(F64) for value in case(net).params.values()]).tolist()
    assert not set(numbers) & set(weights) - {0.0, 1.0}


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in the value with every key in it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def damaged(net: str, replacement: Any) -> Iterator[tuple[str, Any]]:
    """The graph with one part after the other replaced, or left out."""
    original = json.loads(text_of(net))
    for index in range(sum(1 for _ in places(original))):
        value = copy.deepcopy(original)
        container, key = list(places(value))[index]
        if replacement is Ellipsis:
            del container[key]
        else:
            container[key] = replacement
        yield f"part {index} ({key!r})", value


REPLACEMENTS = [..., None, -1, 3, 1e9, "input", "os", [], {}, [1, 2, 3]]
each_replacement = pytest.mark.parametrize("replacement", REPLACEMENTS, ids=str)


@each_replacement
def test_whatever_is_damaged_gives_a_network_or_corrupt_data(replacement: Any) -> None:
    others = set()
    for net in ("mlp", "conv", "normed", "residual"):
        for where, value in damaged(net, replacement):
            try:
                assert isinstance(from_json(value), Network)
            except CorruptDataError:
                continue
            except Exception as error:
                others.add(f"{where}: {type(error).__name__}: {error}")
    assert not others


@each_replacement
def test_an_accepted_graph_has_shapes_of_positive_integers(replacement: Any) -> None:
    wrong = []
    for net in ("mlp", "conv"):
        for where, value in damaged(net, replacement):
            with contextlib.suppress(Exception):
                shapes = from_json(value).shapes
                if any(type(size) is not int or size < 1 for shape in shapes.values() for size in shape):
                    wrong.append(f"{net}, {where}: {shapes}")
    assert not wrong


@pytest.mark.parametrize("value", [None, 3, "graph", [], {}, {"schema": 1}, {"schema": 1, "nodes": []}])
def test_what_is_no_graph_is_refused(value: Any) -> None:
    with pytest.raises(CorruptDataError):
        from_json(value)


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_graphs_of_other_schemas_are_refused(schema: Any) -> None:
    value = json.loads(text_of("mlp")) | {"schema": schema}
    with pytest.raises(CorruptDataError, match="schema"):
        from_json(value)


@pytest.mark.parametrize("name", ["os", "_windows", "tightrope.ops.relu", "../ops/relu", "ibp", "", "__init__"])
def test_only_ops_can_be_named(name: str) -> None:
    value = json.loads(text_of("mlp"))
    value["nodes"][0]["op"] = name
    with pytest.raises(CorruptDataError):
        from_json(value)


def test_inputs_that_come_later_are_refused() -> None:
    value = json.loads(text_of("mlp"))
    value["nodes"].reverse()
    with pytest.raises(CorruptDataError):
        from_json(value)


def test_an_output_that_is_no_vector_is_refused() -> None:
    value = json.loads(text_of("conv"))
    value["nodes"] = value["nodes"][:2]
    with pytest.raises(CorruptDataError, match="vector"):
        from_json(value)
