"""Networks of other libraries: the function is theirs, nothing of a file is run, and what does not fit is refused.

The networks are built anew from the facts that the libraries publish: the order of layers, and the names in their
files. Widths are small; shapes are those of the datasets.
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import Tensor, nn
from typer.testing import CliRunner

import tightrope as tr
from tightrope.cli.main import app
from tightrope.core import registry
from tightrope.errors import (
    CheckpointError,
    ConfigError,
    CorruptDataError,
    InputError,
    MissingDataError,
    NumericalError,
    TightropeError,
    UnknownNameError,
)
from tightrope.experiments.published import read_published
from tightrope.experiments.source import find_source
from tightrope.frontend.checkpoints import filled, read_layers
from tightrope.records.imported import Published

CONVOLUTIONS = {  # channels in widths, kernel, stride, padding
    "cnn3": [(1, 5, 2, 2), (2, 4, 2, 1)],
    "cnn5": [(1, 3, 1, 1), (1, 4, 2, 1), (2, 4, 2, 1)],
    "cnn7": [(1, 3, 1, 1), (1, 3, 1, 1), (2, 3, 2, 1), (2, 3, 1, 1), (2, 3, 1, 1)],
}
STATISTICS = {
    "mnist": ([0.1307], [0.3081]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    "tinyimagenet": ([0.4802, 0.4481, 0.3975], [0.2302, 0.2265, 0.2262]),
    "digits": ([0.3058], [0.3684]),
}


class Normalization(nn.Module):
    """As the libraries of ETH have it: parameters (1, c, 1, 1)."""

    def __init__(self, mean: list[float], sigma: list[float]) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean).view(1, -1, 1, 1), requires_grad=False)
        self.sigma = nn.Parameter(torch.tensor(sigma).view(1, -1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.sigma


class LambdaRelu(nn.ReLU):
    """A ReLU with a parameter that is no part of the function."""

    def __init__(self) -> None:
        super().__init__()
        self.deepz_lambda = nn.Parameter(-torch.ones(3))


class Abstract(nn.Module):
    """A sequence of layers under the name ``layers``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def network(
    arch: str,
    dataset: str = "mnist",
    *,
    conv_bn: bool = False,
    linear_bn: bool = False,
    last_stride: int = 1,
    width: int = 2,
    hidden: int = 6,
    relu: Callable[[], nn.Module] = nn.ReLU,
) -> list[nn.Module]:
    """The layers behind the normalisation, with weights and statistics that are no defaults."""
    torch.manual_seed(0)
    task = registry.create("datasets", dataset)
    (channels, *size), layers = task.input_shape, []
    convolutions = CONVOLUTIONS[arch]
    for place, (share, kernel, stride, padding) in enumerate(convolutions):
        if arch == "cnn7" and place + 1 == len(convolutions):
            stride = last_stride
        layers += [nn.Conv2d(channels, share * width, kernel, stride, padding)]
        layers += [nn.BatchNorm2d(share * width)] * conv_bn + [relu()]
        channels, size = share * width, [(n + 2 * padding - kernel) // stride + 1 for n in size]
    layers, features = [*layers, nn.Flatten()], channels * size[0] * size[1]
    if arch != "cnn3":
        layers += [nn.Linear(features, hidden), *[nn.BatchNorm1d(hidden)] * linear_bn, relu()]
        features = hidden
    layers += [nn.Linear(features, task.num_classes)]
    for layer in layers:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for value in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(value)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            layer.num_batches_tracked += 7
    return layers


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    return OrderedDict((prefix + name, value) for name, value in state.items())


def as_graph(module: nn.Module) -> OrderedDict[str, Tensor]:
    """Names of the nodes of a traced graph: inputs, weights and operations are numbered; there are no counters."""
    kept = {name: value for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    kind = ["buffer" if "running" in name else "param" for name in kept]
    return OrderedDict(
        (f"/{2 * n + 1}.{k}", value) for n, (k, value) in enumerate(zip(kind, kept.values(), strict=True))
    )


Case = tuple[str, str, nn.Module, Any, str | None]
"""Architecture, dataset, their module on inputs in [0, 1], what is saved, and the normalisation to state."""


def ctbench() -> Case:
    module = Abstract(Normalization(*STATISTICS["cifar10"]), *network("cnn7", "cifar10", conv_bn=True, linear_bn=True))
    return "cnn7", "cifar10", module, module.state_dict(), None


def ctbench_tinyimagenet() -> Case:
    layers = network("cnn7", "tinyimagenet", conv_bn=True, linear_bn=True, last_stride=2)
    module = Abstract(Normalization(*STATISTICS["tinyimagenet"]), *layers)
    return "cnn7", "tinyimagenet", module, module.state_dict(), "tinyimagenet"


def ctbench_cnn3_bn() -> Case:
    module = Abstract(Normalization(*STATISTICS["mnist"]), *network("cnn3", conv_bn=True, width=5))
    return "cnn3", "mnist", module, module.state_dict(), "mnist"


def ctbench_cnn5() -> Case:
    module = Abstract(Normalization(*STATISTICS["mnist"]), *network("cnn5"))
    return "cnn5", "mnist", module, module.state_dict(), None


def sabr_converted() -> Case:
    """The batch normalisation behind the linear layer is merged with it, that of the input is left out."""
    layers = network("cnn7", conv_bn=True)
    module = nn.Sequential(Normalization(*STATISTICS["mnist"]), *layers)
    kept = {k: v for k, v in nn.Sequential(*layers).state_dict().items() if not k.endswith("num_batches_tracked")}
    return "cnn7", "mnist", module, dict(prefixed("blocks.", kept)), "0.1307/0.3081"


def sabr_whole() -> Case:
    """The module itself, of classes that are not there."""
    layers = network("cnn7", conv_bn=True, linear_bn=True, relu=LambdaRelu)
    module = Abstract(Abstract(Normalization(*STATISTICS["mnist"]), *layers))
    return "cnn7", "mnist", module, module, None


def expressive_losses() -> Case:
    layers = nn.Sequential(*network("cnn7", "cifar10", conv_bn=True, linear_bn=True))
    moments = {n: {"step": torch.tensor(1.0), "exp_avg": value} for n, value in enumerate(layers.parameters())}
    optimizer = {"state": moments, "param_groups": [{"lr": 5e-4, "betas": (0.9, 0.999), "params": [*moments]}]}
    module = nn.Sequential(Normalization(*STATISTICS["cifar10"]), layers)
    saved = {"state_dict": layers.state_dict(), "optimizer": optimizer, "epoch": 160}
    return "cnn7", "cifar10", module, saved, "cifar10"


def expressive_losses_bn() -> Case:
    """No batch normalisation behind the linear layer."""
    layers = nn.Sequential(*network("cnn7", "cifar10", conv_bn=True))
    module = nn.Sequential(Normalization(*STATISTICS["cifar10"]), layers)
    return "cnn7", "cifar10", module, {"state_dict": layers.state_dict(), "epoch": 1}, "cifar10"


def ctrain() -> Case:
    layers = nn.Sequential(*network("cnn7", "cifar10", conv_bn=True, linear_bn=True))
    return "cnn7", "cifar10", layers, as_graph(layers), "none"


def ctrain_checkpoint() -> Case:
    layers = nn.Sequential(*network("cnn5", "cifar10", conv_bn=True, linear_bn=True))
    saved = {"epoch": 3, "model_state_dict": as_graph(layers), "optimizer_state_dict": {"state": {}}, "loss": 0.5}
    return "cnn5", "cifar10", layers, saved, "none"


def ctrain_large_images() -> Case:
    """The last stride is 1 whatever the size of the images."""
    layers = nn.Sequential(*network("cnn7", "tinyimagenet", conv_bn=True, linear_bn=True))
    return "cnn7", "tinyimagenet", layers, as_graph(layers), "none"


def parallel_and_compiled() -> Case:
    layers = nn.Sequential(*network("cnn5"))
    return "cnn5", "mnist", layers, prefixed("module._orig_mod.", layers.state_dict()), "none"


def lightning() -> Case:
    layers = nn.Sequential(*network("cnn7"))
    saved = {
        "epoch": 1,
        "pytorch-lightning_version": "2.0",
        "state_dict": prefixed("model.", layers.state_dict()),
        "hyper_parameters": {"args": argparse.Namespace(eps=0.1, path=Path("x"))},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
    }
    return "cnn7", "mnist", layers, saved, "none"


def sorted_names() -> Case:
    """As after a detour through a format that sorts: layer 10 comes before layer 2, and biases before weights."""
    module = Abstract(Normalization(*STATISTICS["mnist"]), *network("cnn7", conv_bn=True, linear_bn=True))
    return "cnn7", "mnist", module, dict(sorted(module.state_dict().items())), None


def linear_layers() -> Case:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 10))
    return "mlp", "mnist", layers, layers.state_dict(), "none"


