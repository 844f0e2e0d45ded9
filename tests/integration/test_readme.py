"""The README: its figures are those of the committed records, and its Python runs."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from benchmarks import readme

from tightrope.experiments.suite import Cell, load_suite, settings_digest
from tightrope.experiments.table import tables_of
from tightrope.records.cell import CellRecord, read_cells
from tightrope.records.intervals import paired
from tightrope.reports.tables import markdown

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FOUND = " ".join((ROOT / "docs/explanation/what-we-found.md").read_text().split()).replace("\N{MINUS SIGN}", "-")
ROWS = re.findall(r"^\| `([\w./-]+)` \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (\d+) \|$", README, re.M)
COMPLETE = re.findall(r"^\| `([\w./-]+)` \| ([\d.]+) \| ([\d.]+) \| (\d+) \| ([\d.]+) \|$", README, re.M)


def test_there_are_results() -> None:
    assert len(ROWS) >= 2
    assert len(COMPLETE) >= 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_figures_are_those_of_the_records(row: tuple[str, ...]) -> None:
    preset, weights, natural, adversarial, certified, minutes = row
    folder = ROOT / "results" / preset.replace("/", "-")
    record = json.loads((folder / "record.json").read_text())
    (path,) = folder.glob("certify-*-float64.summary.json")
    summary = json.loads(path.read_text())
    assert (record["name"], f"{record['weights']:,}") == (preset, weights)
    shares = [f"{100 * summary[f'{kind}_accuracy']:.1f}" for kind in ("natural", "adversarial", "certified")]
    assert shares == [natural, adversarial, certified]
    assert round(record["seconds"] / 60) == int(minutes)
    assert f"`tightrope train {preset}`" in README


@pytest.mark.parametrize("row", COMPLETE, ids=lambda row: row[0])
def test_figures_of_complete_verification_are_those_of_the_records(row: tuple[str, ...]) -> None:
    preset, adversarial, certified, unknown, minutes = row
    (path,) = (ROOT / "results" / preset.replace("/", "-")).glob("certify-*-complete.summary.json")
    summary = json.loads(path.read_text())
    shares = [f"{100 * summary[f'{kind}_accuracy']:.2f}" for kind in ("adversarial", "certified")]
    assert (shares, summary["unknown"]) == ([adversarial, certified], int(unknown))
    assert f"{summary['seconds'] / 60:.1f}" == minutes


@pytest.mark.parametrize(
    ("size", "table"),
    [("mnist-small-0.3", "matrix"), ("mnist-small", "matrix-mnist-0.1"), ("mnist-7x7", "matrix-7x7")],
)
def test_tables_of_the_experiment_are_those_of_its_records(size: str, table: str) -> None:
    folder = ROOT / f"results/paradox-{size}"
    written = (folder / f"{table}.md").read_text()
    assert written == markdown([tables_of(folder)[table]])
    for page in ("README.md", "docs/explanation/what-we-found.md"):
        rows = re.findall(r"^\| \S+ \| .* ± .* \|$", (ROOT / page).read_text(), re.M)
        found = [row for row in rows if row in written]
        assert {"IBP", "DeepPoly"} <= {row.split()[1] for row in found}, page


def test_every_table_of_an_experiment_is_from_a_record() -> None:
    written = "".join(path.read_text() for path in ROOT.glob("results/paradox-*/matrix*.md"))
    for page in ("README.md", "docs/explanation/what-we-found.md"):
        rows = re.findall(r"^\| \S+ \| .* ± .* \|$", (ROOT / page).read_text(), re.M)
        assert all(row in written for row in rows), page


PGPE, AFTER = ("scratch", "pgpe", "deeppoly"), ("after-pgpe", "none", "deeppoly")
FLAT, FLAT_AFTER = ("scratch", "pgpe", "deeppoly-zero"), ("after-pgpe", "none", "deeppoly-zero")
COMPARED = [
    *((PGPE, other) for other in (("scratch", "none", "deeppoly"), ("scratch", "rgs", "deeppoly"))),
    *((PGPE, other) for other in (("scratch", "rgs-16", "deeppoly"), ("scratch", "pgpe", "ibp"))),
    *((AFTER, ("after-none", "none", other)) for other in ("deeppoly", "ibp")),
    (AFTER, ("after-pgpe", "none", "ibp")),
    ((*AFTER, "natural"), ("after-none", "none", "ibp", "natural")),
    (("scratch", "none", FLAT[2]), ("scratch", "none", "ibp")),
    *((FLAT, ("scratch", *other)) for other in (("none", FLAT[2]), ("rgs", FLAT[2]), ("pgpe", "ibp"))),
    *((FLAT_AFTER, (start, "none", FLAT[2])) for start in ("after-none", "after-rgs-16")),
    *((FLAT_AFTER, (start, "none", "ibp")) for start in ("after-none", "after-pgpe", "length")),
]
"""What is said to be above what, by how much."""


def test_figures_of_equal_settings_are_those_of_the_records() -> None:
    """What the two pages say of the estimators at 7 x 7: means, their intervals, and the paired differences."""
    found: dict[tuple[str, ...], list[float]] = {}
    for cell in sorted(read_cells(ROOT / "results/paradox-mnist-7x7-estimators"), key=lambda cell: cell.seed):
        found.setdefault(cell.condition, []).append(100 * cell.certified)
        found.setdefault((*cell.condition, "natural"), []).append(100 * cell.natural)
    longer = read_cells(ROOT / "results/paradox-mnist-7x7-length")
    found["length", "none", "ibp"] = [100 * c.certified for c in longer if c.condition == ("scratch", "none", "ibp")]
    ways = [("scratch", smoother) for smoother in ("none", "rgs", "rgs-16", "pgpe")]
    for columns in (ways, [(f"after-{smoother}", "none") for smoother in ("none", "rgs-16", "pgpe")]):
        for relaxation, title in (("ibp", "IBP"), ("deeppoly", "DeepPoly"), ("deeppoly-zero", "DeepPoly-zero")):
            each = [found[*column, relaxation] for column in columns]
            assert [len(values) for values in each] == [5] * len(columns)
            cells = [f"{mean(values):.1f} ± {(paired(values)[1] - paired(values)[0]) / 2:.1f}" for values in each]
            assert f"| {title} | {' | '.join(cells)} |" in FOUND
    ways = [("scratch", "none"), ("scratch", "pgpe"), ("after-none", "none"), ("after-pgpe", "none")]
    crown = [mean(found[*way, "crown_ibp"]) for way in ways]
    said = "{:.1f} % with plain gradients and {:.1f} % under PGPE, {:.1f} and {:.1f} % at the end".format(*crown)
    assert said in FOUND
    for relaxation, said in (
        (FLAT[2], "with flat lower lines {:.1f}, {:.1f} and {:.1f} %"),
        ("ibp", "{:.1f}, {:.1f} and {:.1f} %"),
    ):
        assert said.format(*(mean(found["scratch", each, relaxation]) for each in ("none", "rgs", "pgpe"))) in FOUND
    ends = [
        mean(found[start, "none", name]) for start in ("after-pgpe", "after-none") for name in ("deeppoly", FLAT[2])
    ]
    said = "to {:.1f} % (DeepPoly) and {:.1f} % (flat lines), those that plain gradients began to {:.1f} and {:.1f} %"
    assert said.format(*ends) in FOUND
    for one, other in COMPARED:
        differences = [first - second for first, second in zip(found[one], found[other], strict=True)]
        low, high = paired(differences)
        said = rf"{mean(differences):.1f}(?: points)?(?: \(|, ){low:.1f} to {high:.1f}\)"
        assert re.search(said, FOUND), (one, other, said)
    plain, first_order, zeroth = (mean(found["scratch", each, "deeppoly"]) for each in ("none", "rgs", "pgpe"))
    readme_text = " ".join(README.split())
    assert f"DeepPoly certifies {plain:.1f} % with plain gradients, {first_order:.1f} % with RGS" in readme_text
    assert f"and {zeroth:.1f} % with PGPE" in readme_text
    ends = [
        mean(found[each, "none", name]) for each, name in (AFTER[::2], ("after-none", AFTER[2]), ("after-none", "ibp"))
    ]
    assert (
        "to {:.1f} %, the one that plain gradients began to {:.1f} %; IBP comes to {:.1f} %".format(*ends)
        in readme_text
    )
    flat = [mean(found[each]) for each in (FLAT, (*FLAT[:2], "ibp"), FLAT_AFTER, ("after-none", *FLAT_AFTER[1:]))]
    assert "{:.1f} % under PGPE, surely above IBP's {:.1f} %, and {:.1f} % at the end".format(*flat) in readme_text
    assert f"surely above the {flat[3]:.1f} % of plain gradients" in readme_text
    natural = [mean(found[*each, "natural"]) for each in (("after-none", "none", "ibp"), AFTER)]
    assert "surely lower ({:.1f} beside {:.1f} %)".format(*natural) in readme_text


SLOW, PLAIN = ("pgpe-first", "deeppoly-zero"), "none"
DIFFERENCES = [
    ("mnist-small", (PLAIN, "deeppoly"), (PLAIN, "ibp")),
    *(("mnist-small", (smoother, "deeppoly"), (PLAIN, "deeppoly")) for smoother in ("rgs", "hybrid", "pgpe")),
    ("mnist-small", ("pgpe", "ibp"), (PLAIN, "ibp")),
    ("mnist-small", ("pgpe", "deeppoly"), ("pgpe", "ibp")),
    *(("mnist-7x7-length", SLOW, (PLAIN, relaxation)) for relaxation in ("deeppoly-zero", "ibp")),
]
"""The experiment, and what is said to differ from what, over the seeds that both have."""


@pytest.mark.parametrize(("size", "one", "other"), DIFFERENCES)
def test_differences_are_those_of_the_records(size: str, one: tuple[str, str], other: tuple[str, str]) -> None:
    found: dict[tuple[str, ...], dict[int, float]] = {}
    for cell in read_cells(ROOT / f"results/paradox-{size}"):
        found.setdefault((cell.smoother, cell.relaxation), {})[cell.seed] = 100 * cell.certified
    both = sorted(found[one].keys() & found[other].keys())
    differences = [found[one][seed] - found[other][seed] for seed in both]
    low, high = paired(differences)
    said = rf"{abs(mean(differences)):.1f}( points)?( \w+)* \({low:.1f} to {high:.1f}\)"
    assert re.search(said, FOUND), said


def test_figures_of_tuning_at_eps_0_1_are_those_of_the_records() -> None:
    folder = ROOT / "results/paradox-mnist-small"
    tried = {name: sorted(folder.glob(f"tuning/none-{name}/trial-*/*/cell.json")) for name in ("deeppoly", "ibp")}
    held_out = {name: [100 * CellRecord.read(path).certified for path in paths] for name, paths in tried.items()}
    first = [scores[0] for scores in held_out.values()]
    best = [max(scores) for scores in held_out.values()]
    said = "certifies {:.1f} % of the held-out images and IBP {:.1f} %, each with its best setting {:.1f} and {:.1f} %"
    assert said.format(*first, *best) in FOUND
    cells = read_cells(folder)
    share = {
        (kind, smoother, name): mean(
            100 * getattr(cell, kind) for cell in cells if (cell.smoother, cell.relaxation) == (smoother, name)
        )
        for kind, smoother, name in product(("natural", "certified"), (PLAIN, "rgs", "hybrid"), tried)
    }
    assert "({:.1f} beside {:.1f} %)".format(*(share["natural", PLAIN, name] for name in tried)) in FOUND
    lost = [share["certified", PLAIN, "ibp"] - share["certified", smoother, "ibp"] for smoother in ("rgs", "hybrid")]
    assert "for IBP {:.1f} and {:.1f}; none of it is sure".format(*lost) in FOUND
    epochs = [json.loads(line) for path in folder.glob("scratch/pgpe-*/*/metrics.jsonl") for line in path.open()]
    assert f"a signal-to-noise ratio of at most {max(epoch['train']['snr'] for epoch in epochs):.2f}" in FOUND


def test_figures_of_pgpe_while_eps_rises_are_those_of_the_records() -> None:
    folder = ROOT / "results/paradox-mnist-7x7-length"
    cells = [cell for cell in read_cells(folder) if cell.relaxation == SLOW[1]]
    ways = {way: {cell.seed: cell for cell in cells if cell.smoother == way} for way in (SLOW[0], PLAIN)}
    seeds, last = sorted(ways[SLOW[0]]), {}
    for way, split in product(ways, ("train", "validation")):
        files = [folder / f"scratch/{way}-{SLOW[1]}/seed-{seed}/metrics.jsonl" for seed in seeds]
        losses = [json.loads(file.read_text().splitlines()[-1])[split]["surrogate_loss"] for file in files]
        last[way, split] = (min(losses), max(losses))
    certified = sorted(100 * cell.certified for cell in ways[SLOW[0]].values())
    assert f"{certified[0]:.1f} to {certified[-1]:.1f} %" in FOUND
    natural = [mean(100 * ways[way][seed].natural for seed in seeds) for way in (SLOW[0], PLAIN)]
    assert "({:.1f} beside {:.1f} %)".format(*natural) in FOUND
    for split, said in (
        ("train", "training losses of {:.2f} to {:.2f}, where the same seeds without PGPE come to {:.2f} to {:.2f}"),
        ("validation", "held-out losses of {:.2f} to {:.2f}, beside {:.2f} to {:.2f}"),
    ):
        assert said.format(*last[SLOW[0], split], *last[PLAIN, split]) in FOUND


@pytest.mark.parametrize(
    "folder",
    sorted({path.parents[3] for path in ROOT.glob("results/*/scratch/*/*/cell.json")}),
    ids=lambda path: path.name,
)
def test_cells_are_of_the_suite_as_it_is(folder: Path) -> None:
    """So that the command which made them goes on where there are none, and one table compares like with like.

    Cells of before settings had a fingerprint have none.
    """
    for record in read_cells(folder):
        suite = load_suite(str(ROOT / record.suite) if record.suite.endswith(".toml") else record.suite)
        cell = Cell(record.start, record.smoother, record.relaxation, record.seed, record.trial, record.variant)
        assert record.settings in ("", settings_digest(suite, cell)), cell.folder


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_benchmark_tables_are_written_from_the_records() -> None:
    assert readme.inserted(README, readme.tables(ROOT / "results/benchmarks")) == README


def test_benchmark_tables_say_what_did_not_run(tmp_path: Path) -> None:
    ok = {"status": "ok", "throughput": {"median": 1234.4}}
    rows = {"ibp": ok, "auto_LiRPA IBP": ok, "auto_LiRPA IBP, kept memory": {"status": "failed"}}
    rows |= {"crown_ibp": ok, "deeppoly": {"status": "does not fit"}, "auto_LiRPA CROWN": {"status": "too slow"}}
    ratio = {"of": "ibp", "over": "auto_LiRPA IBP", "median": 1.239}
    speed = {"of": "best chunk", "over": "best plain", "median": 0.876}
    peak = {"of": "1024 pairs", "over": "16 pairs", "memory": 1.004}
    sizes = {"network": "cnn3", "pairs": 8, "images": 64}
    write_record(tmp_path / "training-cpu.json", [group({"network": "cnn3", "batch": 8}, rows, [ratio])])
    ibp, tight = {"relaxation": "ibp"}, {"relaxation": "deeppoly"}
    groups = [group(sizes | ibp, {}, [speed]), group(sizes | tight, {}, [speed])]
    small = {"network": "mlp", "pairs": 8, "images": 64}
    groups += [group(sizes | ibp, {}, [peak]), group(sizes | tight, {"1024 pairs": {"status": "too slow"}}, [])]
    groups += [group(small | ibp, {}, [speed])]
    write_record(tmp_path / "population-cpu.json", groups)
    text = readme.tables(tmp_path)
    cells = ("1,234 (1.24, failed)", "1,234 (not measured, not measured)", "does not fit (auto_LiRPA: too slow)")
    assert f"| cnn3, batch 8 | {' | '.join(cells)} |" in text
    assert "| IBP, cnn3, 8 pairs, 64 images | 0.88 | 1.00 (1024 pairs / 16 pairs) |" in text
    assert "| DeepPoly, cnn3, 8 pairs, 64 images | 0.88 | 1024 pairs: too slow |" in text
    assert f"| IBP, mlp, 8 pairs, 64 images | 0.88 | {readme.NOTHING} |" in text


def test_the_table_of_verification_counts_what_was_decided(tmp_path: Path) -> None:
    ours = {"verdicts": ["unsat", "timeout", "sat"], "seconds": [1.0, 30.4, 2.0]}
    theirs = {"verdicts": ["unsat", "error", "unknown"], "seconds": [5.0, 4.0, 31.0]}
    one = group({"timeout": 30.0}, {"ours": ours, "theirs": theirs}, []) | {"name": "a family", "units_per_step": 3}
    for name in ("training", "population"):
        write_record(tmp_path / f"{name}-cpu.json", [])
    assert "a family" not in readme.tables(tmp_path)
    write_record(tmp_path / "verify-cpu.json", [one, one | {"name": "another"}])
    text = readme.tables(tmp_path)
    assert "| a family | 3 | 2 (33 s) | 1 (40 s, 1 error) |\n| another |" in text
    assert "| all | 6 | 4 | 2 |" in text


def group(setting: dict[str, Any], rows: dict[str, dict[str, Any]], ratios: list[dict[str, Any]]) -> dict[str, Any]:
    contenders = [{"name": name, **row} for name, row in rows.items()]
    return {"setting": setting, "contenders": contenders, "ratios": ratios, "agreements": []}


def write_record(path: Path, groups: list[dict[str, Any]]) -> None:
    environment = {"cpu": "a CPU", "threads": 2, "torch": "2.13", "peers": {"auto_LiRPA": None}}
    path.write_text(json.dumps({"environment": environment, "groups": groups}))
