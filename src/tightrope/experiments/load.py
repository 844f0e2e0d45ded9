"""Find a configuration (preset, TOML file, mapping), apply ``--set`` overrides, validate.

A configuration may extend another: ``extends = "NAME"``, a preset or a file beside it. Tables are merged key by key,
except that one which names another plug-in takes the place of the older one with all its options.

A preset is a file of its own, ``presets/SETTING/PRESET.toml``, or else one of a family, ``SETTING/NETWORK-METHOD``:
from ``presets/SETTING.toml`` the table ``all``, extended by ``networks.NETWORK``, ``methods.METHOD`` and, if there is
one, ``only.NETWORK-METHOD``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import tomli_w

from tightrope.errors import ConfigError, MissingDataError, UnknownNameError
from tightrope.experiments.config import RunConfig, parse_config

ConfigSource = str | Path | Mapping[str, Any] | RunConfig


def presets() -> list[str]:
    """Names of all presets, such as ``mnist-0.1/cnn3-ibp``."""
    return sorted(_known())


def families() -> dict[str, tuple[list[str], list[str]]]:
    """The networks and the methods of every family of presets; each combination is one, ``FAMILY/NETWORK-METHOD``.

    Example:
        >>> networks, methods = families()["cifar10-2-255"]
        >>> networks
        ['cnn3', 'cnn5', 'cnn7']
    """
    return {
        entry.name.removesuffix(".toml"): (sorted(tables["networks"]), list(tables["methods"]))
        for entry in _root().iterdir()
        if entry.name.endswith(".toml")
        for tables in [_family(entry.name.removesuffix(".toml"))]
    }


def single_presets() -> list[str]:
    """Names of the presets that are files of their own."""
    return sorted(_files())


def load_config(source: ConfigSource, overrides: Iterable[str] = ()) -> tuple[str, RunConfig]:
    """A validated configuration and its name.

    Args:
        source: a preset's name, the path of a TOML file, nested values, or a configuration.
        overrides: ``section.key=value`` each, the value in TOML (a bare word is taken as a string).

    Raises:
        UnknownNameError: no such preset; the closest is offered.
        MissingDataError: no such file.
        ConfigError: TOML that cannot be read, or settings that are wrong; all of them are named.

    Example:
        >>> load_config("digits/mlp-ibp", ["train.epochs=3"])[1].train.epochs
        3
    """
    name, values = read_values(source, overrides)
    return name, parse_config(values, name)


def read_values(source: ConfigSource, overrides: Iterable[str] = ()) -> tuple[str, dict[str, Any]]:
    """The name and the nested values of :func:`load_config`, not validated.

    Raises:
        UnknownNameError, MissingDataError: no such preset or file.
        ConfigError: TOML that cannot be read.
    """
    name, values = _read(source)
    for override in overrides:
        _apply(values, override)
    return name, values


def config_values(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain nested values, defaults filled in, None left out."""
    return config.model_dump(mode="json", exclude_none=True)


def flat_values(config: RunConfig) -> dict[str, Any]:
    """The values of :func:`config_values` by dotted key.

    Example:
        >>> flat_values(load_config("mnist-0.1/cnn3-pgd")[1])["method.attack.restarts"]
        3
    """
    return dict(_flattened(config_values(config), ""))


def config_toml(config: RunConfig) -> str:
    """The configuration as TOML."""
    return tomli_w.dumps(config.model_dump(mode="python", exclude_none=True))


def _root() -> Traversable:
    return files("tightrope.experiments") / "presets"


@cache
def _known() -> frozenset[str]:
    members = {name for family, (networks, methods) in families().items() for name in _names(family, networks, methods)}
    return frozenset(members | _files())


@cache
def _files() -> set[str]:
    folders = [folder for folder in _root().iterdir() if folder.is_dir()]
    return {
        f"{f.name}/{e.name.removesuffix('.toml')}" for f in folders for e in f.iterdir() if e.name.endswith(".toml")
    }


def _names(family: str, networks: Iterable[str], methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    return {f"{family}/{network}-{method}": (network, method) for network in networks for method in methods}


@cache
def _family(name: str) -> dict[str, Any]:
    return _parse((_root() / f"{name}.toml").read_bytes(), name)


def _preset(name: str) -> dict[str, Any]:
    if name in _files():
        return _parse((_root() / f"{name}.toml").read_bytes(), name)
    family = name.partition("/")[0]
    tables = _family(family)
    network, method = _names(family, tables["networks"], tables["methods"])[name]
    values = _copy(tables["all"])
    for part in (tables["networks"][network], tables["methods"][method], tables["only"].get(f"{network}-{method}", {})):
        values = _extended(values, part)
    return values


def _extended(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The base with other values; tables are merged unless they name another plug-in."""
    found = _copy(base)
    for key, value in values.items():
        old = found.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _names_another(old, value):
            found[key] = _extended(old, value)
        else:
            found[key] = _copy(value) if isinstance(value, Mapping) else value
    return found


def _names_another(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "name" in old and "name" in new and old["name"] != new["name"]


def _with_base(name: str, values: dict[str, Any], folder: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    """The values with those that they extend, if they do."""
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError([f"extends: give the name of a preset or of a TOML file, got {base!r}"], name)
    source = str(folder / base) if base.endswith(".toml") else base
    if source in seen:
        raise ConfigError([f"extends: {' extends '.join((*seen, source))}"], name)
    return _extended(_read(source, (*seen, source))[1], values)


def _read(source: ConfigSource, seen: tuple[str, ...] = ()) -> tuple[str, dict[str, Any]]:
    if isinstance(source, RunConfig):
        return "config", source.model_dump(exclude_none=True)
    if isinstance(source, Mapping):
        return "config", _with_base("config", _copy(source), Path(), seen)
    if str(source).endswith(".toml"):
        path = Path(source)
        if not path.is_file():
            raise MissingDataError(f"There is no configuration file {path}.")
        values = _parse(path.read_bytes(), str(path))
        return path.stem, _with_base(str(path), values, path.parent, seen or (str(path),))
    if str(source) not in _known():
        raise UnknownNameError("preset", str(source), presets())
    return str(source), _with_base(str(source), _preset(str(source)), Path(), seen)


def _parse(data: bytes, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"it is not valid TOML: {error}"], source) from None


def _flattened(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError([f"{override!r} is not of the form section.key=value"], "--set")
    *path, last = key.strip().split(".")
    section = values
    for part in path:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise ConfigError([f"{key}: {part} is a value, not a section"], "--set")
    try:
        section[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        section[last] = text.strip()
