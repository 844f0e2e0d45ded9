"""All generated files of the site."""

from __future__ import annotations

from pathlib import Path

from docs.generate import api, commands, configuration, layers, notebooks, plugins, presets, results, zoo


def generated(root: Path) -> dict[str, str | bytes]:
    """From a file's place below ``docs/`` to its content.

    Args:
        root: of the repository.
    """
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    return {
        "changelog.md": changelog,
        **api.pages(root),
        **commands.pages(),
        **configuration.pages(),
        **layers.pages(),
        **notebooks.pages(),
        **plugins.pages(),
        **presets.pages(root),
        **results.pages(root),
        **zoo.pages(),
    }
