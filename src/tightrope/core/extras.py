"""Packages that are optional, or slow to import and rarely needed: imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

from tightrope.errors import MissingExtraError


def require(module: str, extra: str | None = None) -> Any:
    """A module of another package.

    Args:
        module: its dotted name.
        extra: of ours, that installs it; None if it is always installed.

    Raises:
        MissingExtraError: it is not installed; the message says how to get it.

    Example:
        >>> require("json").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if extra is None or error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package should be there, or is and something that it needs is not
        raise MissingExtraError(module.split(".")[0], extra) from None