CASES = (
    *(ctbench, ctbench_tinyimagenet, ctbench_cnn3_bn, ctbench_cnn5, sabr_converted, sabr_whole, expressive_losses),
    *(expressive_losses_bn, ctrain, ctrain_checkpoint, ctrain_large_images, parallel_and_compiled, lightning),
    *(sorted_names, linear_layers),
)


def saved(tmp_path: Path, value: Any, name: str = "model.ckpt") -> Path:
    torch.save(value, tmp_path / name)
    return tmp_path / name


def imported(path: Path, arch: str | None = "cnn7", dataset: str = "mnist", **options: Any) -> tr.Imported:
    out = options.pop("out", path.parent / "imported")
    return tr.import_network(path, out, dataset=dataset, eps="0.1", arch=arch, **options)


@pytest.mark.parametrize("build", CASES)
def test_the_function_is_theirs(build: Callable[[], Case], tmp_path: Path) -> None:
    """In real terms: outputs agree to the rounding of float32 at random images."""
    arch, dataset, module, content, normalize = build()
    found = imported(saved(tmp_path, content), arch, dataset, normalize=normalize)
    x = torch.rand((3, *registry.create("datasets", dataset).input_shape))
    with torch.no_grad():
        torch.testing.assert_close(found.network(found.params, x), module.eval()(x), rtol=1e-5, atol=1e-5)


