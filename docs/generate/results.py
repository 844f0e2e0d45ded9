"""What was measured: a page for the training runs, one for each benchmark, one for every other folder of records.

All of it is read from ``results/``. A record of a known kind becomes tables; of others the files are listed. Markdown
that lies beside records is shown as it is, and so are pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docs.generate import measurements
from docs.generate.markdown import page, table

from tightrope.experiments.table import tables_of
from tightrope.records.image import Summary
from tightrope.records.run import RunRecord
from tightrope.reports.tables import markdown

OVERVIEW = """\
Every figure on these pages is read from a record in the repository's folder `results/` when the site is built."""

RUNS = """\
Certified accuracy is of the full boxes, in float64, rounding errors bounded; *adversarial* is what the attacks
leave, so that the truth lies between the two. Intervals are 95 % (Wilson) over the images: they say nothing of
other seeds. What is *unknown* is neither proved nor refuted: without complete verification because the bounds are
loose, with it because the time was up."""

CELL = "cell.json"
PICTURES = (".png", ".svg")
Pages = dict[str, str | bytes]


def pages(root: Path) -> Pages:
    """``results/*``."""
    results = root / "results"
    runs = sorted(path.parent for path in results.rglob("record.json") if not (path.parent / CELL).is_file())
    others = [folder for folder in sorted(results.iterdir()) if folder.is_dir() and not _is_under(folder, runs)]
    found: Pages = {"results/01-runs.md": page("Training runs", RUNS, *_runs(results, runs))}
    for folder in others:
        if folder.name == "benchmarks":
            found |= measurements.pages(root, folder)
        else:
            found |= _experiment(folder) if next(folder.rglob(CELL), None) else _folder(folder)
    links = [f"- [{_title(text)}]({Path(name).name})" for name, text in found.items() if name.endswith(".md")]
    return {"results/index.md": page("Results", OVERVIEW, "\n".join(links)), **found}


def _is_under(folder: Path, runs: Iterable[Path]) -> bool:
    return any(folder == run for run in runs)


def _title(text: str | bytes) -> str:
    assert isinstance(text, str)
    return text.partition("\n")[0].removeprefix("# ")


def _runs(results: Path, runs: list[Path]) -> list[str]:
    parts = []
    for folder in runs:
        record = RunRecord.read(folder / "record.json")
        rows = [_certification(path) for path in sorted(folder.glob("*.summary.json"))]
        columns = ["certified with", "images", "eps", "natural %", "adversarial %", "certified %", "unknown", "minutes"]
        shown = [table(columns, rows, numbers=True)] if rows else ["It was not certified."]
        config = (folder / "config.toml").read_text(encoding="utf-8")
        facts = _facts(record, folder.relative_to(results))
        parts += [f"## {record.name}", facts, *shown, _folded("Configuration", config)]
    return parts


def _facts(record: RunRecord, where: Path) -> str:
    env = record.environment
    machine = f"{env.processor or env.platform}, {env.threads} thread{'s' * (env.threads > 1)}, PyTorch {env.torch}"
    return (
        f"{record.weights:,} weights, {record.samples['train']:,} training images, {record.steps:,} steps in "
        f"{record.seconds / 60:.0f} minutes ({machine}); seed {record.config['seed']}. Files: `results/{where}`."
    )


def _certification(path: Path) -> list[str]:
    summary = Summary.model_validate_json(path.read_bytes())
    shares = [
        f"{100 * share:.2f} ({100 * low:.1f} to {100 * high:.1f})"
        for share, (low, high) in (
            (summary.natural_accuracy, summary.natural_interval),
            (summary.adversarial_accuracy, summary.adversarial_interval),
            (summary.certified_accuracy, summary.certified_interval),
        )
    ]
    how = "complete verification" if "-complete" in path.name else "relaxations"
    return [how, f"{summary.count:,}", summary.eps, *shares, str(summary.unknown), f"{summary.seconds / 60:.1f}"]


def _experiment(folder: Path) -> Pages:
    """The named tables of the cells in a folder, and whatever text was written of cells of other suites."""
    named = tables_of(folder)
    others = [path for path in sorted(folder.glob("*.md")) if path.stem not in named]
    texts = [_below_heading(path.read_text(encoding="utf-8")) for path in others]
    shown = [markdown([each]) for each in named.values()]
    records = f"{len(list(folder.rglob(CELL)))} records, `{CELL}` each, in `results/{folder.name}`."
    return {f"results/02-{folder.name}.md": page(folder.name.replace("-", " ").capitalize(), *shown, *texts, records)}


def _folder(folder: Path) -> Pages:
    """A folder of records of whatever kind: its texts, its tables, its pictures and the names of its files."""
    parts, found = [], Pages()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".md":
            parts.append(_below_heading(path.read_text(encoding="utf-8")))
        elif path.suffix in PICTURES:
            place = f"{folder.name}-{name.replace('/', '-')}"
            found[f"results/{place}"] = path.read_bytes()
            parts.append(f"![{path.stem}]({place})")
        elif path.suffix == ".json":
            parts += [f"## {name.removesuffix('.json')}", *_tables(json.loads(path.read_bytes()))]
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    files = f"Files in `results/{folder.name}`: {', '.join(f'`{name}`' for name in names)}."
    return {f"results/03-{folder.name}.md": page(folder.name.replace("-", " ").capitalize(), *parts, files), **found}


def _tables(value: Any) -> list[str]:
    """Single values as one table, and every list of flat records as one."""
    if not isinstance(value, dict):
        value = {"rows": value}
    single = [[str(key), _cell(entry)] for key, entry in value.items() if not isinstance(entry, dict | list)]
    shown = [table(["", ""], single)] if single else []
    for key, entry in value.items():
        if isinstance(entry, list) and entry and all(isinstance(row, dict) for row in entry):
            columns = [k for k, v in entry[0].items() if not isinstance(v, dict | list)]
            rows = [[_cell(row.get(column)) for column in columns] for row in entry]
            shown += [f"**{key}**", table(columns, rows, numbers=True)] if columns else []
    return shown


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _below_heading(text: str) -> str:
    """Markdown whose headings are one level lower, as the page has a title of its own."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines())


def _folded(title: str, toml: str) -> str:
    body = "\n".join(f"    {line}".rstrip() for line in toml.splitlines())
    return f'??? note "{title}"\n\n    ```toml\n{body}\n    ```'
