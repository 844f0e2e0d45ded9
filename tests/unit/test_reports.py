"""Reports: what is read, what is claimed of it, how it is printed, and that nothing users wrote can act on the page."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import statistics
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as quickly
from hypothesis import strategies as st
from PIL import Image

import reported
from tightrope.errors import CorruptDataError, InputError, MissingDataError, MissingExtraError
from tightrope.records.certificate import Certificate
from tightrope.records.folder import RunFolder
from tightrope.reports import charts, html
from tightrope.reports.compare import ABSENT, differences, pairing, pairings, settings, warnings
from tightrope.reports.gather import Gathered, TrainedRun, gather, named
from tightrope.reports.pictures import png, worst
from tightrope.reports.reproduce import caveats, commands
from tightrope.reports.results import groups, pareto, results
from tightrope.reports.surface_charts import looks
from tightrope.reports.tables import Cell, Table, latex, markdown, matrix, result_tables

SHARES = ["verified"] * 6 + ["falsified"] * 2 + ["unknown", "wrong"]
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>%{x}$a$&amp;"


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with everything: curves, a certification, radii and counterexamples."""
    folder = reported.make_run(tmp_path / "one")
    for record in reported.certify(folder, SHARES):
        if record.verdict == "falsified" and record.natural:
            reported.keep_counterexample(folder, record)
    reported.search_radii(folder, [None, "0", "1/20", "1/5"])
    return folder


def one(path: Path) -> TrainedRun:
    (found,) = gather([path]).runs
    return found


# ----------------------------------------------------------------------------------------------------- gathering


def test_all_records_of_a_run_are_found(run: Path) -> None:
    found = one(run)
    assert found.label == "digits/mlp-ibp"
    assert [len(each.records) for each in found.certifications] == [10]
    assert [each.summary is not None for each in found.radii] == [True]
    assert len(found.epochs) == 3


def test_a_folder_of_runs_is_all_of_them(tmp_path: Path) -> None:
    for name in ("b", "a"):
        reported.make_run(tmp_path / "runs" / name, name)
    assert [each.label for each in gather([tmp_path / "runs"]).runs] == ["a", "b"]


def test_cells_are_told_from_runs_and_from_trials_and_from_what_is_not_finished(tmp_path: Path) -> None:
    reported.make_cell(tmp_path, "none", "ibp", 0, 0.5)
    reported.make_run(tmp_path / "scratch" / "rgs-ibp" / "seed-0", "config")
    reported.make_run(tmp_path / "tuning" / "rgs-ibp" / "trial-0" / "seed-9", "config")
    found = gather([tmp_path])
    assert ([each.label for each in found.cells], found.runs) == (["ibp, none"], ())
    assert [path.parent.name for path in found.unfinished] == ["rgs-ibp"]


def test_the_record_of_a_cell_is_enough(tmp_path: Path) -> None:
    """Experiments are handed on without their networks."""
    facts = {"dataset": "digits", "network": "mlp", "processor": "a processor"}
    place = reported.make_cell(tmp_path, "none", "ibp", 0, 0.5, **facts)
    whole = results(gather([tmp_path]))
    for path in place.iterdir():
        if path.name != "cell.json":
            path.unlink()
    assert results(gather([tmp_path])) == whole
    assert "paradox/digits" in html.render(gather([tmp_path]))


@pytest.mark.parametrize("file", ["record.json", "metrics.jsonl", "certify-it.jsonl", "certify-radius.summary.json"])
def test_a_damaged_record_is_named(file: str, run: Path) -> None:
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: len(content) // 2] + b"\n{]\n")
    with pytest.raises(CorruptDataError, match=re.escape(file)):
        gather([run])


def test_what_is_not_there_is_named(tmp_path: Path, run: Path) -> None:
    with pytest.raises(MissingDataError, match="nowhere"):
        gather([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDataError, match=r"no record\.json in .*empty"):
        gather([tmp_path / "empty"])
    with pytest.raises(InputError, match="twice"):
        gather([run, run])
    with pytest.raises(InputError, match="report on"):
        gather([])


def test_a_damaged_certificate_is_named(run: Path) -> None:
    path = run / "certificates" / "certify-it" / "6.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CorruptDataError, match=r"6\.safetensors"):
        html.render(gather([run]))


@quickly(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), min_size=1, max_size=6))
def test_no_two_runs_are_called_the_same(runs: list[tuple[str, int]]) -> None:
    folders = [RunFolder(Path(str(number))) for number in range(len(runs))]
    records = [reported.record(name, config=reported.config(seed=seed)) for name, seed in runs]
    found = named(TrainedRun(each.name, folder, each, ()) for folder, each in zip(folders, records, strict=True))
    assert len({each.label for each in found}) == len(runs)