def test_what_is_not_used_is_named(tmp_path: Path) -> None:
    *_, content, _ = sabr_whole()
    unused = imported(saved(tmp_path, content)).record.unused
    assert sum(name.endswith("deepz_lambda") for name in unused) == 6
    assert f"{__name__}.LambdaRelu" in unused
    assert imported(saved(tmp_path, ctbench()[3]), "cnn7", "cifar10", out=tmp_path / "other").record.unused == ()


def test_float64_weights_stay_as_they_are(tmp_path: Path) -> None:
    layers = nn.Sequential(*network("cnn3")).double()
    found = imported(saved(tmp_path, layers.state_dict()), "cnn3", normalize="none")
    assert torch.equal(found.params["layers.0.weight"], layers[0].weight)
    assert found.params["layers.0.weight"].dtype == torch.float64


def test_layers_of_one_size_in_the_order_of_their_names_are_put_back_by_their_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = [784, *[4] * 11, 10]
    layers = [nn.Linear(*size) for size in pairwise(sizes)]
    names = [*(f"hidden{i}" for i in range(11)), "out"]
    relus = [(f"relu{i}", nn.ReLU()) for i in range(11)]
    pairs = zip(zip(names, layers, strict=True), [*relus, ("end", nn.Identity())], strict=True)
    net = nn.Sequential(OrderedDict([("flat", nn.Flatten()), *chain.from_iterable(pairs)]))
    state = net.state_dict()
    by_name = {key: state[key] for name in sorted(names) for key in (f"{name}.weight", f"{name}.bias")}
    path = tmp_path / "sorted.pt"
    torch.save(by_name, path)
    found = tr.import_network(path, tmp_path / "out", dataset="mnist", eps=0.1, arch="mlp", normalize="none")
    assert list(by_name)[::2] != [f"{name}.weight" for name in names]
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(found.network(found.params, x), net(x))


@pytest.mark.parametrize(("nested", "message"), [(False, "before the weight of the first"), (True, "is left over")])
def test_a_normalisation_of_batches_before_the_first_layer_is_not_passed_over(
    nested: bool, message: str, tmp_path: Path
) -> None:
    norm, layers = nn.BatchNorm2d(1, affine=False), [nn.Flatten(), nn.Linear(784, 4), nn.ReLU(), nn.Linear(4, 10)]
    net = nn.Sequential(norm, nn.Sequential(*layers)) if nested else nn.Sequential(norm, *layers)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=message):
        tr.import_network(tmp_path / "net.pt", tmp_path / "o", dataset="mnist", eps=0, arch="mlp", normalize="none")


