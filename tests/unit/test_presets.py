"""Presets: every one is valid, has the published recipe, and takes two steps; a configuration may extend another."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from tightrope.core import registry
from tightrope.data._loader import Samples
from tightrope.errors import ConfigError, InputError, MissingDataError, UnknownNameError
from tightrope.experiments.build import build_job, build_plugins
from tightrope.experiments.load import families, load_config, presets, single_presets
from tightrope.training.loop import train_step

METHODS = list(families()["mnist-0.1"][1])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_preset_is_valid() -> None:
    for name in presets():
        assert load_config(name)[0] == name


def test_every_setting_has_every_method_on_every_network() -> None:
    settings = {"mnist-0.1", "mnist-0.3", "cifar10-2-255", "cifar10-8-255", "tinyimagenet-1-255"}
    assert settings <= set(families())
    for family in settings:
        networks, methods = families()[family]
        assert set(networks) == {"cnn3", "cnn5", "cnn7"}
        configs = [load_config(f"{family}/cnn7-{method}")[1] for method in methods]
        assert {config.method.name for config in configs} == set(registry.names("methods"))
        bounds = {config.method.options.get("relaxation") for config in configs} - {None}
        assert bounds == set(registry.names("relaxations"))


# Read off the published scripts: epochs, batch, milestones, end of the ramp, radius of training and of the test.
SCHEDULES: dict[str, tuple[int, int, tuple[float, ...], float, str, str]] = {
    "mnist-0.1": (70, 256, (50, 60), 20, "1/5", "1/10"),
    "mnist-0.3": (70, 256, (50, 60), 20, "3/10", "3/10"),
    "cifar10-2-255": (160, 128, (120, 140), 81, "2/255", "2/255"),
    "cifar10-8-255": (240, 128, (200, 220), 121, "8/255", "8/255"),
    "tinyimagenet-1-255": (160, 128, (120, 140), 81, "1/255", "1/255"),
}
OWN_RADIUS = {("cifar10-2-255", "sabr"): "3/255", ("mnist-0.3", "taps"): "2/5"}
OWN_LENGTH = {("tinyimagenet-1-255", "exp_ibp")}


@pytest.mark.parametrize("family", SCHEDULES)
def test_schedules_are_the_published_ones(family: str) -> None:
    epochs, batch, milestones, finish, train, test = SCHEDULES[family]
    for method in METHODS:
        config = load_config(f"{family}/cnn7-{method}")[1]
        if (family, method) not in OWN_LENGTH:
            assert (config.train.epochs, config.optimizer.milestones, config.eps.finish) == (epochs, milestones, finish)
        assert config.train.batch_size == batch
        assert Fraction(config.eps.train) == Fraction(OWN_RADIUS.get((family, method), train))
        assert Fraction(config.eps.target) == Fraction(test)
        assert (config.optimizer.lr, config.optimizer.factor, config.optimizer.clip_norm) == (5e-4, 0.2, 10.0)
        certified = config.method.name not in {"standard", "pgd", "edac", "trades"}
        assert (config.model.init == "shi") == certified == (config.train.shi > 0)
        assert config.train.precise_bn
        assert config.train.label_smoothing == 0


def test_presets_that_are_files_go_before_those_of_the_family() -> None:
    assert load_config("mnist-0.1/cnn3-ibp")[1].train.epochs == 30
    assert load_config("mnist-0.1/cnn5-ibp")[1].train.epochs == 70
    assert "mnist-0.1/cnn3-ibp" in single_presets()


def test_a_split_that_the_network_does_not_have_is_refused_before_any_work() -> None:
    config = load_config("mnist-0.3/cnn3-taps", ["method.split=layers.99", "data.validation=0"])[1]
    samples = Samples(torch.zeros((8, 1, 28, 28), dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(InputError, match=r"'layers\.99'.*nodes in order"):
        build_job(config, build_plugins(config), data_dir=None, samples=samples)


# ---------------------------------------------------------------------------------------------- two steps each

FAST = ["eps.begin=0", "eps.finish=0.5", "train.batch_size=4", "data.validation=0"]  # one step in the ramp, one after


def two_steps(preset: str, *overrides: str) -> None:
    config = load_config(preset, [*FAST, *overrides])[1]
    plugins = build_plugins(config)
    shape, classes = plugins.dataset.input_shape, plugins.dataset.num_classes
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, *shape), generator=generator, dtype=torch.uint8)
    samples = Samples(images, torch.randint(classes, (8,), generator=generator))
    job = build_job(config, plugins, data_dir=None, samples=samples)
    state = job.new_state()
    for _ in range(2):
        train_step(job, state)
    for name in job.network.trainable:
        assert torch.isfinite(state.params[name]).all()
    assert any(not torch.equal(state.params[name], job.params[name]) for name in job.network.trainable)


SHAPES = ["mnist-0.3", "cifar10-8-255", "tinyimagenet-1-255"]


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_two_steps_on_a_narrow_network(family: str, method: str) -> None:
    """The first in the ramp, the second at full radius; back-substitution through every layer on cnn3 only."""
    network = "cnn3" if method in {"hbox", "deepz", "deeppoly"} else "cnn7"
    options = load_config(f"{family}/{network}-{method}")[1].method.options
    fewer = [f"method.{key}.steps=1" for key in ("attack", "search") if key in options]
    fewer += [f"method.{key}.restarts=1" for key in ("attack", "search") if key in options]
    two_steps(f"{family}/{network}-{method}", "model.width=1", *fewer)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name in presets() if name not in single_presets()])
def test_two_steps_at_full_width(preset: str) -> None:
    if preset.rpartition("-")[2] in {"hbox", "deepz", "deeppoly"} and "cnn3" not in preset:
        pytest.skip("hours of back-substitution on a CPU")
    two_steps(preset)


# ------------------------------------------------------------------------------------------------------ extends


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_extends_a_preset(tmp_path: Path) -> None:
    path = write(tmp_path / "my.toml", 'extends = "mnist-0.3/cnn7-sabr"\ntrain.epochs = 3\nmethod.ratio = 0.5\n')
    name, config = load_config(path, ["train.l1=0.0"])
    base = load_config("mnist-0.3/cnn7-sabr")[1]
    assert name == "my"
    assert (config.train.epochs, config.train.l1, config.method.options["ratio"]) == (3, 0.0, 0.5)
    assert config.method.options["attack"] == base.method.options["attack"]
    assert (config.eps, config.model, config.optimizer) == (base.eps, base.model, base.optimizer)


def test_a_file_extends_one_beside_it_that_extends_another(tmp_path: Path) -> None:
    write(tmp_path / "first.toml", 'extends = "digits/mlp-ibp"\nseed = 1\n[train]\nepochs = 2\n')
    write(tmp_path / "second.toml", 'extends = "first.toml"\n[train]\nbatch_size = 7\n')
    config = load_config(tmp_path / "second.toml")[1]
    assert (config.seed, config.train.epochs, config.train.batch_size, config.data.name) == (1, 2, 7, "digits")


def test_another_plugin_replaces_the_old_one_with_its_options() -> None:
    values: dict[str, Any] = {"extends": "mnist-0.3/cnn7-sabr", "method": {"name": "standard"}}
    assert load_config(values)[1].method.options == {}
    attack = {"name": "pgd", "steps": 2}
    config = load_config({"extends": "mnist-0.3/cnn7-sabr", "method": {"attack": attack}})[1]
    assert config.method.options["attack"] == {**attack, "restarts": 3, "step_size": 0.2}
    assert "extends" in values


def test_bases_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="digits/mlp-ibp"):
        load_config({"extends": "digits/mlp-ipb"})
    with pytest.raises(MissingDataError, match=r"nowhere\.toml"):
        load_config(write(tmp_path / "my.toml", 'extends = "nowhere.toml"\n'))
    with pytest.raises(ConfigError, match="extends: give the name"):
        load_config({"extends": 3})


def test_circles_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", 'extends = "b.toml"\n')
    write(tmp_path / "b.toml", 'extends = "a.toml"\n')
    with pytest.raises(ConfigError, match=r"a\.toml extends .*b\.toml extends .*a\.toml"):
        load_config(tmp_path / "a.toml")


def test_what_is_not_in_the_family_is_refused_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"mnist-0\.3/cnn7-sabr"):
        load_config("mnist-0.3/cnn7-sarb")
