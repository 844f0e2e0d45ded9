"""From names and options to plug-ins, with every problem said."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import nn

from tightrope.core import registry
from tightrope.core.protocols import Attack, Relaxation
from tightrope.errors import ConfigError, TightropeError, UnknownNameError

_NESTED: dict[Any, str] = {Relaxation: "relaxations", Attack: "attacks"}
_FROM_DATASET = ("input_shape", "num_classes", "mean", "std")


def build_plugin(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """One plug-in; options that are plug-ins themselves may be names or tables ``{name = ..., option = ...}``.

    Raises:
        ConfigError: an unknown name, or options that are unknown, missing or of the wrong type: all of them.
    """
    problems: list[str] = []
    built = _build(kind, name, options, "", problems)
    if problems:
        raise ConfigError(problems, f"{kind.removesuffix('s')} {name!r}")
    return built


def build_named(kind: str, value: str | Mapping[str, Any]) -> Any:
    """One plug-in from a name or a table with a name.

    Raises:
        ConfigError: as :func:`build_plugin`.
    """
    table = {"name": value} if isinstance(value, str) else dict(value)
    return build_plugin(kind, str(table.pop("name", "")), table)


def model_class(name: str, options: Mapping[str, Any]) -> tuple[type[nn.Module], dict[str, Any]]:
    """An architecture and its validated options; shape, classes and normalisation come from the dataset.

    Raises:
        ConfigError: an unknown name, or options that are unknown or of the wrong type: all of them.
    """
    problems: list[str] = []
    try:
        cls = registry.find("models", name)
    except UnknownNameError as error:
        raise ConfigError([str(error)], "model") from None
    known = [key for key in inspect.signature(cls).parameters if key not in _FROM_DATASET]
    hints = get_type_hints(cls.__init__)
    values = {}
    for key, value in options.items():
        if key in known:
            values[key] = _option(hints.get(key), value, key, problems)
        else:
            problems.append(str(UnknownNameError(f"option of {name}", key, known)))
    if problems:
        raise ConfigError(problems, f"model {name!r}")
    return cls, values


def _build(kind: str, name: str, options: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    """The plug-in, or None with the reasons appended to ``problems``."""
    before = len(problems)
    try:
        cls = registry.find(kind, name)
        hints = {field.name: hint for field in fields(cls) for hint in [get_type_hints(cls)[field.name]] if field.init}
        for key in options.keys() - hints.keys():
            problems.append(f"{where}{UnknownNameError(f'option of {name}', key, hints)}")
        values = {
            key: _option(hints.get(key), value, f"{where}{key}", problems)
            for key, value in options.items()
            if key in hints
        }
        return registry.create(kind, name, **values) if len(problems) == before else None
    except TightropeError as error:
        problems.append(f"{where.removesuffix('.')}: {error}" if where else str(error))
        return None


def _option(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    if hint in _NESTED:
        table = {"name": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping) or "name" not in table:
            problems.append(f"{where}: give a name, or a table with a name, got {value!r}.")
            return None
        options = {key: option for key, option in table.items() if key != "name"}
        return _build(_NESTED[hint], str(table["name"]), options, f"{where}.", problems)
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        problems.append(f"{where}: {error.errors()[0]['msg']} (got {value!r}).")
        return None
