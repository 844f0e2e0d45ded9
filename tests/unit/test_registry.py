"""Plug-ins by name: the file stem, closest matches, options, other packages' entry points."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from tightrope.core import registry
from tightrope.errors import InputError, TightropeError, UnknownNameError

SHIPPED = {
    "relaxations": {"ibp", "hbox", "deepz", "crown_ibp", "deeppoly"},
    "smoothers": {"none", "rgs", "pgpe"},
    "methods": {
        "standard",
        "pgd",
        "edac",
        "trades",
        "certified",
        "sabr",
        "taps",
        "staps",
        "mtl_ibp",
        "cc_ibp",
        "exp_ibp",
    },
    "models": {"mlp", "cnn3_tiny", "cnn3_small", "cnn3", "cnn5", "cnn7"},
    "datasets": {"digits", "mnist", "mnist_7x7", "fashion_mnist", "cifar10", "tinyimagenet"},
    "attacks": {"apgd", "pgd"},
    "ops": {
        "linear",
        "conv2d",
        "relu",
        "leaky_relu",
        "reshape",
        "add",
        "scale",
        "shift",
        "batchnorm",
        "avgpool2d",
        "sigmoid",
        "tanh",
        "conv_transpose2d",
        "concat",
        "tap",
        "maximum",
    },
}


@pytest.mark.parametrize("kind", SHIPPED)
def test_shipped_plugins_are_found(kind: str) -> None:
    names = registry.names(kind)
    assert SHIPPED[kind] <= set(names)
    assert names == sorted(names)
    assert not any(name.startswith("_") for name in names)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in SHIPPED for name in registry.names(kind)])
def test_every_plugin_can_be_loaded(kind: str, name: str) -> None:
    cls = registry.find(kind, name)
    assert isinstance(cls, type)
    assert cls.__module__.rsplit(".", 1)[1] == name
    assert registry.find(kind, name) is cls


@pytest.mark.parametrize(
    ("kind", "name", "closest"),
    [
        ("relaxations", "deep_poly", "deeppoly"),
        ("relaxations", "crown-ibp", "crown_ibp"),
        ("smoothers", "pgep", "pgpe"),
        ("methods", "certifed", "certified"),
        ("datasets", "minst", "mnist"),
        ("models", "cnn_3", "cnn3"),
    ],
)
def test_unknown_name_offers_the_closest(kind: str, name: str, closest: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{closest}'") as caught:
        registry.create(kind, name)
    assert isinstance(caught.value, TightropeError)
    assert isinstance(caught.value, LookupError)
    for known in registry.names(kind):
        assert known in str(caught.value)


def test_nothing_close_offers_nothing() -> None:
    with pytest.raises(UnknownNameError) as caught:
        registry.find("relaxations", "zzzzzz")
    assert "Did you mean" not in str(caught.value)
    assert "deeppoly" in str(caught.value)


@pytest.mark.parametrize("name", ["_backward", "__init__", "", "ibp.Ibp", "../ibp"])
def test_private_modules_are_not_plugins(name: str) -> None:
    with pytest.raises(UnknownNameError):
        registry.find("relaxations", name)


def test_unknown_kind() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'relaxations'"):
        registry.names("relaxation")


def test_options_reach_the_plugin() -> None:
    assert registry.create("smoothers", "pgpe", pairs=7).pairs == 7
    assert registry.create("relaxations", "deeppoly", slope="zero").slope == "zero"


def test_unknown_option_offers_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"option of pgpe.*Did you mean 'pairs'"):
        registry.create("smoothers", "pgpe", pair=7)


def test_missing_option_is_named() -> None:
    with pytest.raises(InputError, match=r"certified.*relaxation"):
        registry.create("methods", "certified")


def test_refused_option_values() -> None:
    with pytest.raises(InputError, match="pairs"):
        registry.create("smoothers", "pgpe", pairs=0)
    with pytest.raises(UnknownNameError, match="Did you mean 'adaptive'"):
        registry.create("relaxations", "deeppoly", slope="adaptiv")


@dataclass(frozen=True)
class Elsewhere:
    """A plug-in of another package."""

    option: int = 1


def test_other_packages_register_through_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str) -> list[Any]:
        point = SimpleNamespace(name="elsewhere", load=lambda: Elsewhere)
        return [point] if group == "tightrope.relaxations" else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert "elsewhere" in registry.names("relaxations")
    assert "elsewhere" not in registry.names("smoothers")
    assert registry.create("relaxations", "elsewhere", option=2) == Elsewhere(2)
    registry.find.cache_clear()


def test_entry_points_are_not_loaded_to_list_names(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "no_such_module:Nothing", "tightrope.relaxations")
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken] if group.endswith("relaxations") else [])
    assert "broken" in registry.names("relaxations")