def test_two_normalisations_of_the_inputs_are_refused() -> None:
    state = {"a.mean": torch.ones(1), "a.std": torch.ones(1), "b.mean": torch.zeros(1), "0.weight": torch.ones(2, 2)}
    with pytest.raises(CheckpointError, match=r"a\.mean and b\.mean are two normalisations"):
        read_layers(state)


def test_a_whole_module_with_another_activation_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.LeakyReLU(0.1), nn.Linear(4, 10))
    torch.save(net, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="names LeakyReLU, which the architecture does not have"):
        tr.import_network(tmp_path / "net.pt", tmp_path / "o", dataset="mnist", eps=0, arch="mlp", normalize="none")


def test_one_float64_tensor_makes_all_of_them_float64(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.ReLU(), nn.Linear(4, 10))
    net[1].bias.data = net[1].bias.data.double()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    found = tr.import_network(tmp_path / "net.pt", tmp_path / "o", dataset="mnist", eps=0, arch="mlp", normalize="none")
    assert {value.dtype for value in found.params.values()} == {torch.float64}


def test_half_precision_becomes_the_same_float32_numbers(tmp_path: Path) -> None:
    layers = nn.Sequential(*network("cnn3")).half()
    found = imported(saved(tmp_path, layers.state_dict()), "cnn3", normalize="none")
    assert torch.equal(found.params["layers.0.weight"], layers[0].weight.float())


# ------------------------------------------------------------------------------------------- nothing of a file runs


