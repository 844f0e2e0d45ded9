"""The benchmarks run from the repository root and write records of their documented form. No timing is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(out: Path, *arguments: str) -> dict[str, Any]:
    """The record of one run on the CPU."""
    suite = arguments[0]
    command = [sys.executable, "-m", "benchmarks", *arguments, "--quick", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (out / f"{suite}-quick-cpu.json").read_text(encoding="utf-8")
    assert str(ROOT) not in text
    return json.loads(text)


def check_summary(summary: dict[str, float]) -> None:
    assert 0 < summary["min"] <= summary["median"] <= summary["max"]


def check_contender(row: dict[str, Any], repeats: int) -> None:
    assert row["status"] == "ok", row
    assert len(row["seconds_per_step"]["samples"]) == repeats
    check_summary(row["seconds_per_step"])
    check_summary(row["throughput"])


def test_population_record(tmp_path: Path) -> None:
    sizes = ("--pairs", "2", "--images", "4", "--chunks", "1,2", "--width", "2")
    record = run(tmp_path, "population", "--no-memory", *sizes)
    assert record["format"] == "tightrope-benchmark/1"
    assert (record["name"], record["device"], record["quick"]) == ("population", "cpu", True)
    assert {"date", "tightrope", "torch", "cpu", "cores", "threads", "gpu", "commit"} <= set(record["environment"])
    assert record["protocol"]["repeats"] >= 5
    (group,) = record["groups"]
    names = [row["name"] for row in group["contenders"]]
    assert names == ["chunk=1", "chunk=2", "naive loop", "plain, one batch", "plain, batches"]
    for row in group["contenders"]:
        check_contender(row, record["protocol"]["repeats"])
    assert all(ratio["of"] in names and ratio["over"] in names for ratio in group["ratios"])
    assert [check["agrees"] for check in group["agreements"]] == [True] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory and its limit are measured on Linux")
def test_training_record_says_what_does_not_fit(tmp_path: Path) -> None:
    case = ("--batches", "16", "--width", "16", "--relaxations", "ibp,deeppoly", "--threads", "2")
    record = run(tmp_path, "training", "--memory-limit", "0.03", *case)
    (group,) = record["groups"]
    rows = {row["name"]: row for row in group["contenders"] if row["library"] == "tightrope"}
    check_contender(rows["ibp"], record["protocol"]["repeats"])
    assert 0 < rows["ibp"]["peak_memory_mib"] < 30
    assert rows["deeppoly"]["status"] == "does not fit"
    assert rows["deeppoly"]["reason"] == "needs more than 0.03 GiB beyond its set-up"
    assert "throughput" not in rows["deeppoly"]


def test_plan_record_has_forecasts_beside_what_was_measured(tmp_path: Path) -> None:
    case = ("--networks", "cnn3_tiny", "--batches", "2", "--relaxations", "ibp")
    record = run(tmp_path, "plan", "--no-memory", "--threads", "1", *case)
    (group,) = record["groups"]
    assert [row["name"] for row in group["contenders"]] == ["ibp, none", "ibp, pgpe, 8 pairs", "ibp, rgs, 2 pairs"]
    for row in group["contenders"]:
        check_contender(row, record["protocol"]["repeats"])
        forecast, ratios = group["setting"]["forecasts"][row["name"]], row["forecast_over_measured"]
        assert ratios["seconds_per_step"] * row["seconds_per_step"]["median"] == pytest.approx(
            forecast["seconds_per_step"]
        )
        assert ratios["peak_memory"] is None