def test_the_main_certification_is_finished_at_the_radius_and_complete(tmp_path: Path) -> None:
    folder = reported.make_run(tmp_path)
    assert one(folder).main is None
    reported.certify(folder, SHARES * 3, "0.2", name="other-radius")
    reported.certify(folder, SHARES * 2, name="incomplete", complete=False)
    assert one(folder).main.path.stem == "certify-incomplete"  # type: ignore[union-attr]
    reported.certify(folder, SHARES, "1/10", name="z")
    reported.certify(folder, SHARES, name="unfinished", count=50)
    assert one(folder).main.path.stem == "certify-z"  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------- results


def seeds(folder: Path, verified: list[int], name: str = "a", **changes: Any) -> None:
    for seed, count in enumerate(verified):
        run = reported.make_run(folder / f"{name}-{seed}", name, config=reported.config(seed=seed, **changes))
        reported.certify(run, ["verified"] * count + ["falsified"] * (10 - count))


def test_seeds_are_averaged_with_their_standard_deviation(tmp_path: Path) -> None:
    seeds(tmp_path, [4, 6, 9])
    (group,) = groups(results(gather([tmp_path])))
    assert (group.label, group.seeds) == ("a", 3)
    assert group.mean("certified") == pytest.approx(19 / 30)
    assert group.spread("certified") == pytest.approx(statistics.stdev([0.4, 0.6, 0.9]))
    text = markdown(result_tables([group]))
    assert "63.3 ± 25.2" in text


def test_a_seed_twice_is_no_second_seed(tmp_path: Path) -> None:
    seeds(tmp_path, [4])
    shutil.copytree(tmp_path / "a-0", tmp_path / "again")
    assert [group.seeds for group in groups(results(gather([tmp_path])))] == [1, 1]


def test_other_settings_or_another_radius_are_another_row(tmp_path: Path) -> None:
    seeds(tmp_path, [4, 6])
    seeds(tmp_path, [5, 5], "b", method={"name": "certified", "relaxation": "deeppoly"})
    other = reported.make_run(tmp_path / "c", "c")
    reported.certify(other, SHARES, "0.2")
    found = groups(results(gather([tmp_path])))
    assert [group.seeds for group in found] == [2, 2, 1]
    assert [len(table.rows) for table in result_tables(found)] == [2, 1]


def test_the_front_is_what_nothing_else_beats(tmp_path: Path) -> None:
    for name, (right, proved) in {"low": (8, 7), "high": (10, 5), "beaten": (8, 5), "worse": (7, 7)}.items():
        folder = reported.make_run(tmp_path / name, name)
        verdicts = ["verified"] * proved + ["falsified"] * (right - proved) + ["wrong"] * (10 - right)
        reported.certify(folder, verdicts)
    front = pareto(groups(results(gather([tmp_path]))))
    assert [group.label for group in front] == ["low", "high"]


# -------------------------------------------------------------------------------------------------------- tables


def test_the_best_of_a_column_is_bold_ties_too_and_a_single_row_never(tmp_path: Path) -> None:
    seeds(tmp_path, [4], "a")
    assert "**4" not in markdown(result_tables(groups(results(gather([tmp_path])))))
    seeds(tmp_path, [6], "b", train={"epochs": 4})
    seeds(tmp_path, [6], "c", train={"epochs": 5})
    text = markdown(result_tables(groups(results(gather([tmp_path])))))
    assert [line.count("**60.0**") for line in text.splitlines() if line.startswith("| ")][2:] == [0, 2, 2]


def test_the_matrix_has_every_cell_in_its_place(tmp_path: Path) -> None:
    for relaxation, smoother, share in [("ibp", "none", 0.5), ("deeppoly", "none", 0.25), ("deeppoly", "rgs", 0.75)]:
        reported.make_cell(tmp_path, smoother, relaxation, 0, share)
    found = matrix(groups(results(gather([tmp_path]))))
    assert found is not None
    assert found.columns == ("Relaxation \\ smoother", "none", "RGS")
    assert [[cell.text for cell in row] for row in found.rows] == [["IBP", "50.0", ""], ["DeepPoly", "25.0", "75.0"]]
    assert [cell.best for row in found.rows for cell in row] == [False] * 5 + [True]


