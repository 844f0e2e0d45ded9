"""From torch modules to networks: every supported form, and every refusal."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tightrope as tr
from helpers import CASES, F64, case
from tightrope.core.network import Network
from tightrope.errors import (
    CheckpointError,
    CorruptDataError,
    InputError,
    NumericalError,
    TightropeError,
    UnsupportedLayerError,
)
from tightrope.frontend import graph

IMAGE = (2, 4, 4)


def label(value: Any) -> str:
    """A short name of a module for the list of tests."""
    return repr(value).replace("\n", " ") if isinstance(value, nn.Module) else str(value)


class Wrap(nn.Module):
    """A forward function over two linear layers, a convolution and constants, as users write them."""

    def __init__(self, function: Callable[[Wrap, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.fc = nn.Linear(32, 32)
        self.head = nn.Linear(32, 3)
        self.scale = nn.Parameter(torch.tensor([1.5, -0.5]).reshape(2, 1, 1))
        self.register_buffer("mean", torch.tensor([0.3, 0.6]).reshape(1, 2, 1, 1))
        self.plain = torch.tensor([0.25, 0.75]).reshape(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def wrap(function: Callable[[Wrap, Tensor], Any]) -> nn.Module:
    torch.manual_seed(0)
    module = Wrap(function).eval()
    with torch.no_grad():
        module.norm.running_mean.copy_(torch.randn(2))
        module.norm.running_var.copy_(torch.rand(2) + 0.5)
    return module


def assert_same_function(module: nn.Module, shape: tuple[int, ...] = IMAGE) -> tuple[Network, dict[str, Tensor]]:
    """The network computes what the module does, which is not touched by the conversion."""
    before, mode = copy.deepcopy(module.state_dict()), module.training
    net, params = tr.from_module(module, shape)
    assert module.training == mode
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])
    x = torch.rand((5, *shape), generator=torch.Generator().manual_seed(1), dtype=next(iter(before.values())).dtype)
    expected = module.eval()(x.clone())
    torch.testing.assert_close(net(params, x), expected, rtol=1e-5, atol=1e-5)
    return net, params


# ----------------------------------------------------------------------------------------- supported forms


def _iadd(m: Wrap, x: Tensor) -> Tensor:
    y = m.conv(x)
    y += x
    return m.head(y.flatten(1))


FORMS: dict[str, Callable[[Wrap, Tensor], Tensor]] = {
    "flatten method": lambda m, x: m.head(x.flatten(1)),
    "flatten keyword": lambda m, x: m.head(x.flatten(start_dim=1)),
    "torch.flatten": lambda m, x: m.head(torch.flatten(x, 1)),
    "torch.flatten keyword": lambda m, x: m.head(torch.flatten(x, start_dim=1)),
    "view size": lambda m, x: m.head(x.view(x.size(0), -1)),
    "view shape": lambda m, x: m.head(x.view(x.shape[0], -1)),
    "view minus one": lambda m, x: m.head(x.view(-1, 32)),
    "reshape": lambda m, x: m.head(x.reshape(x.shape[0], 32)),
    "reshape tuple": lambda m, x: m.head(x.reshape((x.shape[0], -1))),
    "torch.reshape": lambda m, x: m.head(torch.reshape(x, (-1, 32))),
    "reshape twice": lambda m, x: m.head(x.reshape(x.size(0), 4, 8).reshape(-1, 32)),
    "contiguous": lambda m, x: m.head(x.contiguous().flatten(1)),
    "F.relu": lambda m, x: m.head(F.relu(m.conv(x)).flatten(1)),
    "torch.relu": lambda m, x: m.head(torch.relu(m.conv(x)).flatten(1)),
    "relu method": lambda m, x: m.head(m.conv(x).relu().flatten(1)),
    "F.leaky_relu": lambda m, x: m.head(F.leaky_relu(m.conv(x), 0.2).flatten(1)),
    "F.leaky_relu keyword": lambda m, x: m.head(F.leaky_relu(m.conv(x), negative_slope=0.3).flatten(1)),
    "torch.sigmoid": lambda m, x: m.head(torch.sigmoid(m.conv(x)).flatten(1)),
    "F.sigmoid": lambda m, x: m.head(F.sigmoid(m.conv(x)).flatten(1)),
    "sigmoid method": lambda m, x: m.head(m.conv(x).sigmoid().flatten(1)),
    "torch.tanh": lambda m, x: m.head(torch.tanh(m.conv(x)).flatten(1)),
    "F.tanh": lambda m, x: m.head(F.tanh(m.conv(x)).flatten(1)),
    "tanh method": lambda m, x: m.head(m.conv(x).tanh().flatten(1)),
    "F.avg_pool2d": lambda m, x: m.head(torch.flatten(F.avg_pool2d(x, 1), 1)),
    "F.avg_pool2d keyword": lambda m, x: m.head(F.avg_pool2d(x, (3, 3), stride=1, padding=1).flatten(1)),
    "F.dropout in evaluation": lambda m, x: m.head(F.dropout(x, 0.5, training=False).flatten(1)),
    "residual": lambda m, x: m.head((x + m.conv(x)).flatten(1)),
    "residual difference": lambda m, x: m.head((x - m.conv(x)).flatten(1)),
    "torch.add": lambda m, x: m.head(torch.add(x, m.conv(x)).flatten(1)),
    "add method": lambda m, x: m.head(m.conv(x).add(x).flatten(1)),
    "torch.sub": lambda m, x: m.head(torch.sub(x, m.conv(x)).flatten(1)),
    "in-place sum": _iadd,
    "added to itself": lambda m, x: m.head((x + x).flatten(1)),
    "nested residual": lambda m, x: m.head(F.relu(x + m.conv(F.relu(x + m.conv(x)))).flatten(1)),
    "torch.cat": lambda m, x: torch.cat([m.fc(x.flatten(1)), m.head(x.flatten(1))], 1),
    "torch.cat of images": lambda m, x: torch.cat((x, F.relu(m.conv(x)), x), dim=1).flatten(1),
    "torch.concat along rows": lambda m, x: torch.concat([x, m.conv(x)], -2).flatten(1),
    "torch.concatenate keywords": lambda m, x: torch.concatenate(tensors=[x, m.conv(x)], dim=3).flatten(1),
    "torch.maximum": lambda m, x: m.head(torch.maximum(x, m.conv(x)).flatten(1)),
    "maximum method": lambda m, x: m.head(x.maximum(m.conv(x)).flatten(1)),
    "F.max_pool2d": lambda m, x: m.head(F.max_pool2d(x, 3, 1, 1).flatten(1)),
    "plus number": lambda m, x: m.head((x + 0.5).flatten(1)),
    "number plus": lambda m, x: m.head((2 + x).flatten(1)),
    "minus number": lambda m, x: m.head((x - 1).flatten(1)),
    "number minus": lambda m, x: m.head((1.0 - x).flatten(1)),
    "times number": lambda m, x: m.head((x * 3).flatten(1)),
    "number times": lambda m, x: m.head((-0.5 * x).flatten(1)),
    "over number": lambda m, x: m.head((x / 0.25).flatten(1)),
    "torch.div": lambda m, x: m.head(torch.div(x, 4.0).flatten(1)),
    "torch.sub of a number": lambda m, x: m.head(torch.sub(x, 0.5).flatten(1)),
    "torch.sub from a buffer": lambda m, x: m.head(torch.sub(m.mean, x).flatten(1)),
    "sub method": lambda m, x: m.head(x.sub(m.scale).flatten(1)),
    "div method": lambda m, x: m.head(x.div(m.mean).flatten(1)),
    "mul method": lambda m, x: m.head(x.mul(m.scale).flatten(1)),
    "torch.mul by a parameter": lambda m, x: m.head(torch.mul(m.scale, x).flatten(1)),
    "torch.add of a number": lambda m, x: m.head(torch.add(x, 1).flatten(1)),
    "torch.neg": lambda m, x: m.head(torch.neg(x).flatten(1)),
    "neg method": lambda m, x: m.head(x.neg().flatten(1)),
    "parameter minus": lambda m, x: m.head((m.scale - x).flatten(1)),
    "in-place constants": lambda m, x: m.head(x.mul(2.0).sub_(m.mean).div_(m.mean).add_(1).flatten(1)),
    "sum of constants": lambda m, x: m.head((x - (m.mean + 1)).flatten(1)),
    "difference of constants": lambda m, x: m.head((x - (1 - m.mean)).flatten(1)),
    "product of constants": lambda m, x: m.head((x - 2 * m.mean).flatten(1)),
    "negated constant": lambda m, x: m.head((x + -m.mean).flatten(1)),
    "negated": lambda m, x: m.head((-x).flatten(1)),
    "torch.mul": lambda m, x: m.head(torch.mul(x, 2.0).flatten(1)),
    "buffer": lambda m, x: m.head((x - m.mean).flatten(1)),
    "buffer minus": lambda m, x: m.head((m.mean - x).flatten(1)),
    "parameter": lambda m, x: m.head((x * m.scale).flatten(1)),
    "over parameter": lambda m, x: m.head((x / m.scale).flatten(1)),
    "plain tensor": lambda m, x: m.head(((x - m.plain) / m.plain).flatten(1)),
    "batchnorm": lambda m, x: m.head(m.norm(m.conv(x)).relu().flatten(1)),
    "shared weights": lambda m, x: m.head(m.fc(m.fc(x.flatten(1)).relu()).relu()),
    "unused branch": lambda m, x: (m.head(m.fc(x.flatten(1))), m.head(x.flatten(1)))[1],
}


@pytest.mark.parametrize("form", FORMS)
def test_functional_forms(form: str) -> None:
    assert_same_function(wrap(FORMS[form]))


@pytest.mark.parametrize("name", CASES)
def test_modules(name: str) -> None:
    assert_same_function(copy.deepcopy(case(name).module), case(name).shape)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(3, 2), (3,)),
        (nn.Linear(3, 2, bias=False), (3,)),
        (nn.Flatten(), (2, 3)),
        (nn.ReLU(), (4,)),
        (nn.LeakyReLU(0.2), (4,)),
        (nn.Sequential(nn.Linear(3, 2)), (3,)),
        (
            nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.ReLU())), nn.Linear(4, 2)),
            (2, 3),
        ),
        (nn.Sequential(nn.Identity(), nn.Linear(3, 2), nn.Dropout(0.5), nn.Identity()), (3,)),
        (nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.Flatten()), (2, 4, 5)),
        (nn.Sequential(nn.Conv2d(2, 3, (1, 2), padding="valid"), nn.Flatten()), (2, 4, 5)),
        (nn.Sequential(nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten()), (2, 4, 5)),
        (nn.Sequential(nn.AdaptiveAvgPool2d((None, 1)), nn.Flatten()), (2, 4, 5)),
        (nn.Sequential(nn.AvgPool2d(2, divisor_override=3), nn.Flatten()), (2, 4, 5)),
        (nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2), nn.Flatten()), (2, 3, 2)),
        (nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Flatten()), (6,)),
        (nn.Sequential(nn.Unflatten(1, (2, -1)), nn.Flatten()), (6,)),
        (nn.Sequential(nn.Unflatten(-1, (2, 3)), nn.Flatten(-2)), (6,)),
        (nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), (3,)),
        (nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2)), (3,)),
        (nn.Sequential(nn.BatchNorm1d(2), nn.Flatten()), (2, 5)),
    ],
    ids=label,
)
def test_layers_and_containers(module: nn.Module, shape: tuple[int, ...]) -> None:
    try:
        assert_same_function(module.to(F64), shape)
    except StopIteration:  # no tensors at all: nothing to take the dtype from
        net, params = tr.from_module(module, shape)
        x = torch.rand((3, *shape))
        assert torch.equal(net(params, x), module(x))


def test_dropout_is_left_out_and_training_mode_is_read_as_evaluation() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.9), nn.ReLU(), nn.Linear(4, 2)).train()
    module(torch.rand(8, 3))  # moves the running statistics
    assert_same_function(module, (3,))


def test_a_module_without_tensors_runs() -> None:
    net, params = tr.from_module(nn.Sequential(nn.Flatten(), nn.ReLU()), (2, 2))
    assert params == {}
    assert torch.equal(net(params, -torch.ones(1, 2, 2)), torch.zeros(1, 4))


def test_weights_are_copies() -> None:
    module = nn.Linear(2, 2)
    _, params = tr.from_module(module, (2,))
    before = params["weight"].clone()
    with torch.no_grad():
        module.weight.zero_()
    assert torch.equal(params["weight"], before)
    assert not any(value.requires_grad for value in params.values())


# ----------------------------------------------------------------------------------- in-place side effects


IN_PLACE: dict[str, Callable[[Wrap, Tensor], Tensor]] = {
    "F.relu of a value that is used again": lambda m, x: (lambda y: m.head((F.relu(y, inplace=True) + y).flatten(1)))(
        m.conv(x)
    ),
    "relu_ of a value that is used again": lambda m, x: (lambda y: m.head((y.relu_() + y).flatten(1)))(m.conv(x)),
    "add_ to a value that is used again": lambda m, x: (lambda y: m.head((y.add_(1.0) * 2 + y).flatten(1)))(m.conv(x)),
    "mul_ of a value that is used again": lambda m, x: (lambda y: m.head((y.mul_(2.0) + y).flatten(1)))(m.conv(x)),
    "result dropped": lambda m, x: (lambda y: (y.relu_(), m.head(y.flatten(1)))[1])(m.conv(x)),
    "through a view": lambda m, x: (lambda y: (y.view(-1, 32).add_(1.0), m.head(y.flatten(1)))[1])(m.conv(x)),
}


def assert_same_function_or_refused(module: nn.Module, shape: tuple[int, ...] = IMAGE) -> None:
    try:
        tr.from_module(module, shape)
    except TightropeError:
        return
    assert_same_function(module, shape)


KEYWORDS: dict[str, Callable[[Wrap, Tensor], Tensor]] = {
    "of a layer": lambda m, x: m.head(input=x.flatten(1)),
    "of a function": lambda m, x: m.head(torch.flatten(F.relu(input=m.conv(x)), 1)),
    "of size": lambda m, x: m.head(x.view(x.size(dim=0), -1)),
    "of a sum": lambda m, x: m.head(torch.add(input=x, other=m.conv(x)).flatten(1)),
    "of torch.flatten": lambda m, x: m.head(torch.flatten(input=x, start_dim=1)),
}


@pytest.mark.parametrize("form", KEYWORDS)
def test_keyword_arguments(form: str) -> None:
    """Supported, or refused with an error of ours."""
    assert_same_function_or_refused(wrap(KEYWORDS[form]))


@pytest.mark.parametrize("form", IN_PLACE)
def test_in_place_operations_change_what_follows(form: str) -> None:
    """Where a value that was overwritten is used again, the network follows torch or refuses."""
    assert_same_function_or_refused(wrap(IN_PLACE[form]))


def test_in_place_module_on_a_value_that_is_used_again() -> None:
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.act, self.head = nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.act(x) + x)

    assert_same_function_or_refused(Block(), (3,))


def test_in_place_modules_in_a_chain() -> None:
    assert_same_function(nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), (3,))


def test_hooks_that_change_the_output() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    module[0].register_forward_hook(lambda layer, inputs, output: 2 * output)
    assert_same_function_or_refused(module, (3,))


def test_weights_computed_by_hooks() -> None:
    with pytest.warns(FutureWarning):
        module = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    assert_same_function_or_refused(module, (3,))


def test_parametrized_weights() -> None:
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    assert_same_function_or_refused(module, (3,))


# ---------------------------------------------------------------------------------- trainable, shared, keys


def test_trainable_names_what_noise_and_optimisers_may_touch() -> None:
    module = wrap(lambda m, x: m.head((m.norm(m.conv(x * m.scale)) - m.mean).flatten(1)))
    module.conv.bias.requires_grad_(False)
    net, params = tr.from_module(module, IMAGE)
    assert set(net.trainable) == {
        "scale",
        "conv.weight",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }
    assert set(net.trainable) <= set(params)


def test_params_have_the_keys_of_the_state_dict() -> None:
    for name in CASES:
        assert case(name).params.keys() == case(name).module.state_dict().keys()


def test_shared_weights_have_one_key() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.b(F.relu(self.a(x)))))

    net, params = assert_same_function(Tied(), (3,))
    assert "a.weight" in params
    assert "b.weight" not in params
    assert net.trainable.count("a.weight") == 1
    leaves = {key: value.requires_grad_() for key, value in params.items()}
    net(leaves, torch.rand(2, 3)).sum().backward()
    assert leaves["a.weight"].grad is not None


def test_buffer_under_two_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            mean = torch.rand(3)
            self.register_buffer("first", mean)
            self.register_buffer("second", mean)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(x - self.first) + self.second)

    assert_same_function(Twice(), (3,))


# ---------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", CASES)
def test_to_module_round_trip(name: str) -> None:
    """The same function, keys, values and trainable tensors; and the original class loads the state_dict."""
    known, x = case(name), case(name).inputs(3)
    module = known.net.to_module(known.params).eval()
    torch.testing.assert_close(module(x), known.module(x), rtol=1e-12, atol=1e-12)
    assert module.state_dict().keys() == known.module.state_dict().keys()
    assert {key for key, _ in module.named_parameters()} == set(known.net.trainable)
    other = copy.deepcopy(known.module)
    for value in other.state_dict().values():
        value.zero_()
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(x), known.module(x), rtol=1e-12, atol=1e-12)


def test_to_module_copies() -> None:
    known = case("mlp")
    module = known.net.to_module(known.params)
    with torch.no_grad():
        for value in module.state_dict().values():
            value.zero_()
    assert known.params["0.weight"].abs().max() > 0


def test_to_module_can_be_copied_and_trained() -> None:
    known = case("mlp")
    module = copy.deepcopy(known.net.to_module(known.params))
    module(known.inputs(2)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("form", ["shared weights", "plain tensor", "nested residual", "parameter"])
def test_to_module_of_functional_networks(form: str) -> None:
    net, params = tr.from_module(wrap(FORMS[form]), IMAGE)
    x = torch.rand(2, *IMAGE)
    assert torch.equal(net.to_module(params)(x), net(params, x))


@pytest.mark.parametrize("name", CASES)
def test_graph_as_json_and_back(name: str) -> None:
    text = json.dumps(graph.to_json(case(name).net))
    assert graph.from_json(json.loads(text)) == case(name).net


@pytest.mark.parametrize(
    "form", ["nested residual", "number minus", "buffer minus", "over parameter", "F.leaky_relu", "torch.cat of images"]
)
def test_functional_graph_as_json_and_back(form: str) -> None:
    net, _ = tr.from_module(wrap(FORMS[form]), IMAGE)
    assert graph.from_json(json.loads(json.dumps(graph.to_json(net)))) == net


@pytest.mark.parametrize(
    "damage",
    [
        lambda g: g.pop("nodes"),
        lambda g: g.update(schema=99),
        lambda g: g["nodes"][0].update(op="os"),
        lambda g: g["nodes"][0].update(facts={"wrong": 1}),
        lambda g: g["nodes"][0].update(inputs=["nowhere"]),
        lambda g: g["nodes"].clear(),
        lambda g: g.update(nodes=3),
    ],
)
def test_damaged_graphs_are_refused(damage: Callable[[dict[str, Any]], Any]) -> None:
    value = copy.deepcopy(graph.to_json(case("mlp").net))
    damage(value)
    with pytest.raises(CorruptDataError):
        graph.from_json(value)


# -------------------------------------------------------------------------------------- batch normalisation


def norm_nets() -> list[tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return [
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), (3,)),
        (
            nn.Sequential(
                nn.Conv2d(2, 3, 3, padding=1),
                nn.BatchNorm2d(3),
                nn.ReLU(),
                nn.Conv2d(3, 2, 3),
                nn.BatchNorm2d(2, affine=False),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(8, 4),
                nn.BatchNorm1d(4),
                nn.Linear(4, 2),
            ),
            (2, 4, 4),
        ),
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_calibrate_is_training_mode_with_gradients(index: int) -> None:
    """With calibrated statistics the network is torch's training-mode batch normalisation, derivatives included."""
    module, shape = norm_nets()[index]
    module = module.to(F64)
    net, params = tr.from_module(module, shape)
    assert net.has_statistics
    x = torch.rand((6, *shape), dtype=F64)
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    leaves = {key: value.requires_grad_() if key in net.trainable else value for key, value in params.items()}
    found = net(net.calibrate(leaves, ours_x), ours_x)
    expected = module.train()(theirs_x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weight = torch.linspace(-1, 1, found.numel(), dtype=F64).reshape(found.shape)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=1e-7, atol=1e-9)
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(leaves[key].grad, parameter.grad, rtol=1e-7, atol=1e-9)


