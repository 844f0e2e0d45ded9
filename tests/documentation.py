"""Pages of the documentation as a reader follows them: files written, Python and commands run, output compared.

A fenced block of ``python`` is run, after the blocks before it on the page; one of ``bash`` command by command; one of
``toml`` is a configuration; ``text`` right after commands is their output. Where the first line is a comment with a
file's name the block is written to that file. ``<!-- not run: REASON -->`` before a block says that it is only checked.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.testing import CliRunner

from tightrope.cli.main import app
from tightrope.experiments.load import load_config

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^(?P<indent> *)```(?P<language>\w+)\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
FILE = re.compile(r"# ([\w/-]+\.(?:py|toml))\n")
NUMBER = re.compile(r"\d[\d.,]*(?:e-?\d+)?")


class Block(NamedTuple):
    """A fenced block; ``reason`` is why it is not run, empty where it is."""

    language: str
    body: str
    reason: str


def blocks(page: str) -> Iterator[Block]:
    """All of a page."""
    for match in FENCE.finditer(page):
        lines = [line.removeprefix(match["indent"]) for line in match["body"].splitlines()]
        yield Block(match["language"], "\n".join(lines) + "\n", match["reason"] or "")


def follow(page: str) -> list[tuple[str, str]]:
    """Do what a page says, in the current folder.

    Returns:
        What each ``text`` block after commands shows, and what the commands really printed.
    """
    names: dict[str, Any] = {"__name__": "page"}
    shown, printed = [], ""
    for block in blocks(page):
        if block.language == "text":
            if printed:
                shown.append((block.body, printed))
            printed = ""
        elif file := FILE.match(block.body):
            _write(Path(file[1]), block)
        elif block.language == "python":
            code = compile(block.body, "page", "exec")
            if not block.reason:
                exec(code, names)
        elif block.language == "bash":
            printed = "".join(_run(command, block.reason) for command in commands(block.body))
        elif block.language == "toml":
            load_config(tomllib.loads(block.body))
    return shown


def _write(path: Path, block: Block) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.body)
    if path.suffix == ".py":
        compile(block.body, str(path), "exec")
    elif not block.reason:
        load_config(path)


def commands(body: str) -> list[list[str]]:
    """The commands of a block, in words."""
    lines = body.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _run(words: list[str], reason: str) -> str:
    """What a command prints; empty where it is only checked."""
    arguments = of_tightrope(words)
    if arguments is None:
        check_other(words)
        return ""
    if reason or words[0] != "tightrope":
        parse(arguments)
        return ""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code in (0, 10, 20), f"{words}: {result.output}"
    return result.output


def of_tightrope(words: list[str]) -> list[str] | None:
    """The arguments of ``tightrope``, by whatever program it is started; None if it is none."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[0] == "tightrope":
        return words[1:]
    module = [index for index in range(len(words) - 1) if words[index : index + 2] == ["-m", "tightrope"]]
    return words[module[0] + 2 :] if module else None


def parse(arguments: list[str]) -> None:
    """Refuse what ``tightrope`` would refuse to parse."""
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="tightrope")
    while hasattr(command, "get_command"):
        name, *arguments = arguments
        command = command.get_command(context, name)
        assert command is not None, f"there is no command {name}"
    given = command.make_context(command.name, arguments).params
    if command.name in ("train", "plan") and given.get("source"):
        settings = [each for each in given["set_"] or [] if not each.startswith("device=")]  # which may be elsewhere
        load_config(given["source"], settings)


def check_other(words: list[str]) -> None:
    """Whether a command that belongs to another program names what is there."""
    program, *rest = words
    if program == "make":
        assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in rest)
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert all(name in extras for part in re.findall(r"\[([\w,]+)\]", words[-1]) for name in part.split(","))
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / part).exists() for part in rest if part.startswith("tests/"))
    elif words[:3] == ["python", "-m", "benchmarks"]:
        assert (ROOT / "benchmarks" / f"{words[3]}.py").is_file() or words[3] in ("all", "verify")
    else:
        assert program in ("cd", "git", "ls", "cat", "export", "source", "python"), f"{program} is not known here"


def missing(shown: str, printed: str) -> list[str]:
    """Lines that a page shows and that did not come, in this order.

    Words must be the same and percentages within 5 points. Lines of other numbers, such as counts and seconds, depend
    on the machine: they are not looked at.
    """
    lines, found = iter(printed.splitlines()), []
    for line in shown.splitlines():
        if re.search(r"\d", line) and "%" not in line:
            continue
        rest = list(lines)
        place = next((i for i, other in enumerate(rest) if _alike(line, other)), None)
        found += [line] if place is None else []
        lines = iter(rest if place is None else rest[place + 1 :])
    return found


def _alike(line: str, other: str) -> bool:
    one, two = _words(line), _words(other)
    return one == two and all(abs(a - b) <= 5 for a, b in zip(_percentages(line), _percentages(other), strict=True))


def _words(line: str) -> list[str]:
    """Without numbers and frames."""
    return re.sub(r"[^\w%./-]+", " ", NUMBER.sub("#", line)).split()


def _percentages(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"(\d+\.\d) %", line)]
