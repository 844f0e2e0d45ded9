"""Figures that others report about a network."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from tightrope.errors import InputError, MissingDataError
from tightrope.records.imported import Published

_FORM = "Give natural=..,adversarial=..,certified=.. in percent, or a TOML or JSON file of these."


def read_published(value: Published | Mapping[str, Any] | str | None) -> Published | None:
    """Figures in percent, from their fields, from ``natural=77.86,certified=63.61``, or from a TOML or JSON file.

    Raises:
        MissingDataError: no such file.
        InputError: they cannot be read.

    Example:
        >>> read_published("natural=77.86,certified=63.61").certified
        63.61
    """
    if value is None or isinstance(value, Published):
        return value
    fields = _published_fields(value) if isinstance(value, str) else dict(value)
    try:
        return Published.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InputError(f"The published figures cannot be read ({problems}). {_FORM}") from None


def _published_fields(text: str) -> dict[str, Any]:
    if "=" in text and not Path(text).exists():
        pairs = (part.partition("=") for part in text.split(","))
        return {key.strip(): value.strip() for key, _, value in pairs}
    try:
        content = Path(text).read_text()
        return cast(dict[str, Any], json.loads(content) if text.endswith(".json") else tomllib.loads(content))
    except FileNotFoundError:
        raise MissingDataError(f"The published figures {text} are no file that exists. {_FORM}") from None
    except (ValueError, OSError) as error:
        raise InputError(f"The published figures in {text} cannot be read ({error}). {_FORM}") from None
