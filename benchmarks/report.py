"""The record as a JSON file and as tables for people."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.protocol import Record

FORMAT = "tightrope-benchmark/1"


def write(record: Record, path: Path) -> None:
    """Write a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def show(group: Record, console: Console) -> None:
    """Print the table of a group, its ratios and its agreements."""
    table = Table(title=f"{group['name']} ({group['unit']})", title_justify="left")
    table.add_column("contender", no_wrap=True)
    for column in ("median", "min .. max", "ms a step", "peak MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in group["contenders"]:
        table.add_row(*_cells(row))
    console.print(table)
    for row in group["contenders"]:
        if row["status"] == "failed":
            console.print(f"  [red]{row['name']} failed[/]: {escape(row['reason'])}", highlight=False)
    for row in group["contenders"]:
        if ratios := row.get("forecast_over_measured"):
            shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio is not None)
            console.print(f"  {row['name']}: forecast / measured {shown}", highlight=False)
    for ratio in group["ratios"]:
        spread = f"{ratio['min']:.3g} .. {ratio['max']:.3g}"
        console.print(f"  {ratio['of']} / {ratio['over']}: [bold]{ratio['median']:.3g}[/] ({spread})", highlight=False)
    for check in group["agreements"]:
        verdict = "same" if check["agrees"] else "[red]DIFFERENT[/]"
        text = f"{check['fact']} of {check['first']} and {check['second']}: {verdict}"
        detail = f"(means {check['mean_first']:.6g}, {check['mean_second']:.6g})"
        console.print(f"  {text} {detail}", highlight=False)


def _cells(row: Record) -> list[str]:
    peak = row.get("peak_memory_mib")
    memory = "" if peak is None else f"{peak:,.1f}"
    if row["status"] != "ok":
        return [row["name"], row["status"], "", "", memory]
    rate = row["throughput"]
    spread = f"{_number(rate['min'])} .. {_number(rate['max'])}"
    step = f"{1000 * row['seconds_per_step']['median']:,.1f}"
    return [row["name"], _number(rate["median"]), spread, step, memory]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
