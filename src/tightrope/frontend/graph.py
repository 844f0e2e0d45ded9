"""A network as JSON and back: op names and attributes, no weights, no code."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tightrope.core import registry
from tightrope.core.bounds import Params
from tightrope.core.network import INPUT, Network, Node
from tightrope.core.op import Op
from tightrope.errors import CorruptDataError, TightropeError
from tightrope.records.certificate import Model


class _NodeRecord(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    op: str
    inputs: Annotated[tuple[str, ...], Field(min_length=1)]
    facts: dict[str, Any]


class _GraphRecord(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    input_shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    trainable: tuple[str, ...]
    nodes: Annotated[list[_NodeRecord], Field(min_length=1)]


def to_json(network: Network) -> dict[str, Any]:
    """The graph as JSON values.

    Example:
        >>> import tightrope as tr, torch
        >>> net, _ = tr.from_module(torch.nn.Linear(2, 2), (2,))
        >>> from_json(to_json(net)) == net
        True
    """
    nodes = [_node_record(node) for node in network.nodes]
    record = _GraphRecord(input_shape=network.input_shape, trainable=network.trainable, nodes=nodes)
    return record.model_dump(mode="json")


def from_json(value: Any) -> Network:
    """The graph from JSON values.

    Raises:
        CorruptDataError: not such a graph.
    """
    try:
        record = _GraphRecord.model_validate(value)
        network = Network(_nodes(record), record.input_shape, record.trainable)
    except (ValidationError, TightropeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise CorruptDataError(f"Not a network graph: {error}") from None
    if len(network.shapes[network.output]) != 1 or any(size < 1 for shape in network.shapes.values() for size in shape):
        raise CorruptDataError("Not a network graph: the output is not a vector, or a shape is empty.")
    return network


def canonical(network: Network, params: Params, source: tuple[str, str] | None = None) -> Model:
    """The graph and the weights that it uses, in the form that certificates refer to.

    Args:
        network: the graph.
        params: weights by name, of any device; float32 and float64 are kept as they are.
        source: name and SHA-256 of the file that they came from.

    Example:
        >>> import tightrope as tr, torch
        >>> model = canonical(*tr.from_module(torch.nn.Linear(2, 3), (2,)))
        >>> [node["shape"] for node in model.graph["nodes"]], sorted(model.weights)
        ([[3]], ['bias', 'weight'])
    """
    graph = to_json(network)
    nodes = [{**node, "shape": list(network.shapes[node["name"]])} for node in graph["nodes"]]
    used = {key for node in network.nodes for key in vars(node.op).values() if isinstance(key, str)}
    weights = {name: params[name].detach().numpy(force=True) for name in sorted(used)}
    return Model({"input_shape": graph["input_shape"], "nodes": nodes, "source": source and list(source)}, weights)


def _node_record(node: Node) -> _NodeRecord:
    facts = {field.name: getattr(node.op, field.name) for field in fields(node.op)}  # type: ignore[arg-type]
    op = type(node.op).__module__.rsplit(".", 1)[1]
    return _NodeRecord(name=node.name, op=op, inputs=node.inputs, facts=facts)


def _nodes(record: _GraphRecord) -> tuple[Node, ...]:
    known, nodes = {INPUT}, []
    for entry in record.nodes:
        if entry.name in known or not known.issuperset(entry.inputs):
            raise ValueError(f"node {entry.name!r} is there twice or uses a later one")
        known.add(entry.name)
        nodes.append(Node(entry.name, _op(entry), entry.inputs))
    return tuple(nodes)


def _op(entry: _NodeRecord) -> Op:
    cls = registry.find("ops", entry.op)
    if extra := set(entry.facts) - {field.name for field in fields(cls)}:
        raise ValueError(f"node {entry.name!r} has unknown facts {sorted(extra)}")
    op: Op = TypeAdapter(cls).validate_python(entry.facts)
    return op
