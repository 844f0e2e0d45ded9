"""Architectures: weight counts, shapes, normalisation, refused inputs, initial weights."""

from __future__ import annotations

import copy
import math
import operator

import pytest
import torch
from torch import nn

from tightrope.core import registry
from tightrope.errors import InputError
from tightrope.models._init import default_init, shi_init
from tightrope.models._layers import Normalize
from tightrope.models.cnn3 import Cnn3
from tightrope.models.cnn5 import Cnn5
from tightrope.models.cnn7 import Cnn7
from tightrope.models.mlp import Mlp

MNIST, CIFAR, TINY = ((1, 28, 28), 10), ((3, 32, 32), 10), ((3, 64, 64), 200)
NAMES = registry.names("models")
CONVOLUTIONAL = [name for name in NAMES if name.startswith("cnn")]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "task", "weights"),
    [
        ("mlp", MNIST, 26_506),
        ("cnn3_tiny", MNIST, 1_108),
        ("cnn3_tiny", CIFAR, 1_508),
        ("cnn3_small", MNIST, 5_170),
        ("cnn3_small", CIFAR, 6_770),
        ("cnn3", MNIST, 24_330),
        ("cnn3", CIFAR, 29_930),
        ("cnn5", MNIST, 820_954),
        ("cnn5", CIFAR, 1_067_002),
        ("cnn7", MNIST, 13_259_338),
        ("cnn7", CIFAR, 17_192_650),
        ("cnn7", TINY, 17_290_120),
    ],
)
def test_weight_counts(name: str, task: tuple[tuple[int, ...], int], weights: int) -> None:
    with torch.device("meta"):
        model = registry.create("models", name, input_shape=task[0], num_classes=task[1])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == weights


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("input_shape", [(1, 8, 8), (3, 9, 7)])
def test_logits_have_the_announced_shape(name: str, input_shape: tuple[int, ...]) -> None:
    model = registry.create("models", name, input_shape=input_shape, num_classes=5).eval()
    assert model(torch.rand(2, *input_shape)).shape == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_models_trace_and_start_with_the_normalisation(name: str) -> None:
    options = {"input_shape": (3, 8, 8), "num_classes": 4, "mean": (0.1, 0.2, 0.3), "std": (2.0,)}
    model = registry.create("models", name, **options)
    traced = torch.fx.symbolic_trace(model.eval())
    nodes = [node for node in traced.graph.nodes if node.op != "get_attr"]
    assert [node.target for node in nodes[1:3]] == [operator.sub, operator.truediv]
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(traced(x), model(x))


def test_cnn7_has_21_modules() -> None:
    with torch.device("meta"):
        model = Cnn7(*CIFAR)
    assert 1 + len(model.layers) == 21


def test_cnn7_halves_large_images_once_more() -> None:
    with torch.device("meta"):
        strides = [layer.stride for layer in Cnn7(*TINY).layers if isinstance(layer, nn.Conv2d)]
    assert strides == [(1, 1), (1, 1), (2, 2), (1, 1), (2, 2)]


def test_width_scales_the_channels() -> None:
    assert Cnn3((1, 8, 8), 10, width=3).layers[2].out_channels == 6
    assert Cnn5((1, 8, 8), 10, width=3).layers[4].out_channels == 6


