"""The benchmarks, from their records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.report import columns_of, ratio_text
from docs.generate.markdown import page, table

Record = dict[str, Any]
_MARKUP = re.compile(r"\[/?bold\]|\[/\]")


def pages(root: Path, folder: Path) -> dict[str, str | bytes]:
    """``results/02-benchmarks-*.md``, the pictures beside them, and the protocol."""
    protocol = (root / "benchmarks/README.md").read_text(encoding="utf-8")
    protocol = protocol.replace("# Benchmarks", "# Benchmarks: the protocol", 1)
    found: dict[str, str | bytes] = {"results/02-benchmarks.md": protocol}
    for path in sorted(folder.glob("*.json")):
        found |= _page(path)
    return found


def _page(path: Path) -> dict[str, str | bytes]:
    record: Record = json.loads(path.read_bytes())
    picture = path.with_suffix(".png")
    shown = [f"![{record['name']}]({picture.name})"] if picture.is_file() else []
    parts = [part for group in record["groups"] for part in _group(group)]
    text = page(f"Benchmark: {record['name']}, {record['device']}", _about(record, path), *shown, *parts)
    pictures = {f"results/{picture.name}": picture.read_bytes()} if picture.is_file() else {}
    return {f"results/02-benchmarks-{path.stem}.md": text, **pictures}


def _about(record: Record, path: Path) -> str:
    env = record["environment"]
    machine = f"{env['cpu']}, {env['threads']} threads" if record["device"] == "cpu" else env["gpu"]
    return (
        f"{env['date'][:10]}, {machine}, PyTorch {env['torch']}. Remade by `python -m benchmarks {record['name']}`; "
        f"record: `results/benchmarks/{path.name}`; how it is measured: [the protocol](02-benchmarks.md)."
    )


def _group(group: Record) -> list[str]:
    if "top" in group:
        return _profile(group)
    heading = f"## {group['name']}"
    if not group.get("contenders"):
        return [heading, group.get("reason") or "Nothing ran."]
    if "verdicts" in group["contenders"][0]:
        return [heading, _verdicts(group["contenders"])]
    columns = columns_of(group)
    rows = [
        [row["name"], *(cell(row) for cell in columns.values())]
        if row["status"] == "ok"
        else [row["name"], row["status"], *[""] * (len(columns) - 1)]
        for row in group["contenders"]
    ]
    ratios = [f"- {_MARKUP.sub('**', ratio_text(ratio)).strip()}" for ratio in group.get("ratios", [])]
    shown = table(["", *columns], rows, numbers=True)
    return [heading, f"In {group['unit']}.", shown, "\n".join([*ratios, *_slopes(group)])]


def _slopes(group: Record) -> list[str]:
    return [
        f"- slope of {what}: **{slope['least_squares']:.2f}** (last two points {slope['last']:.2f})"
        for what, slope in group.get("slopes", {}).items()
        if slope
    ]


def _profile(group: Record) -> list[str]:
    rows = [
        [f"`{top['name']}`", top["kind"], f"{top['calls']:g}", f"{top['milliseconds']:.2f}", f"{top['share']:.0%}"]
        for top in group["top"]
    ]
    columns = ["operation", "kind", "calls a step", "ms a step", "share"]
    return [f"## {group['name']}", table(columns, rows)]


def _verdicts(contenders: list[Record]) -> str:
    words = sorted({verdict for row in contenders for verdict in row["verdicts"]})
    rows = [
        [row["name"], *(str(row["verdicts"].count(word)) for word in words), f"{sum(row['seconds']):.1f}"]
        for row in contenders
    ]
    return table(["", *words, "seconds in all"], rows, numbers=True)
