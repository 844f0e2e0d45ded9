"""The commands that make a run again, from its records."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

import tomli_w

from tightrope.reports.gather import TrainedRun

_ATTACK = re.compile(r"Pgd\(steps=(\d+), restarts=(\d+), step_size=0\.25, decay=\(\), loss='margin'\)")
"""The attack that the command line makes, as headers write it."""


def settings_toml(run: TrainedRun) -> str:
    """The settings as the TOML file that training takes."""
    return tomli_w.dumps(dict(run.config))


def commands(run: TrainedRun) -> list[str]:
    """What to type, in order: training, then every certification.

    What was handed in from Python cannot be named by a command; see :func:`caveats`.
    """
    folder = run.folder.path.resolve().name
    again = f"{folder}-again"
    lines = [f"tightrope train config.toml --out {shlex.quote(again)}"]
    named = [header for _, header in _headers(run) if header.get("dataset", "data") != "data"]
    return lines + [_certify(again, header) for header in named]


def caveats(run: TrainedRun) -> list[str]:
    """What the commands leave open."""
    found = []
    if run.record.handed_in:
        what = " and ".join(run.record.handed_in)
        found.append(f"The {what} came from Python: hand it in again with tr.fit, under these settings.")
    for name, header in _headers(run):
        if not _ATTACK.fullmatch(str(header.get("attack", ""))):
            found.append(f"{name} was made with an attack that only Python can name: {header.get('attack')}.")
        if "spec" in header:
            found.append(f"{name} is about a property that was handed in from Python.")
    if run.record.environment.device != "cpu":
        found.append("Sums on a GPU may be rounded differently from run to run: the weights may differ a little.")
    return found


def _headers(run: TrainedRun) -> list[tuple[str, Mapping[str, Any]]]:
    """Of all certifications, with the names of their files."""
    found = [(each.path.name, each.header) for each in run.certifications]
    return found + [(each.path.name, each.header) for each in run.radii]


def _certify(folder: str, header: Mapping[str, Any]) -> str:
    run = header["run"]
    words = ["tightrope", "certify", folder, "--dataset", str(header["dataset"])]
    words += ["--count", str(run["count"])]
    words += ["--eps", str(run["limit"]), "--radius", "--tolerance", str(run["tolerance"])] if "limit" in run else []
    words += ["--eps", str(run["eps"])] if "eps" in run else []
    words += ["--relaxations", ",".join(map(str, header.get("relaxations", ())))]
    if attack := _ATTACK.fullmatch(str(header.get("attack", ""))):
        words += ["--attack-steps", attack[1], "--attack-restarts", attack[2]]
    if isinstance(complete := header.get("complete"), Mapping):
        words += ["--complete", "--timeout", f"{complete.get('timeout', 60):g}"]
    words += ["--batch-size", str(run.get("batch_size", 100)), "--seed", str(run.get("seed", 0))]
    words += ["--float32"] if run.get("dtype") == "float32" else []
    words += ["--evidence"] if header.get("evidence") else []
    return shlex.join(words)