class Malicious:
    """Asks, when it is unpickled, for a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def attacks(mark: Path) -> dict[str, Malicious]:
    python = f"open({str(mark)!r}, 'w').close()"
    return {
        "os.system": Malicious(os.system, f"touch {mark}"),
        "subprocess": Malicious(subprocess.check_call, ["touch", str(mark)]),
        "exec": Malicious(builtins.exec, python),
        "eval": Malicious(builtins.eval, python),
        "open": Malicious(builtins.open, str(mark), "w"),
        "import": Malicious(importlib.import_module, "left_by_a_checkpoint"),
        "torch.load": Malicious(torch.load, str(mark)),
        "unpickle": Malicious(pickle.loads, pickle.dumps(Malicious(os.system, f"touch {mark}"))),
    }


@pytest.mark.parametrize("attack", attacks(Path("mark")))
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_malicious_file_runs_nothing(attack: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, or read without what it asks for; a file beside it that would be imported is not."""
    mark = tmp_path / "mark"
    (tmp_path / "left_by_a_checkpoint.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    content = {"state_dict": nn.Sequential(*network("cnn3")).state_dict(), "extra": attacks(mark)[attack]}
    path = tmp_path / "model.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    try:
        found = imported(path, "cnn3", normalize="none")
    except CorruptDataError as error:
        assert "torch.save(model.state_dict()" in str(error)  # noqa: PT017
    else:
        assert found.record.unused
        assert find_source(found.path).params
    assert not mark.exists()
    assert "left_by_a_checkpoint" not in sys.modules


def test_stand_ins_do_not_outlive_the_reading(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    imported(saved(tmp_path, lightning()[3]), normalize="none")
    assert set(torch.serialization.get_safe_globals()) == before


# --------------------------------------------------------------------------------------------------- what is refused


def state(arch: str = "cnn7", **options: Any) -> dict[str, Tensor]:
    return dict(nn.Sequential(*network(arch, **options)).state_dict())


def kernels(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of another size."""
    return given | {"0.weight": torch.zeros(2, 1, 5, 5)}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            state("cnn5"),
            r"5 layers, from 0.weight to 9.weight \(3 convolutions, 2 linear\); expected are 7 ",
        ),
        (kernels(state()), r"layer 1 \(0.weight\): the weight is 2 x 1 x 5 x 5, 2 x 1 x 3 x 3 is expected"),
        (state(dataset="cifar10"), r"layer 1 \(0.weight\): the weight is 2 x 3 x 3 x 3, 2 x 1 x 3 x 3 is expected"),
        ({k: v for k, v in state().items() if not k.startswith("13.")}, "it has 6 layers"),
        ({**state(), "99.weight": torch.zeros(10, 10)}, "it has 8 layers, from 0.weight to 99.weight"),
        ({k: v for k, v in state().items() if k != "2.bias"}, "layer 2 .*: the bias is missing, 2 is expected"),
        ({**state(), "13.extra.bias": torch.zeros(10)}, "2 vectors were found"),
        (state() | {"0.bias": torch.zeros(3)}, "1 vectors were found: 0.bias 3"),
        ({k: v for k, v in state(conv_bn=True).items() if "4.run" not in k}, "3 vectors were found"),
        ({k: v for k, v in state(conv_bn=True).items() if k[:2] != "4."}, "layer 2 has no batch normalisation"),
        ({k: v for k, v in state(conv_bn=True).items() if k[:2] != "1."}, "a batch normalisation follows"),
        ({"epoch": 3, "best": torch.tensor(0.5)}, "there are no weights"),
        ({"epoch": 3}, "has no tensors"),
        ([1, 2], "has no tensors"),
        ({k: v.to(torch.int32) for k, v in state().items()}, "no plain tensor of floats"),
    ],
)
def test_weights_of_something_else_are_refused(content: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=match):
        imported(saved(tmp_path, content), normalize="none")
    assert not (tmp_path / "imported").exists()


def test_a_bias_that_the_architecture_does_not_have() -> None:
    tensors = nn.Linear(3, 2).state_dict()
    with pytest.raises(CheckpointError, match="has a bias, but none is expected"):
        filled(nn.Linear(3, 2, bias=False), read_layers(tensors).layers)


def test_tensors_of_one_shape_in_another_order_are_refused_by_their_names(tmp_path: Path) -> None:
    """Unless the layers are numbered; then the numbers say the order."""
    given = state(conv_bn=True)
    names = list(given)
    here, there = names.index("1.weight"), names.index("1.running_var")
    names[here], names[there] = names[there], names[here]
    swapped = {name: given[name] for name in names}
    spelled = {chr(ord("z") - int(name.split(".")[0])) + "." + name.split(".")[1]: swapped[name] for name in swapped}
    with pytest.raises(CheckpointError, match="vectors were found"):
        imported(saved(tmp_path, spelled), normalize="none")
    found = imported(saved(tmp_path, swapped), normalize="none")
    assert torch.equal(found.params["layers.1.weight"], given["1.weight"])


def test_one_of_several_networks_is_chosen_by_its_prefix(tmp_path: Path) -> None:
    ours, average = state("cnn3"), {name: 2 * value for name, value in state("cnn3").items()}
    path = saved(tmp_path, {"net": ours, "ema": average})
    with pytest.raises(CheckpointError, match=r"several networks .*'net', 'ema'"):
        imported(path, "cnn3", normalize="none")
    found = imported(path, "cnn3", normalize="none", prefix="ema")
    assert torch.equal(found.params["layers.0.weight"], average["0.weight"])
    assert "net.0.weight" in found.record.unused
    with pytest.raises(CheckpointError, match="no tensors below 'model'"):
        imported(path, "cnn3", normalize="none", prefix="model")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def script(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


def other_archive(path: Path) -> None:
    path.write_bytes(b"PK\x05\x06" + bytes(18))


def bomb(path: Path) -> None:
    """A compressed archive of much more than it weighs."""
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
        archive.writestr("archive/data/99", bytes(2**20))


def text(path: Path) -> None:
    path.write_text("weights")


@pytest.mark.parametrize("damage", [truncated, noise, script, other_archive, bomb, text])
def test_files_that_cannot_be_read(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = saved(tmp_path, state("cnn3"))
    damage(path)
    with pytest.raises(CorruptDataError, match="cannot be read as weights"):
        imported(path, "cnn3", normalize="none")


@pytest.mark.parametrize("damage", [folder, Path.unlink])
def test_files_that_are_not_there(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = saved(tmp_path, state("cnn3"))
    damage(path)
    with pytest.raises(MissingDataError, match=r"does not exist|is a folder"):
        imported(path, "cnn3", normalize="none")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    given = state("cnn3")
    given["2.weight"][0, 0, 0, 0] = value
    with pytest.raises(NumericalError, match="NaN or infinite"):
        imported(saved(tmp_path, given), "cnn3", normalize="none")


def test_an_unsafe_shape_costs_nothing(tmp_path: Path) -> None:
    """A tensor of one stored number that claims to be huge."""
    huge = torch.zeros(1).expand(10**12)
    with pytest.raises(CheckpointError):
        imported(saved(tmp_path, {"mean": huge, "sigma": huge, "0.weight": huge.view(10**6, 10**6)}), normalize="none")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"arch": None}, InputError, "of which architecture .*cnn7"),
        ({"arch": "cnn33"}, ConfigError, "cnn3"),
        ({"dataset": "mnistt"}, UnknownNameError, "mnist"),
        ({"normalize": None}, InputError, "does not say how inputs were normalised"),
        ({"normalize": "imagenet"}, InputError, "neither none"),
        ({"normalize": "0.5/0"}, CheckpointError, "std"),
        ({"normalize": "0.5,0.5/0.2,0.2"}, CheckpointError, "one value or one for each"),
        ({"published": "natural=101"}, InputError, "natural"),
    ],
)
def test_settings_that_are_wrong_or_missing(
    options: dict[str, Any], error: type[TightropeError], match: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        imported(saved(tmp_path, state("cnn3")), **{"arch": "cnn3", "normalize": "none"} | options)


def test_a_normalisation_that_contradicts_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, ctbench_cnn5()[3])
    with pytest.raises(InputError, match=r"has the normalisation 0.1307/0.3081, not 0/1"):
        imported(path, "cnn5", normalize="none")


def test_another_number_of_classes(tmp_path: Path) -> None:
    layers = network("cnn7", "cifar10")
    layers[-1] = nn.Linear(6, 200)
    path = saved(tmp_path, nn.Sequential(*layers).state_dict())
    with pytest.raises(CheckpointError, match=r"the weight is 200 x 6, 10 x 6 is expected"):
        imported(path, "cnn7", "cifar10", normalize="none")


# ------------------------------------------------------------------------------------------------------- the folder


def digits_network(tmp_path: Path, name: str = "theirs.ckpt") -> Path:
    module = Abstract(Normalization(*STATISTICS["digits"]), *network("cnn3", "digits"))
    return saved(tmp_path, module.state_dict(), name)


def test_the_folder_is_certified_audited_and_exported_like_that_of_a_run(tmp_path: Path) -> None:
    found = imported(digits_network(tmp_path), "cnn3", "digits")
    summary = tr.certify(found.path, count=6, eps="0.01", evidence=True, batch_size=3)
    assert summary.count == 6
    assert summary.certified > 0
    (records,) = found.path.glob("certify-*.jsonl")
    before = records.read_bytes()
    assert tr.certify(found, count=6, eps="0.01", evidence=True, batch_size=3) == summary
    assert records.read_bytes() == before
    audited = tr.audit(found.path)
    assert audited
    assert all(one.confirmed and one.replayed for one in audited)
    for shard in ("1/2", "2/2"):
        merged = tr.certify(found, count=6, eps="0.02", batch_size=3, shard=shard)
    assert merged.count == 6


def test_it_is_exported_like_a_run(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    found = imported(digits_network(tmp_path), "cnn3", "digits")
    files = [path.name for path in tr.export(found, vnnlib=1)]
    assert files == ["network.onnx", "image-0.vnnlib", "instances.csv"]


def test_a_run_can_start_from_it(tmp_path: Path) -> None:
    found = imported(digits_network(tmp_path), "cnn3", "digits")
    settings = {
        "data": {"name": "digits", "train": 64},
        "model": {"name": "cnn3", "width": 2},
        "method": {"name": "standard"},
        "eps": {"train": "0.01"},
        "optimizer": {"lr": 1e-9},
        "train": {"epochs": 1},
    }
    run = tr.fit(settings, out=tmp_path / "run", init_from=found)
    torch.testing.assert_close(run.params["layers.0.weight"], found.params["layers.0.weight"], rtol=1e-4, atol=1e-6)


def test_importing_again_continues_and_another_network_is_refused(tmp_path: Path) -> None:
    path = digits_network(tmp_path)
    first = imported(path, "cnn3", "digits", published="natural=98.5")
    again = imported(path, "cnn3", "digits")
    assert again.record == first.record
    assert again.record.published == Published(natural=98.5)
    with pytest.raises(InputError, match="holds another network"):
        imported(saved(tmp_path, state("cnn3"), "other.pt"), "cnn3", normalize="none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").touch()
    with pytest.raises(InputError, match="exists and holds no imported network"):
        imported(path, "cnn3", "digits", out=tmp_path / "full")


def test_an_altered_folder_is_noticed(tmp_path: Path) -> None:
    found = imported(digits_network(tmp_path), "cnn3", "digits")
    other = imported(saved(tmp_path, state("cnn3"), "b.pt"), "cnn3", normalize="none", out=tmp_path / "b")
    found.folder.weights.write_bytes(other.folder.weights.read_bytes())
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        tr.certify(found.path, count=1)
    found.folder.imported.write_text("{}")
    with pytest.raises(CorruptDataError, match="record of an imported network"):
        tr.certify(found.path, count=1)
    with pytest.raises(MissingDataError, match="imported network"):
        tr.load(found.path)


def test_onnx_files_are_taken_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    source = imported(digits_network(tmp_path), "cnn3", "digits")
    file = tr.export(source, tmp_path)[0]
    found = imported(file, None, "digits", out=tmp_path / "onnx")
    x = torch.rand((4, 1, 8, 8), dtype=torch.float64)
    ours = {name: value.double() for name, value in source.params.items()}
    torch.testing.assert_close(found.network(found.params, x), source.network(ours, x))
    assert tr.certify(found, count=3).count == 3
    with pytest.raises(InputError, match="leave the architecture out"):
        imported(file, "cnn3", "digits")
    with pytest.raises(InputError, match="taken as it is"):
        imported(file, None, "digits", normalize="digits")
    with pytest.raises(InputError, match="takes inputs"):
        imported(file, None, "mnist")


# ------------------------------------------------------------------------------------------------ published figures


def test_published_figures_as_text_and_files(tmp_path: Path) -> None:
    expected = Published(natural=77.86, certified=63.61)
    (tmp_path / "a.toml").write_text("natural = 77.86\ncertified = 63.61\n")
    (tmp_path / "a.json").write_text('{"natural": 77.86, "certified": 63.61}')
    for text in ("natural=77.86, certified=63.61", str(tmp_path / "a.toml"), str(tmp_path / "a.json")):
        assert read_published(text) == expected
    assert read_published({"natural": 77.86, "certified": 63.61}) == expected
    assert read_published(None) is None


@pytest.mark.parametrize("text", ["natural=high", "clean=77", "natural", "natural=", "natural=nan", "certified=-1"])
def test_published_figures_that_cannot_be_read(text: str) -> None:
    with pytest.raises((InputError, MissingDataError), match="in percent"):
        read_published(text)


# ------------------------------------------------------------------------------------------------- the command line


def tightrope(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def test_a_file_is_certified_beside_published_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = digits_network(tmp_path)
    given = ("--arch", "cnn3", "--data", "digits", "--eps", "0.01", "--count", 5)
    result = tightrope("certify", path, *given, "--published", "natural=99.5,certified=90")
    assert result.exit_code == 0, result.output
    for text in ("cnn3 width=2", "0.3058 / 0.3684", "published", "99.50 %", "normalised like this"):
        assert text in result.output
    assert (tmp_path / "runs" / "theirs" / "imported.json").is_file()
    again = tightrope("certify", "runs/theirs", "--count", 5)
    assert again.exit_code == 0
    assert "99.50 %" in again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "cnn3", "--eps", "0.1"), "--data and --eps"),
        (("--data", "digits", "--eps", "0.1"), "--arch"),
        (("--arch", "cnn5", "--data", "digits", "--eps", "0.1"), "expected are 5"),
        (("--arch", "cnn3", "--data", "digits", "--eps", "0.1", "--out", "a.jsonl"), "--out is a folder"),
        (("--arch", "cnn3", "--data", "digits", "--eps", "0.1", "--published", "good"), "in percent"),
    ],
)
def test_what_is_wrong_with_a_command_is_said(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tightrope("certify", digits_network(tmp_path), *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    result = tightrope("certify", tmp_path / "model.ckpt", "--arch", "cnn3", "--data", "digits", "--eps", "0.1")
    assert result.exit_code == 2
    assert "model.ckpt does not exist" in result.output


def test_options_for_files_are_refused_for_folders(tmp_path: Path) -> None:
    found = imported(digits_network(tmp_path), "cnn3", "digits")
    result = tightrope("certify", found.path, "--arch", "cnn3")
    assert result.exit_code == 2
    assert "files of other libraries" in result.output