@given(st.text(max_size=30), st.text(max_size=30))
@quickly(max_examples=40, deadline=None)
def test_no_text_breaks_a_table(first: str, second: str) -> None:
    table = Table(first, (first, "n"), ((Cell(second), Cell("1", 1.0, best=True)),), second)
    rows = [line for line in markdown([table]).splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3 for row in rows)
    assert "<" not in markdown([table])
    body = [line for line in latex([table]).splitlines() if line.startswith("    ") and not line.startswith("    \\")]
    for line in body:
        plain = re.sub(r"\\[&%$#_{}\\]|\\text\w+\{\}|\\textbf", "", line).replace("$\\pm$", "")
        assert plain.count("&") == 1
        assert not set(plain) & set("%$#_~^\\")


# ------------------------------------------------------------------------------------------------------- compare


def test_differences_are_counted_image_by_image_and_change_sign_with_the_order(tmp_path: Path) -> None:
    first, second = reported.make_run(tmp_path / "a", "a"), reported.make_run(tmp_path / "b", "b")
    reported.certify(first, ["verified", "verified", "unknown", "falsified", "wrong"])
    reported.certify(second, ["verified", "falsified", "verified", "wrong", "wrong"])
    pair = pairing(one(first), one(second))
    again = pairing(one(second), one(first))
    found = {each.kind: (each.only_one, each.only_other) for each in pair.differences}
    assert found == {"natural": (1, 0), "adversarial": (1, 0), "certified": (1, 1)}
    for here, there in zip(pair.differences, again.differences, strict=True):
        assert (here.mean, here.low, here.p) == (-there.mean, pytest.approx(-there.high), there.p)
        assert here.low <= here.mean <= here.high


def test_only_images_of_both_are_paired(tmp_path: Path) -> None:
    first, second = reported.make_run(tmp_path / "a", "a"), reported.make_run(tmp_path / "b", "b")
    reported.certify(first, SHARES)
    reported.certify(second, SHARES[:4])
    a, b = one(first).main, one(second).main
    assert a is not None
    assert b is not None
    assert {each.images for each in differences(a, b)} == {4}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"eps": "0.2"}, "at different radii"),
        ({"dataset": "mnist"}, "of different images"),
        ({"complete": False}, "with complete and with incomplete verification"),
    ],
)
def test_what_is_not_comparable_is_not_paired_and_said(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    first, second = reported.make_run(tmp_path / "a", "a"), reported.make_run(tmp_path / "b", "b")
    reported.certify(first, SHARES)
    reported.certify(second, SHARES, **changes)
    runs = [one(first), one(second)]
    assert [bool(pair.differences) for pair in pairings(runs)] == [False]
    assert any(why in warning for warning in warnings(runs))


def test_an_equal_radius_may_be_written_differently(tmp_path: Path) -> None:
    first, second = reported.make_run(tmp_path / "a", "a"), reported.make_run(tmp_path / "b", "b")
    reported.certify(first, SHARES, "1/10")
    reported.certify(second, SHARES, "0.1")
    runs = [one(first), one(second)]
    assert [bool(pair.differences) for pair in pairings(runs)] == [True]
    assert warnings(runs) == []


def test_runs_are_paired_with_the_one_of_their_seed(tmp_path: Path) -> None:
    seeds(tmp_path, [4, 6], "a")
    seeds(tmp_path, [5, 5], "b", train={"epochs": 4})
    pairs = [(pair.one_label, pair.other_label) for pair in pairings(gather([tmp_path]).runs)]
    assert pairs == [("a, seed 1", "a, seed 0"), ("b, seed 0", "a, seed 0"), ("b, seed 1", "a, seed 1")]


def test_settings_that_differ_are_those_whose_values_do(tmp_path: Path) -> None:
    plain, smoothed = reported.config(), reported.config(smoother={"name": "rgs", "std": 0.1, "pairs": 2})
    del smoothed["eps"]["finish"]  # as if the record were older
    for name, values in (("a", plain), ("b", smoothed)):
        reported.make_run(tmp_path / name, "same", config=values)
    runs = gather([tmp_path]).runs
    assert dict(settings(runs)) == {
        "smoother.name": ("none", "rgs"),
        "smoother.pairs": (ABSENT, "2"),
        "smoother.std": ("0.0", "0.1"),
    }


# ---------------------------------------------------------------------------------------------- counterexamples


def test_pictures_are_the_pixels(run: Path) -> None:
    certification = one(run).main
    assert certification is not None
    found = worst(certification)
    assert [failure.index for failure in found] == [7, 6]  # the smallest margin first
    given = Certificate.read(run / "certificates" / "certify-it" / "7.safetensors")
    assert given.origin is not None
    assert given.counterexample is not None
    pixels = given.origin.image[0], given.counterexample[0]
    for picture, wanted in zip(found[0].pictures, pixels, strict=False):
        shown = Image.open(io.BytesIO(base64.b64decode(picture.address.partition(",")[2])))
        assert np.array_equal(np.asarray(shown), np.rint(255 * wanted).astype(np.uint8))
    assert [failure.confirmed for failure in found] == [False, False]  # its network is nowhere


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 1, 500)])
def test_pictures_keep_their_shape(shape: tuple[int, int, int]) -> None:
    shown = Image.open(io.BytesIO(base64.b64decode(png(np.ones(shape)).partition(",")[2])))
    assert shown.size == (shape[2], shape[1])
    assert shown.getextrema() in ((255, 255), ((255, 255),) * 3)


