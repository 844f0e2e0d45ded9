"""Weights of other libraries' networks, matched with the layers of a known architecture.

Names differ from library to library and say little (``layers.4.weight``, ``/8.param``); the order of layers, the kinds
of their tensors and the shapes are those of the architecture. So tensors are read as a sequence of layers, and each has
to fit the module's layer at that place, with nothing left over on either side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tightrope.errors import CheckpointError
from tightrope.frontend._torch_file import Content, read_torch_file

_MATRICES = ("weight", "param")
_VECTORS = ("weight", "bias", "running_mean", "running_var")
_NODES = ("param", "buffer")  # of a traced graph, whose names do not say more
_COUNTERS = "num_batches_tracked"
_STATISTICS = {"mean": "mean", "std": "std", "sigma": "std"}
_PASSED = (*_STATISTICS, "running_mean", "running_var")
_CHANNELS = 1024  # at most, of an input that is normalised
_FUNCTIONS = ("torch.nn.modules.activation.", "torch.nn.modules.pooling.")


class BatchNorm(NamedTuple):
    """Tensors of a batch normalisation, (channels,) each."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor


class Layer(NamedTuple):
    """A convolution or a linear layer, with the batch normalisation behind it.

    Attributes:
        name: of its weight in the file.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    norm: BatchNorm | None


@dataclass(frozen=True)
class Weights:
    """Layers that were found in a file.

    Attributes:
        layers: in order.
        mean, std: of a normalisation of the input, one value a channel, where the file has one.
        used: names of the tensors that these are.
    """

    layers: tuple[Layer, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    used: frozenset[str]


class Found(NamedTuple):
    """A network's weights in a file.

    Attributes:
        module: with the weights of the file.
        weights: that it has.
        unused: what else is in the file: names of tensors, and of classes that were not loaded.
    """

    module: nn.Module
    weights: Weights
    unused: tuple[str, ...]


Build = Callable[[Weights], nn.Module]
"""An architecture with the sizes of some weights, on any device, the values of its weights irrelevant.

Raises:
    CheckpointError: there is none.
"""


def find_network(path: Path | str, build: Build, prefix: str = "") -> Found:
    """The network in a file of ``torch.save``.

    The weights may lie below any names, such as ``state_dict`` or ``model``, beside an optimizer's state, say.

    Args:
        path: of the file; nothing in it is run.
        build: from weights to the architecture that they have to fit.
        prefix: dotted name below which they are, where there are several.

    Raises:
        MissingDataError, CorruptDataError: no such file, or none that can be read.
        CheckpointError: no weights in it fit, or several do.
    """
    content = read_torch_file(Path(path))
    below = f"{prefix}." if prefix else ""
    tensors = {name: value for name, value in content.tensors.items() if name.startswith(below)}
    if not tensors:
        where = f" below {prefix!r}" if prefix else ""
        raise CheckpointError(f"{path} has no tensors{where}, only {', '.join(list(content.tensors)[:5]) or 'none'}.")
    found, refused = list[tuple[str, Found]](), list[CheckpointError]()
    for root in _roots(tensors):
        if any(_is_below(root, other) for other, _ in found):
            continue
        part = {name: value for name, value in tensors.items() if _is_below(name, root)}
        for ordered in _orders(part):
            try:
                found.append((root, _network(ordered, build, content)))
                break
            except CheckpointError as error:
                refused.append(error)
    if len(found) > 1:
        names = ", ".join(repr(root) for root, _ in found)
        raise CheckpointError(f"{path} holds several networks of this architecture: {names}. Say which as the prefix.")
    if not found:
        raise CheckpointError(f"{path}: {refused[0]}")
    _check_rest(path, found[0][1], tensors)
    return found[0][1]


def _check_rest(path: Path | str, found: Found, tensors: Mapping[str, Tensor]) -> None:
    """Statistics that are left over may belong to a layer in front of those that were found."""
    rest = [name for name in found.unused if name in tensors and name.rpartition(".")[2] in _PASSED]
    if rest:
        raise CheckpointError(
            f"{path}: {rest[0]} is left over: a normalisation that the architecture does not have there? If it is no "
            "part of the network, give the name below which the network's own weights lie (--prefix)."
        )


def _network(tensors: Mapping[str, Tensor], build: Build, content: Content) -> Found:
    weights = read_layers(tensors)
    module = filled(build(weights), weights.layers)
    _check_functions(module, content.inert)
    spare = [name for name in content.tensors if name not in weights.used and not name.endswith(_COUNTERS)]
    return Found(module, weights, (*spare, *content.inert))


def _orders(tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], ...]:
    """That of the file and that of the numbers in names; the latter first where the file has sorted its names.

    Layers of one size would fit in either.
    """
    numbered = dict(sorted(tensors.items(), key=lambda item: _numbered(item[0])))
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    return (numbered, tensors) if layers == sorted(layers) else (tensors, numbered)


def _numbered(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts the tensors of numbered layers, as files that sort their names have lost that order."""
    path, _, role = name.rpartition(".")
    parts = [(int(part), "") if part.isdecimal() else (0, part) for part in re.findall(r"\d+|\D+", path)]
    return (*parts, (_VECTORS.index(role) if role in _VECTORS else 0, role))


