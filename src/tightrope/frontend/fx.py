"""From an ``nn.Module`` to a :class:`Network` and its params, by symbolic tracing (``torch.fx``)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tightrope.core import registry
from tightrope.core.bounds import Params, Shape
from tightrope.core.network import INPUT, GraphModule, Network
from tightrope.core.op import Op
from tightrope.errors import InputError, UnsupportedLayerError
from tightrope.frontend._builder import Builder
from tightrope.frontend._pooling import max_pool_axis
from tightrope.ops.add import Add
from tightrope.ops.concat import Concat
from tightrope.ops.reshape import Reshape
from tightrope.ops.scale import Scale
from tightrope.ops.shift import Shift
from tightrope.ops.transpose import Transpose

PASS_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

# Functional forms, as the module that does the same.
_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    torch.relu: lambda: nn.ReLU(),
    F.relu: lambda inplace=False: nn.ReLU(),
    F.leaky_relu: lambda negative_slope=0.01, inplace=False: nn.LeakyReLU(negative_slope),
    torch.sigmoid: lambda: nn.Sigmoid(),
    F.sigmoid: lambda: nn.Sigmoid(),
    torch.tanh: lambda: nn.Tanh(),
    F.tanh: lambda: nn.Tanh(),
    torch.flatten: lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.max_pool2d: lambda size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False: nn.MaxPool2d(
        size, stride, padding, dilation, return_indices, ceil_mode
    ),
    F.dropout: lambda *args, **kwargs: nn.Identity(),
    "relu": lambda: nn.ReLU(),
    "relu_": lambda: nn.ReLU(),
    "sigmoid": lambda: nn.Sigmoid(),
    "sigmoid_": lambda: nn.Sigmoid(),
    "tanh": lambda: nn.Tanh(),
    "tanh_": lambda: nn.Tanh(),
    "flatten": lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
    "contiguous": lambda: nn.Identity(),
}
_ADD: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_SUB: tuple[Any, ...] = (operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", "subtract")
_MUL: tuple[Any, ...] = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
_DIV: tuple[Any, ...] = (operator.truediv, operator.itruediv, torch.div, torch.divide, "div", "div_", "divide")
_NEG: tuple[Any, ...] = (operator.neg, torch.neg, torch.negative, "neg", "neg_", "negative")
_ARITHMETIC = frozenset((*_ADD, *_SUB, *_MUL, *_DIV, *_NEG))
_CONCAT: tuple[Any, ...] = (torch.cat, torch.concat, torch.concatenate)
_PERMUTE: tuple[Any, ...] = (torch.permute, "permute")
_MAXIMUM: tuple[Any, ...] = (torch.maximum, "maximum")
_RESHAPE: tuple[Any, ...] = ("view", "reshape", torch.reshape)


def from_module(module: nn.Module, input_shape: Shape) -> tuple[Network, dict[str, Tensor]]:
    """Read an ``nn.Module`` as a network and its weights.

    Dropout is left out and batch normalisation takes its running statistics, as in ``eval`` mode. The weights are
    copied; the module is not changed.

    Args:
        module: any module built of supported layers, residual sums and functional relu, flatten, add included.
        input_shape: shape of one sample, without the batch axis.

    Returns:
        The network, and its params with the keys of ``module.state_dict()`` (a weight under two names keeps the
        first).

    Raises:
        UnsupportedLayerError: a layer without sound bounds, named by its module path.
        InputError: an input shape that the first layer refuses, or an output that is not a vector.
        NumericalError: NaN or infinite weights.

    Example:
        >>> net, params = from_module(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), (2,))
        >>> sorted(params)
        ['0.bias', '0.weight', '2.bias', '2.weight']
    """
    if isinstance(module, GraphModule):
        return _from_graph(module, input_shape)
    converter = _Converter(module, tuple(int(n) for n in input_shape))
    network = converter.convert()
    network.check_params(converter.params)
    _check_same_function(module, network, converter.params)
    return network, converter.params


def _from_graph(module: GraphModule, input_shape: Shape) -> tuple[Network, dict[str, Tensor]]:
    """A module that came from a network goes back to it."""
    network = module.network
    if tuple(input_shape) != network.input_shape:
        raise InputError(f"The network takes inputs of shape {network.input_shape}, not {tuple(input_shape)}.")
    params = {name: value.detach().clone() for name, value in module.state_dict().items()}
    network.check_params(params)
    return network, params


@dataclass(frozen=True)
class _Value:
    """The traced value of a node of the network, as opposed to a Python constant."""

    name: str
    shape: Shape


class _Batch(int):
    """The batch size of a traced ``x.size(0)``: unknown, and only usable as the first entry of a shape."""


class _Converter:
    def __init__(self, module: nn.Module, input_shape: Shape) -> None:
        self.module = module
        self.input_shape = input_shape
        self.params, self.trainable, self.alias = _state(module)
        self.builder = Builder(input_shape)
        ops = [registry.find("ops", name) for name in registry.names("ops")]
        self.table: dict[type[nn.Module], Any] = {kind: op for op in ops for kind in op.modules}

    def convert(self) -> Network:
        result = self._single() if type(self.module) in self.table else self._traced()
        if not isinstance(result, _Value) or len(result.shape) != 1:
            shape = result.shape if isinstance(result, _Value) else type(result).__name__
            raise InputError(f"The network must end in one vector a sample, it ends in {shape}. Add nn.Flatten().")
        if result.name == INPUT:
            raise InputError("The network has no layers.")
        return self.builder.network(result.name, tuple(self.trainable))

    def _single(self) -> _Value:
        """A module that is itself one layer has no inside to trace."""
        return self._layer(self.module, "", "", _Value(INPUT, self.input_shape), "layer")

    def _traced(self) -> Any:
        values: dict[fx.Node, Any] = {}
        for node in _trace(self.module).nodes:
            args = fx.map_arg(node.args, lambda n: values[n])
            kwargs = fx.map_arg(node.kwargs, lambda n: values[n])
            values[node] = self._value(node, args, kwargs)
            if node.op == "output":
                return values[node]
        raise UnsupportedLayerError(f"{type(self.module).__name__} has no output.")

    def _value(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.op == "placeholder":
            if any(other.op == "placeholder" and other is not node for other in node.graph.nodes):
                raise UnsupportedLayerError("The network takes more than one input; bounds are for one input.")
            return _Value(INPUT, self.input_shape)
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        if node.op == "call_module":
            path = str(node.target)
            value = args[0] if args else kwargs.get("input")
            return self._layer(self.module.get_submodule(path), path, f"{path}.", value, node.name)
        return self._call(node, args, kwargs)

    def _attribute(self, path: str) -> Any:
        """A tensor of the module, as its key in ``params``."""
        key = self.alias.get(path, path)
        if key not in self.params:
            *owner, name = path.split(".")
            value = getattr(self.module.get_submodule(".".join(owner)), name)
            if not isinstance(value, Tensor):
                return value
            self.params[key] = value.detach().clone()
        return _Key(key)

    def _layer(self, module: nn.Module, path: str, prefix: str, value: Any, name: str) -> _Value:
        where = f"layer {path!r} ({type(module).__name__})"
        if not isinstance(value, _Value):
            raise UnsupportedLayerError(f"{where} is applied to a constant, not to the input.")
        if isinstance(module, PASS_THROUGH):
            return value
        if isinstance(module, nn.MaxPool2d):
            return self._max_pool(module, value, name, where)
        cls = self.table.get(type(module))
        if cls is None:
            raise UnsupportedLayerError(
                f"{where} is not supported yet. Supported: {_supported(self.table)}. "
                "Replace it by one of these, or add a file to ops/."
            )
        try:
            op = cls.from_module(module, prefix, value.shape)
        except ValueError as error:
            raise UnsupportedLayerError(f"{where} {error}.") from None
        return self._add(name, self._renamed(op), (value,), where)

    def _call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target, where = node.target, f"operation {node.name!r} ({_name(node.target)})"
        if target in _ARITHMETIC and not any(isinstance(arg, _Value) for arg in (*args, *kwargs.values())):
            raise UnsupportedLayerError(
                f"{where} has no input but parameters; apply each of them to a value by itself."
            )
        for targets, sign in ((_ADD, 1), (_SUB, -1)):
            if target in targets and not kwargs:
                return self._sum(node.name, args[0], args[1], sign, where)
        for targets, divide in ((_MUL, False), (_DIV, True)):
            if target in targets and not kwargs:
                return self._product(node.name, args[0], args[1], divide, where)
        if target in _NEG:
            return self._product(node.name, args[0], -1.0, False, where)
        if target in ("size", "dim") or target is getattr or target is operator.getitem:
            return _static(target, args, where)
        if target in _MAXIMUM and not kwargs:
            if not all(isinstance(arg, _Value) for arg in args):
                raise UnsupportedLayerError(f"{where} compares with a constant; only values can be compared so far.")
            return self._maximum(node.name, args[0], args[1], where)
        if target in _PERMUTE:
            return self._permute(node.name, args, kwargs, where)
        if target in _CONCAT:
            return self._concat(node.name, args, kwargs, where)
        if target in _RESHAPE:
            return self._reshape(node.name, args, kwargs, where)
        if target in _FUNCTIONS:
            options = dict(kwargs)
            value, *rest = args if args else (options.pop("input", None),)
            return self._layer(_FUNCTIONS[target](*rest, **options), node.name, "", value, node.name)
        raise UnsupportedLayerError(
            f"{where} is not supported yet. Supported: {_supported(self.table)}, functional relu, leaky_relu, sigmoid, "
            "tanh, flatten, avg_pool2d, max_pool2d, view, reshape, permute, cat, maximum, +, - of branches, and "
            "+, -, *, / with constants."
        )

    def _max_pool(self, module: nn.MaxPool2d, value: _Value, name: str, where: str) -> _Value:
        try:
            rows, columns = (max_pool_axis(module, axis, value.shape) for axis in (1, 2))
            return self._named(self.builder.max_pool(name, value.name, rows, columns))
        except ValueError as error:
            raise UnsupportedLayerError(f"{where} {error}.") from None

    def _maximum(self, name: str, a: _Value, b: _Value, where: str) -> _Value:
        try:
            return self._named(self.builder.maximum(name, a.name, b.name))
        except ValueError as error:
            raise UnsupportedLayerError(f"{where} {error}.") from None

    def _sum(self, name: str, a: Any, b: Any, sign: int, where: str) -> _Value:
        if isinstance(a, _Value) and isinstance(b, _Value):
            return self._add(name, Add(sign), (a, b), where)
        if isinstance(a, _Value):
            return self._add(name, Shift(self._constant(b, a, where), a.shape, sign), (a,), where)
        if sign < 0:  # c - x
            b = self._add(f"{name}_negated", Scale(-1.0, b.shape), (b,), where)
        return self._add(name, Shift(self._constant(a, b, where), b.shape), (b,), where)

    def _product(self, name: str, a: Any, b: Any, divide: bool, where: str) -> _Value:
        if isinstance(b, _Value) and not divide:
            a, b = b, a
        if isinstance(b, _Value):
            what = "divides by" if divide else "multiplies two values that both depend on"
            raise UnsupportedLayerError(f"{where} {what} the input; only constants can be factors.")
        return self._add(name, Scale(self._constant(b, a, where), a.shape, divide), (a,), where)

    def _concat(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> _Value:
        tensors = args[0] if args else kwargs["tensors"]
        dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
        if not all(isinstance(part, _Value) for part in tensors):
            raise UnsupportedLayerError(f"{where} joins constants to values; only values of the network can be joined.")
        dims = len(tensors[0].shape) + 1
        axis = dim + dims if dim < 0 else dim
        if not 0 < axis < dims:
            raise UnsupportedLayerError(f"{where} along axis {dim} mixes samples; give an axis from 1 to {dims - 1}.")
        sizes = tuple(part.shape[axis - 1] if axis <= len(part.shape) else 0 for part in tensors)
        return self._add(name, Concat(axis - 1, sizes), tuple(tensors), where)

    def _permute(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> _Value:
        value, first, *rest = (*args, *kwargs.values())
        dims = tuple(first) if isinstance(first, tuple | list) else (first, *rest)
        order = [dim % (len(value.shape) + 1) for dim in dims]
        if order[:1] != [0]:
            raise UnsupportedLayerError(f"{where} by {dims} moves the batch axis, which must stay first.")
        return self._add(name, Transpose(tuple(dim - 1 for dim in order[1:])), (value,), where)

    def _constant(self, value: Any, against: _Value, where: str) -> str | float:
        """A Python number, or the key of a tensor that broadcasts against one sample without enlarging it."""
        if isinstance(value, int | float):
            return float(value)
        if not isinstance(value, _Key):
            raise UnsupportedLayerError(f"{where} has an operand of type {type(value).__name__}.")
        shape = tuple(self.params[value.key].shape)
        if len(shape) == len(against.shape) + 1 and shape[0] == 1:
            shape = shape[1:]
        try:
            fits = torch.broadcast_shapes(shape, against.shape) == against.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise UnsupportedLayerError(f"{where}: a constant of shape {shape} does not fit samples {against.shape}.")
        return value.key

    def _reshape(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> _Value:
        value, *target = args
        if "shape" in kwargs:
            target = [kwargs["shape"]]
        if len(target) == 1 and isinstance(target[0], tuple | list | torch.Size):
            target = list(target[0])
        first, *rest = target
        total = math.prod(value.shape)
        known = math.prod(tuple(n for n in rest if n != -1))
        if -1 in rest and rest.count(-1) == 1 and known and total % known == 0:
            rest = [total // known if n == -1 else n for n in rest]
        keeps_batch = isinstance(first, _Batch) or first == -1
        if not keeps_batch or math.prod(tuple(rest)) != total or any(isinstance(n, _Batch) for n in rest):
            raise UnsupportedLayerError(
                f"{where} to {tuple(target)} does not keep the batch axis; "
                "write x.view(x.size(0), ...) or x.flatten(1)."
            )
        return self._add(name, Reshape(value.shape, tuple(int(n) for n in rest)), (value,), where)

    def _renamed(self, op: Op) -> Op:
        """The op with the canonical keys of shared weights."""
        shared = {f: self.alias[key] for f, key in vars(op).items() if isinstance(key, str) and key in self.alias}
        return replace(op, **shared) if shared else op  # type: ignore[type-var]

    def _add(self, name: str, op: Op, inputs: tuple[_Value, ...], where: str) -> _Value:
        if lost := [key for field, key in vars(op).items() if isinstance(key, str) and key not in self.params]:
            raise UnsupportedLayerError(
                f"{where} has no stored weight {lost[0]!r}: a hook or a parametrisation computes it. Remove that first "
                "(torch.nn.utils.remove_weight_norm, torch.nn.utils.parametrize.remove_parametrizations)."
            )
        try:
            return self._named(self.builder.add(name, op, *(value.name for value in inputs)))
        except ValueError as error:
            raise UnsupportedLayerError(f"{where} {error}.") from None

    def _named(self, name: str) -> _Value:
        return _Value(name, self.builder.shapes[name])


@dataclass(frozen=True)
class _Key:
    """A tensor of the module, by its key in ``params``."""

    key: str


@torch.no_grad()
def _check_same_function(module: nn.Module, network: Network, params: Params) -> None:
    """Refuse a network that computes something else than the module does in eval mode.

    Tracing does not see everything: hooks, operations in place on a value used again, buffers written in forward. A
    bound of the wrong function would be a false certificate, so that both are evaluated once on random inputs.
    """
    like = next((value for value in params.values() if value.is_floating_point()), None)
    if like is None or like.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((3, *network.input_shape), generator=generator, dtype=like.dtype).to(like.device)
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        expected = module(x.clone())
    finally:
        for part, mode in modes.items():
            part.training = mode
    found = network(params, x)
    scale = expected.abs().max().clamp(min=torch.finfo(like.dtype).tiny)
    if expected.shape != found.shape or not bool((found - expected).abs().max() <= 1e-4 * scale):
        raise UnsupportedLayerError(
            f"{type(module).__name__} computes something that its layers alone do not: operations in place on a value "
            "that is used again, hooks, or state written in forward. Bounds would be of another function. Remove these."
        )


def _trace(module: nn.Module) -> fx.Graph:
    try:
        return fx.Tracer().trace(module)
    except Exception as error:
        raise UnsupportedLayerError(
            f"{type(module).__name__} cannot be traced: {error}. Its forward must not branch or loop on values of the "
            "input; write it with layers and tensor operations only."
        ) from error


def _state(module: nn.Module) -> tuple[dict[str, Tensor], list[str], dict[str, str]]:
    """Copies of all tensors by key, the keys that require gradients, and a map from shared names to the first."""
    first: dict[int, str] = {}
    params: dict[str, Tensor] = {}
    alias: dict[str, str] = {}
    for key, value in module.state_dict(keep_vars=True).items():
        if id(value) in first:
            alias[key] = first[id(value)]
        else:
            first[id(value)] = key
            params[key] = value.detach().clone()
    trainable = [key for key, value in module.named_parameters() if value.requires_grad]
    return params, trainable, alias


def _static(target: Any, args: tuple[Any, ...], where: str) -> Any:
    """Shapes of traced values, as Python values; the batch size stays unknown."""
    value, *rest = args
    if isinstance(value, _Value):
        full = (_Batch(-1), *value.shape)
        if target == "dim":
            return len(full)
        if target == "size":
            return full[rest[0]] if rest else full
        if target is getattr and rest == ["shape"]:
            return full
        raise UnsupportedLayerError(f"{where} is not supported: only the shape of a value can be read.")
    return value[rest[0]]


def _supported(table: dict[type[nn.Module], Any]) -> str:
    return ", ".join(sorted({cls.__name__ for cls in (*table, nn.MaxPool2d, nn.Identity, nn.Dropout)}))


def _name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", repr(target))