def test_calibrate_replaces_statistics_only() -> None:
    module, shape = norm_nets()[1]
    net, params = tr.from_module(module, shape)
    before = {key: value.clone() for key, value in params.items()}
    found = net.calibrate(params, torch.rand((6, *shape)))
    assert found.keys() == params.keys()
    for key, value in before.items():
        assert torch.equal(params[key], value)
        assert torch.equal(found[key], value) != key.endswith(("running_mean", "running_var"))


def test_calibrate_without_statistics_changes_nothing() -> None:
    known = case("mlp")
    assert not known.net.has_statistics
    found = known.net.calibrate(known.params, known.inputs(3))
    assert all(torch.equal(found[key], value) for key, value in known.params.items())


def test_calibrate_under_vmap_is_a_loop() -> None:
    module, shape = norm_nets()[1]
    net, params = tr.from_module(module.to(F64), shape)
    x = torch.rand((6, *shape), dtype=F64)
    floats = {key: value for key, value in params.items() if value.is_floating_point()}
    population = {key: torch.stack([value, 1.3 * value + 0.1]) for key, value in floats.items()}
    found = torch.func.vmap(lambda own: net(net.calibrate({**params, **own}, x), x))(population)
    for index in range(2):
        own = {**params, **{key: value[index] for key, value in population.items()}}
        torch.testing.assert_close(found[index], net(net.calibrate(own, x), x))