def _check_functions(module: nn.Module, named: Sequence[str]) -> None:
    """Shapes do not tell one activation from another, but files of whole modules name their classes."""
    own = {type(part).__name__ for part in module.modules()}
    foreign = [name.rpartition(".")[2] for name in named if name.startswith(_FUNCTIONS)]
    if other := sorted(set(foreign) - own):
        raise CheckpointError(
            f"it names {', '.join(other)}, which the architecture does not have. If they are no part of the network, "
            "save its weights alone: torch.save(model.state_dict(), path)."
        )


def read_layers(tensors: Mapping[str, Tensor]) -> Weights:
    """Tensors in their order as layers.

    Raises:
        CheckpointError: there are no layers, the vectors behind a weight are not its bias and normalisation, or
            something stands before the first layer that inputs would have to pass.
    """
    groups = list[list[tuple[str, Tensor]]]()  # a weight and the vectors behind it
    statistics = dict[str, tuple[str, tuple[float, ...]]]()
    for name, value in tensors.items():
        role = name.rpartition(".")[2]
        if role in _MATRICES and value.ndim >= 2:
            groups.append([(name, value)])
        elif value.ndim == 1 and (role in _VECTORS or role in _NODES):
            if not groups:
                raise CheckpointError(f"{name} {_size(value)} stands before the weight of the first layer.")
            groups[-1].append((name, value))
        elif (which := _STATISTICS.get(role)) and value.is_floating_point() and value.numel() <= _CHANNELS:
            given = name, tuple(value.flatten().tolist())
            if statistics.setdefault(which, given)[1] != given[1]:
                raise CheckpointError(f"{statistics[which][0]} and {name} are two normalisations of the inputs.")
    used = frozenset(name for group in groups for name, _ in group)
    if not groups:
        raise CheckpointError("there are no weights of layers in it.")
    layers = tuple(_layer(*group[0], group[1:]) for group in groups)
    if len(statistics) < 2:
        return Weights(layers, None, None, used)
    (one, mean), (other, std) = statistics["mean"], statistics["std"]
    return Weights(layers, mean, std, used | {one, other})


def _layer(name: str, weight: Tensor, vectors: Sequence[tuple[str, Tensor]]) -> Layer:
    values = [value for _, value in vectors]
    bias = values.pop(0) if len(values) in (1, 5) else None
    roles = ("bias",) * (bias is not None) + BatchNorm._fields * bool(values)
    fits = len(vectors) == len(roles) and all(value.shape == weight.shape[:1] for _, value in vectors)
    if not fits or not all(_may_be(name, role) for (name, _), role in zip(vectors, roles, strict=True)):
        shown = ", ".join(f"{name} {_size(value)}" for name, value in vectors)
        raise CheckpointError(
            f"behind the weight {name} {_size(weight)} a bias, or weight, bias, running_mean and running_var of a "
            f"batch normalisation, or both, or nothing is expected; {len(vectors)} vectors were found: {shown}."
        )
    return Layer(name, weight, bias, BatchNorm(*values) if values else None)


