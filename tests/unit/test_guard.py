"""Exit codes: every way a command can end, in one readable paragraph and never a traceback."""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tightrope import errors
from tightrope.cli._guard import ExitCode, guarded


@pytest.fixture(autouse=True)
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where reports of bugs go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def code_of(body: Callable[[], Any]) -> int:
    with pytest.raises(SystemExit) as caught:
        guarded(body)()
    return caught.value.code


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("code", ExitCode)
def test_results_are_exit_codes(code: ExitCode) -> None:
    assert code_of(lambda: code) == int(code)


def test_no_result_is_done() -> None:
    assert code_of(lambda: None) == 0


def test_the_documented_codes() -> None:
    codes = {"DONE": 0, "BAD_INPUT": 2, "FALSIFIED": 10, "UNKNOWN": 20, "INVARIANT": 30, "BUG": 70, "INTERRUPTED": 130}
    assert {code.name: int(code) for code in ExitCode} == codes


OURS = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, errors.TightropeError) and cls.__init__ is Exception.__init__
]


@pytest.mark.parametrize("cls", OURS)
def test_our_errors_are_bad_input_except_for_violated_invariants(
    cls: type[errors.TightropeError], capsys: pytest.CaptureFixture[str], reports: Path
) -> None:
    assert code_of(raising(cls("what, where, what to do"))) == (30 if issubclass(cls, errors.InvariantError) else 2)
    shown = capsys.readouterr()
    assert "what, where, what to do" in words(shown.err)
    assert shown.out == ""
    assert list(reports.iterdir()) == []


def test_all_problems_of_a_configuration_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(raising(errors.ConfigError(["a.b: too large", "c: unknown"], "my.toml"))) == 2
    shown = words(capsys.readouterr().err)
    assert "my.toml has 2 problems: - a.b: too large - c: unknown" in shown


@pytest.mark.parametrize("message", ["[red]x[/red]", "[/x]", "eps in [0, 1]", "\\[a]", "path [b]/c", "100 %s {x}"])
def test_messages_are_shown_as_they_are(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(raising(errors.InputError(message))) == 2
    assert message in words(capsys.readouterr().err)


def test_ctrl_c(capsys: pytest.CaptureFixture[str], reports: Path) -> None:
    assert code_of(raising(KeyboardInterrupt())) == 130
    assert "--resume" in capsys.readouterr().err
    assert list(reports.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "Permission"),
        (errno.EPERM, "Permission"),
        (errno.EROFS, "read-only"),
        (errno.ENOTDIR, "not a folder"),
        (errno.EISDIR, "not a file"),
        (errno.ENAMETOOLONG, "long"),
    ],
)
@pytest.mark.parametrize("file", ["runs/mine", None])
def test_what_the_machine_refuses_is_not_our_bug(
    number: int, word: str, file: str | None, capsys: pytest.CaptureFixture[str], reports: Path
) -> None:
    assert code_of(raising(OSError(number, "system message", file))) == 2
    shown = capsys.readouterr().err
    assert word in shown
    assert file is None or file in shown
    assert list(reports.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    ],
)
def test_too_little_memory_is_not_our_bug(error: Exception, capsys: pytest.CaptureFixture[str], reports: Path) -> None:
    assert code_of(raising(error)) == 2
    assert "memory" in capsys.readouterr().err
    assert list(reports.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("division"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        AssertionError(),
        KeyError("name"),
        OSError(errno.EIO, "Input/output error"),
        ValueError("[/markup]"),
        RecursionError("depth"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    ],
)
def test_a_bug_is_saved_to_a_file_that_is_named(
    error: Exception, capsys: pytest.CaptureFixture[str], reports: Path
) -> None:
    def broken_command() -> None:
        raise error

    assert code_of(broken_command) == 70
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    assert "bug" in shown.err
    assert type(error).__name__ in shown.err
    (report,) = reports.iterdir()
    assert re.sub(r"\s", "", str(report)) in re.sub(r"\s", "", shown.err)
    details = report.read_text()
    assert "Traceback" in details
    assert "broken_command" in details
    assert type(error).__name__ in details


def test_arguments_reach_the_command_and_its_help_stays() -> None:
    seen = []

    def command(a: int, *, b: int = 2) -> None:
        """What it does."""
        seen.append((a, b))

    wrapped = guarded(command)
    assert wrapped.__doc__ == "What it does."
    assert wrapped.__name__ == "command"
    with pytest.raises(SystemExit):
        wrapped(1, b=3)
    assert seen == [(1, 3)]
