"""The benchmarks run from the repository root and write records of their documented form. No timing is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import memory, population, profile, scaling, training, verification
from benchmarks.case import Case, Effort
from benchmarks.problem import SHAPE, loss_of, problem
from benchmarks.protocol import Agreement, Contender, Group, measure
from benchmarks.worker import StoppedError, Worker

import tightrope as tr

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


def run(out: Path, *arguments: str) -> dict[str, Any]:
    """The record of one run on the CPU."""
    suite = arguments[0]
    command = [sys.executable, "-m", "benchmarks", *arguments, "--quick", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / f"{suite}-quick-cpu.png").read_bytes().startswith(PNG)
    text = (out / f"{suite}-quick-cpu.json").read_text(encoding="utf-8")
    assert str(ROOT) not in text
    record = json.loads(text)
    assert record["format"] == "tightrope-benchmark/1"
    assert (record["name"], record["device"], record["quick"]) == (suite, "cpu", True)
    assert {"date", "tightrope", "torch", "peers", "cpu", "cores", "threads", "gpu", "commit"} <= set(
        record["environment"]
    )
    return record


def test_verify_record(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    [group] = run(tmp_path, "verify", "--threads", "1")["groups"]
    assert len(group["instances"]) == 2
    row = group["contenders"][0]
    assert (row["name"], len(row["verdicts"]), len(row["seconds"])) == ("tightrope", 2, 2)
    assert set(row["verdicts"]) <= {"unsat", "sat", "timeout"}
    assert list(verification.solved(row)) == sorted(verification.solved(row))


def test_contradicting_verdicts_are_named() -> None:
    first, second = ({"name": name, "verdicts": verdicts} for name, verdicts in CONTRADICTING.items())
    check = verification._agreement(first, second)
    assert (check["agrees"], check["against"]) == (False, [2])


CONTRADICTING = {"one": ["unsat", "timeout", "sat"], "another": ["unsat", "sat", "unsat"]}


def check_summary(summary: dict[str, float]) -> None:
    assert 0 < summary["min"] <= summary["median"] <= summary["max"]


def check_contender(row: dict[str, Any], repeats: int) -> None:
    assert row["status"] == "ok", row
    assert len(row["seconds_per_step"]["samples"]) == repeats
    check_summary(row["seconds_per_step"])
    check_summary(row["throughput"])


@pytest.mark.parametrize("network", ["cnn3", "mlp"])
def test_population_record(network: str, tmp_path: Path) -> None:
    sizes = ("--pairs", "2", "--images", "4", "--chunks", "1,2", "--passes", "4,8", "--width", "2")
    case = ("--networks", network, "--relaxations", "ibp", "--memory-pairs", "2,8")
    record = run(tmp_path, "population", *case, *sizes)
    assert record["protocol"]["repeats"] >= 5
    speed, peak = record["groups"]
    rows = {row["name"]: row for row in speed["contenders"] if not row["library"].startswith("evotorch")}
    plain = ["plain, 4 a pass", "plain, 8 a pass", "plain, 16 a pass"]
    assert list(rows) == ["chunk=1", "chunk=2", "naive loop", *plain]
    for row in rows.values():
        check_contender(row, record["protocol"]["repeats"])
    headline = speed["ratios"][0]
    assert (headline["of"], headline["over"]) == ("best chunk", "best plain")
    fastest = min(plain, key=lambda name: rows[name]["seconds_per_step"]["median"])
    assert headline["contenders"][1] == fastest
    assert all(check["agrees"] for check in speed["agreements"])
    assert len(speed["agreements"]) >= 1 + 1 + len(plain)
    assert [row["setting"]["pairs"] for row in peak["contenders"]] == [2, 8]
    assert all(row["peak_memory_mib"] > 0 and "throughput" not in row for row in peak["contenders"])
    assert peak["ratios"][0]["memory"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory and its limit are measured on Linux")
def test_training_record_says_what_does_not_fit(tmp_path: Path) -> None:
    case = ("--batches", "16", "--width", "16", "--relaxations", "ibp,deeppoly", "--threads", "2")
    record = run(tmp_path, "training", "--memory-limit", "0.03", *case)
    (group,) = record["groups"]
    rows = {row["name"]: row for row in group["contenders"] if row["library"] == "tightrope"}
    check_contender(rows["ibp"], record["protocol"]["repeats"])
    assert 0 < rows["ibp"]["peak_memory_mib"] < 30
    assert rows["deeppoly"]["status"] == "does not fit"
    assert rows["deeppoly"]["reason"] == "needs more than 0.03 GiB beyond its set-up"
    assert "throughput" not in rows["deeppoly"]


def test_loss_fusion_is_timed_against_the_loss_without(tmp_path: Path) -> None:
    record = run(tmp_path, "training", "--relaxations", "crown_ibp,crown_ibp_fused", "--no-memory", "--width", "2")
    (group,) = record["groups"]
    assert [row["status"] for row in group["contenders"] if row["library"] == "tightrope"] == ["ok", "ok"]
    (ratio,) = (ratio for ratio in group["ratios"] if ratio["of"] == "crown_ibp_fused")
    assert ratio["over"] == "crown_ibp"


def test_scaling_record(tmp_path: Path) -> None:
    record = run(tmp_path, "scaling", "--relaxations", "ibp", "--axes", "depth,specs,pairs")
    assert [group["setting"]["axis"] for group in record["groups"]] == ["depth", "specs", "pairs"]
    for group in record["groups"]:
        axis = group["setting"]["axis"]
        points = [(row["setting"][axis], row["seconds_per_step"]["median"]) for row in group["contenders"]]
        assert group["slopes"] == {"time": scaling.slopes(points), "memory": None}


def test_limit_record(tmp_path: Path) -> None:
    (group,) = run(tmp_path, "limit", "--relaxations", "ibp", "--width", "2")["groups"]
    rows = {row["name"]: row for row in group["contenders"]}
    assert rows["product, square"]["work"]["flop"] == 2 * 128 * 2048 * 2048
    assert rows["copy"]["work"] == {"flop": 0, "bytes": 2 * 2**24}
    assert rows["copy"]["share_of_copy"]["median"] == 1
    assert max(row["share_of_product"]["max"] for name, row in rows.items() if "product" in name) == 1
    assert rows["ibp"]["gflop_per_second"]["median"] > 0


def test_profile_record(tmp_path: Path) -> None:
    (group,) = run(tmp_path, "profile", "--network", "cnn3", "--relaxation", "deeppoly", "--batch", "2")["groups"]
    assert group["setting"]["batch"] == 2
    assert sum(group["shares"].values()) == pytest.approx(1)
    shares = [row["share"] for row in group["top"]]
    assert shares == sorted(shares, reverse=True)
    assert {"product", "convolution", "elementwise"} <= set(group["shares"])


def test_a_step_that_takes_too_long_is_recorded_as_such() -> None:
    case = Case("benchmarks.training", "ibp", {"network": "cnn3", "width": 2, "batch": 1, "device": "cpu"})
    found = memory.probe(case, Effort(patience=0.01))
    assert found == {"status": "too slow", "reason": "one step takes more than 0.01 s"}


def measured(contenders: dict[str, Contender], **options: Any) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The rows of contenders of the test suite by name, and the whole group."""
    group = Group("benchmark_cases", "g", {"device": "cpu", "size": 1}, contenders, 1, "steps/s", **options)
    record = measure(group, Effort(2, 1e-4, memory=False))
    return {row["name"]: row for row in record["contenders"]}, record


