"""The first minute: four ways to train one small network, each certified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tightrope.experiments.api import certify, fit
from tightrope.experiments.run import Run
from tightrope.records.files import write_json
from tightrope.records.image import Summary
from tightrope.reports.figures import accuracies
from tightrope.training.events import Watcher

PRESETS = {
    "IBP / plain gradient": "digits/mlp-ibp",
    "DeepPoly / plain gradient": "digits/mlp-deeppoly",
    "DeepPoly / RGS": "digits/mlp-deeppoly-rgs",
    "DeepPoly / PGPE": "digits/mlp-deeppoly-pgpe",
}


@dataclass(frozen=True)
class Row:
    """One of the four.

    Attributes:
        seconds: of training.
    """

    name: str
    run: Run
    summary: Summary

    @property
    def seconds(self) -> float:
        """Of training."""
        return self.run.record.seconds


def run_demo(out: Path, watch: Callable[[str], Watcher]) -> list[Row]:
    """Train and certify the four, and draw them; what is finished in ``out`` already is taken from there.

    Args:
        out: folder of the run folders, ``demo.png`` and ``demo.json``.
        watch: from a name to what is told of its progress.
    """
    rows = [_row(name, preset, out / preset.split("/")[1], watch) for name, preset in PRESETS.items()]
    title = "Digits 8x8, 32-32 units, eps 0.1: 360 test images"
    accuracies({r.name: r.summary for r in rows}, {r.name: r.run.epochs for r in rows}, title, out / "demo.png")
    write_json(out / "demo.json", {row.name: _facts(row) for row in rows})
    return rows


def _row(name: str, preset: str, folder: Path, watch: Callable[[str], Watcher]) -> Row:
    run = fit(preset, out=folder, resume=(folder / "record.json").is_file(), watcher=watch(name))
    return Row(name, run, certify(run))


def _facts(row: Row) -> dict[str, object]:
    return {"seconds": row.seconds, **row.summary.model_dump(mode="json")}