# ----------------------------------------------------------------------------------------------- refusals


def nested(layer: nn.Module) -> nn.Module:
    features = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), layer)
    module = nn.Sequential()
    module.add_module("features", features)
    module.add_module("flat", nn.Flatten())
    return module


UNSUPPORTED: list[nn.Module] = [
    nn.MaxPool2d(2, return_indices=True),
    nn.AdaptiveMaxPool2d(2),
    nn.Softplus(),
    nn.GELU(),
    nn.PReLU(),
    nn.GroupNorm(1, 2),
    nn.InstanceNorm2d(2),
    nn.Upsample(scale_factor=2),
    nn.AlphaDropout(),
    nn.PixelShuffle(1),
    nn.ConvTranspose2d(2, 2, 2, padding=4),
    nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(2, 2, 2, padding="same"),
    nn.LeakyReLU(-0.1),
    nn.LeakyReLU(1.5),
    nn.BatchNorm2d(2, track_running_stats=False),
    nn.BatchNorm2d(2, momentum=None),
    nn.AvgPool2d(3, ceil_mode=True),
    nn.AvgPool2d(3, padding=1, count_include_pad=False),
    nn.AdaptiveAvgPool2d(3),
    nn.Flatten(0),
]


@pytest.mark.parametrize("layer", UNSUPPORTED, ids=label)
def test_unsupported_layers_are_refused_by_path(layer: nn.Module) -> None:
    with pytest.raises(UnsupportedLayerError, match=r"'features\.1'") as caught:
        tr.from_module(nested(layer), IMAGE)
    assert type(layer).__name__ in str(caught.value)
    assert isinstance(caught.value, NotImplementedError)


