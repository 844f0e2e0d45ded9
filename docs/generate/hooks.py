"""The hooks of MkDocs: pages that code writes join those that people wrote, folders of ``nav`` become their pages."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from docs.generate import formulas
from docs.generate.pages import generated
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
_pages: dict[str, str | bytes] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write the pages, and put them into ``nav``."""
    _pages.clear()
    _pages.update(generated(ROOT))
    docs = Path(config.docs_dir)
    written = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    config.nav = _expanded(config.nav, sorted(written | {name for name in _pages if name.endswith(".md")}))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what was written."""
    for name, content in _pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Formulas become MathML, so that no script is needed."""
    return formulas.to_mathml(html)


def _expanded(entry: Any, pages: list[str]) -> Any:
    """An entry of ``nav`` with ``folder/`` replaced by the pages in it."""
    if isinstance(entry, dict):
        return {title: _expanded(value, pages) for title, value in entry.items()}
    if isinstance(entry, list):
        return [page for part in entry for page in _as_list(_expanded(part, pages))]
    if entry.endswith("/"):
        inside = [page for page in pages if PurePosixPath(page).parent == PurePosixPath(entry)]
        return sorted(inside, key=lambda page: (not page.endswith("/index.md"), page))
    return entry


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
