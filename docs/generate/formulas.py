"""Formulas as MathML, which browsers show by themselves."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def to_mathml(page: str) -> str:
    r"""A page with the formulas that ``pymdownx.arithmatex`` marked, in TeX, replaced by MathML.

    Example:
        >>> "<msub>" in to_mathml(r'<span class="arithmatex">\(L_\sigma\)</span>')
        True
    """
    return _FORMULA.sub(_converted, page)


def _converted(match: re.Match[str]) -> str:
    display = "inline" if match[2] == "(" else "block"
    return convert(html.unescape(match[3]), display=display)
