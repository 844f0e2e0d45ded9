"""The networks that come with the package, from their own records."""

from __future__ import annotations

from docs.generate.markdown import page, table

from tightrope.experiments import model_zoo
from tightrope.records.run import RunRecord

INTRODUCTION = """\
Small trained networks that come with the package, every file checked by its sum when it is read. They are used like
runs: `tr.load("zoo/NAME")`, `tightrope certify zoo/NAME`, `tightrope export zoo/NAME --onnx`. The figures are of
complete verification of all test images."""


def pages() -> dict[str, str]:
    """``reference/zoo.md``."""
    columns = ["network", "weights", "data", "eps", "images", "natural %", "adversarial %", "certified %"]
    return {"reference/zoo.md": page("Zoo", INTRODUCTION, table(columns, map(_row, model_zoo.zoo()), numbers=True))}


def _row(name: str) -> list[str]:
    record, summary = RunRecord.read(model_zoo.find(name) / "record.json"), model_zoo.summary(name)
    shares = (summary.natural_accuracy, summary.adversarial_accuracy, summary.certified_accuracy)
    facts = [f"`{name}`", f"{record.weights:,}", record.config["data"]["name"], summary.eps, f"{summary.count:,}"]
    return [*facts, *(f"{100 * share:.2f}" for share in shares)]
