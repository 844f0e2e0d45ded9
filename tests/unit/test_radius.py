"""Certified radii: between what is proved and what is refuted, on a grid, and never contradicting each other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import tightrope as tr
from certification import CASCADE, COUNT, FRAGILE, Forger, Task, new_task, timeless
from helpers import F64
from reference.exact import exact_min
from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.spec import Spec
from tightrope.errors import InputError, InvariantError, NumericalError
from tightrope.evaluation._inputs import Inputs
from tightrope.evaluation._rounds import Effort
from tightrope.evaluation.radius import Grid, RadiusProgress, certify_radii
from tightrope.evaluation.shards import Shard
from tightrope.records.image import read_all
from tightrope.records.radius import RadiusRecord, RadiusSummary, distribution, read_distribution
from tightrope.reports.figures import radius_curve
from tightrope.verifiers.bab import Bab

GRID = Grid.up_to("1/2", "1/20")
BAB = Bab(timeout=20.0, root_steps=2, steps=2)


@pytest.fixture
def task() -> Task:
    """Every kind of image."""
    return new_task(FRAGILE)


def inputs(task: Task, **changes: Any) -> Inputs:
    given = Inputs(task.network, task.params, task.x, task.labels, lambda y: tr.margin_spec(y, 3, dtype=F64), 3, 5)
    return replace(given, **changes)


def run(task: Task, path: Path, **changes: Any) -> RadiusSummary:
    given: dict[str, Any] = {"verifier": CASCADE, "header": {"dataset": "made up", "split": "test"}}
    return certify_radii(inputs(task), changes.pop("grid", GRID), path=path, **(given | changes))


def records(path: Path) -> list[RadiusRecord]:
    return read_all(path, RadiusRecord)


def margin_at(task: Task, index: int, eps: Fraction) -> float:
    """The exact margin of an image, by enumeration."""
    box = tr.linf_box(task.x[index : index + 1], eps)
    spec = tr.margin_spec(task.labels[index : index + 1], 3, dtype=F64)
    bounds = box.lower[0].numpy(), box.upper[0].numpy()
    return min(exact_min(FRAGILE.oracle, *bounds, row) for row in spec.matrix[0].numpy())


@dataclass(frozen=True)
class Threshold:
    """A verifier that proves every image up to a radius, and no further."""

    proved: float

    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        widths = (box.upper - box.lower).amax(1).tolist()
        return [self._outcome(width / 2) for width in widths]

    def _outcome(self, eps: float) -> Outcome:
        if eps <= self.proved:
            return Outcome(Verdict.VERIFIED, 1e-12, math.inf, "threshold")
        return Outcome(Verdict.UNKNOWN, -math.inf, math.inf, "threshold", reason="between")


# --------------------------------------------------------------------------------------------- verdicts


def test_radii_never_contradict_exact_enumeration_and_bab_leaves_no_gap(task: Task, tmp_path: Path) -> None:
    task = replace(task, x=task.x[:5], labels=task.labels[:5])
    coarse = Grid.up_to("1/5", "1/20")
    run(task, tmp_path / "cheap.jsonl", grid=coarse)
    found = run(task, tmp_path / "complete.jsonl", grid=coarse, complete=BAB)
    for record in [*records(tmp_path / "cheap.jsonl"), *records(tmp_path / "complete.jsonl")]:
        low, high = record.certified_radius, record.falsified_radius
        assert (low is not None) == record.natural
        assert low is None or margin_at(task, record.index, low) > -1e-9
        assert high is None or margin_at(task, record.index, high) <= 1e-9
    assert found.open == 0
    for cheap, complete in zip(records(tmp_path / "cheap.jsonl"), records(tmp_path / "complete.jsonl"), strict=True):
        assert not cheap.natural or (cheap.certified_radius or 0) <= (complete.certified_radius or 0)


@pytest.mark.parametrize("proved", ["0", "1/20", "7/20", "9/20", "1/2"])
def test_bisection_finds_the_largest_radius_that_is_proved(task: Task, tmp_path: Path, proved: str) -> None:
    x = torch.full((3, 3), 0.5, dtype=F64)
    labels = task.network(task.params, x).argmax(1)
    one = replace(task, x=x, labels=labels)
    threshold = Threshold(float(Fraction(proved)) + 1e-9)
    found = run(one, tmp_path / "r.jsonl", verifier=threshold)
    assert {record.verified for record in records(tmp_path / "r.jsonl")} == {proved}
    assert max(record.tries for record in records(tmp_path / "r.jsonl")) <= 2 * math.ceil(math.log2(GRID.steps + 1))
    assert found.quantiles["1/2"] == proved
    assert [point.certified for point in found.curve].count(3) == Fraction(proved) * 20 + 1


def test_a_counterexample_counts_from_its_own_distance_on(task: Task, tmp_path: Path) -> None:
    """The images lie close to a boundary: an attack in a large box finds a point in a small one."""
    run(task, tmp_path / "r.jsonl")
    for record in records(tmp_path / "r.jsonl"):
        assert record.falsified_radius is None or record.falsified_radius % GRID.tolerance == 0


def test_a_proof_at_a_radius_with_a_closer_counterexample_names_the_image(task: Task, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Wrong(Forger):
        """Claims everything below a quarter, and attacks honestly above."""

        def verify(
            self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
        ) -> list[Outcome]:
            honest = CASCADE.verify(network, params, box, spec, generator=generator)
            widths = (box.upper - box.lower).amax(1).tolist()
            claim = Outcome(Verdict.VERIFIED, 1e-12, math.inf, "wrong")
            return [claim if width < 0.6 else outcome for width, outcome in zip(widths, honest, strict=True)]

    with pytest.raises(InvariantError, match=r"Image \d+ is verified by wrong|Sample \d+"):
        run(task, tmp_path / "r.jsonl", verifier=Wrong(0.0, []))


# ---------------------------------------------------------------------------- resuming, shards, neighbours


def stop_after(calls: int) -> Callable[[RadiusProgress], None]:
    seen: list[RadiusProgress] = []

    def on_batch(progress: RadiusProgress) -> None:
        seen.append(progress)
        if len(seen) == calls:
            raise KeyboardInterrupt

    return on_batch


@pytest.mark.parametrize("calls", [1, 3, 4, 5])
def test_interrupted_and_resumed_equals_uninterrupted(task: Task, tmp_path: Path, calls: int) -> None:
    coarse = {"grid": Grid.up_to("1/2", "1/8"), "complete": CASCADE, "together": 3, "verifier": Threshold(0.1)}
    run(task, tmp_path / "whole.jsonl", **coarse)
    path = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(task, path, **coarse, on_batch=stop_after(calls))
    run(task, path, **coarse)
    assert timeless(path) == timeless(tmp_path / "whole.jsonl")
    assert not list(tmp_path.glob("*.open.jsonl"))


def test_shards_are_merged(task: Task, tmp_path: Path) -> None:
    run(task, tmp_path / "whole.jsonl")
    for number in (2, 1):
        found = run(task, tmp_path / "r.jsonl", effort=Effort(shard=Shard(number, 2)))
    assert timeless(tmp_path / "r.jsonl") == timeless(tmp_path / "whole.jsonl")
    assert found.count == COUNT
    assert read_distribution(tmp_path / "r.summary.json") == found


def test_radii_and_certifications_of_one_folder_must_agree(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "radius.jsonl"
    run(task, path)
    task.run(tmp_path / "eps.jsonl", eps="1/8")
    refuted = next(r for r in records(path) if r.natural and (r.certified_radius or 0) >= Fraction(1, 20))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    line = next(line for line in lines if line.get("index") == refuted.index)
    line |= {"verified": "0", "falsified": "1/1000"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InvariantError, match=f"Image {refuted.index} is verified at eps .*falsified at eps 1/1000"):
        task.run(tmp_path / "small.jsonl", eps="1/100")


# ------------------------------------------------------------------------------------------ distribution


def record(index: int, verified: str | None, falsified: str | None, **changes: Any) -> RadiusRecord:
    facts = {"index": index, "label": 0, "natural": verified is not None, "limit": "1/2", "tolerance": "1/10"}
    facts |= {"verified": verified, "falsified": falsified, "method": "ibp", "tries": 1, "seconds": 0.5}
    return RadiusRecord(**(facts | changes))


def test_the_distribution_is_that_of_the_radii(tmp_path: Path) -> None:
    found = distribution(
        [record(0, "1/10", "3/10"), record(1, "1/2", None), record(2, None, "0"), record(3, "0", "1/10")]
    )
    assert [point.certified for point in found.curve] == [3, 2, 1, 1, 1, 1]
    assert [point.adversarial for point in found.curve] == [3, 2, 2, 1, 1, 1]
    assert [point.eps for point in found.curve] == ["0", "1/10", "1/5", "3/10", "2/5", "1/2"]
    assert (found.count, found.natural, found.open) == (4, 3, 1)
    assert (found.quantiles["0"], found.quantiles["1/2"], found.quantiles["1"]) == (None, "0", "1/2")
    radius_curve(found, "four", tmp_path / "four.png")
    assert (tmp_path / "four.png").read_bytes()[:4] == b"\x89PNG"


def test_the_curve_is_written_as_a_table(task: Task, tmp_path: Path) -> None:
    found = run(task, tmp_path / "r.jsonl")
    rows = (tmp_path / "r.curve.csv").read_text().splitlines()
    assert rows[0] == "eps,eps_decimal,adversarial_accuracy,certified_accuracy,images"
    assert len(rows) == len(found.curve) + 1 == GRID.steps + 2


@pytest.mark.parametrize(
    "change",
    [
        {"verified": "2/5"},
        {"verified": "1"},
        {"verified": "-1/10"},
        {"verified": "x"},
        {"verified": None},
        {"natural": False},
        {"falsified": "3/4"},
        {"tolerance": "0"},
        {"tolerance": "1/0"},
    ],
)
def test_contradictory_radii_cannot_be_built(change: dict[str, Any]) -> None:
    good = record(0, "1/10", "3/10").model_dump()
    with pytest.raises(ValidationError):
        RadiusRecord(**(good | change))


def test_a_curve_that_rises_cannot_be_built() -> None:
    good = distribution([record(0, "1/10", "3/10"), record(1, "1/2", None)])
    with pytest.raises(ValidationError, match="rises"):
        RadiusSummary(**{**good.model_dump(), "curve": good.curve[::-1]})


# --------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("limit", "tolerance"),
    [(0, None), ("1/8", 0), ("1/8", "1/4"), ("1/8", -1), ("x", None), (math.nan, None), (1, 1e-5)],
)
def test_grids_that_are_none_are_refused(limit: Any, tolerance: Any) -> None:
    with pytest.raises(InputError):
        Grid.up_to(limit, tolerance)


def test_a_grid_has_exact_radii() -> None:
    assert Grid.up_to(0.1, None) == Grid(Fraction(1, 640), 64)
    assert Grid.up_to("8/255", 1 / 4 / 255).limit <= Fraction(8, 255)
    assert Grid.up_to("1/2", "1/5").limit == Fraction(2, 5)


def test_bad_input_is_named_before_any_file_is_touched(task: Task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data range"):
        run(task, tmp_path / "r.jsonl", grid=Grid.up_to(2, None))
    broken = replace(task, params={**task.params, "0.bias": task.params["0.bias"] * math.nan})
    with pytest.raises(NumericalError):
        run(broken, tmp_path / "r.jsonl")
    with pytest.raises(InputError, match="jsonl"):
        run(task, tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


def test_outputs_that_overflow_have_no_radius(task: Task, tmp_path: Path) -> None:
    huge = replace(task, params={name: value * 1e200 for name, value in task.params.items()})
    found = run(huge, tmp_path / "r.jsonl")
    assert found.natural == 0
    assert all(r.verified is None and r.falsified is None for r in records(tmp_path / "r.jsonl"))
