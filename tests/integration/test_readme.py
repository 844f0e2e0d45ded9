"""The README: its figures are those of the committed records, and its Python runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ROWS = re.findall(r"^\| `([\w./-]+)` \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (\d+) \|$", README, re.M)


def test_there_are_results() -> None:
    assert len(ROWS) >= 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_figures_are_those_of_the_records(row: tuple[str, ...]) -> None:
    preset, weights, natural, adversarial, certified, minutes = row
    folder = ROOT / "results" / preset.replace("/", "-")
    record = json.loads((folder / "record.json").read_text())
    (path,) = folder.glob("certify-*.summary.json")
    summary = json.loads(path.read_text())
    assert (record["name"], f"{record['weights']:,}") == (preset, weights)
    shares = [f"{100 * summary[f'{kind}_accuracy']:.1f}" for kind in ("natural", "adversarial", "certified")]
    assert shares == [natural, adversarial, certified]
    assert round(record["seconds"] / 60) == int(minutes)
    assert f"`tightrope train {preset}`" in README


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_benchmark_figures_are_those_of_the_record() -> None:
    groups = json.loads((ROOT / "results/benchmarks/training-cpu.json").read_text())["groups"]
    for group in groups:
        setting = group["setting"]
        (row,) = re.findall(rf"^\| {setting['network']}, batch {setting['batch']} \| (.*) \|$", README, re.M)
        ratios = {ratio["of"]: f"{ratio['median']:.2f}" for ratio in group["ratios"]}
        shown = dict(zip(("ibp", "crown_ibp", "deeppoly"), row.split(" | "), strict=True))
        assert {name: shown[name] for name in ratios} == ratios
    record = json.loads((ROOT / "results/benchmarks/population-cpu.json").read_text())
    ratios = {(r["of"], r["over"]): f"{r['median']:.2f}" for group in record["groups"] for r in group["ratios"]}
    for chunk in ("chunk=16", "chunk=1"):
        assert ratios[chunk, "plain, one batch"] in README
