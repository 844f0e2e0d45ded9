"""Every command ends in a documented exit code, and every error in one readable paragraph."""

from __future__ import annotations

import errno
import functools
import sys
import tempfile
import traceback
from collections.abc import Callable
from enum import IntEnum
from typing import ParamSpec

from tightrope._version import __version__
from tightrope.cli._console import print_error
from tightrope.errors import TightropeError

P = ParamSpec("P")


class ExitCode(IntEnum):
    """Exit codes of all commands."""

    DONE = 0
    BAD_INPUT = 2
    FALSIFIED = 10
    UNKNOWN = 20
    INVARIANT = 30
    BUG = 70
    INTERRUPTED = 130


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_ENVIRONMENT = {
    errno.ENOSPC: "The disk is full. Free some space, then run the same command again; runs continue with --resume.",
    errno.EDQUOT: "The disk quota is used up. Free some space, then run the same command again.",
    errno.EACCES: "Permission denied. Choose a folder that you may write to.",
    errno.EPERM: "Permission denied. Choose a folder that you may write to.",
    errno.EROFS: "The file system is read-only. Choose another --out.",
    errno.ENOTDIR: "A part of that path is a file, not a folder.",
    errno.EISDIR: "That path is a folder, not a file.",
    errno.ENAMETOOLONG: "That file name is too long.",
}


def guarded(command: Callable[P, ExitCode | None]) -> Callable[P, None]:
    """Run a command's body; turn its result or error into an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        sys.exit(_code(lambda: command(*args, **kwargs)))

    return run


def _code(body: Callable[[], ExitCode | None]) -> int:
    try:
        return int(body() or ExitCode.DONE)
    except KeyboardInterrupt as interrupt:
        hint = "What was finished is saved; the same command, or train --resume RUN, continues it."
        print_error(f"Interrupted. {str(interrupt) or hint}")
        return ExitCode.INTERRUPTED
    except TightropeError as error:
        print_error(str(error))
        return error.exit_code
    except OSError as error:
        if error.errno in _ENVIRONMENT:
            print_error(f"{error.filename or 'Writing'}: {_ENVIRONMENT[error.errno]}")
            return ExitCode.BAD_INPUT
        return _bug(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
            print_error("Out of memory. Use a smaller batch size or network, or a looser relaxation.")
            return ExitCode.BAD_INPUT
        return _bug(error)
    except Exception as error:
        return _bug(error)


def _bug(error: BaseException) -> int:
    """Save the traceback to a file and name it: a user sees one paragraph, a developer gets everything."""
    with tempfile.NamedTemporaryFile("w", prefix="tightrope-bug-", suffix=".txt", delete=False) as file:
        file.write(f"tightrope {__version__}\ncommand: {' '.join(sys.argv)}\n\n")
        traceback.print_exception(error, file=file)
    print_error(
        f"This is a bug in Tightrope ({type(error).__name__}: {error}). "
        f"The details are in {file.name}; please report them."
    )
    return ExitCode.BUG
