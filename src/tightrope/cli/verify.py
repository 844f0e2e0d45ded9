"""``tightrope verify``: one property of one ONNX network."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

import tightrope as tr
from tightrope.cli._console import print_note
from tightrope.cli._guard import ExitCode, guarded
from tightrope.core.outcome import Verdict
from tightrope.errors import InputError

_CODES = {Verdict.VERIFIED: ExitCode.DONE, Verdict.FALSIFIED: ExitCode.FALSIFIED, Verdict.UNKNOWN: ExitCode.UNKNOWN}
_LONGEST = 1e8  # seconds; some years, and within the range of alarms
_WORDS = {Verdict.VERIFIED: "unsat", Verdict.FALSIFIED: "sat", Verdict.UNKNOWN: "unknown"}


class _TimeUp(BaseException):
    """The time is up, wherever the program is; no ``except Exception`` on the way may keep it."""


@guarded
def verify(
    context: typer.Context,
    net: Annotated[Path, typer.Argument(help="The network: .onnx or .onnx.gz.", show_default=False)],
    prop: Annotated[
        Path, typer.Argument(metavar="PROPERTY", help="VNN-LIB 1.0: .vnnlib or .vnnlib.gz.", show_default=False)
    ],
    timeout: Annotated[float, typer.Option(help="Seconds in all, start of the program included.")] = 60.0,
    memory: Annotated[float, typer.Option(help="GiB for open subproblems.")] = 2.0,
    vnncomp: Annotated[
        bool, typer.Option("--vnncomp", help="The words of the competition: unsat, sat, unknown, timeout.")
    ] = False,
    results: Annotated[
        Path | None, typer.Option("--results-file", help="Write what is printed to this file as well.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the attack's starts.", min=0)] = 0,
    evidence: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder for certificates, for tightrope audit.")
    ] = None,
) -> ExitCode:
    """Decide a property: verified (exit code 0), falsified by a counterexample (10), or unknown for a reason (20)."""
    _check_options(timeout, results)
    spent = 0.0 if context.obj is None else time.perf_counter() - context.obj
    found = _in_time(net, prop, timeout, max(timeout - spent, 0.05 * timeout), memory, seed, evidence)
    lines = [_verdict(found, vnncomp), *[found.counterexample()] * (found.verdict is Verdict.FALSIFIED)]
    typer.echo("\n".join(lines))
    if results is not None:
        results.write_text("\n".join(lines) + "\n", encoding="ascii", errors="replace")
    if found.replay:
        print_note(found.replay)
    if evidence is not None and found.verdict is not Verdict.UNKNOWN:
        print_note(f"Evidence: {evidence}. Check it with: tightrope audit {evidence} --net {net} --property {prop}")
    return _CODES[found.verdict]


def _check_options(timeout: float, results: Path | None) -> None:
    if not 0 < timeout <= _LONGEST:
        raise InputError(f"--timeout must be positive and at most {_LONGEST:g} seconds, got {timeout:g}.")
    if results is not None and (results.is_dir() or not results.parent.is_dir()):
        raise InputError(f"--results-file {results} must be a file in a folder that exists.")


def _in_time(
    net: Path, prop: Path, timeout: float, left: float, memory: float, seed: int, evidence: Path | None
) -> tr.Verification:
    """The verdict after the seconds that are ``left``, of ``timeout`` in all."""
    try:
        with _alarm(left + 0.03 * timeout):
            return tr.verify(net, prop, timeout=left, memory_gib=memory, seed=seed, evidence=evidence)
    except _TimeUp:
        return tr.Verification(Verdict.UNKNOWN, "timeout", timed_out=True)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise :class:`_TimeUp` inside after so many seconds, for steps that do not look at the clock."""
    if sys.platform == "win32":  # has no alarms
        yield
        return

    def ring(*_: object) -> None:
        raise _TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _verdict(found: tr.Verification, vnncomp: bool) -> str:
    if vnncomp:
        return "timeout" if found.timed_out else _WORDS[found.verdict]
    return f"{found.verdict}: {found.reason}" if found.reason else str(found.verdict)