# ------------------------------------------------------------------------------------------------------ surfaces


def test_a_line_is_a_chart_for_each_relaxation_with_its_jumps(run: Path) -> None:
    reported.look_around(run)
    (look,) = looks(RunFolder(run))
    assert [chart.title for chart in look.charts] == ["IBP", "DeepPoly"]
    for chart in look.charts:
        plain, low, high, mean = (trace for trace in chart.figure["data"] if trace["mode"] == "lines")
        assert (plain["y"], mean["y"]) == ([0.0, 1.0, 2.0], [0.5, 1.5, 2.5])
        assert all(a <= b <= c for a, b, c in zip(low["y"], mean["y"], high["y"], strict=True))
        (jump,) = (trace for trace in chart.figure["data"] if trace["mode"] == "markers")
        assert (jump["x"], jump["y"]) == ([0.5], [3.0])
        assert [len(row) for row in chart.table.rows] == [3, 3, 3]


def test_a_plane_is_its_picture_and_what_is_not_there_is_said(run: Path) -> None:
    path = reported.look_around(run, plane=True)
    assert "is not there" in looks(RunFolder(run))[0].notes[-1]
    path.with_name("surface.png").write_bytes(b"PNG")
    picture = looks(RunFolder(run))[0].picture
    assert picture is not None
    assert base64.b64decode(picture.address.partition(",")[2]) == b"PNG"
    assert "Loss surfaces" in html.render(gather([run]))


def test_an_unfinished_surface_is_not_shown(run: Path) -> None:
    reported.look_around(run, rows=1)
    (look,) = looks(RunFolder(run))
    assert (look.charts, look.picture) == ((), None)
    assert "Not finished" in look.notes[0]


def test_a_damaged_surface_is_named(run: Path) -> None:
    reported.look_around(run).write_text("{}")
    with pytest.raises(CorruptDataError, match=r"surface\.json"):
        html.render(gather([run]))


# ---------------------------------------------------------------------------------------------------- the page


