"""Find a configuration (preset, TOML file, mapping), apply ``--set`` overrides, validate."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
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
    return sorted(_walk(_root(), ""))


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


def config_toml(config: RunConfig) -> str:
    """The configuration as TOML."""
    return tomli_w.dumps(config.model_dump(mode="python", exclude_none=True))


def _root() -> Traversable:
    return files("tightrope.experiments") / "presets"


def _walk(folder: Traversable, prefix: str) -> Iterable[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".toml"):
            yield f"{prefix}{entry.name.removesuffix('.toml')}"


def _read(source: ConfigSource) -> tuple[str, dict[str, Any]]:
    if isinstance(source, RunConfig):
        return "config", source.model_dump(exclude_none=True)
    if isinstance(source, Mapping):
        return "config", _copy(source)
    if str(source).endswith(".toml"):
        path = Path(source)
        if not path.is_file():
            raise MissingDataError(f"There is no configuration file {path}.")
        return path.stem, _parse(path.read_bytes(), str(path))
    known = presets()
    if str(source) not in known:
        raise UnknownNameError("preset", str(source), known)
    return str(source), _parse((_root() / f"{source}.toml").read_bytes(), str(source))


def _parse(data: bytes, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"it is not valid TOML: {error}"], source) from None


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