def test_a_contender_that_fails_does_not_end_the_run_of_the_others() -> None:
    contenders = {"raises": Contender("x", {"size": 3}), "good": Contender("x"), "other": Contender("x")}
    families = {"any": ("raises", "good"), "none": ("raises",)}
    ratios = (("other", "any"), ("other", "none"), ("raises", "good"))
    rows, record = measured(contenders, ratios=ratios, families=families)
    assert (rows["raises"]["status"], rows["raises"]["reason"]) == ("failed", "ValueError: no 3")
    check_contender(rows["good"], 2)
    assert [ratio["contenders"] for ratio in record["ratios"]] == [["other", "good"]]


def test_contenders_share_a_process_if_library_and_allocator_are_the_same() -> None:
    contenders = {"a": Contender("x"), "b": Contender("x"), "kept": Contender("x", keeps_memory=True)}
    contenders["other library"] = Contender("y")
    agreements = tuple(Agreement("process", "a", name, tolerance=0.0) for name in ("b", "kept", "other library"))
    rows, record = measured(contenders, agreements=agreements)
    assert [row["keeps_memory"] for row in rows.values()] == [False, False, True, False]
    assert [check["agrees"] for check in record["agreements"]] == [True, False, False]
    assert os.getpid() not in [check["mean_second"] for check in record["agreements"]]


