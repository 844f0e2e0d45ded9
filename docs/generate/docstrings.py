"""What docstrings say, in pieces."""

from __future__ import annotations

import inspect
import re
from typing import Any

from docs.generate.docstring_extension import without_roles

_SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", re.MULTILINE)


def first_line(thing: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def described(cls: type[Any]) -> dict[str, str]:
    """What the docstring of a class says of each argument and attribute, on one line each.

    Example:
        >>> class Box:
        ...     '''A box.
        ...
        ...     Attributes:
        ...         low, high: its
        ...             ends.
        ...     '''
        >>> described(Box)
        {'low': 'its ends.', 'high': 'its ends.'}
    """
    text = f"{inspect.getdoc(cls) or ''}\n"
    return {
        name: without_roles(" ".join(says.split()))
        for section in _SECTION.findall(text)
        for names, says in _ENTRY.findall(section)
        for name in names.split(", ")
    }
