"""Find plug-ins by name: the file stem is the name everywhere (Python, command line, TOML).

A plug-in is the one public class of a module ``tightrope/<kind>/<name>.py``. Other packages add theirs through entry
points of the group ``tightrope.<kind>``. Nothing is imported until it is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tightrope.errors import InputError, UnknownNameError

KINDS = ("ops", "relaxations", "smoothers", "methods", "models", "datasets", "attacks", "verifiers", "branchings")
_PACKAGES = {"datasets": "tightrope.data", "branchings": "tightrope.verifiers.branching"}


def _package(kind: str) -> str:
    if kind not in KINDS:
        raise UnknownNameError("kind of plug-in", kind, KINDS)
    return _PACKAGES.get(kind, f"tightrope.{kind}")


def _external(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"tightrope.{kind}")}


def names(kind: str) -> list[str]:
    """Names of all plug-ins of a kind, built-in and registered by other packages.

    Example:
        >>> names("relaxations")
        ['crown_ibp', 'deeppoly', 'deepz', 'hbox', 'ibp']
    """
    package = importlib.import_module(_package(kind))
    stems = {
        info.name for info in pkgutil.iter_modules(package.__path__) if not (info.ispkg or info.name.startswith("_"))
    }
    return sorted(stems | set(_external(kind)))


@cache
def find(kind: str, name: str) -> type[Any]:
    """The class of one plug-in.

    Raises:
        UnknownNameError: there is no such plug-in; the closest name is offered.
    """
    if name not in names(kind):
        raise UnknownNameError(kind.removesuffix("s"), name, names(kind))
    external = _external(kind)
    if name in external:
        return external[name].load()  # type: ignore[no-any-return]
    module = importlib.import_module(f"{_package(kind)}.{name}")
    public = [
        value
        for key, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and not key.startswith("_")
    ]
    if len(public) != 1:
        raise TypeError(f"{module.__name__} must define exactly one public class, found {len(public)}")
    return public[0]


def create(kind: str, name: str, /, **options: Any) -> Any:
    """Build a plug-in from its name and options.

    Raises:
        UnknownNameError: no such plug-in, or no such option.
        InputError: a required option is missing, or an option's value was refused.
    """
    cls = find(kind, name)
    if is_dataclass(cls):
        known = [field.name for field in fields(cls) if field.init]
        for option in options:
            if option not in known:
                raise UnknownNameError(f"option of {name}", option, known)
        needed = {f.name for f in fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING}
        if missing := sorted(needed - set(options)):
            raise InputError(f"{kind.removesuffix('s')} {name!r} needs the option {', '.join(missing)}.")
    return cls(**options)