def test_who_is_set_up_beside_a_contender_that_ends_the_process_is_timed_in_another() -> None:
    contenders = {"before": Contender("x"), "killed": Contender("x"), "exits": Contender("x"), "after": Contender("x")}
    rows, _ = measured(contenders)
    assert rows["killed"]["status"] == "does not fit"
    assert (rows["exits"]["status"], rows["exits"]["reason"]) == ("failed", "exit code 3")
    for name in ("before", "after"):
        check_contender(rows[name], 2)


def test_a_process_that_ends_while_it_is_timed_takes_its_contenders_along_and_nobody_else() -> None:
    contenders = {"fellow": Contender("x"), "exits": Contender("x", {"steps": 5}), "other": Contender("y")}
    agreements = (Agreement("process", "other", "exits"),)
    rows, record = measured(contenders, ratios=(("other", "fellow"),), agreements=agreements)
    assert (rows["exits"]["status"], rows["exits"]["reason"]) == ("failed", "exit code 3")
    assert (rows["fellow"]["status"], rows["fellow"]["reason"]) == ("failed", "its process ended in a step of exits")
    check_contender(rows["other"], 2)
    assert record["ratios"] == record["agreements"] == []


def test_a_contender_that_hangs_is_given_up() -> None:
    with closing(Worker({"device": "cpu"}, keeps_memory=False, timeout=10)) as worker:
        worker.set_up(Case("benchmark_cases", "good", {}))
        with pytest.raises(StoppedError, match="no answer") as stopped:
            worker.set_up(Case("benchmark_cases", "hangs", {}))
        assert stopped.value.outcome["status"] == "too slow"
        assert not worker.alive


def test_slopes_are_the_exponents_of_power_laws() -> None:
    points = [(x, 5.0 * x**1.5) for x in (1, 2, 8, 32)]
    assert scaling.slopes(points) == {"least_squares": 1.5, "last": 1.5}
    assert scaling.slopes([(1, 0.0), (2, 3.0)]) is None


@pytest.mark.parametrize("network", ["cnn3", "cnn7"])
def test_the_naive_loop_computes_our_loss(network: str) -> None:
    made = problem({"network": network, "width": 2, "device": "cpu"}, 3)
    net, params = tr.from_module(made.module, SHAPE)
    ours = loss_of(net, "ibp", made.box, made.labels)(params)[0]
    naive = population.interval_loss(made.module, made.box, tr.margin_spec(made.labels, 10))
    torch.testing.assert_close(naive, ours)


def test_batch_normalisation_has_the_statistics_of_the_images_and_trained_weights() -> None:
    made = problem({"network": "cnn7", "width": 2, "device": "cpu"}, 3)
    assert not any(layer.training for layer in made.module.modules())
    net, _ = tr.from_module(made.module, SHAPE)
    first = made.module[1]
    assert isinstance(first, torch.nn.BatchNorm2d)
    assert float(first.running_mean.abs().min()) > 0
    assert {"1.weight", "1.bias"} <= set(net.trainable)
    assert not any("running" in name for name in net.trainable)


def test_every_network_has_its_group_at_every_batch() -> None:
    names = [group.name for group in training.groups(training.Options("cpu"))]
    expected = [("cnn3", 16, 32), ("cnn3", 16, 8), ("cnn5", 16, 8), ("cnn7", 64, 8)]
    assert names == [f"{net}, width {width}, batch {batch}" for net, width, batch in expected]
    names = [group.name for group in training.groups(training.Options("cpu", networks=("cnn5",), batches=(4, 2)))]
    assert names == ["cnn5, width 16, batch 4", "cnn5, width 16, batch 2"]


def test_kinds_of_operations() -> None:
    names = ("aten::addmm", "aten::convolution_backward", "aten::where", "aten::sum", "aten::cat", "aten::view")
    kinds = ["product", "convolution", "elementwise", "reduction", "movement", "other"]
    assert [profile.kind_of(name) for name in names] == kinds


def test_plan_record_has_forecasts_beside_what_was_measured(tmp_path: Path) -> None:
    case = ("--networks", "cnn3_tiny", "--batches", "2", "--relaxations", "ibp")
    record = run(tmp_path, "plan", "--no-memory", "--threads", "1", *case)
    (group,) = record["groups"]
    assert [row["name"] for row in group["contenders"]] == ["ibp, none", "ibp, pgpe, 8 pairs", "ibp, rgs, 2 pairs"]
    for row in group["contenders"]:
        check_contender(row, record["protocol"]["repeats"])
        forecast, ratios = group["setting"]["forecasts"][row["name"]], row["forecast_over_measured"]
        assert ratios["seconds_per_step"] * row["seconds_per_step"]["median"] == pytest.approx(
            forecast["seconds_per_step"]
        )
        assert ratios["peak_memory"] is None
