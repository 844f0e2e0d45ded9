"""Every error that Tightrope raises on purpose.

Each class derives from :class:`TightropeError` and from the built-in exception it refines, so that callers may catch
either. A message says what was expected, what came, where, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TightropeError(Exception):
    """Base of every error that Tightrope raises on purpose."""

    exit_code = 2


class InputError(TightropeError, ValueError):
    """A value handed to the public API is not usable (eps, labels, images, weights, shapes ...)."""


class ConfigError(InputError):
    """A configuration has problems; all of them are listed together.

    Args:
        problems: one sentence a problem, each naming the field.
        source: the file or preset they were found in.
    """

    def __init__(self, problems: Iterable[str], source: str = "the configuration") -> None:
        self.problems = list(problems)
        count = len(self.problems)
        head = f"{source} has {count} problem{'s' if count != 1 else ''}:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


class UnsupportedLayerError(TightropeError, NotImplementedError):
    """A network contains a layer that Tightrope has no sound bounds for."""


class UnknownNameError(TightropeError, LookupError):
    """A plug-in, preset or option name does not exist; the closest one is offered."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}.")


class MissingExtraError(TightropeError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"This needs the package {package}: pip install 'tightrope[{extra}]'", name=package)


class MissingDataError(TightropeError, FileNotFoundError):
    """A dataset, run folder or file is not where it was looked for."""


class CorruptDataError(TightropeError, ValueError):
    """A file is there, but its content is not what it should be (checksum, format, truncation)."""


class CheckpointError(CorruptDataError):
    """A checkpoint or weights file cannot be used: truncated, altered, or of another network."""


class NumericalError(TightropeError, ArithmeticError):
    """NaN or infinity turned up where only finite numbers make sense."""


class OutOfMemoryError(TightropeError, MemoryError):
    """A step needs more memory than there is, however few pairs are evaluated at once."""


class TimeUpError(TightropeError, TimeoutError):
    """The time limit of a computation is reached, see :func:`tightrope.core.deadline.time_limit`."""

    def __init__(self) -> None:
        super().__init__("The time is up.")


class RankLostError(TightropeError, ConnectionError):
    """Another process of a run on many ended, or cannot be reached."""


class InvariantError(TightropeError, AssertionError):
    """Two results contradict each other (for example a certified image with an adversarial example)."""

    exit_code = 30
