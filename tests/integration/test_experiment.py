"""Experiments: which cells there are, that each is done once and recorded, budgets, tuning, and what is claimed."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
from pydantic import ValidationError
from typer.testing import CliRunner

from tightrope.cli.main import app
from tightrope.data.digits import Digits
from tightrope.errors import ConfigError, CorruptDataError, InputError, MissingDataError, UnknownNameError
from tightrope.experiments import experiment as running
from tightrope.experiments.api import fit
from tightrope.experiments.experiment import Budget, Experiment, smaller
from tightrope.experiments.load import load_config, presets
from tightrope.experiments.suite import (
    Cell,
    Suite,
    cells,
    config_of,
    departures,
    evaluations_of,
    load_suite,
    overrides_of,
    settings_digest,
    shortened,
    source_of,
    suites,
    trials,
)
from tightrope.records.cell import CellRecord, read_cells
from tightrope.records.intervals import paired
from tightrope.reports.comparison import comparisons, rows
from tightrope.training.events import Silent, StepEvent

TINY: dict[str, Any] = {
    "seeds": [0],
    "run": {
        "threads": 1,
        "data": {"name": "digits", "train": 80, "validation": 20},
        "model": {"name": "mlp", "width": [4]},
        "method": {"name": "certified", "relaxation": "ibp"},
        "eps": {"train": "0.02"},
        "optimizer": {"lr": 0.02},
        "train": {"epochs": 2, "batch_size": 30},
    },
    "smoothers": {"none": [], "rgs": ["smoother.name=rgs", "smoother.std=0.01"]},
    "relaxations": {"ibp": [], "deeppoly": ["method.relaxation=deeppoly"]},
    "starts": {"scratch": [], "warm": ["train.epochs=1"]},
    "certify": {"count": 6, "timeout": 5.0},
}  # 2 steps an epoch, 4 a run from scratch; rgs evaluates 2 losses a step


def suite_of(**changes: Any) -> Suite:
    return Suite.model_validate(TINY | changes)


def experiment(out: Path, suite: Suite, budget: Budget | None = None, watcher: Any = None) -> Experiment:
    return Experiment("tiny", suite, out, budget or Budget(), None, lambda name: watcher or Silent())


# --------------------------------------------------------------------------------------------------- suites


def test_the_suites_that_come_with_it_are_whole() -> None:
    """load_suite checks the settings of every cell."""
    on_mnist = ["mnist-7x7", "mnist-small", "mnist-small-0.3", "mnist-cnn3", "mnist-cnn5"]
    sizes = ["digits", *on_mnist, "cifar-cnn3", "cifar-cnn5"]
    assert {f"paradox/{size}" for size in sizes} == {name for name in suites() if name.startswith("paradox")}
    for name in suites():
        suite = load_suite(name)
        assert len(suite.seeds) >= 3
        if not name.startswith("paradox"):
            continue
        assert set(suite.smoothers) == {"none", "rgs", "pgpe", "hybrid"}
        assert {"ibp", "hbox", "crown_ibp", "deepz", "deeppoly", "deeppoly-zero", "deeppoly-soft"} <= {
            *suite.relaxations
        }
        assert set(suite.starts) == {"scratch", "warm"}


def test_cells_are_the_product_and_those_that_decide_come_first() -> None:
    found = list(cells(load_suite("paradox/digits")))
    assert len(found) == len(set(found)) == 3 * 4 * 9 * 2
    assert {(cell.start, cell.relaxation) for cell in found[:24]} == {("scratch", "ibp"), ("scratch", "deeppoly")}
    assert len({(cell.smoother, cell.seed) for cell in found[:24]}) == 12


def test_cells_of_a_seed_differ_in_their_axes_alone() -> None:
    """Same network, data, seed and schedule; the settings that differ are those that the axes name."""
    suite = load_suite("paradox/digits")
    configs = [config_of(suite, cell, ()) for cell in cells(suite) if cell.seed == 1 and cell.start == "scratch"]
    for config in configs:
        assert (config.data, config.model, config.eps, config.train) == (
            configs[0].data,
            configs[0].model,
            configs[0].eps,
            configs[0].train,
        )
        assert config.seed == 1


@pytest.mark.parametrize("setting", ["mnist-0.1", "mnist-0.3"])
def test_methods_differ_from_the_published_recipes_in_what_their_suite_says(setting: str) -> None:
    """Architecture, length, schedules in proportion, images held out, restarts, and of TAPS and STAPS the part of the
    network that they attack and in how many steps: nothing else, and of everything as much for every method."""
    suite = load_suite(f"methods/{setting}-cnn3")
    found = {cell.variant: config_of(suite, cell, ()) for cell in cells(suite)}
    assert list(found) == [*suite.variants]
    methods = {name.removeprefix(f"{setting}/cnn3-") for name in presets() if name.startswith(f"{setting}/cnn3-")}
    assert set(found) == methods
    common = {"data.train", "model.name", "eps.finish", "optimizer.milestones", "train.epochs", "train.precise_bn"}
    own = {"average.begin", "method.split", "method.attack.restarts", "method.search.restarts"}
    for cell in cells(suite):
        keys = {each.partition(" = ")[0] for each in departures(suite, cell, found[cell.variant])}
        steps = {"method.attack.steps"} if "taps" in cell.variant else set()
        assert not keys or common <= keys <= common | own | steps
    assert {
        (c.train.epochs, c.eps.finish, c.optimizer.milestones, c.data.train, c.threads) for c in found.values()
    } == {(7, 2.0, (5.0, 6.0), 55000, 1)}
    assert {c.method.options["attack"]["restarts"] for c in found.values() if "attack" in c.method.options} == {1}


def test_the_last_variants_come_after_all_seeds_of_the_others() -> None:
    suite = suite_of(variants={"a": {}, "b": {}, "c": {}}, baseline="b", last=["a"], seeds=[0, 1])
    order = [(cell.variant, cell.seed) for cell in cells(suite) if cell[:3] == ("scratch", "none", "ibp")]
    assert order == [("b", 0), ("c", 0), ("b", 1), ("c", 1), ("a", 0), ("a", 1)]


def test_a_shorter_run_goes_through_the_same_schedule() -> None:
    """At the same share of the run the radius and the learning rate are the same."""
    config = load_config("mnist-0.1/cnn3-mtl_ibp")[1]
    for epochs in (7, 140):
        short = shortened(config, epochs)
        times = (short.eps.finish, *short.optimizer.milestones, short.average.begin)
        expected = (config.eps.finish, *config.optimizer.milestones, config.average.begin)
        assert [time / epochs for time in times] == pytest.approx([time / 70 for time in expected])
    assert shortened(config, 70) == config
    smoothed = load_config("digits/mlp-deeppoly-pgpe", ["train.epochs=4", "smoother.epochs=3"])[1]
    assert shortened(smoothed, 8).smoother.epochs == 6


def test_what_a_cell_costs() -> None:
    suite = suite_of()
    costs = {cell.smoother: evaluations_of(config_of(suite, cell, ())) for cell in cells(suite) if cell.start != "warm"}
    assert costs == {"none": 4, "rgs": 8}
    half = config_of(suite, next(cell for cell in cells(suite) if cell.smoother == "rgs"), ("smoother.epochs=1",))
    assert evaluations_of(half) == 6


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"smoothers": {"rgs": []}}, "smoothers must have 'none'"),
        ({"relaxations": {"deeppoly": []}}, "relaxations must have 'ibp'"),
        ({"seeds": []}, "seeds"),
        ({"tuning": {"evaluations": 1, "seeds": [0], "grids": {}}}, "tuning or final"),
        ({"tuning": {"evaluations": 1, "seeds": [9], "grids": {"pgpe": []}}}, "'pgpe'"),
        ({"relaxations": {"ibp": ["method.relaxation=ipb"]}}, "ipb"),
        ({"surprise": 1}, "surprise"),
        ({"variants": {"a": {}}, "baseline": "b"}, "baseline names 'b'"),
        ({"variants": {"a": {}}, "baseline": "a", "last": ["c"]}, "last names 'c'"),
        ({"smoothers": {"": []}}, "smoothers must have 'none'"),
    ],
)
def test_bad_suites_are_refused_before_any_work(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(tomli_w.dumps(TINY | changes))
    with pytest.raises(ConfigError, match=match):
        load_suite(str(path))


def test_suites_that_are_not_there() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'paradox/digits'"):
        load_suite("paradox/digit")
    with pytest.raises(MissingDataError):
        load_suite("nowhere.toml")


# ---------------------------------------------------------------------------------------------------- running


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("experiment")
    assert experiment(out, suite_of()).run() == 0
    return out


def test_every_cell_has_one_record(finished: Path) -> None:
    found = read_cells(finished)
    assert {(*cell.condition, cell.seed) for cell in found} == {cell[:4] for cell in cells(suite_of())}
    for cell in found:
        assert (cell.images, cell.split, cell.eps, cell.unknown) == (6, "test", "0.02", 0.0)
        assert cell.certified <= cell.adversarial <= cell.natural
        steps = 4 if cell.start == "scratch" else 2
        assert cell.evaluations == steps * (2 if cell.smoother == "rgs" else 1)


def test_nothing_is_done_twice(finished: Path) -> None:
    def content() -> dict[Path, tuple[int, bytes]]:
        files = [path for path in finished.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = content()
    assert experiment(finished, suite_of()).run() == 0
    assert content() == before


def test_cells_of_other_settings_are_refused(finished: Path) -> None:
    """Those of a smoke run, or of a suite that has changed since, are never part of the comparison."""
    for other in (smaller(suite_of(), epochs=1, count=4), suite_of(run=TINY["run"] | {"eps": {"train": "0.03"}})):
        with pytest.raises(InputError, match=r"other settings.*--out"):
            experiment(finished, other).run()


def test_a_warm_start_begins_where_the_plain_loose_cell_of_its_seed_ended(finished: Path, tmp_path: Path) -> None:
    """Run alone, it makes that cell first; the result is the same."""
    suite = suite_of()
    (cell,) = [c for c in cells(suite) if c[:4] == ("warm", "none", "deeppoly", 0)]
    alone = experiment(tmp_path, suite)
    alone._deadline, alone._evaluations = math.inf, math.inf
    record = alone._final(cell)
    assert record.weights_sha256 == CellRecord.read(finished / cell.folder / "cell.json").weights_sha256
    assert (tmp_path / "scratch" / "none-ibp" / "seed-0" / "cell.json").is_file()


def test_a_start_can_take_the_weights_of_smoothed_cells_of_its_own_relaxation(tmp_path: Path) -> None:
    """What began there is no plain network, though it goes on with plain gradients."""
    after = {"set": ["train.epochs=1"], "smoothers": ["none"]}
    suite = suite_of(starts={"scratch": [], "after-none": after, "after-rgs": {**after, "smoother": "rgs"}})
    made = [cell for cell in cells(suite) if cell.start == "after-rgs"]
    assert [(cell.smoother, cell.relaxation) for cell in made] == [("none", "ibp"), ("none", "deeppoly")]
    assert source_of(suite, made[1]) == Cell("scratch", "rgs", "deeppoly", 0)
    assert settings_digest(suite, made[1]) != settings_digest(suite, made[1]._replace(start="after-none"))
    alone = experiment(tmp_path, suite)
    alone._deadline, alone._evaluations = math.inf, math.inf
    record = alone._final(made[1])
    assert (record.source, record.evaluations) == (("rgs", "deeppoly"), 2)
    source = CellRecord.read(tmp_path / "scratch" / "rgs-deeppoly" / "seed-0" / "cell.json")
    begun = fit(
        config_of(suite, made[1], ()),
        out=tmp_path / "again",
        init_from=tmp_path / "scratch" / "rgs-deeppoly" / "seed-0",
    )
    assert begun.record.weights_sha256 == record.weights_sha256 != source.weights_sha256


@pytest.mark.parametrize(
    ("start", "match"),
    [({"smoother": "pgpe"}, "'pgpe'"), ({"smoothers": ["pgpe"]}, "'pgpe'"), ({"relaxation": "x"}, "'x'")],
)
def test_a_start_from_what_the_suite_does_not_have_is_refused(start: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=rf"starts\.other names {match}"):
        suite_of(starts={"scratch": [], "other": start})


def test_a_budget_of_evaluations_is_kept_and_the_rest_goes_on_later(finished: Path, tmp_path: Path) -> None:
    suite = suite_of(starts={"scratch": []})
    total = len(list(cells(suite)))
    left = experiment(tmp_path, suite, Budget(evaluations=17)).run()  # 4 + 4 + 8, and not the next 8
    found = read_cells(tmp_path)
    assert (len(found), left) == (3, total - 3)
    assert sum(cell.evaluations for cell in found) <= 17
    assert experiment(tmp_path, suite).run() == 0
    for cell in read_cells(tmp_path):
        other = CellRecord.read(
            finished / cell.start / f"{cell.smoother}-{cell.relaxation}" / f"seed-{cell.seed}" / "cell.json"
        )
        assert cell.weights_sha256 == other.weights_sha256


def test_a_run_that_the_time_cuts_off_goes_on(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = suite_of(starts={"scratch": []})
    one = experiment(tmp_path, suite, Budget(seconds=1e6))

    class Late:
        """The time is up after the third step of the first cell."""

        def on_step(self, event: StepEvent) -> None:
            if event.step == 3:
                monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=lambda: math.inf))

        def on_epoch(self, record: Any) -> None: ...

    monkeypatch.setattr("tightrope.training.loop.EVENT_SECONDS", -1.0)
    one.watch = lambda name: Late()
    assert one.run() == len(list(cells(suite)))
    monkeypatch.undo()
    assert not read_cells(tmp_path)
    assert experiment(tmp_path, suite, Budget(evaluations=0.5)).run() == len(list(cells(suite))) - 1
    (cell,) = read_cells(tmp_path)
    reference = finished / "scratch" / "none-ibp" / "seed-0" / "cell.json"
    assert cell.weights_sha256 == CellRecord.read(reference).weights_sha256


def test_tuning_tries_what_its_budget_allows_and_never_sees_the_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = Digits.load
    monkeypatch.setattr(Digits, "load", lambda self, root, split: loaded.append(split) or load(self, root, split))
    grid = [["optimizer.lr=1e-9"], ["optimizer.lr=0.05"], ["optimizer.lr=0.02"]]
    tuning = {"evaluations": 40, "seeds": [7], "count": 10, "grids": {"none": grid}}
    changes = {"train": {"epochs": 8, "batch_size": 30}}  # 16 losses: two of the three settings
    suite = suite_of(tuning=tuning, starts={"scratch": []}, run=TINY["run"] | changes)
    cell = next(cells(suite))
    one = experiment(tmp_path, suite)
    one._deadline, one._evaluations = math.inf, math.inf
    assert len(trials(suite, "none")) == 3
    assert one._tuned(cell) == ("optimizer.lr=0.05",)
    assert set(loaded) == {"train"}
    records = [CellRecord.read(path) for path in sorted(tmp_path.rglob("cell.json"))]
    assert [(each.trial, each.seed, each.split, each.images) for each in records] == [
        (0, 7, "validation", 10),
        (1, 7, "validation", 10),
    ]
    assert read_cells(tmp_path) == []
    assert "optimizer.lr=0.05" in one._final(cell).overrides
    assert overrides_of(suite, cell, ("optimizer.lr=1",))[-2:] == ("optimizer.lr=1", "seed=0")


@pytest.mark.parametrize("text", ["", "0", "-1", "soon", "1d", "5x", "0m"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="budget"):
        Budget.parse(text)


# -------------------------------------------------------------------------------------------------- what it shows


def record(
    smoother: str, relaxation: str, seed: int, certified: float, start: str = "scratch", source: tuple[str, ...] = ()
) -> CellRecord:
    facts = {"suite": "s", "overrides": (), "split": "test", "images": 100, "eps": "0.1", "natural": 0.9}
    facts |= {"adversarial": 0.8, "unknown": 0.0, "weights": 1, "weights_sha256": "", "evaluations": 1}
    facts |= {"differentiated": True, "train_seconds": 1.0, "certify_seconds": 1.0, "certified": certified}
    return CellRecord(start=start, smoother=smoother, relaxation=relaxation, seed=seed, source=source, **facts)


def test_an_order_is_claimed_only_where_the_interval_excludes_0() -> None:
    """Seeds differ by more than the relaxations; paired, the difference is sure. Without pairs it is not."""
    tight = {"deeppoly": [0.1, 0.2, 0.3], "hbox": [0.3, 0.25, 0.2]}
    found = [record("none", "ibp", seed, value) for seed, value in enumerate((0.2, 0.3, 0.41))]
    found += [record("none", name, seed, v) for name, values in tight.items() for seed, v in enumerate(values)]
    verdicts = {each.one[2]: each.verdict for each in comparisons(found) if each.question == "tight - loose"}
    assert verdicts == {"deeppoly": "below", "hbox": "undecided"}
    alone = [each for each in found if each.seed == 0]
    assert {each.verdict for each in comparisons(alone)} == {"undecided"}


def test_what_is_compared() -> None:
    kinds = [("scratch", "none", "ibp"), ("scratch", "rgs", "deeppoly"), ("warm", "none", "deeppoly")]
    kinds += [("warm", "none", "ibp"), ("scratch", "none", "deeppoly"), ("scratch", "rgs", "ibp")]
    kinds += [("scratch", "rgs", "deeppoly-soft")]
    found = [record(s, r, seed, 0.1 * k, start) for k, (start, s, r) in enumerate(kinds) for seed in (0, 1)]
    asked = {(each.question, each.one, each.other) for each in comparisons(found)}
    assert ("tight - loose", ("scratch", "rgs", "deeppoly"), ("scratch", "rgs", "ibp")) in asked
    assert ("smoothed - plain", ("scratch", "rgs", "deeppoly"), ("scratch", "none", "deeppoly")) in asked
    assert ("slope rule - adaptive", ("scratch", "rgs", "deeppoly-soft"), ("scratch", "rgs", "deeppoly")) in asked
    assert ("warm - control", ("warm", "none", "deeppoly"), ("warm", "none", "ibp")) in asked
    assert ("smoothed DeepPoly - best plain", ("scratch", "rgs", "deeppoly"), ("scratch", "none", "deeppoly")) in asked


def test_what_started_from_smoothed_weights_is_no_plain_network() -> None:
    """It is compared with what started from plain ones, and, as smoothed, with the best plain network."""
    found = [record("none", "deeppoly", 0, 0.3), record("pgpe", "deeppoly", 0, 0.4)]
    found += [record("none", "deeppoly", 0, 0.35, "after-none", ("none", "deeppoly"))]
    found += [record("none", "deeppoly", 0, 0.5, "after-pgpe", ("pgpe", "deeppoly"))]
    after = {each.question: each.other for each in comparisons(found) if each.one[0] == "after-pgpe"}
    control = ("after-none", "none", "deeppoly")
    assert after["smoothed - plain start"] == after["smoothed DeepPoly - best plain"] == control
    assert after["warm - scratch"] == ("scratch", "none", "deeppoly")
    assert all(each.question != "smoothed - plain start" for each in comparisons(found) if each.one[0] != "after-pgpe")


def test_rows_are_means_over_seeds() -> None:
    (row,) = rows([record("none", "ibp", seed, value) for seed, value in enumerate((0.2, 0.4))])
    assert (row.seeds, row.certified, row.spread) == (2, pytest.approx(0.3), pytest.approx(math.sqrt(0.02)))


def test_paired_intervals() -> None:
    assert paired([0.5]) == (-math.inf, math.inf)
    with pytest.raises(InputError):
        paired([])


def test_damaged_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text("{}")
    with pytest.raises(CorruptDataError, match="cell"):
        read_cells(tmp_path)


# ------------------------------------------------------------------------------------------------ command line


def test_the_command_and_its_summary(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(TINY))
    arguments = ["experiment", str(path), "--out", str(finished)]
    for more in ([], ["--summary"]):
        result = CliRunner().invoke(app, [*arguments, *more], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        assert "deeppoly, rgs, warm" in result.output
        assert "An order is claimed only where" in result.output
    empty = CliRunner().invoke(app, ["experiment", str(path), "--out", str(tmp_path / "none"), "--summary"])
    assert empty.exit_code == 2


def test_a_smoke_run_is_small() -> None:
    suite = smaller(load_suite("paradox/digits"), epochs=1, count=8)
    found = list(cells(suite))
    assert len(found) == 4 * 2 * 2
    assert {config_of(suite, cell, ()).train.epochs for cell in found} == {1}
    assert {config_of(suite, cell, ()).smoother.options.get("pairs", 2) for cell in found} == {2}
    assert suite.certify.count == 8
