"""Loss surfaces of runs and presets: what is in the folder, resuming, and what is refused before any work."""

from __future__ import annotations

import csv
import json
import math
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tightrope as tr
from tightrope.cli.main import app
from tightrope.errors import CheckpointError, ConfigError, InputError, MissingDataError, NumericalError, TightropeError
from tightrope.evaluation import landscape
from tightrope.experiments.build import build_job, build_plugins, fingerprint
from tightrope.experiments.load import load_config
from tightrope.records.run import EpochRecord
from tightrope.records.surface import Surface, read_surface
from tightrope.reports.surfaces import draw
from tightrope.training.events import StepEvent

TINY = ["data.train=100", "model.width=[5]", "train.epochs=3", "train.batch_size=32", "optimizer.lr=0.02"]
SMALL: dict[str, Any] = {"points": 5, "draws": 4, "images": 4, "std": [0.0, 0.1], "relaxations": ["ibp", "deeppoly"]}
PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """One thread, an empty current folder, chunks that do not depend on timings, no pictures."""
    monkeypatch.setattr(landscape, "CHUNKS", {"cpu": (2,)})
    monkeypatch.setattr("tightrope.experiments.surface.draw", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of one network; the first keeps its weights on the way."""
    folder = tmp_path_factory.mktemp("runs")
    tr.fit("digits/mlp-ibp", overrides=[*TINY, "train.keep_every=1"], out=folder / "kept")
    tr.fit("digits/mlp-ibp", overrides=[*TINY, "seed=1"], out=folder / "other")
    return folder / "kept", folder / "other"


def evaluated(found: Surface) -> int:
    return sum(len(curve.samples) for curve in found.curves)


# -------------------------------------------------------------------------------------------------- results


def test_a_line_of_a_run(runs: tuple[Path, Path]) -> None:
    """Record and table agree; the centre of the plain curve is the loss of the trained network."""
    found = tr.surface(runs[0], **SMALL)
    folder = runs[0] / "surface-random"
    assert read_surface(folder / "surface.json") == found
    assert found.finished
    assert found.trained
    rows = list(csv.DictReader((folder / "surface.csv").open()))
    assert len(rows) == 2 * 2 * 5
    at_centre = {(r["relaxation"], float(r["std"])): r for r in rows if float(r["position"]) == 0.0}
    run = tr.load(runs[0])
    images, labels = images_of_digits(4)
    box, params = tr.linf_box(images, run.config.eps.target), {n: v.double() for n, v in run.params.items()}
    for name in found.relaxations:
        plain, smoothed = at_centre[name, 0.0], at_centre[name, 0.1]
        value, _ = tr.certified_loss(run.network, tr.relaxation(name), box, labels)(params)
        assert float(plain["loss"]) == pytest.approx(float(value), rel=1e-12)
        assert plain["low"] == plain["loss"] == plain["high"]
        assert float(smoothed["low"]) < float(smoothed["loss"]) < float(smoothed["high"])
    assert found.curve("ibp", 0.0).jumps == ()
    assert found.curve("ibp", 0.1).jumps is None


def images_of_digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    from tightrope.data._loader import to_unit
    from tightrope.data.digits import Digits

    samples = Digits().load(None, "train")
    return to_unit(samples, torch.float64)[:count], samples.labels[:count]


def test_an_untrained_network_of_a_preset(tmp_path: Path) -> None:
    found = tr.surface("digits/mlp-ibp", overrides=TINY, direction="gradient", float32=True, **SMALL)
    assert not found.trained
    assert found.axes[0].name == "gradient of ibp"
    ibp = found.curve("ibp", 0.0).mean
    assert ibp[1] < ibp[2] < ibp[3]  # uphill
    assert (tmp_path / "surfaces" / "digits-mlp-ibp-gradient" / "surface.csv").is_file()


def test_a_line_towards_another_run_ends_there(runs: tuple[Path, Path]) -> None:
    """The loss at 1 is that of the other run at 0."""
    line = tr.surface(runs[0], towards=runs[1], ranges=[(0.0, 1.0)], out="a", **SMALL)
    back = tr.surface(runs[1], towards=runs[0], ranges=[(0.0, 1.0)], out="b", **SMALL)
    for name in line.relaxations:
        assert line.curve(name, 0.0).mean == pytest.approx(back.curve(name, 0.0).mean[::-1], rel=1e-6)
    assert (1.0,) in line.marks.values()


def test_a_plane_of_the_trajectory_holds_all_checkpoints(runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = tr.surface(runs[0], direction="pca", plane=True, **SMALL)
    assert len(found.path) == 4  # the initial weights, and those after each epoch
    assert found.path[-1] == pytest.approx((0.0, 0.0), abs=1e-6)
    for place, axis in enumerate(found.axes):
        coordinates = [point[place] for point in found.path]
        assert axis.positions[0] < min(coordinates) <= max(coordinates) < axis.positions[-1]
    assert 0.5 < sum(axis.share or 0.0 for axis in found.axes) <= 1.0 + 1e-9
    assert all(curve.jumps is None for curve in found.curves)
    draw(found, tmp_path / "plane.png")
    assert (tmp_path / "plane.png").read_bytes().startswith(PNG)


def test_a_plane_along_its_first_axis_is_the_line(runs: tuple[Path, Path]) -> None:
    small = SMALL | {"points": 3, "std": [0.0]}
    plane = tr.surface(runs[0], plane=True, out="plane", **small)
    line = tr.surface(runs[0], out="line", **small)
    middle = [plane.points.index((position, 0.0)) for position in line.axes[0].positions]
    for name in line.relaxations:
        means = plane.curve(name, 0.0).mean
        assert line.curve(name, 0.0).mean == pytest.approx([means[place] for place in middle], rel=1e-12)


# ------------------------------------------------------------------------------------------------- resuming


def interrupt_after(rows: int) -> Callable[[Surface, int], None]:
    def on_row(found: Surface, _: int) -> None:
        if evaluated(found) == rows:
            raise KeyboardInterrupt

    return on_row


def test_an_interrupted_surface_goes_on_to_the_same_bytes(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """And what is there is not computed again."""
    whole = tr.surface(runs[0], out="whole", **SMALL)
    with pytest.raises(KeyboardInterrupt, match=r"surface\.json"):
        tr.surface(runs[0], out="parts", on_row=interrupt_after(3), **SMALL)
    assert evaluated(read_surface(tmp_path / "parts" / "surface.json")) == 3
    assert not (tmp_path / "parts" / "surface.csv").exists()
    done: list[int] = []
    parts = tr.surface(runs[0], out="parts", on_row=lambda _, took: done.append(took), **SMALL)
    names = found_costs(whole)
    assert sum(done) == sum(names.values()) - (5 + 24 * 4 + 2 * 10)  # ibp: plain, jumps, both pairs
    assert parts.curves == whole.curves
    tables = [(tmp_path / each / "surface.csv").read_bytes() for each in ("whole", "parts")]
    assert tables[0] == tables[1]
    before = (tmp_path / "parts" / "surface.json").read_bytes()
    tr.surface(runs[0], out="parts", on_row=lambda *_: pytest.fail("nothing is left"), **SMALL)
    assert (tmp_path / "parts" / "surface.json").read_bytes() == before


def found_costs(found: Surface) -> dict[str, int]:
    return {cost.relaxation: cost.evaluations for cost in found.costs}


def test_more_can_be_asked_for_later_and_less_cannot(runs: tuple[Path, Path]) -> None:
    few = tr.surface(runs[0], out="grows", **SMALL | {"relaxations": ["ibp"], "std": [0.1]})
    more = tr.surface(runs[0], out="grows", **SMALL | {"draws": 8})
    assert more.curve("ibp", 0.1).samples[:2] == few.curve("ibp", 0.1).samples
    assert more.curves == tr.surface(runs[0], out="at once", **SMALL | {"draws": 8}).curves
    with pytest.raises(InputError, match="more than was asked for"):
        tr.surface(runs[0], out="grows", **SMALL)
    with pytest.raises(InputError, match=r"other settings.*seed"):
        tr.surface(runs[0], out="grows", seed=1, **SMALL | {"draws": 8})


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"eps": -0.1}, InputError, "negative"),
        ({"eps": "2"}, InputError, "range"),
        ({"points": 1}, InputError, "at least 2"),
        ({"draws": 5}, InputError, "antithetic"),
        ({"images": 0}, InputError, "at least 1 image"),
        ({"std": [0.1, -1.0]}, InputError, "finite numbers >= 0"),
        ({"std": [math.nan]}, InputError, "finite numbers >= 0"),
        ({"std": []}, InputError, "finite numbers >= 0"),
        ({"relaxations": ["ipb"]}, ConfigError, "ibp"),
        ({"relaxations": ["deeppoly:slope=steep"]}, ConfigError, "slope"),
        ({"relaxations": []}, InputError, "at least one"),
        ({"ranges": [(1.0, -1.0)]}, InputError, "larger"),
        ({"ranges": [(0.0, 1.0)] * 2}, InputError, "2 ranges for 1"),
        ({"direction": "up"}, InputError, "choose random"),
        ({"overrides": ["seed=1"]}, InputError, "cannot be overridden"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    runs: tuple[Path, Path], given: dict[str, Any], error: type[TightropeError], told: str
) -> None:
    with pytest.raises(error, match=told):
        tr.surface(runs[0], out="bad", on_plan=lambda *_: pytest.fail("work began"), **SMALL | given)
    assert not Path("bad").exists()


def test_networks_that_do_not_fit_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"train\.keep_every=1"):
        tr.surface(runs[1], direction="pca", **SMALL)
    tr.fit("digits/mlp-ibp", overrides=[*TINY, "model.width=[6]", "train.epochs=1"], out="wide")
    with pytest.raises(CheckpointError, match="another network"):
        tr.surface(runs[0], towards="wide", **SMALL)
    with pytest.raises(MissingDataError, match="neither a run folder nor a preset"):
        tr.surface("runs/nothing", **SMALL)
    broken = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(broken[1].bias, math.nan)
    with pytest.raises(NumericalError, match="NaN"):
        tr.surface(broken, dataset="digits", eps=0.1, out="nan", **SMALL)
    assert not (tmp_path / "nan").exists()


# ------------------------------------------------------------------------------------- weights of the trajectory


class InterruptAt:
    """Ctrl-C after some step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, event: StepEvent) -> None:
        if event.step == self._step:
            signal.raise_signal(signal.SIGINT)

    def on_epoch(self, record: EpochRecord) -> None:
        """Nothing."""


