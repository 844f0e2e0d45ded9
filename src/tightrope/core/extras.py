"""Optional packages, imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

from tightrope.errors import MissingExtraError


def require(module: str, extra: str) -> Any:
    """A module of an optional package.

    Args:
        module: its dotted name.
        extra: of ours, that installs it.

    Raises:
        MissingExtraError: it is not installed; the message says how to get it.

    Example:
        >>> require("json", "onnx").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is there, and something that it needs is not
        raise MissingExtraError(module.split(".")[0], extra) from None
