"""Every plug-in with its options."""

from __future__ import annotations

import inspect
import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from docs.generate.docstrings import described, first_line
from docs.generate.markdown import page, table

from tightrope.core import registry
from tightrope.experiments.plugins import model_class

INTRODUCTION = """\
A plug-in is one file; its name is its name in Python (`tr.method("sabr", ratio=0.1)`), in TOML (`[method]` with
`name = "sabr"` and `ratio = 0.1`) and on the command line (`--set method.ratio=0.1`). Options that are plug-ins
themselves are named or given as tables: `attack = { name = "pgd", steps = 8 }`. How to add one:
[methods](../how-to/add-a-method.md), [relaxations](../how-to/add-a-relaxation.md),
[smoothers](../how-to/add-a-smoother.md), [layers](../how-to/add-a-layer.md),
[datasets](../how-to/add-a-dataset.md), [models](../how-to/add-a-model.md)."""

KINDS = {
    "relaxations": "Relaxations",
    "smoothers": "Smoothers",
    "methods": "Training methods",
    "attacks": "Attacks",
    "verifiers": "Verifiers",
    "branchings": "Branching heuristics",
    "models": "Models",
    "datasets": "Datasets",
}
_NEEDED = "needed"


def pages() -> dict[str, str]:
    """``reference/plugins.md``."""
    parts = [part for kind, title in KINDS.items() for part in (f"## {title}", *_kind(kind))]
    return {"reference/plugins.md": page("Plug-ins and their options", INTRODUCTION, *parts)}


def _kind(kind: str) -> list[str]:
    return [part for name in registry.names(kind) for part in _plugin(kind, name)]


def _plugin(kind: str, name: str) -> list[str]:
    cls = registry.find(kind, name)
    module = sys.modules[cls.__module__]
    heading = f"### `{name}` {{ #{kind}-{name} }}"
    text = f"{first_line(module)} [In full][{cls.__module__}.{cls.__qualname__}]."
    options = _of_model(name) if kind == "models" else _of_dataclass(cls)
    if not options:
        return [heading, text]
    says = described(cls)
    rows = [[f"`{key}`", default, says.get(key, "")] for key, default in options.items()]
    return [heading, text, table(["option", "default", "what it is"], rows)]


def _of_dataclass(cls: type[Any]) -> dict[str, str]:
    return {field.name: _default(field) for field in fields(cls) if field.init} if is_dataclass(cls) else {}


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return f"`{field.default!r}`"
    return f"`{field.default_factory()!r}`" if field.default_factory is not MISSING else _NEEDED


def _of_model(name: str) -> dict[str, str]:
    """Options of an architecture: what the dataset does not give."""
    cls, _ = model_class(name, {})
    own = [p for p in inspect.signature(cls).parameters.values() if p.name not in _FROM_DATASET]
    return {p.name: _NEEDED if p.default is p.empty else f"`{p.default!r}`" for p in own}


_FROM_DATASET = ("input_shape", "num_classes", "mean", "std")
