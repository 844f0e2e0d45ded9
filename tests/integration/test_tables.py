"""Named tables: which cells they are made of, what they claim, that they say what is smaller than in the literature."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from docs.generate import results
from typer.testing import CliRunner

from tightrope.cli.main import app
from tightrope.errors import ConfigError, UnknownNameError
from tightrope.experiments.table import load_table, sizes, tables, tables_of
from tightrope.records.cell import CellRecord, read_cells
from tightrope.reports import figures
from tightrope.reports.cells import Layout, Literature, cell_table, csv_text
from tightrope.reports.figures import new_figure

METHODS = Layout(title="Methods", heading="Method", rows="variant", baseline="ibp")
GRID = Layout(title="Matrix", heading="Relaxation", rows="relaxation", columns="smoother", baseline="none")


def record(seed: int = 0, certified: float = 0.5, **facts: Any) -> CellRecord:
    known: dict[str, Any] = {"suite": "s", "start": "scratch", "smoother": "", "relaxation": "", "overrides": ()}
    known |= {"split": "test", "images": 100, "eps": "0.1", "natural": 0.9, "adversarial": 0.8, "unknown": 0.25}
    known |= {"weights": 1, "weights_sha256": "", "evaluations": 1, "differentiated": True, "train_seconds": 60.0}
    known |= {"certify_seconds": 1.0, "network": "cnn3", "epochs": 21, "train_images": 54000, "dataset": "mnist"}
    return CellRecord.model_validate(known | {"seed": seed, "certified": certified} | facts)


# ------------------------------------------------------------------------------------------------- what is in them


def test_every_table_at_every_size_tells_its_cells_apart() -> None:
    """load_table checks the settings of all cells, that every axis which varies is shown, and that it has values."""
    for name in tables():
        for budget in sizes(name):
            table = load_table(name, budget)
            assert table.cells, (name, budget)
            assert table.layout.baseline in [*table.values[table.layout.rows], *table.values.get("smoother", [])]
            assert table.suite.literature is not None, "what is smaller than the literature must be said"


def test_tables_of_one_suite_share_their_cells() -> None:
    paradox, matrix, warm = (load_table(name, "minutes") for name in ("paradox", "matrix", "warm-start"))
    assert set(paradox.cells) < set(matrix.cells)
    assert not set(warm.cells) & set(matrix.cells)
    assert len(paradox.cells) == len(paradox.suite.relaxations) * 3
    assert {cell.smoother for cell in paradox.cells} == {"none"}
    assert matrix.values["relaxation"][:5] == ["ibp", "hbox", "crown_ibp", "crown_ibp-zero", "deepz"], "loose to tight"


def test_ablations_change_one_thing() -> None:
    for name, smoothers in (("ablation-population", {"pgpe"}), ("ablation-samples", {"rgs"})):
        table = load_table(name, "minutes")
        assert {cell.smoother for cell in table.cells} == smoothers
        assert all(cell.variant == "base" or cell.variant.startswith("pairs=") for cell in table.cells)


def test_the_suite_in_the_guide_is_one(tmp_path: Path) -> None:
    guide = Path(__file__).parents[2] / "docs" / "how-to" / "reproduce-a-table.md"
    (text,) = re.findall(r"```toml\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    table = load_table("methods", suite=str(tmp_path / "mine.toml"))
    assert [(cell.variant, cell.seed) for cell in table.cells[:3]] == [("ibp", 0), ("sabr", 0), ("ibp", 1)]
    assert all(f"`{name}`" in guide.read_text() for name in tables() if not name.startswith("ablation"))


def test_what_cannot_be_reproduced(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'paradox'"):
        load_table("paradx")
    with pytest.raises(UnknownNameError, match="minutes"):
        load_table("paradox", "hours")
    with pytest.raises(ConfigError, match="none of the values of the axis variant"):
        load_table("methods", suite="paradox/digits")
    with pytest.raises(ConfigError, match="tell apart the values of the axis smoother: none, rgs"):
        load_table("methods", suite="ablation/digits")


# ------------------------------------------------------------------------------------------------- what they claim


def texts(table: Any) -> dict[str, list[str]]:
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def test_a_row_is_above_the_baseline_only_where_the_paired_interval_says_so() -> None:
    """Seeds differ by more than methods do; paired, one method is surely above, of the other nothing is known."""
    values = {"ibp": (0.50, 0.60, 0.70), "sabr": (0.52, 0.621, 0.72), "taps": (0.60, 0.55, 0.74)}
    cells = [record(seed, v, variant=name) for name, each in values.items() for seed, v in enumerate(each)]
    shown = texts(cell_table(cells, METHODS, {"variant": ["ibp", "sabr", "taps", "staps"]}))
    assert shown["IBP"][-1] == ""
    assert shown["SABR"][2].endswith(" (+)")
    assert shown["SABR"][-1].startswith("+2.0 ± 0.1")
    assert shown["TAPS"][-1].startswith("+3.0 ± ")
    assert "(" not in shown["TAPS"][2]
    assert shown["STAPS"][0] == "not run"


def test_with_one_seed_nothing_is_claimed() -> None:
    cells = [record(0, v, variant=name) for name, v in (("ibp", 0.2), ("sabr", 0.9))]
    table = cell_table(cells, METHODS, {"variant": ["ibp", "sabr"]})
    assert texts(table)["SABR"][-1] == ""
    assert texts(table)["SABR"][2] == "90.0 ± 7.4"  # Wilson's interval of 90 images of 100: 82.6 to 94.5
    assert "one seed shows no order" in table.note


def test_rows_of_fewer_seeds_are_starred() -> None:
    cells = [record(seed, 0.5, variant="ibp") for seed in range(3)] + [record(0, 0.5, variant="sabr")]
    shown = texts(cell_table(cells, METHODS, {"variant": ["ibp", "sabr"]}))
    assert "*" not in shown["IBP"][2]
    assert shown["SABR"][2].endswith("*")


def test_a_grid_marks_what_surely_differs_from_the_baseline_of_its_row_or_column() -> None:
    def cells(of_rgs: tuple[float, ...]) -> list[CellRecord]:
        plain = [record(seed, v, smoother="none", relaxation="ibp") for seed, v in enumerate((0.5, 0.6, 0.7))]
        return plain + [record(seed, v, smoother="rgs", relaxation="ibp") for seed, v in enumerate(of_rgs)]

    order = {"relaxation": ["ibp", "deeppoly"], "smoother": ["none", "rgs"]}
    for values, sign in (((0.6, 0.7, 0.801), "+)"), ((0.4, 0.5, 0.601), "-)"), ((0.7, 0.5, 0.8), "")):
        shown = texts(cell_table(cells(values), GRID, order))
        assert shown["IBP"][1].partition(" (")[2] == sign
        assert "(" not in shown["IBP"][0]
        assert shown["DeepPoly"] == ["not run", "not run"]
    by_row = GRID.model_copy(update={"rows": "variant", "columns": "smoother", "baseline": "base"})
    pairs = {"base": (0.5, 0.6), "sigma=1": (0.7, 0.801)}
    found = [record(s, v, variant=name, smoother="rgs") for name, each in pairs.items() for s, v in enumerate(each)]
    assert texts(cell_table(found, by_row, {"variant": [*pairs], "smoother": ["rgs"]}))["sigma=1"][0].endswith("(+)")


def test_the_table_says_what_is_smaller_than_in_the_literature() -> None:
    literature = Literature(source="the paper", network="cnn7", epochs=70, train_images=60000, images=100, remark="So.")
    cells = [record(variant="ibp")]
    note = cell_table(cells, METHODS, {"variant": ["ibp"]}, literature).note
    assert "Smaller than the paper: network cnn3 instead of cnn7, 21 epochs instead of 70, 54,000 training" in note
    assert "certified images" not in note, "as many as there"
    assert "So." in note
    same = literature.model_copy(update={"network": "cnn3", "epochs": 21, "train_images": 54000})
    assert "Smaller" not in cell_table(cells, METHODS, {"variant": ["ibp"]}, same).note


def test_departures_that_all_rows_share_are_said_once_and_others_at_their_row() -> None:
    common, own = "train.epochs = 21 (published: 70)", "method.attack.restarts = 1 (published: 3)"
    cells = [
        record(variant="ibp", departures=(common,)),
        record(variant="sabr", departures=(common, own)),
        record(variant="taps", departures=(common, own)),
        record(variant="deeppoly", note="not published"),
    ]
    table = cell_table(cells, METHODS, {"variant": ["ibp", "sabr", "taps", "deeppoly"]})
    assert [row[0].text for row in table.rows] == ["IBP", "SABR [1]", "TAPS [1]", "DeepPoly [2]"]
    assert table.note.count(common) == table.note.count(own) == 1
    assert table.note.endswith(f"[1] {own}. [2] not published.")


def test_csv_has_every_cell_as_it_was_recorded() -> None:
    cells = [record(seed, 1 / 3, variant="ibp", departures=("a", "b")) for seed in (0, 1)]
    lines = list(csv.DictReader(csv_text(cells).splitlines()))
    assert [(line["seed"], float(line["certified"]), line["departures"]) for line in lines] == [
        (str(seed), 1 / 3, "a; b") for seed in (0, 1)
    ]
    assert csv_text([]).strip() == ""


# ------------------------------------------------------------------------------------------------------ command line

TINY: dict[str, Any] = {
    "seeds": [0],
    "run": {
        "threads": 1,
        "data": {"name": "digits", "train": 60, "validation": 20},
        "model": {"name": "mlp", "width": [4]},
        "method": {"name": "certified", "relaxation": "ibp"},
        "eps": {"train": "0.02"},
        "train": {"epochs": 1, "batch_size": 40},
    },
    "smoothers": {"none": [], "rgs": ["smoother.name=rgs", "smoother.std=0.01"]},
    "relaxations": {"ibp": [], "deeppoly": ["method.relaxation=deeppoly"]},
    "starts": {"scratch": [], "warm": []},
    "certify": {"count": 4, "timeout": 5.0},
}


def test_a_table_is_run_resumed_shown_and_written(tmp_path: Path) -> None:
    suite, out = tmp_path / "tiny.toml", tmp_path / "out"
    suite.write_text(tomli_w.dumps(TINY))

    def reproduce(table: str, *more: str) -> str:
        arguments = ["reproduce", table, "--suite", str(suite), "--out", str(out), *more]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    assert "1 networks are left" in reproduce("paradox", "--limit", "1")  # one loss, and then one more run
    assert "2 networks, 1 of them done" in reproduce("paradox")
    assert {cell.condition for cell in read_cells(out)} == {("scratch", "none", name) for name in ("ibp", "deeppoly")}
    before = {path: path.read_bytes() for path in out.rglob("cell.json")}
    assert "against" in reproduce("paradox", "--show")
    assert {path: path.read_bytes() for path in out.rglob("cell.json")} == before
    assert "DeepPoly" in (out / "paradox.md").read_text()
    assert r"\begin{tabular}" in (out / "paradox.tex").read_text()
    assert len((out / "paradox.csv").read_text().splitlines()) == 3
    assert "matrix.png" in reproduce("matrix", "--show")
    assert "4 networks" in reproduce("warm-start")  # from the plain cell of the other table
    assert {cell.start for cell in read_cells(out)} == {"scratch", "warm"}
    assert len((out / "paradox.csv").read_text().splitlines()) == 3


def test_the_tables_of_a_folder_are_rendered_from_its_records_alone(tmp_path: Path) -> None:
    for seed, name in enumerate(("ibp", "deeppoly")):
        found = record(0, 0.1 * seed, suite="paradox/digits", smoother="none", relaxation=name)
        found.write(tmp_path / name / "cell.json")
    shown = tables_of(tmp_path)
    assert list(shown) == ["matrix", "paradox"]
    assert texts(shown["paradox"])["DeepPoly"][2] == "10.0 ± 7.4"
    assert texts(shown["matrix"])["hBox"][0] == "not run"
    page = results._experiment(tmp_path)
    assert shown["paradox"].title in str(next(iter(page.values())))


def test_a_grid_is_drawn_with_a_dot_for_each_seed_and_a_bar_at_their_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(figures, "new_figure", lambda *size: drawn.append(new_figure(*size)) or drawn[-1])
    cells = [record(seed, share, smoother="none", relaxation="ibp") for seed, share in enumerate((0.2, 0.4))]
    cells.append(record(0, 0.1, smoother="rgs", relaxation="deeppoly"))
    rows, columns = {"ibp": "IBP", "deeppoly": "DeepPoly"}, {"none": "none", "rgs": "RGS"}
    figures.certified_by_axes(cells, ("relaxation", rows), ("smoother", columns), tmp_path / "grid.png")
    (axes,) = drawn[0].axes
    assert [pytest.approx(line.get_ydata()[0]) for line in axes.lines] == [30, 10]
    assert [dots.get_offsets()[:, 1].tolist() for dots in axes.collections] == [[20, 40], [10]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["none", "RGS"]
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_bad_tables_on_the_command_line(tmp_path: Path) -> None:
    for arguments, text in (
        (["nothing"], "table"),
        (["paradox", "--budget", "days"], "budget"),
        (["paradox", "--limit", "soon"], "budget"),
        (["paradox", "--show", "--out", str(tmp_path)], "no finished cells"),
    ):
        result = CliRunner().invoke(app, ["reproduce", *arguments], env={"COLUMNS": "200"})
        assert (result.exit_code, text in result.output) == (2, True), result.output
    listed = CliRunner().invoke(app, ["list", "tables"], env={"COLUMNS": "200"})
    assert all(name in listed.output for name in tables())