class Page(HTMLParser):
    """Collects elements with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and len(data) > 1:
            self.scripts.append((self.elements[-1][1], data))
        else:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def everything(tmp_path: Path, run: Path) -> Gathered:
    reported.make_run(tmp_path / "two", "digits/untouched")
    reported.certify(tmp_path / "two", SHARES[::-1])
    reported.make_run(tmp_path / "three", "begun", epochs=1, status="interrupted", weights_sha256="")
    reported.certify(tmp_path / "three", SHARES, count=99)
    for seed in range(2):
        for place, smoother in enumerate(("none", "rgs")):
            reported.make_cell(tmp_path / "cells", smoother, "deeppoly", seed, 0.5 + 0.1 * place + 0.05 * seed)
    return gather([run, tmp_path / "two", tmp_path / "three", tmp_path / "cells"])


@pytest.fixture
def page(everything: Gathered) -> Page:
    return Page(html.render(everything))


def test_the_page_has_every_part(page: Page) -> None:
    names = [
        "results",
        "matrix",
        "differences",
        "radii",
        "verdicts",
        "failures",
        "training",
        "settings",
        "runs",
        "reading",
    ]
    assert [each["id"] for each in page.all("section")] == names
    assert {each["href"] for each in page.all("a")} == {"#main", *(f"#{name}" for name in names[:-1])}


def test_what_is_not_finished_is_said_and_its_shares_are_not_shown(page: Page) -> None:
    text = " ".join(" ".join(page.texts).split())
    assert "begun is not trained to the end (interrupted)" in text
    assert "10 of 99 images are decided" in text
    assert not [row for row in page.texts if row.strip() == "begun, seed 0"]


def test_it_loads_nothing_and_its_own_scripts_alone_may_run(page: Page) -> None:
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), attributes
    (policy,) = [each["content"] for each in page.all("meta") if "http-equiv" in each]
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    run_by_browser = [text for attributes, text in page.scripts if "type" not in attributes]
    assert {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run_by_browser} == allowed
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    assert "default-src 'none'" in policy


def test_names_are_unique_and_every_chart_has_its_figure(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    (figures,) = [json.loads(text) for attributes, text in page.scripts if attributes.get("id") == "figures"]
    plots = [each for each in page.all("div") if each.get("class") == "plot"]
    assert {each["id"] for each in plots} == set(figures)
    assert all(len(each["aria-label"]) > 20 and each["tabindex"] == "0" for each in plots)
    assert all(each["alt"] for each in page.all("img"))
    assert all("scope" in each for each in page.all("th"))
    named = {
        attributes.get(name) for _, attributes in page.elements for name in ("aria-labelledby", "aria-describedby")
    }
    assert named - {None} <= set(ids)


def test_the_same_records_give_the_same_bytes(everything: Gathered) -> None:
    assert html.render(everything) == html.render(everything)


def test_what_users_wrote_cannot_act(tmp_path: Path) -> None:
    values = reported.config(**{HOSTILE: HOSTILE, "method": {"name": HOSTILE, "relaxation": HOSTILE}})
    folder = reported.make_run(tmp_path / "a", HOSTILE, config=values, status="failed", message=HOSTILE)
    reported.certify(folder, SHARES, dataset=HOSTILE, split=HOSTILE)
    reported.make_run(tmp_path / "b", "other")
    text = html.render(gather([tmp_path]), title=HOSTILE)
    found = Page(text)
    assert len(found.all("script")) == 3
    assert not found.all("img")
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert text.count("<script>alert") == 0
    assert " ".join(found.texts).count("<script>alert(1)</script>") > 3  # as text it is there


def test_charts_show_names_as_they_are() -> None:
    assert "<" not in charts.safe(HOSTILE)
    assert "%{" not in charts.safe(HOSTILE)
    assert "$" not in charts.safe(HOSTILE)


def test_a_run_that_is_only_begun_has_a_page(tmp_path: Path) -> None:
    reported.make_run(tmp_path, epochs=0, status="running", weights_sha256="", steps=0)
    text = html.render(gather([tmp_path]))
    assert "Nothing is certified yet" in text


@pytest.mark.parametrize("package", ["jinja2", "plotly"])
def test_what_is_not_installed_is_named_with_its_extra(
    package: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = html.require

    def require(module: str, extra: str | None = None) -> Any:
        if module.startswith(package):
            raise MissingExtraError(package, extra or "")
        return real(module, extra)

    monkeypatch.setattr(html, "require", require)
    with pytest.raises(MissingExtraError, match=rf"tightrope\[{html.EXTRA}\]"):
        html.render(gather([run]))


# ------------------------------------------------------------------------------------------------------ contrast


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [":root", ':root[data-theme="dark"]'])
def test_both_themes_can_be_read(theme: str) -> None:
    """WCAG 2.1: 4.5 for text, 3 for what charts are drawn with."""
    css = (Path(html.__file__).parent / "templates" / "report.css").read_text()
    (block,) = re.findall(rf"^{re.escape(theme)} \{{(.*?)\}}", css, re.S | re.M)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    for text, back in [("text", "back"), ("muted", "back"), ("link", "back"), ("warn", "warn-back")]:
        assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for text in ("text", "muted", "link"):
        assert contrast(colours[text], colours["raised"]) >= 4.5, text
    tints = [name for name in colours if name.startswith("tint-")]
    assert len(tints) == charts.TINTS
    for tint in tints:
        assert contrast(colours[tint], colours["back"]) >= 3, tint


# ----------------------------------------------------------------------------------------------------- commands


def test_what_commands_cannot_say_is_said(tmp_path: Path) -> None:
    folder = reported.make_run(tmp_path / "a b", handed_in=("module", "dataset"))
    reported.certify(folder, SHARES, dataset="data", attack="Apgd()", spec="0a1b")
    found = one(folder)
    assert commands(found) == ["tightrope train config.toml --out 'a b-again'"]
    text = " ".join(caveats(found))
    for word in ("module and dataset", "Apgd", "property"):
        assert word in text
