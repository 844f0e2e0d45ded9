"""How the site reads docstrings: ``:func:`tightrope.certify``` becomes a link, ``Example:`` a section of code."""

from __future__ import annotations

import re

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([\w.]+)`")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Take one module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub("Examples:", without_roles(obj.docstring.value))


def without_roles(text: str) -> str:
    """The text with links in place of roles; what is not documented anywhere becomes plain code."""
    return _ROLE.sub(_link, text)


def _link(match: re.Match[str]) -> str:
    name = match[1]
    return f'<autoref optional identifier="{name}"><code>{name.rpartition(".")[2]}</code></autoref>'
