"""A network as a frozen graph of ops. It holds no weights: they are an argument of everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tightrope.core.bounds import Params, Shape
from tightrope.core.op import AffineOp, Op
from tightrope.errors import CheckpointError, InputError, NumericalError

INPUT = "input"


@dataclass(frozen=True)
class Node:
    """One application of an op to the values of earlier nodes."""

    name: str
    op: Op
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Network:
    """A feed-forward graph from one input to one output vector.

    Attributes:
        nodes: in an order in which every node comes after its inputs; the last one is the output.
        input_shape: shape of one sample.
        trainable: keys of the params that noise and optimisers may touch. Statistics, constants and counters are not
            among them.

    Example:
        >>> import tightrope as tr
        >>> net, params = tr.from_module(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), input_shape=(1, 2, 2))
        >>> net(params, torch.zeros(3, 1, 2, 2)).shape
        torch.Size([3, 2])
    """

    nodes: tuple[Node, ...]
    input_shape: Shape
    trainable: tuple[str, ...]

    def __post_init__(self) -> None:
        # Found once and here: tracing compilers cannot enter a cached property for the first time.
        _ = self.output, self.shapes, self.num_outputs, self.pre_activations, self.exact_intervals
        _ = self.entry, self.affine_prefix, self.has_statistics, self._parts

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        """The output, (batch, outputs), of samples (batch, *input_shape)."""
        return self.values(params, x)[self.output]

    def values(self, params: Params, x: Tensor) -> dict[str, Tensor]:
        """The value of every node, the input included, by node name."""
        values = {INPUT: x}
        for node in self.nodes:
            values[node.name] = node.op.forward(params, *(values[name] for name in node.inputs))
        return values

    @cached_property
    def output(self) -> str:
        """Name of the output node; of the input, where there are no nodes (a part of another network)."""
        return self.nodes[-1].name if self.nodes else INPUT

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of one sample at every node, the input included."""
        shapes = {INPUT: self.input_shape}
        for node in self.nodes:
            shapes[node.name] = node.op.output_shape(*(shapes[name] for name in node.inputs))
        return shapes

    @cached_property
    def num_outputs(self) -> int:
        """Length of the output vector."""
        return self.shapes[self.output][0]

    @cached_property
    def pre_activations(self) -> tuple[str, ...]:
        """Names of the nodes that feed a non-linear op, in order, each once."""
        return tuple(dict.fromkeys(node.inputs[0] for node in self.nodes if node.op.kind != "affine"))

    @cached_property
    def exact_intervals(self) -> frozenset[str]:
        """Nodes whose interval bounds are exact: one general affine map of the input at most, else monomial ones."""
        general = {INPUT: 0}
        for node in self.nodes:
            if isinstance(node.op, AffineOp) and len(node.inputs) == 1 and node.inputs[0] in general:
                count = general[node.inputs[0]] + (not node.op.monomial)
                if count <= 1:
                    general[node.name] = count
        return frozenset(general)

    @cached_property
    def entry(self) -> str:
        """The last of the monomial maps (normalisation, flatten) that everything goes through, or the input.

        Its intervals carry all that is known of the input, so that back-substitution can end there.
        """
        name = INPUT
        while len(users := [node for node in self.nodes if name in node.inputs]) == 1:
            op = users[0].op
            if not (isinstance(op, AffineOp) and op.monomial and users[0].inputs == (name,)):
                break
            name = users[0].name
        return name

    @cached_property
    def affine_prefix(self) -> frozenset[str]:
        """The input and the nodes that are affine in it: everything before the first non-linear ops."""
        prefix = {INPUT}
        for node in self.nodes:
            if node.op.kind == "affine" and prefix.issuperset(node.inputs):
                prefix.add(node.name)
        return frozenset(prefix)

    @cached_property
    def has_statistics(self) -> bool:
        """Whether some layer normalises with batch statistics."""
        return any(node.op.statistics is not None for node in self.nodes)

    def up_to(self, name: str) -> Network:
        """The network whose output is one of the nodes, a vector."""
        needed = {name}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        return Network(tuple(node for node in self.nodes if node.name in needed), self.input_shape, self.trainable)

    def calibrate(self, params: Params, x: Tensor) -> dict[str, Tensor]:
        """The params with every batch statistic replaced by that of the clean batch, gradients flowing through.

        Args:
            params: weights by name.
            x: samples, (batch, *input_shape).

        Returns:
            A new mapping; means and biased variances over batch and positions, as batch normalisation trains with.
        """
        params = dict(params)
        values = {INPUT: x}
        for node in self.nodes:
            inputs = [values[name] for name in node.inputs]
            if (keys := node.op.statistics) is not None:
                dims = [d for d in range(inputs[0].ndim) if d != 1]
                params[keys.var], params[keys.mean] = torch.var_mean(inputs[0], dims, correction=0)
            values[node.name] = node.op.forward(params, *inputs)
        return params

    def split(self, at: int | str) -> tuple[Network, Network]:
        """Two networks of the same params, one after the other: ``second(params, first(params, x))`` is this one.

        Args:
            at: the last node of the first part, by name or module path; or its number of nodes, which if negative are
                those of the second part. Either part may be empty: it then returns what it is given.

        Returns:
            Both parts. The value between them is that of one node, of any shape.

        Raises:
            InputError: no such node, or a connection that goes around it.

        Example:
            >>> import tightrope as tr
            >>> module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
            >>> net, params = tr.from_module(module, (3,))
            >>> first, second = net.split(-1)
            >>> first.shapes[first.output], len(second.nodes)
            ((5,), 1)
        """
        if at not in self._parts:
            self._parts[at] = _split(self, at)
        return self._parts[at]

    @cached_property
    def _parts(self) -> dict[int | str, tuple[Network, Network]]:
        """Every split so far, so that compiled code finds what was split before."""
        return {}

    def check_params(self, params: Params, reference: Mapping[str, Tensor] | None = None) -> None:
        """Refuse params that are not finite, or that do not fit ``reference``.

        Raises:
            NumericalError: NaN or infinite entries, named.
            CheckpointError: keys or shapes that differ from the reference's.
        """
        bad = [k for k, v in params.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
        if bad:
            raise NumericalError(
                f"The weights have NaN or infinite entries in {', '.join(bad[:5])}{' ...' if len(bad) > 5 else ''}. "
                "Nothing can be proved or trained from there; load other weights, or train with a smaller step."
            )
        if reference is not None:
            problems = [f"missing {k}" for k in reference if k not in params]
            problems += [f"unexpected {k}" for k in params if k not in reference]
            problems += [
                f"{k} is {tuple(params[k].shape)}, not {tuple(v.shape)}"
                for k, v in reference.items()
                if k in params and params[k].shape != v.shape
            ]
            if problems:
                raise CheckpointError(
                    f"These weights belong to another network: {'; '.join(problems[:5])}"
                    f"{' ...' if len(problems) > 5 else ''}."
                )

    def to_module(self, params: Params) -> nn.Module:
        """The network with these weights as an ``nn.Module`` whose ``state_dict`` has the same keys.

        The weights are copied. The module evaluates the graph; to go back to the class it came from, load its
        ``state_dict`` there.
        """
        return GraphModule(self, params)


def _split(network: Network, at: int | str) -> tuple[Network, Network]:
    names = [INPUT, *(node.name for node in network.nodes)]
    count = len(network.nodes)
    if isinstance(at, str):
        path = at.replace(".", "_")  # as the tracer names the layer of a module path, "_3" that of "3"
        position = next((names.index(name) for name in (at, path, f"_{path}") if name in names), None)
    else:
        position = (at if at >= 0 else count + at) if -count <= at <= count else None
    if position is None:
        raise InputError(f"There is no node {at!r} to split at. The {count} nodes in order: {', '.join(names[1:])}.")
    first, last = network.nodes[:position], names[position]
    second = tuple(
        Node(node.name, node.op, tuple(INPUT if name == last else name for name in node.inputs))
        for node in network.nodes[position:]
    )
    if skipped := [name for node in network.nodes[position:] for name in node.inputs if name in names[:position]]:
        raise InputError(
            f"Splitting after {last!r} cuts the connection from {skipped[0]!r} around it; split elsewhere."
        )
    return _part(network, first, network.input_shape), _part(network, second, network.shapes[last])


def _part(network: Network, nodes: tuple[Node, ...], input_shape: Shape) -> Network:
    used = {key for node in nodes for key in vars(node.op).values() if isinstance(key, str)}
    return Network(nodes, input_shape, tuple(key for key in network.trainable if key in used))


class GraphModule(nn.Module):
    """What :meth:`Network.to_module` returns.

    Attributes:
        network: the graph that it evaluates.
    """

    def __init__(self, network: Network, params: Params) -> None:
        super().__init__()
        self.network = network
        for key, value in params.items():
            *path, name = key.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            copy = value.detach().clone()
            if key in network.trainable:
                owner.register_parameter(name, nn.Parameter(copy))
            else:
                owner.register_buffer(name, copy)

    def forward(self, x: Tensor) -> Tensor:
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        return self.network(tensors, x)
