"""The record as a JSON file and as tables for people."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.case import Record

FORMAT = "tightrope-benchmark/1"


def write(record: Record, path: Path) -> None:
    """Write a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def show(group: Record, console: Console) -> None:
    """Print the table of a group, its ratios, slopes and agreements."""
    console.print(f"[bold]{group['name']}[/] ({group['unit']})", highlight=False)
    table = Table()
    table.add_column("contender", no_wrap=True)
    columns = columns_of(group)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in group["contenders"]:
        if row["status"] == "ok":
            table.add_row(row["name"], *(cell(row) for cell in columns.values()))
        else:
            table.add_row(row["name"], row["status"], *[""] * (len(columns) - 1))
    console.print(table)
    for row in group["contenders"]:
        if row["status"] == "failed":
            console.print(f"  [red]{row['name']} failed[/]: {escape(row['reason'])}", highlight=False)
    for row in group["contenders"]:
        if ratios := row.get("forecast_over_measured"):
            shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio is not None)
            console.print(f"  {row['name']}: forecast / measured {shown}", highlight=False)
    for ratio in group["ratios"]:
        console.print(ratio_text(ratio), highlight=False)
    for what, slope in group.get("slopes", {}).items():
        if slope:
            text = f"  slope of {what}: [bold]{slope['least_squares']:.2f}[/] (last two points {slope['last']:.2f})"
            console.print(text, highlight=False)
    _agreements(group, console)
    console.print()


def columns_of(group: Record) -> dict[str, Callable[[Record], str]]:
    """What the rows of the group have, by heading."""
    rows = [row for row in group["contenders"] if row["status"] == "ok"]
    columns: dict[str, Callable[[Record], str]] = {}
    counted, timed = (any(key in row for row in rows) for key in ("work", "throughput"))
    if timed and not counted:
        columns["median"] = lambda row: _number(row["throughput"]["median"])
        columns["min .. max"] = lambda row: _spread(row["throughput"])
    if timed:
        columns["ms a step"] = lambda row: f"{1000 * row['seconds_per_step']['median']:,.1f}"
    if counted:
        columns["GFLOP/s"] = lambda row: _number(row["gflop_per_second"]["median"])
        columns["of product"] = lambda row: f"{row['share_of_product']['median']:.0%}"
        columns["GB/s"] = lambda row: _number(row["gbyte_per_second"]["median"])
        columns["of copy"] = lambda row: f"{row['share_of_copy']['median']:.0%}"
    if any(row.get("peak_memory_mib") is not None for row in rows) or not columns:
        columns["peak MiB"] = lambda row: _memory(row.get("peak_memory_mib"))
    return columns


def ratio_text(ratio: Record) -> str:
    names = [
        shown if shown == name else f"{shown} ({name})"
        for shown, name in zip((ratio["of"], ratio["over"]), ratio["contenders"], strict=True)
    ]
    parts = []
    if "median" in ratio:
        parts.append(f"[bold]{ratio['median']:.3g}[/] ({ratio['min']:.3g} .. {ratio['max']:.3g})")
    if ratio["memory"] is not None:
        parts.append(f"peak memory {ratio['memory']:.3g}")
    return f"  {names[0]} / {names[1]}: {', '.join(parts)}"


def _agreements(group: Record, console: Console) -> None:
    same = [f"{check['fact']} of {check['first']} and {check['second']}" for check in group["agreements"]]
    if same and all(check["agrees"] for check in group["agreements"]):
        console.print(f"  same: {', '.join(same)}", highlight=False)
        return
    for check in group["agreements"]:
        verdict = "same" if check["agrees"] else "[red]DIFFERENT[/]"
        text = f"{check['fact']} of {check['first']} and {check['second']}: {verdict}"
        console.print(f"  {text} (means {check['mean_first']:.6g}, {check['mean_second']:.6g})", highlight=False)


def _spread(summary: Record) -> str:
    return f"{_number(summary['min'])} .. {_number(summary['max'])}"


def _memory(mib: float | None) -> str:
    return "" if mib is None else f"{mib:,.1f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