class TestNormalize:
    def test_buffers_are_in_the_state_dict_with_one_value_a_channel(self) -> None:
        state = Cnn3((3, 8, 8), 10, mean=(0.1, 0.2, 0.3), std=(0.5,)).state_dict()
        assert state["normalize.mean"].shape == state["normalize.std"].shape == (3, 1, 1)
        assert state["normalize.mean"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])

    def test_flat_inputs_get_scalars(self) -> None:
        layer = Normalize((0.5,), (0.25,), (4,))
        assert layer.mean.shape == layer.std.shape == ()
        assert layer(torch.tensor([[1.0, 0.5, 0.0, 0.25]])).tolist() == [[2.0, 0.0, -2.0, -1.0]]

    def test_an_image_mlp_normalises_its_channels(self) -> None:
        model = Mlp((2, 1, 1), 2, mean=(0.0, 1.0), std=(1.0, 2.0), width=())
        model.layers[1].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        assert model(torch.ones(1, 2, 1, 1)).tolist() == [[1.0, 0.0]]

    @pytest.mark.parametrize("mean", [(), (0.1, 0.2)])
    def test_the_number_of_values_is_checked(self, mean: tuple[float, ...]) -> None:
        with pytest.raises(InputError, match="3 channel"):
            Cnn3((3, 8, 8), 10, mean=mean)

    @pytest.mark.parametrize("std", [(0.0,), (-1.0,), (float("nan"),)])
    def test_the_std_must_be_positive(self, std: tuple[float, ...]) -> None:
        with pytest.raises(InputError, match="positive"):
            Cnn3((3, 8, 8), 10, std=std)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("input_shape", [(), (784,), (28, 28), (1, 1, 28, 28), (0, 28, 28), (1, 28, 0)])
def test_convolutional_models_want_images(name: str, input_shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\(channels, height, width\)"):
        registry.create("models", name, input_shape=input_shape, num_classes=10)


@pytest.mark.parametrize("name", ["cnn3", "cnn3_tiny", "cnn3_small", "cnn5"])
def test_too_small_images_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="too small"):
        registry.create("models", name, input_shape=(1, 1, 28), num_classes=10)


@pytest.mark.parametrize("name", NAMES)
def test_non_positive_sizes_are_refused(name: str) -> None:
    width = (0,) if name == "mlp" else 0
    with pytest.raises(InputError, match="width"):
        registry.create("models", name, input_shape=(1, 8, 8), num_classes=10, width=width)
    with pytest.raises(InputError, match="num_classes"):
        registry.create("models", name, input_shape=(1, 8, 8), num_classes=0)


@pytest.mark.parametrize("input_shape", [(), (0,), (3, 0)])
def test_an_mlp_wants_some_input(input_shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        Mlp(input_shape, 2)


class TestDefaultInit:
    @pytest.mark.parametrize("model", [Mlp((4,), 3), Cnn7((1, 8, 8), 10, width=2)])
    def test_draws_what_torch_draws_after_seeding(self, model: nn.Module) -> None:
        affine = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        with torch.random.fork_rng():
            torch.manual_seed(3)
            for layer in affine:
                layer.reset_parameters()
        expected = copy.deepcopy(model.state_dict())
        nn.init.zeros_(affine[0].weight)
        default_init(model, generator(3))
        torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)

    def test_leaves_the_global_generator_alone(self) -> None:
        model = Mlp((4,), 3)
        before = torch.random.get_rng_state()
        default_init(model, generator())
        shi_init(model, generator())
        assert torch.equal(before, torch.random.get_rng_state())


class TestShiInit:
    def test_std_is_sqrt_two_pi_over_fan_in_and_biases_are_zero(self) -> None:
        model = Cnn5((3, 16, 16), 10)
        shi_init(model, generator())
        for layer in [layer for layer in model.layers if isinstance(layer, nn.Linear | nn.Conv2d)][:-1]:
            count = layer.weight.numel()
            expected = math.sqrt(2 * math.pi) / (count / layer.weight.shape[0])
            assert layer.weight.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * count))
            assert layer.weight.mean().item() == pytest.approx(0.0, abs=4 * expected / math.sqrt(count))
            assert layer.bias is not None
            assert not layer.bias.any()

    def test_the_last_layer_keeps_its_weights(self) -> None:
        model = Cnn3((1, 8, 8), 10)
        before = copy.deepcopy(model.layers[-1].state_dict())
        shi_init(model, generator())
        torch.testing.assert_close(model.layers[-1].state_dict(), before, rtol=0, atol=0)

    def test_same_seed_same_weights(self) -> None:
        first, second = Cnn3((1, 8, 8), 10), Cnn3((1, 8, 8), 10)
        for model in (first, second):
            default_init(model, generator(5))
            shi_init(model, generator(6))
        torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)

    def test_layers_without_bias_are_fine(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        default_init(model, generator())
        shi_init(model, generator())
