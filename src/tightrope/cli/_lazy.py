"""Groups that import a command when it is asked for: the time of ``verify`` is not for what ``train`` needs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperGroup


def importing(files: Mapping[str, str]) -> type[TyperGroup]:
    """A group of commands, or of further groups.

    Args:
        files: from a command's name to its file below ``tightrope.cli``; the function, or the group, has the name of
            the file.
    """

    class Importing(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(files)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            return _imported(cmd_name, files[cmd_name]) if cmd_name in files else None

    return Importing


def _imported(name: str, stem: str) -> Any:
    found = getattr(importlib.import_module(f"tightrope.cli.{stem}"), stem)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    single = typer.Typer(add_completion=False)
    single.command(name)(found)
    return typer.main.get_command(single)
