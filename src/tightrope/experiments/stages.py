"""A cascade of verifiers by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tightrope.core import registry
from tightrope.core.protocols import Verifier
from tightrope.errors import UnknownNameError
from tightrope.experiments.plugins import build_named
from tightrope.verifiers.attack import AttackVerifier
from tightrope.verifiers.cascade import Cascade
from tightrope.verifiers.one_shot import OneShot

Stage = Verifier | Mapping[str, Any] | str

_COMPOUND = ("attack", "cascade", "one_shot")
"""Verifiers that are made of other plug-ins, and have the names of these here."""

PROVING: Mapping[str, Mapping[str, Any]] = {"deeppoly": {"sparse": True}}
"""Options of relaxations in stages, where a table does not say otherwise: bounds are as good or better, and cheaper."""


def cascade(*stages: Stage) -> Cascade:
    """Verifiers one after the other, each for what those before it leave undecided.

    Args:
        stages: at least one: names of attacks, relaxations (one bound, one answer) and verifiers, tables of name and
            options, or verifiers.

    Raises:
        ConfigError: options that are unknown or of the wrong type.
        InputError: no stages. UnknownNameError: no such stage.

    Example:
        >>> [stage.name for stage in cascade("apgd", "deeppoly", {"name": "bab", "timeout": 10.0}).stages]
        ['apgd', 'deeppoly', 'bab']
    """
    return Cascade(tuple(_stage(stage) for stage in stages))


def stage_names() -> list[str]:
    """What can be named.

    Example:
        >>> {"apgd", "deeppoly", "bab"} <= set(stage_names())
        True
    """
    return sorted(name for names in _kinds().values() for name in names)


def _kinds() -> dict[str, list[str]]:
    verifiers = [name for name in registry.names("verifiers") if name not in _COMPOUND]
    return {"attacks": registry.names("attacks"), "relaxations": registry.names("relaxations"), "verifiers": verifiers}


def _stage(stage: Stage) -> Verifier:
    if not isinstance(stage, str | Mapping):
        return stage
    name = stage if isinstance(stage, str) else str(stage.get("name", ""))
    kind = next((kind for kind, names in _kinds().items() if name in names), None)
    if kind is None:
        raise UnknownNameError("stage", name, stage_names())
    table = {"name": stage} if isinstance(stage, str) else stage
    found = build_named(kind, {**PROVING.get(name, {}), **table})
    if kind == "attacks":
        return AttackVerifier(found, name)
    return OneShot(found, name) if kind == "relaxations" else cast(Verifier, found)
