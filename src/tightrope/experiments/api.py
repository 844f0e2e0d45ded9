"""The functions that ``import tightrope as tr`` offers for whole tasks."""

from __future__ import annotations

from typing import Any, cast

from tightrope.core import registry
from tightrope.core.protocols import Relaxation, Smoother


def relaxation(name: str, **options: Any) -> Relaxation:
    """A relaxation by name: ``ibp``, ``hbox``, ``deepz``, ``crown_ibp``, ``deeppoly``.

    Raises:
        UnknownNameError: no such relaxation or option.

    Example:
        >>> relaxation("deeppoly", slope="zero")
        Deeppoly(slope='zero')
    """
    return cast(Relaxation, registry.create("relaxations", name, **options))


def smoother(name: str, **options: Any) -> Smoother:
    """A smoother by name: ``none``, ``rgs``, ``pgpe``.

    Raises:
        UnknownNameError: no such smoother or option.

    Example:
        >>> smoother("pgpe", pairs=64)
        Pgpe(pairs=64, chunk=1)
    """
    return cast(Smoother, registry.create("smoothers", name, **options))
