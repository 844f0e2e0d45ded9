"""The README's table of benchmarks, written from the records: ``python -m benchmarks readme --write``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.case import Record
from benchmarks.peers import METHODS, PREFIX
from benchmarks.population import BEST, BEST_PLAIN
from benchmarks.training import KEPT
from benchmarks.verification import ERROR, solved

BEGIN, END = "<!-- written by python -m benchmarks readme --write -->", "<!-- end of what is written -->"

TITLES = {"ibp": "IBP", "crown_ibp": "CROWN-IBP", "deeppoly": "DeepPoly"}
NOTHING = "not measured"
LINE = 125  # characters
_NO_ROW: Record = {"seconds": [], "verdicts": []}


def tables(folder: Path) -> str:
    """The tables in Markdown.

    Args:
        folder: where ``training-cpu.json``, ``population-cpu.json`` and, if there is one, ``verify-cpu.json`` are.
    """
    writers = {"training": _training, "population": _population, "verify": _verification}
    paths = {name: folder / f"{name}-cpu.json" for name in writers}
    found = [writers[name](_read(path)) for name, path in paths.items() if name != "verify" or path.exists()]
    return "\n\n".join(found) + "\n"


def inserted(text: str, between: str) -> str:
    """A text with what stands between the two comments replaced.

    Raises:
        ValueError: a comment is missing.

    Example:
        >>> inserted(f"a {BEGIN} b {END} c", "new") == f"a {BEGIN}\\n\\nnew\\n{END} c"
        True
    """
    (before, _), (_, after) = text.split(BEGIN), text.split(END)
    return f"{before}{BEGIN}\n\n{between}\n{END}{after}"


def _training(record: Record) -> str:
    peer = f"auto_LiRPA {record['environment']['peers']['auto_LiRPA'] or ''}".strip()
    says = (
        f"Images/s of the certified loss, forward and backward ({_machine(record)}). In brackets how many times the "
        f"throughput of {peer} in the same run: first as it is, then where its process keeps freed memory as our "
        f"training does. {_agreement(record)}"
    )
    rows = [
        [f"{group['setting']['network']}, batch {group['setting']['batch']}", *(_speed(group, name) for name in TITLES)]
        for group in record["groups"]
    ]
    return f"{_wrapped(says)}\n\n{_table(['', *TITLES.values()], rows)}"


def _speed(group: Record, name: str) -> str:
    row, peer = _row(group, name), PREFIX + METHODS[name]
    if row is None:
        return NOTHING
    if row["status"] != "ok":
        return f"{row['status']} (auto_LiRPA: {_rate(_row(group, peer))})"
    return f"{_rate(row)} ({_against(group, name, peer)}, {_against(group, name, peer + KEPT)})"


def _rate(row: Record | None) -> str:
    """Images a second, or why there is no such figure."""
    if row is None or row["status"] != "ok":
        return NOTHING if row is None else str(row["status"])
    rate = row["throughput"]["median"]
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _against(group: Record, name: str, peer: str) -> str:
    """How many times the throughput of the other, or why there is no such figure."""
    ratio = _ratio(group, name, peer)
    return f"{ratio['median']:.2f}" if ratio else _rate(_row(group, peer))


def _population(record: Record) -> str:
    speeds = [group for group in record["groups"] if _ratio(group, BEST, BEST_PLAIN)]
    peaks = {_kind(group): group for group in record["groups"] if group not in speeds}
    says = (
        f"PGPE, forward only ({_machine(record)}): throughput of the population, noise generation included, over that "
        "of as many images at unperturbed weights, each in the best number at once; and peak memory of a step with "
        "many pairs over that with few."
    )
    rows = []
    for group in speeds:
        setting = group["setting"]
        name = setting["relaxation"]
        shape = f"{setting['network']}, {setting['pairs']} pairs, {setting['images']} images"
        throughput = f"{_ratio(group, BEST, BEST_PLAIN)['median']:.2f}"
        rows.append([f"{TITLES.get(name, name)}, {shape}", throughput, _growth(peaks.get(_kind(group)))])
    return f"{_wrapped(says)}\n\n{_table(['', 'throughput', 'memory'], rows)}"


def _kind(group: Record) -> tuple[str, str]:
    return group["setting"]["network"], group["setting"]["relaxation"]


def _growth(group: Record | None) -> str:
    if group is None:
        return NOTHING
    if not group["ratios"]:
        return ", ".join(f"{row['name']}: {row['status']}" for row in group["contenders"] if row["status"] != "ok")
    (ratio,) = group["ratios"]
    return f"{ratio['memory']:.2f} ({ratio['of']} / {ratio['over']})"


def _verification(record: Record) -> str:
    groups = record["groups"]
    names = list(dict.fromkeys(row["name"] for group in groups for row in group["contenders"]))
    says = (
        f"Complete verification, {groups[0]['setting']['timeout']:g} s an instance ({_machine(record)}): instances "
        f"decided, and the seconds that all took, start included. {record.get('note', '')}"
    )
    rows, sizes = [], [group["units_per_step"] for group in groups]
    for group, size in zip(groups, sizes, strict=True):
        rows.append([group["name"], str(size), *(_decided(_row(group, name)) for name in names)])
    counts = (sum(len(list(solved(_row(group, name) or _NO_ROW))) for group in groups) for name in names)
    rows.append(["all", str(sum(sizes)), *map(str, counts)])
    return f"{_wrapped(says.strip())}\n\n{_table(['', 'instances', *names], rows)}"


def _decided(row: Record | None) -> str:
    if row is None:
        return NOTHING
    errors = row["verdicts"].count(ERROR)
    failed = f", {errors} error{'s' * (errors > 1)}" if errors else ""
    return f"{len(list(solved(row)))} ({sum(row['seconds']):.0f} s{failed})"


def _row(group: Record, name: str) -> Record | None:
    return next((row for row in group["contenders"] if row["name"] == name), None)


def _ratio(group: Record, of: str, over: str) -> Record:
    """Empty where the record has none."""
    found = (ratio for ratio in group["ratios"] if (ratio["of"], ratio["over"]) == (of, over))
    return next(found, {})


def _agreement(record: Record) -> str:
    checks = [check for group in record["groups"] for check in group["agreements"]]
    if not checks:
        return "Margins were not compared."
    agrees = all(check["agrees"] for check in checks)
    return f"The margins of both {'are the same' if agrees else 'DIFFER'} (to {checks[0]['tolerance']:g})."


def _machine(record: Record) -> str:
    environment: dict[str, Any] = record["environment"]
    threads = environment["threads"]
    return f"{environment['cpu']}, {threads} thread{'s' * (threads > 1)}, PyTorch {environment['torch']}"


def _read(path: Path) -> Record:
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def _wrapped(text: str) -> str:
    return textwrap.fill(text, LINE, break_long_words=False, break_on_hyphens=False)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
