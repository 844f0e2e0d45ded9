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