@pytest.mark.parametrize("layer", [nn.Softplus(), nn.GELU()], ids=label)
def test_unsupported_layers_come_with_the_list_of_supported_ones(layer: nn.Module) -> None:
    with pytest.raises(UnsupportedLayerError) as caught:
        tr.from_module(nested(layer), IMAGE)
    for name in (
        "Linear",
        "Conv2d",
        "ReLU",
        "LeakyReLU",
        "Flatten",
        "BatchNorm2d",
        "AvgPool2d",
        "MaxPool2d",
        "Identity",
        "Dropout",
    ):
        assert name in str(caught.value)


def test_an_unsupported_single_layer_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"(?i)softplus"):
        tr.from_module(nn.Softplus(), (3,))
    with pytest.raises(UnsupportedLayerError, match="GRU"):
        tr.from_module(nn.GRU(3, 3), (4, 3))


def _branch(m: Wrap, x: Tensor) -> Tensor:
    return m.head(x.flatten(1)) if x.sum() > 0 else m.head(-x.flatten(1))


def _loop(m: Wrap, x: Tensor) -> Tensor:
    for _ in range(int(x.sum())):
        x = m.conv(x)
    return m.head(x.flatten(1))


REFUSED: dict[str, Callable[[Wrap, Tensor], Any]] = {
    "control flow": _branch,
    "loop over values": _loop,
    "division by the input": lambda m, x: m.head((1.0 / (x + 2)).flatten(1)),
    "division of two branches": lambda m, x: m.head((x / m.conv(x)).flatten(1)),
    "product of two branches": lambda m, x: m.head((x * m.conv(x)).flatten(1)),
    "square": lambda m, x: m.head((x * x).flatten(1)),
    "power": lambda m, x: m.head((x**2).flatten(1)),
    "matmul": lambda m, x: m.head((x @ x).flatten(1)),
    "exponential": lambda m, x: m.head(torch.exp(x).flatten(1)),
    "softmax": lambda m, x: F.softmax(m.head(x.flatten(1)), dim=1),
    "largest entry": lambda m, x: m.head(x.flatten(1)).amax(1, keepdim=True),
    "maximum with a constant": lambda m, x: m.head(torch.maximum(x, m.mean).flatten(1)),
    "pooling of rows": lambda m, x: m.head(F.max_pool1d(x.flatten(2), 1).flatten(1)),
    "clamp": lambda m, x: m.head(x.clamp(0, 1).flatten(1)),
    "mean": lambda m, x: m.head(x.flatten(1)).mean(),
    "indexing": lambda m, x: m.head(x.flatten(1))[:, :2],
    "indexing the batch": lambda m, x: m.head(x[0]),
    "transposition": lambda m, x: m.head(x.transpose(2, 3).flatten(1)),
    "permutation": lambda m, x: m.head(x.permute(1, 0, 2, 3).flatten(1)),
    "error function": lambda m, x: m.head(torch.erf(x).flatten(1)),
    "concatenation of parts": lambda m, x: m.head(torch.cat([x[:, :1], x[:, 1:]], 1).flatten(1)),
    "concatenation of samples": lambda m, x: m.head(torch.cat([x, x]).flatten(1)),
    "concatenation of constants": lambda m, x: m.head(torch.cat([x, m.mean.expand(1, 2, 4, 4)], 1).flatten(1)),
    "concatenation with a parameter": lambda m, x: m.head(torch.cat([x.flatten(1), m.scale], 1)),
    "concatenation of different shapes": lambda m, x: torch.cat([x, x.flatten(1)], 1).flatten(1),
    "scaled sum": lambda m, x: m.head(torch.add(x, m.conv(x), alpha=2).flatten(1)),
    "rounding division": lambda m, x: m.head(torch.div(x, 2.0, rounding_mode="floor").flatten(1)),
    "flatten of the batch": lambda m, x: m.head(x.flatten().view(-1, 32)),
    "view that mixes samples": lambda m, x: m.head(x.view(2, -1)),
    "view of another size": lambda m, x: x.view(-1, 16),
    "broadcast that enlarges": lambda m, x: m.head((m.head(x.flatten(1)) + m.mean).flatten(1)),
    "sum of different shapes": lambda m, x: m.fc(x.flatten(1)) + m.head(x.flatten(1)),
    "random numbers": lambda m, x: m.head((x + torch.rand_like(x)).flatten(1)),
    "detached": lambda m, x: m.head(x.detach().flatten(1)),
    "weights of a layer": lambda m, x: F.linear(x.flatten(1), m.head.weight, m.head.bias),
    "conversion": lambda m, x: m.head(x.double().flatten(1)),
    "a constant output": lambda m, x: m.head(m.mean.flatten(1)),
    "two outputs": lambda m, x: (m.head(x.flatten(1)), m.fc(x.flatten(1))),
    "dictionary": lambda m, x: {"logits": m.head(x.flatten(1))},
    "parameters alone": lambda m, x: m.head((x - 2 * m.scale).flatten(1)),
    "no output": lambda m, x: None,
    "images as output": lambda m, x: m.conv(x),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_bounded_is_refused(form: str) -> None:
    """With an error of ours, never another exception, and never a wrong network."""
    with pytest.raises(TightropeError) as caught:
        tr.from_module(wrap(REFUSED[form]), IMAGE)
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize("form", ["division by the input", "control flow", "square", "permutation", "error function"])
def test_refusals_say_what_to_do(form: str) -> None:
    expected = {
        "division by the input": "divides by the input; only constants",
        "control flow": "must not branch or loop",
        "square": "only constants can be factors",
        "permutation": "permute.*moves the batch axis",
        "error function": "erf.*not supported yet.*Supported:",
    }
    with pytest.raises(UnsupportedLayerError, match=expected[form]):
        tr.from_module(wrap(REFUSED[form]), IMAGE)


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(UnsupportedLayerError, match="more than one input"):
        tr.from_module(Two(), (3,))


def test_an_optional_second_input_is_refused_or_ignored_as_torch_would() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
            return self.head(x * scale)

    assert_same_function_or_refused(Optional(), (3,))


def test_no_layers_is_refused() -> None:
    for module in (nn.Identity(), nn.Sequential(), nn.Sequential(nn.Dropout())):
        with pytest.raises(TightropeError):
            tr.from_module(module, (3,))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(3, 2), (4,)),
        (nn.Linear(3, 2), (2, 3)),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), (2, 5, 5)),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), (3, 5)),
        (nn.Sequential(nn.ConvTranspose2d(3, 2, 3), nn.Flatten()), (2, 5, 5)),
        (nn.Sequential(nn.Conv2d(3, 2, 5), nn.Flatten()), (3, 4, 4)),
        (nn.Sequential(nn.AvgPool2d(5), nn.Flatten()), (3, 4, 4)),
        (nn.Sequential(nn.BatchNorm1d(3), nn.Linear(4, 2)), (4,)),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 2)), (3,)),
        (nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten()), (6,)),
        (nn.Conv2d(2, 2, 3), (2, 5, 5)),
    ],
    ids=label,
)
def test_shapes_that_do_not_fit_are_refused(module: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(TightropeError):
        tr.from_module(module, shape)


# ------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("key", ["0.weight", "1.running_var", "1.bias"])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, key: str) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        module.state_dict()[key].view(-1)[0] = value
    with pytest.raises(NumericalError, match=key) as caught:
        tr.from_module(module, (3,))
    assert isinstance(caught.value, ArithmeticError)


def test_params_of_another_network_are_refused() -> None:
    known = case("mlp")
    known.net.check_params(known.params, known.params)
    wrong_shape = known.params | {"0.weight": torch.zeros((2, 2), dtype=F64)}
    missing = {key: value for key, value in known.params.items() if key != "0.weight"}
    for params, word in (
        (wrong_shape, "0.weight is"),
        (missing, "missing"),
        (known.params | {"x": torch.zeros(1)}, "x"),
    ):
        with pytest.raises(CheckpointError, match=word):
            known.net.check_params(params, known.params)


def test_refusal_is_an_input_error_where_the_input_is_at_fault() -> None:
    with pytest.raises(InputError, match=r"nn\.Flatten"):
        tr.from_module(nn.Sequential(nn.Conv2d(2, 2, 3)), IMAGE)
