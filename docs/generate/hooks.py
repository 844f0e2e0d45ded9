"""The hooks of MkDocs: pages that code writes join those that people wrote, folders of ``nav`` become their pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from docs.generate import formulas
from docs.generate.pages import generated
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
_FETCHED = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="((?:https?:)?//[^"]*)"|<link\b[^>]*\bhref="((?:https?:)?//[^"]*)"'
)
_pages: dict[str, str | bytes] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write the pages, and put them into ``nav``."""
    _pages.clear()
    _pages.update(generated(ROOT))
    docs = Path(config.docs_dir)
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} | set(_pages)
    named = set(_named(config.nav))
    config.nav = _expanded(config.nav, sorted(page for page in there - named if page.endswith(".md")))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what was written."""
    for name, content in _pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Formulas become MathML, so that no script is needed."""
    return formulas.to_mathml(html)


def on_post_page(output: str, *, page: Page, **_: Any) -> str:
    """Refuse what a browser would fetch from elsewhere by itself.

    Raises:
        PluginError: a script, style or picture of another server.
    """
    if found := _FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} would fetch {found[1] or found[2]}; the site must not need a network")
    return output


def _named(entry: Any) -> Iterator[str]:
    """The pages that ``nav`` names."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from _named(part)


def _expanded(entry: Any, pages: list[str]) -> Any:
    """An entry of ``nav`` with ``folder/`` replaced by those of the pages that are in it."""
    if isinstance(entry, dict):
        return {title: _expanded(value, pages) for title, value in entry.items()}
    if isinstance(entry, list):
        return [page for part in entry for page in _as_list(_expanded(part, pages))]
    if entry.endswith("/"):
        return [page for page in pages if PurePosixPath(page).parent == PurePosixPath(entry)]
    return entry


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
