"""A network as JSON and back: op names and attributes, no weights, no code."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from tightrope.core import registry
from tightrope.core.network import Network, Node
from tightrope.errors import CorruptDataError, TightropeError

SCHEMA = 1


def to_json(network: Network) -> dict[str, Any]:
    """The graph as JSON values.

    Example:
        >>> import tightrope as tr, torch
        >>> net, _ = tr.from_module(torch.nn.Linear(2, 2), (2,))
        >>> from_json(to_json(net)) == net
        True
    """
    return {
        "schema": SCHEMA,
        "input_shape": list(network.input_shape),
        "trainable": list(network.trainable),
        "nodes": [_node_to_json(node) for node in network.nodes],
    }


def from_json(value: Any) -> Network:
    """The graph from JSON values.

    Raises:
        CorruptDataError: not such a graph.
    """
    try:
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']}, this version reads {SCHEMA}")
        network = Network(
            tuple(_node_from_json(node) for node in value["nodes"]),
            tuple(value["input_shape"]),
            tuple(value["trainable"]),
        )
        if len(network.shapes[network.output]) != 1:
            raise ValueError("the output is not a vector")
    except (KeyError, TypeError, ValueError, IndexError, TightropeError) as error:
        raise CorruptDataError(f"Not a network graph: {error}") from None
    return network


def _node_to_json(node: Node) -> dict[str, Any]:
    facts = {field.name: getattr(node.op, field.name) for field in fields(node.op)}  # type: ignore[arg-type]
    op = type(node.op).__module__.rsplit(".", 1)[1]
    return {"name": node.name, "op": op, "inputs": list(node.inputs), "facts": facts}


def _node_from_json(value: Any) -> Node:
    facts = {name: tuple(fact) if isinstance(fact, list) else fact for name, fact in value["facts"].items()}
    return Node(value["name"], registry.create("ops", value["op"], **facts), tuple(value["inputs"]))