def _may_be(name: str, role: str) -> bool:
    found = name.rpartition(".")[2]
    return found == (("buffer" if role.startswith("running") else "param") if found in _NODES else role)


def filled(module: nn.Module, layers: Sequence[Layer]) -> nn.Module:
    """The module with the weights of the layers, in float32, or float64 where the file has that.

    Raises:
        CheckpointError: a layer that does not fit, with the sizes that are expected and found.
    """
    _check_kinds(module, layers)
    state, rest = dict(module.state_dict()), iter(enumerate(layers, start=1))
    place, norm = 0, None
    for path, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            _check_no_norm(norm)
            place, layer = next(rest)
            state |= _checked(path, part, {"weight": layer.weight, "bias": layer.bias}, f"layer {place} ({layer.name})")
            norm = None if layer.norm is None else (layer.name, layer.norm)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            if norm is None:
                raise CheckpointError(f"layer {place} has no batch normalisation, but one is expected.")
            state |= _checked(path, part, norm[1]._asdict(), f"the batch normalisation of layer {place}")
            state[f"{path}.{_COUNTERS}"], norm = torch.zeros((), dtype=torch.int64), None
    _check_no_norm(norm)
    module.load_state_dict(state, assign=True)
    return module.double() if any(value.dtype == torch.float64 for value in state.values()) else module


def _check_no_norm(norm: tuple[str, BatchNorm] | None) -> None:
    if norm is not None:
        raise CheckpointError(f"a batch normalisation follows {norm[0]}, but none is expected there.")


def _checked(path: str, part: nn.Module, values: Mapping[str, Tensor | None], what: str) -> dict[str, Tensor]:
    """Values for a module's tensors, by their names in the state dict."""
    state, own = {}, part.state_dict()
    if extra := [name for name, value in values.items() if value is not None and name not in own]:
        raise CheckpointError(f"{what}: it has a {extra[0]}, but none is expected.")
    for name, expected in own.items():
        if name == _COUNTERS:
            continue
        value = values[name]
        if value is None or value.shape != expected.shape:
            found = "missing" if value is None else _size(value)
            raise CheckpointError(f"{what}: the {name} is {found}, {_size(expected)} is expected.")
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            raise CheckpointError(f"{what}: the {name} is no plain tensor of floats ({value.dtype}).")
        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
        state[f"{path}.{name}"] = value.detach().to(dtype, copy=True).contiguous()
    return state


def _roots(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """All dotted names that tensors lie below, "" for all of them, the outer ones first."""
    paths = [name.split(".")[:-1] for name in tensors]
    roots = dict.fromkeys(".".join(path[:depth]) for path in paths for depth in range(len(path) + 1))
    yield from sorted(roots, key=lambda root: root.count(".") + bool(root))


def _is_below(name: str, root: str) -> bool:
    return not root or name.startswith(f"{root}.")


def _check_kinds(module: nn.Module, layers: Sequence[Layer]) -> None:
    expected = [_kind(part.weight) for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    found = [_kind(layer.weight) for layer in layers]
    if found != expected:
        raise CheckpointError(
            f"it has {len(found)} layers, from {layers[0].name} to {layers[-1].name} ({_counted(found)}); expected are "
            f"{len(expected)} ({_counted(expected)})."
        )


def _kind(weight: Tensor) -> str:
    return "linear" if weight.ndim == 2 else "convolutions"


def _counted(kinds: Sequence[str]) -> str:
    return ", ".join(f"{len(list(group))} {kind}" for kind, group in groupby(kinds))


def _size(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a number"
