"""Certification in two rounds, by several processes, in shards: always the same records."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import pickle
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tightrope as tr
from certification import BLOCK, COUNT, FRAGILE, Forger, Task, new_task, stop_after, timeless
from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.spec import Spec
from tightrope.errors import CorruptDataError, InputError, InvariantError, MissingDataError
from tightrope.evaluation import _workers
from tightrope.evaluation._rounds import Effort
from tightrope.evaluation.shards import Shard
from tightrope.records import image
from tightrope.records.image import ImageRecord, read, read_summary
from tightrope.verifiers._merge import ContradictionError
from tightrope.verifiers.bab import Bab
from tightrope.verifiers.cascade import Cascade
from tightrope.verifiers.one_shot import OneShot

LOOSE = Cascade((OneShot(tr.relaxation("ibp"), "ibp"),))
COMPLETE = {"verifier": LOOSE, "complete": Bab(timeout=20.0, root_steps=2, steps=2), "together": 2, "eps": "1/20"}


@dataclass(frozen=True)
class Noisy:
    """A verifier that proves nothing, and reports what it draws as the margin of a point."""

    seen: list[int]

    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        count = box.lower.shape[0]
        self.seen.append(count)
        drawn = torch.rand(count, generator=generator).tolist()
        return [Outcome(Verdict.UNKNOWN, -math.inf, 1e-9 * u, "noisy", reason="drawn") for u in drawn]


@dataclass(frozen=True)
class Suicidal:
    """A verifier that takes its process with it."""

    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []


@pytest.fixture
def task() -> Task:
    """Every kind of image."""
    return new_task()


def by_index(path: Path) -> list[dict[str, Any]]:
    """The records without what the clock says, whatever their order."""
    return sorted(timeless(path)[1:], key=lambda line: line["index"])


# ------------------------------------------------------------------------------------------- two rounds


def test_what_is_left_open_is_decided_together(task: Task, tmp_path: Path) -> None:
    """Nine natural images that the first verifier leaves open: as few groups as possible, of nearly the same size."""
    seen: list[int] = []
    noisy = {"verifier": Forger(-1.0, []), "complete": Noisy(seen)}
    found = task.run(tmp_path / "r.jsonl", **noisy, together=4)
    assert seen == [3, 3, 3]
    assert (found.natural, found.unknown, found.count) == (COUNT - 2, COUNT - 2, COUNT)
    assert [record.index for record in read(tmp_path / "r.jsonl")] == list(range(COUNT))
    assert [line["index"] for line in timeless(tmp_path / "r.jsonl")[1:]] == list(range(COUNT))
    assert not (tmp_path / "r.open.jsonl").exists()


def test_two_rounds_decide_what_one_cascade_decides(tmp_path: Path) -> None:
    task = new_task(FRAGILE)
    task.run(tmp_path / "two.jsonl", **COMPLETE)
    whole = Cascade((*LOOSE.stages, COMPLETE["complete"]))
    task.run(tmp_path / "one.jsonl", eps="1/20", verifier=whole)
    verdicts = [[record.verdict for record in read(tmp_path / name)] for name in ("one.jsonl", "two.jsonl")]
    assert verdicts[0] == verdicts[1]
    assert {record.method for record in read(tmp_path / "two.jsonl")} >= {"natural", "ibp", "bab"}


@pytest.mark.parametrize("calls", range(1, 9))
def test_interrupted_anywhere_and_resumed_equals_uninterrupted(task: Task, tmp_path: Path, calls: int) -> None:
    """Four blocks and five groups: what is drawn does not depend on where the interruption fell."""
    noisy = {"verifier": Forger(-1.0, []), "complete": Noisy([]), "together": 2}
    task.run(tmp_path / "whole.jsonl", **noisy)
    path = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        task.run(path, **noisy, on_batch=stop_after(calls))
    kept = timeless(path)[1:]
    task.run(path, **noisy)
    assert timeless(path) == timeless(tmp_path / "whole.jsonl")
    assert all(line in timeless(path) for line in kept)


@pytest.mark.parametrize("cut", range(0, 9, 2))
def test_killed_while_writing_a_group(task: Task, tmp_path: Path, cut: int) -> None:
    """A group of which only some records reached the disk is drawn for again as a whole."""
    noisy = {"verifier": Forger(-1.0, []), "complete": Noisy([]), "together": 4}
    task.run(tmp_path / "whole.jsonl", **noisy)
    path = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        task.run(path, **noisy, on_batch=stop_after(6))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) - cut]) + b'{"index":')
    task.run(path, **noisy)
    assert timeless(path) == timeless(tmp_path / "whole.jsonl")


def test_a_full_disk_loses_nothing_and_leaves_no_half_line(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        task.run(path, on_batch=stop_after(2))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space") as caught:
            task.run(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert task.run(path).count == COUNT


# ---------------------------------------------------------------------------------------------- workers


def test_workers_and_their_interruption_change_no_record(tmp_path: Path) -> None:
    task = new_task(FRAGILE)
    alone, shared = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    found = task.run(alone, **COMPLETE)
    with pytest.raises(KeyboardInterrupt):
        task.run(shared, **COMPLETE, effort=Effort(workers=2), on_batch=stop_after(5))
    assert not multiprocessing.active_children()
    assert shared.with_suffix(".open.jsonl").exists()  # four blocks are done, and a group
    again = task.run(shared, **COMPLETE)
    assert timeless(shared) == timeless(alone)
    assert again.model_copy(update={"seconds": 0.0}) == found.model_copy(update={"seconds": 0.0})


def test_a_worker_that_dies_is_an_error_that_says_what_to_do(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(_workers.WorkerError, match=r"ended with code -9.*run the same command again"):
        task.run(path, verifier=Suicidal(), effort=Effort(workers=2))
    assert read(path) == []
    assert task.run(path).count == COUNT


@dataclass(frozen=True)
class Refusing:
    """A job that always fails."""

    error: Exception

    def decide(self, task: object) -> object:
        raise self.error


@pytest.mark.parametrize("error", [ContradictionError(4, "forger claims."), InputError("no"), MemoryError("full")])
def test_errors_in_workers_are_those_of_this_process(error: Exception) -> None:
    found, sent = pickle.loads(_workers._answer(Refusing(error), None))
    assert (found, type(sent), str(sent)) == (None, type(error), str(error))
    assert "decide" in sent.__notes__[0]


def test_workers_that_cannot_be_are_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        task.run(tmp_path / "r.jsonl", effort=Effort(workers=0))
    with pytest.raises(InputError, match="sent to other processes"):
        task.run(tmp_path / "s.jsonl", make_spec=lambda labels: tr.margin_spec(labels, 3), effort=Effort(workers=2))


def test_a_bounded_memory_ends_in_smaller_batches(task: Task, tmp_path: Path) -> None:
    found = task.run(tmp_path / "r.jsonl", effort=Effort(memory_gib=4.0))
    assert found.model_copy(update={"seconds": 0.0}) == task.run(tmp_path / "s.jsonl").model_copy(
        update={"seconds": 0.0}
    )
    for memory in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="bound"):
            task.run(tmp_path / "t.jsonl", effort=Effort(memory_gib=memory))


# ----------------------------------------------------------------------------------------------- shards


def test_shards_are_merged_into_what_one_process_finds(task: Task, tmp_path: Path) -> None:
    whole = task.run(tmp_path / "whole.jsonl")
    path = tmp_path / "r.jsonl"
    parts = [task.run(path, effort=Effort(shard=Shard(i, 3))) for i in (3, 1)]
    assert [part.count for part in parts] == [BLOCK, 2 * BLOCK - 1]
    assert not path.exists()
    merged = task.run(path, effort=Effort(shard=Shard(2, 3)))
    assert timeless(path) == timeless(tmp_path / "whole.jsonl")
    assert merged.model_copy(update={"seconds": 0.0}) == whole.model_copy(update={"seconds": 0.0})
    assert read_summary(tmp_path / "r.summary.json") == merged
    path.unlink()
    assert task.run(path, effort=Effort(merge=True)) == merged


def shards(task: Task, path: Path, **changes: Any) -> None:
    for number in (1, 2):
        task.run(path, effort=Effort(shard=Shard(number, 2)), **changes)


def test_missing_shards_and_images_are_named(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(MissingDataError, match="none"):
        task.run(path, effort=Effort(merge=True))
    task.run(path, effort=Effort(shard=Shard(2, 2)))
    with pytest.raises(MissingDataError, match=r"shards 1/2 are missing"):
        task.run(path, effort=Effort(merge=True))
    with pytest.raises(KeyboardInterrupt):
        task.run(path, effort=Effort(shard=Shard(1, 2)), on_batch=stop_after(1))
    with pytest.raises(MissingDataError, match="image 6"):
        task.run(path, effort=Effort(merge=True))
    task.run(path, effort=Effort(shard=Shard(1, 3)))
    with pytest.raises(MissingDataError, match="one division"):
        task.run(path, effort=Effort(merge=True))


def test_a_shard_of_other_weights_is_refused(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    task.run(path, effort=Effort(shard=Shard(1, 2)))
    other = replace(task, params={name: value * 1.01 for name, value in task.params.items()})
    other.run(tmp_path / "other.jsonl", effort=Effort(shard=Shard(2, 2)))
    (tmp_path / "other-shard-2-of-2.jsonl").rename(tmp_path / "r-shard-2-of-2.jsonl")
    with pytest.raises(InputError, match=r"run\.weights"):
        task.run(path, effort=Effort(merge=True))
    assert not path.exists()


def test_shards_that_contradict_each_other_are_an_error_that_names_the_image(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    shards(task, path)
    first, second = (Shard(number, 2).path(path) for number in (1, 2))
    proved = next(record for record in read(first) if record.certified)
    image.append(second, [flipped(proved)])
    path.unlink()
    with pytest.raises(InvariantError, match=f"image {proved.index} has verdict"):
        task.run(path, effort=Effort(merge=True))
    assert not path.exists()


def flipped(proved: ImageRecord) -> ImageRecord:
    """A record that claims a counterexample instead of the proof."""
    change = {"verdict": "falsified", "certified": False, "adversarial": False, "upper": -1.0, "lower": None}
    return ImageRecord(**(proved.model_dump() | change))


@pytest.mark.parametrize("text", ["3/2", "0/2", "1", "1/0", "-1/2", "a/b", "", "1/2/3", "1.0/2"])
def test_shards_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="1 <= i <= n"):
        Shard.parse(text)


def test_more_shards_than_blocks_are_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4 blocks of images cannot be shared by 5"):
        task.run(tmp_path / "r.jsonl", effort=Effort(shard=Shard(1, 5)))
    assert not list(tmp_path.iterdir())


def test_ranks_are_shards() -> None:
    assert Shard.of_rank({"RANK": "1", "WORLD_SIZE": "4"}) == Shard(2, 4)
    assert Shard.of_rank({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert Shard.of_rank({}) is None


# ------------------------------------------------------------------------------------------ consistency


def test_a_proof_that_another_radius_refutes_names_image_and_files(task: Task, tmp_path: Path) -> None:
    task.run(tmp_path / "large.jsonl", eps="1/8")
    path = tmp_path / "small.jsonl"
    task.run(path, eps="1/50")
    proved = next(record for record in read(tmp_path / "large.jsonl") if record.certified)
    header, records = image.read_header(path), read(path)
    assert records[proved.index].certified
    image.create(path, header, [flipped(r) if r.index == proved.index else r for r in records])
    with pytest.raises(InvariantError, match=rf"(?s)Image {proved.index} is verified at eps 1/8 .*large.*1/50 .*small"):
        task.run(tmp_path / "large.jsonl", eps="1/8")


def test_complete_verification_that_loses_a_proof_is_an_error(task: Task, tmp_path: Path) -> None:
    header = {"dataset": "made up", "split": "test", "relaxations": ["ibp"]}
    complete = {"header": {**header, "complete": {"timeout": 1.0}}, "complete": Noisy([])}
    task.run(tmp_path / "cheap.jsonl", header=header, verifier=LOOSE, eps="1/50")
    task.run(tmp_path / "good.jsonl", **complete, verifier=LOOSE, eps="1/50")
    with pytest.raises(InvariantError, match=r"Image \d+ is verified by ibp .*cheap.*did not verify it .*bad"):
        task.run(tmp_path / "bad.jsonl", **complete, verifier=Forger(-1e6, []), eps="1/50")


@pytest.mark.parametrize(
    "change",
    [
        {"header": {"dataset": "made up", "split": "train"}},
        {"header": {"dataset": "made up", "split": "test", "spec": "another"}},
        {"params": "scaled"},
    ],
)
def test_records_of_other_things_are_not_compared(task: Task, tmp_path: Path, change: dict[str, Any]) -> None:
    if "params" in change:
        change = {"params": {name: -value for name, value in task.params.items()}}
    task.run(tmp_path / "one.jsonl", eps="1/50")
    task.run(tmp_path / "two.jsonl", **{"labels": (task.labels + 1) % 3, "eps": "1/50", **change})
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    task.run(tmp_path / "one.jsonl", eps="1/50")


def test_a_damaged_neighbour_is_named(task: Task, tmp_path: Path) -> None:
    task.run(tmp_path / "one.jsonl")
    lines = (tmp_path / "one.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "two.jsonl").write_text("".join([lines[0], "{}\n", *lines[1:]]))
    with pytest.raises(CorruptDataError, match=r"two\.jsonl:2"):
        task.run(tmp_path / "one.jsonl")


def test_the_summary_has_every_class(task: Task, tmp_path: Path) -> None:
    found = task.run(tmp_path / "r.jsonl")
    assert [c.label for c in found.classes] == sorted(set(task.labels.tolist()))
    for field in ("count", "natural", "adversarial", "certified", "unknown"):
        assert sum(getattr(c, field) for c in found.classes) == getattr(found, field)
    raw = json.loads((tmp_path / "r.summary.json").read_text())
    assert {"label", "count", "certified"} <= set(raw["classes"][0])