def test_weights_are_kept_on_the_way_resumed_or_not(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from tightrope.training import loop

    monkeypatch.setattr(loop, "EVENT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        tr.fit("digits/mlp-ibp", overrides=[*TINY, "train.keep_every=1"], out="kept", watcher=InterruptAt(5))
    tr.fit(out="kept", resume=True)
    kept = tr.load("kept").folder.trajectory
    assert list(kept) == [0, 1, 2, 3]
    for epoch, path in tr.load(runs[0]).folder.trajectory.items():
        assert path.read_bytes() == kept[epoch].read_bytes()
    assert not tr.load(runs[1]).folder.trajectory


def test_keeping_weights_changes_nothing_else(runs: tuple[Path, Path]) -> None:
    """Neither the result nor which checkpoints fit."""
    tr.fit("digits/mlp-ibp", overrides=TINY, out="plain")
    assert tr.load("plain").record.weights_sha256 == tr.load(runs[0]).record.weights_sha256
    marks = set()
    for more in ([], ["train.keep_every=2"]):
        _, config = load_config("digits/mlp-ibp", [*TINY, *more])
        marks.add(fingerprint(config, build_job(config, build_plugins(config), data_dir=None)))
    assert len(marks) == 1


# ----------------------------------------------------------------------------------------------- command line


def lab(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["lab", "surface", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(re.sub(r"[│╭╮╰╯─┃]", " ", result.output).split())


def test_the_command_prints_the_cost_first_and_then_draws(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tightrope.experiments.surface.draw", draw)
    code, told = lab(
        *(runs[0], "--relaxation", "ibp", "--relaxation", "deeppoly:slope=zero", "--std", "0,0.1", "--points", 5),
        *("--draws", 4, "--images", 4, "--range", "-0.5,0.5", "--out", "drawn"),
    )
    assert code == 0, told
    assert 0 <= told.index("losses to evaluate") < told.index("Smallest loss") < told.index("surface.png")
    assert Path("drawn/surface.png").read_bytes().startswith(PNG)
    assert "<svg" in Path("drawn/surface.svg").read_text()
    record = json.loads(Path("drawn/surface.json").read_text())
    assert [axis["positions"] for axis in record["axes"]] == [[-0.5, -0.25, 0.0, 0.25, 0.5]]
    assert [curve["relaxation"] for curve in record["curves"]] == ["ibp"] * 2 + ["deeppoly:slope=zero"] * 2


def test_the_command_refuses_what_it_cannot_read(runs: tuple[Path, Path]) -> None:
    for option, value, told in (("--std", "a", "numbers"), ("--range", "1", "two ends"), ("--points", "1", "2")):
        code, message = lab(runs[0], option, value)
        assert code == 2
        assert told in message
