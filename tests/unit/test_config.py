"""Configurations: what is wrong is said at once and by name; what is right survives every road unchanged."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tightrope as tr
from tightrope.errors import ConfigError, MissingDataError, TightropeError, UnknownNameError
from tightrope.experiments.build import build_module, build_plugins
from tightrope.experiments.config import RunConfig, parse_config
from tightrope.experiments.load import config_toml, config_values, families, load_config, presets, single_presets

VALID: dict[str, Any] = {
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "method": {"name": "certified", "relaxation": "ibp"},
    "eps": {"train": "8/255"},
    "train": {"epochs": 1},
}


def with_values(**changes: Any) -> dict[str, Any]:
    """The valid settings with others, named ``section__key``."""
    values = copy.deepcopy(VALID)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values.setdefault(section, {})[key] = value
        else:
            values[section] = value
    return values


def problems(**changes: Any) -> list[str]:
    """What is wrong with the valid settings when these are changed; plug-ins included."""
    with pytest.raises(ConfigError) as caught:
        build_plugins(load_config(with_values(**changes))[1])
    return caught.value.problems


# ------------------------------------------------------------------------------------ what is wrong, and where


def test_the_valid_settings_are_valid() -> None:
    name, config = load_config(VALID)
    assert name == "config"
    assert build_plugins(config).dataset.name == "digits"


def sections(found: list[str]) -> list[str]:
    """The first part of the dotted key of every problem."""
    return sorted(problem.split(":")[0].split(".")[0] for problem in found)


def test_all_problems_of_the_settings_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(
            {
                "data": {"name": "digits", "validation": -1},
                "model": {"width": [3]},
                "method": {"name": "standard"},
                "eps": {"train": "2/0", "ramp": "cubic"},
                "optimizer": {"lr": 0, "milestones": [1, "x"]},
                "train": {"epochs": 0, "batch_size": 2.5},
                "speed": 3,
            },
            ["seed=-1"],
        )
    expected = [
        "data.validation",
        "model.name",
        "eps.train",
        "eps.ramp",
        "optimizer.lr",
        "optimizer.milestones.1",
        "train.epochs",
        "train.batch_size",
        "speed",
        "seed",
    ]
    assert sorted(problem.split(":")[0] for problem in caught.value.problems) == sorted(expected)
    assert all(f"  - {problem}" in str(caught.value) for problem in caught.value.problems)


def test_all_problems_of_the_plugins_are_reported_together() -> None:
    found = problems(
        data__name="digit",
        model={"name": "mpl"},
        method__relaxation={"name": "ibp", "slope": "zero"},
        smoother={"name": "rsg"},
        device="abacus",
    )
    assert sections(found) == ["data", "device", "method", "model", "smoother"]


def test_problems_of_settings_and_of_plugins_are_reported_together(tmp_path: Path) -> None:
    """However a configuration is wrong, it takes one attempt to learn everything."""
    with pytest.raises(ConfigError) as caught:
        tr.fit(with_values(train__epochs=0, model__name="mpl"), out=tmp_path / "run")
    assert sections(caught.value.problems) == ["model", "train"]
    assert not (tmp_path / "run").exists()


def test_all_problems_of_one_plugin_are_reported_together() -> None:
    found = "\n".join(
        problems(method={"name": "certified", "relaxtion": "ibp", "robust_wieght": 1, "relaxation": "ipb"})
    )
    for word in ("'relaxtion'", "'robust_wieght'", "'ipb'"):
        assert word in found


@pytest.mark.parametrize("section", ["data", "model", "method", "eps", "train"])
def test_required_sections_are_named(section: str) -> None:
    values = {key: value for key, value in VALID.items() if key != section}
    with pytest.raises(ConfigError, match=f"{section}: is required"):
        load_config(values)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train__epochs", 0),
        ("train__epochs", -3),
        ("train__epochs", 1.5),
        ("train__epochs", "many"),
        ("train__batch_size", 0),
        ("train__l1", -1e-9),
        ("train__shi", math.nan),
        ("train__shi_tolerance", 0),
        ("optimizer__lr", 0),
        ("optimizer__lr", -1),
        ("optimizer__lr", math.nan),
        ("optimizer__lr", math.inf),
        ("optimizer__momentum", 1.0),
        ("optimizer__weight_decay", -1),
        ("optimizer__clip_norm", math.inf),
        ("optimizer__factor", 0),
        ("optimizer__milestones", [-1]),
        ("optimizer__name", "adamm"),
        ("data__validation", math.nan),
        ("data__train", 0),
        ("data__pad", -1),
        ("eps__ramp", "cubic"),
        ("eps__finish", -1),
        ("smoother__std", -0.1),
        ("smoother__std", math.nan),
        ("smoother__epochs", 0),
        ("smoother__epochs", math.inf),
        ("model__init", "zero"),
        ("threads", 0),
        ("seed", -1),
        ("data", "digits"),
    ],
)
def test_values_out_of_range_are_refused_by_their_dotted_key(key: str, value: Any) -> None:
    (found,) = problems(**{key: value})
    assert found.startswith(key.replace("__", "."))
    assert "(got " in found


def test_a_ramp_that_ends_before_it_begins_is_refused() -> None:
    (found,) = problems(eps__begin=3, eps__finish=2)
    assert found.startswith("eps: ")
    assert "begin" in found


# ----------------------------------------------------------------------------------------- the closest match


@pytest.mark.parametrize(
    ("changes", "closest"),
    [
        ({"train__epoch": 2}, "epochs"),
        ({"optimizer__learning": 1, "optimizer__lrr": 1}, "lr"),
        ({"trian": {"epochs": 2}}, "train"),
        ({"data__name": "minst"}, "mnist"),
        ({"model__name": "cnn33"}, "cnn3"),
        ({"method__name": "certifed"}, "certified"),
        ({"method__relaxation": "deeppolly"}, "deeppoly"),
        ({"method": {"name": "pgd", "attack": "pdg"}}, "pgd"),
        ({"smoother": {"name": "pgep", "std": 0.1}}, "pgpe"),
        ({"method__robust_wieght": 0.5}, "robust_weight"),
        ({"method__relaxation": {"name": "deeppoly", "slop": "zero"}}, "slope"),
        ({"method": {"name": "pgd", "attack": {"name": "pgd", "stesp": 3}}}, "steps"),
        ({"smoother": {"name": "pgpe", "std": 0.1, "pair": 3}}, "pairs"),
        ({"model__widht": [3]}, "width"),
    ],
)
def test_unknown_names_come_with_the_closest_one(changes: dict[str, Any], closest: str) -> None:
    assert f"Did you mean {closest!r}?" in "\n".join(problems(**changes))


def test_unknown_presets_come_with_the_closest_one() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'digits/mlp-ibp'"):
        load_config("digits/mlp-ibpp")


@pytest.mark.parametrize(
    ("method", "word"),
    [
        ({"name": "certified"}, "relaxation"),
        ({"name": "certified", "relaxation": 3}, "relaxation"),
        ({"name": "certified", "relaxation": {"slope": "zero"}}, "relaxation"),
        ({"name": "certified", "relaxation": "ibp", "robust_weight": 2}, "robust_weight"),
        ({"name": "certified", "relaxation": "ibp", "robust_weight": "much"}, "robust_weight"),
        ({"name": "pgd", "attack": {"name": "pgd", "steps": -1}}, "steps"),
        ({"name": "pgd", "attack": {"name": "pgd", "loss": "hinge"}}, "loss"),
        ({"name": "standard", "relaxation": "ibp"}, "relaxation"),
    ],
)
def test_options_that_do_not_fit_are_refused(method: dict[str, Any], word: str) -> None:
    (found,) = problems(method=method)
    assert found.startswith("method")
    assert word in found


@pytest.mark.parametrize("width", [[0], ["a"], 3])
def test_model_options_that_do_not_fit_are_refused(width: Any, tmp_path: Path) -> None:
    with pytest.raises(TightropeError, match="width"):
        tr.fit(with_values(model__width=width), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------- weight noise


def test_noise_without_a_smoother_is_refused() -> None:
    (found,) = problems(smoother__std=0.1)
    assert found.startswith("smoother")
    assert "std" in found


def test_smoothed_epochs_need_a_smoother_and_a_run_as_long() -> None:
    (found,) = problems(smoother__epochs=1)
    assert found.startswith("smoother: ")
    (found,) = problems(smoother={"name": "rgs", "std": 0.1, "epochs": 3.5}, train__epochs=3)
    assert "smoother.epochs = 3.5 is more than train.epochs = 3" in found


def test_pgpe_without_noise_is_refused_when_built() -> None:
    for smoother in ({"name": "pgpe"}, {"name": "pgpe", "std": 0.0}):
        (found,) = problems(smoother=smoother)
        assert found.startswith("smoother")
        assert "std" in found


def test_rgs_without_noise_is_the_plain_gradient_and_allowed() -> None:
    build_plugins(load_config(with_values(smoother={"name": "rgs", "std": 0}))[1])


# ---------------------------------------------------------------------------------------------------- radius


@pytest.mark.parametrize("key", ["train", "test"])
@pytest.mark.parametrize(
    "eps", ["2", "256/255", 1.5, 8, "-0.1", -1, "nan", math.nan, "inf", -math.inf, "2/0", "", "abc", True, [0.1], {}]
)
def test_radii_that_are_none_are_refused(key: str, eps: Any) -> None:
    (found,) = problems(eps={"train": "0.1", key: eps})
    assert found.startswith(f"eps.{key}")


@pytest.mark.parametrize(
    ("eps", "text", "value"),
    [
        ("8/255", "8/255", Fraction(8, 255)),
        ("0.1", "0.1", Fraction(1, 10)),
        (0.1, "0.1", Fraction(1, 10)),
        (1e-05, "1e-05", Fraction(1, 100_000)),
        ("1/3", "1/3", Fraction(1, 3)),
        (0, "0", Fraction(0)),
        (1, "1", Fraction(1)),
        ("255/255", "255/255", Fraction(1)),
    ],
)
def test_radii_stay_exact_and_their_floats_are_the_least_above(eps: Any, text: str, value: Fraction) -> None:
    config = load_config(with_values(eps={"train": eps}))[1]
    assert config.eps.train == config.eps.target == text
    nearest = config.eps.value(text)
    assert Fraction(nearest) >= value
    assert nearest == 0 or Fraction(math.nextafter(nearest, 0)) < value


def test_the_target_radius_is_that_of_the_test() -> None:
    assert load_config(with_values(eps={"train": "0.2", "test": "1/10"}))[1].eps.target == "1/10"


# ----------------------------------------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=7", "train.epochs", 7),
        ("train.epochs = 7 ", "train.epochs", 7),
        ("optimizer.lr=1e-3", "optimizer.lr", 1e-3),
        ("optimizer.lr=+2.5", "optimizer.lr", 2.5),
        ("optimizer.milestones=[1, 2.5]", "optimizer.milestones", (1.0, 2.5)),
        ("optimizer.milestones=[]", "optimizer.milestones", ()),
        ("data.flip=true", "data.flip", True),
        ("optimizer.name=sgd", "optimizer.name", "sgd"),
        ('optimizer.name="sgd"', "optimizer.name", "sgd"),
        ("eps.train=8/255", "eps.train", "8/255"),
        ('eps.train="8/255"', "eps.train", "8/255"),
        ("eps.test=0.3", "eps.test", "0.3"),
        ("seed=5", "seed", 5),
        ("device=cpu", "device", "cpu"),
        ("model.width=[4, 5]", "model.width", [4, 5]),
        ("method.relaxation=crown_ibp", "method.relaxation", "crown_ibp"),
        ('method.relaxation={name = "deeppoly", slope = "zero"}', "method.relaxation.slope", "zero"),
    ],
)
def test_overrides_are_toml_or_bare_words(override: str, path: str, value: Any) -> None:
    found: Any = load_config(VALID, [override])[1]
    for part in path.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("word", ["a=b", "two words", "#x", "1.2.3", "[1", '"x', "8/x"])
def test_bare_words_are_taken_whole(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(VALID, [f"optimizer.name={word}"])
    assert repr(word) in str(caught.value)


def test_later_overrides_win_and_the_given_values_stay_as_they_are() -> None:
    before = copy.deepcopy(VALID)
    assert load_config(VALID, ["train.epochs=2", "train.epochs=3", "seed=3"])[1].train.epochs == 3
    assert before == VALID


@pytest.mark.parametrize("override", ["", "train.epochs", "=3", " = 3", "seed", "train.epochs.x=3", "eps.train.a.b=1"])
def test_malformed_overrides_are_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(VALID, [override])


@pytest.mark.parametrize("override", [".=3", "train.=3", ".epochs=3", "train..epochs=3", "train.epochs=", "train=3"])
def test_overrides_that_lead_nowhere_are_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(VALID, [override])


# ----------------------------------------------------------------------------------------------------- files


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(config_toml(load_config(VALID)[1]))
    for source in (path, str(path)):
        assert load_config(source) == ("my", load_config(VALID)[1])


@pytest.mark.parametrize(
    "content",
    [b"[data", b"a = ", b"[data]\nname = digits", b"[data]\n[data]", b"\xff\xfe\x00", b"seed = 1\nseed = 2"],
)
def test_files_that_are_no_toml_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not valid TOML") as caught:
        load_config(path)
    assert "my.toml" in str(caught.value)


def test_an_empty_file_lacks_everything(tmp_path: Path) -> None:
    (tmp_path / "my.toml").touch()
    with pytest.raises(ConfigError, match=r"data: is required"):
        load_config(tmp_path / "my.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")


# --------------------------------------------------------------------------------------------------- presets


def test_the_documented_presets_are_there() -> None:
    assert {"digits/mlp-ibp", "mnist-0.1/cnn3-ibp", "mnist-0.1/cnn3_tiny-deeppoly-rgs"} <= set(presets())


SOME = [*single_presets(), *(f"{family}/cnn3-taps" for family in families())]
"""One of each family stands for all its members; all are loaded in ``test_presets.py``."""


@pytest.mark.parametrize("preset", SOME)
def test_presets_load_and_build(preset: str) -> None:
    name, config = load_config(preset)
    assert name == preset
    plugins = build_plugins(config)
    net, params = tr.from_module(build_module(config, plugins), plugins.dataset.input_shape)
    assert net.num_outputs == plugins.dataset.num_classes
    assert set(net.trainable) <= set(params)


@pytest.mark.parametrize("preset", SOME)
def test_initial_weights_are_a_function_of_the_seed_alone(preset: str) -> None:
    def weights(seed: int, global_seed: int) -> torch.Tensor:
        config = load_config(preset, [f"seed={seed}"])[1]
        torch.manual_seed(global_seed)
        return torch.nn.utils.parameters_to_vector(build_module(config, build_plugins(config)).parameters())

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert not torch.equal(weights(0, 1), weights(1, 1))


# ----------------------------------------------------------------------------------------------- round trips

ODD: dict[str, dict[str, Any]] = {
    "defaults": {},
    "exact radii": {"eps": {"train": "8/255", "test": "1/3"}},
    "radius as a number": {"eps": {"train": 0.30000000000000004}},
    "small numbers": {"optimizer__lr": 5e-324, "train__l1": 2e-06},
    "large numbers": {"optimizer__lr": 1.7976931348623157e308, "seed": 2**62},
    "lists": {"optimizer__milestones": [0.1, 2, 3.5], "model__width": []},
    "nested tables": {"method__relaxation": {"name": "deeppoly", "slope": "zero"}},
    "not set": {"threads": None, "eps": {"train": "0.1", "test": None}},
    "everything": {
        "threads": 3,
        "data__train": 10,
        "device": "cpu",
        "smoother": {"name": "rgs", "std": 0.1, "pairs": 2},
    },
}


def through_toml(config: RunConfig, folder: Path) -> RunConfig:
    path = folder / "config.toml"
    path.write_text(config_toml(config), encoding="utf-8")
    return load_config(path)[1]


@pytest.mark.parametrize("label", ODD)
def test_configurations_survive_every_road(label: str, tmp_path: Path) -> None:
    config = load_config(with_values(**ODD[label]))[1]
    assert through_toml(config, tmp_path) == config
    assert parse_config(config_values(config), "values") == config
    assert load_config(config)[1] == config


@pytest.mark.parametrize("preset", SOME)
def test_presets_survive_every_road(preset: str, tmp_path: Path) -> None:
    config = load_config(preset)[1]
    assert through_toml(config, tmp_path) == config
    assert parse_config(config_values(config), "values") == config


@given(
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False), eps=st.fractions(0, 1), number=st.floats(0, 1)
)
def test_any_number_survives_toml(
    tmp_path_factory: pytest.TempPathFactory, lr: float, eps: Fraction, number: float
) -> None:
    config = load_config(with_values(optimizer__lr=lr, eps={"train": str(eps), "test": number}))[1]
    again = through_toml(config, tmp_path_factory.getbasetemp())
    assert again == config
    assert (again.optimizer.lr, Fraction(again.eps.train)) == (lr, eps)
