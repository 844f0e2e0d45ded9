"""The command line, from the commands themselves."""

from __future__ import annotations

from typing import Any

import typer
from docs.generate.markdown import page, table

from tightrope.cli.main import app

INTRODUCTION = """\
`tightrope COMMAND --help` shows the same. Tables and results go to standard output, progress and errors to standard
error."""

EXIT_CODES = {
    "0": "done; `verify`: verified; `audit`: all confirmed",
    "2": "bad input: settings, files or data, said in one paragraph",
    "10": "falsified (`verify`)",
    "20": "unknown (`verify`), or not to be confirmed (`audit`)",
    "30": "an invariant is violated: results that contradict each other, or a certificate that is rejected",
    "70": "a bug of ours; the details are in a file that is named",
    "130": "interrupted; the same command goes on, or `train --resume RUN`",
}


def pages() -> dict[str, str]:
    """``reference/commands.md``."""
    parts = _commands("tightrope", typer.main.get_command(app))
    codes = table(["code", "meaning"], list(EXIT_CODES.items()))
    return {"reference/commands.md": page("Commands", INTRODUCTION, *parts, "## Exit codes", codes)}


def _commands(name: str, command: Any) -> list[str]:
    """A command, or those of a group."""
    context = typer.Context(command, info_name=name)
    if hasattr(command, "list_commands"):
        inside = {each: command.get_command(context, each) for each in command.list_commands(context)}
        return [part for each, found in inside.items() for part in _commands(f"{name} {each}", found)]
    usage = " ".join(command.collect_usage_pieces(context))
    rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
    shown = [table(["argument or option", "default", "what it is"], rows)] if rows else []
    return [f"## {name}", f"```text\n{name} {usage}\n```", command.help or "", *shown]


def _row(parameter: Any) -> list[str]:
    is_option = parameter.param_type_name == "option"
    names = ", ".join(f"`{name}`" for name in parameter.opts) if is_option else f"`{parameter.name.upper()}`"
    return [names, _default(parameter), (parameter.help or "").strip()]


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required or value is None or value is False or not isinstance(value, str | int | float):
        return "needed" if parameter.required else ""
    return f"`{value}`"
