"""Docstrings say ``:func:`tightrope.certify```; the site links it where the name is documented."""

from __future__ import annotations

import re

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """Turns roles into links."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = without_roles(obj.docstring.value)


def without_roles(text: str) -> str:
    """The text with links in place of roles; what is not documented anywhere becomes plain code."""
    return _ROLE.sub(_link, text)


def _link(match: re.Match[str]) -> str:
    name = match[1]
    return f'<autoref optional identifier="{name}"><code>{name.rpartition(".")[2]}</code></autoref>'
