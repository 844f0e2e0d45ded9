"""The settings of a run, from the classes that validate them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from docs.generate.docstrings import described, first_line
from docs.generate.markdown import page, table
from pydantic import BaseModel

from tightrope.experiments.config import RunConfig

INTRODUCTION = """\
A configuration is a TOML file, a preset's name, or nested values in Python. `--set section.key=value` overrides one
setting. A file that begins with `extends = "PRESET"` (or another file) says only what differs. Everything is
validated before any work starts, and all problems are reported together. The run folder's `config.toml` has all of
it, defaults filled in.

```toml
extends = "mnist-0.1/cnn3-ibp"
seed = 1

[smoother]
name = "rgs"
std = 0.01
```

`[model]`, `[method]` and `[smoother]` name a plug-in; what is not listed here are [its own options](plugins.md)."""


WORDS = {"number": "number", "integer": "whole number", "boolean": "`true` or `false`", "string": "text"}
LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def pages() -> dict[str, str]:
    """``reference/configuration.md``."""
    top = {name: field for name, field in RunConfig.model_fields.items() if not _is_section(field.annotation)}
    parts = ["## Outside of sections", _table(RunConfig, top)]
    for name, field in RunConfig.model_fields.items():
        if _is_section(field.annotation):
            section: Any = field.annotation
            needed = " This section is needed." if field.is_required() else ""
            parts += [f"## [{name}]", f"{first_line(section)}{needed}", _table(section, section.model_fields)]
    return {"reference/configuration.md": page("Settings of a run", INTRODUCTION, *parts)}


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _table(section: type[BaseModel], fields: Mapping[str, Any]) -> str:
    schema, says = section.model_json_schema()["properties"], described(section)
    rows = [[f"`{name}`", _type(schema[name]), _default(field), says.get(name, "")] for name, field in fields.items()]
    return table(["setting", "type", "default", "what it is"], rows)


def _default(field: Any) -> str:
    if field.is_required():
        return "needed"
    return "" if field.default is None else f"`{json.dumps(field.default)}`"


def _type(schema: Mapping[str, Any]) -> str:
    """In words, with its limits."""
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return " or ".join(f'`"{value}"`' for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"list, each a {_type(schema['items'])}"
    bounds = ", ".join(f"{sign} {schema[key]:g}" for key, sign in LIMITS.items() if key in schema)
    return f"{WORDS[schema['type']]} {bounds}".strip()
