"""Run records and epoch records: written whole, read back equal, and refused when damaged."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.errors import CorruptDataError, MissingDataError, TightropeError
from tightrope.records.files import read_json, write_atomic, write_json
from tightrope.records.folder import RunFolder
from tightrope.records.run import Environment, EpochRecord, RunRecord, read_epochs, write_epochs


def epoch(number: int = 1, **changes: Any) -> EpochRecord:
    facts = {"epoch": number, "step": 10 * number, "seconds": 0.125, "lr": 5e-4, "eps": 8 / 255, "std": 0.0}
    return EpochRecord(**facts | {"train": {"loss": 0.1 + number}, "validation": {"loss": 1e-300}} | changes)


def record(**changes: Any) -> RunRecord:
    environment = Environment(
        tightrope="0.1", torch="2.11", python="3.11", platform="Linux", processor="é", device="cpu", threads=2
    )
    facts: dict[str, Any] = {
        "name": "digits/mlp-ibp",
        "status": "finished",
        "config": {"eps": {"train": "8/255"}, "model": {"width": [3, 4]}},
        "environment": environment,
        "weights": 10,
        "samples": {"train": 9, "validation": 1},
        "steps": 20,
        "seconds": 1.5,
        "final": epoch(2),
    }
    return RunRecord(**facts | changes)


# ----------------------------------------------------------------------------------------------- run records


@pytest.mark.parametrize(
    "changes", [{}, {"final": None}, {"status": "failed", "message": 'NaN\n"at" é'}, {"resumed": 3}]
)
def test_a_record_is_read_back_equal(changes: dict[str, Any], tmp_path: Path) -> None:
    record(**changes).write(tmp_path / "record.json")
    assert RunRecord.read(tmp_path / "record.json") == record(**changes)


def test_a_missing_record_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="nowhere"):
        RunRecord.read(tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"\x00" * 20])
def test_what_is_no_record_is_corrupt(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(CorruptDataError, match=r"record\.json"):
        RunRecord.read(tmp_path / "record.json")


def test_every_truncation_of_a_record_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record().write(path)
    content = path.read_bytes().rstrip()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptDataError):
            RunRecord.read(path)


@pytest.mark.parametrize(
    "changes",
    [{"status": "done"}, {"seed": 1}, {"steps": "many"}, {"environment": {}}, {"final": {}}, {"schema_version": 99}],
)
def test_records_that_do_not_fit_the_schema_are_corrupt(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record().write(path)
    write_json(path, json.loads(path.read_text()) | changes)
    with pytest.raises(CorruptDataError, match=r"record\.json"):
        RunRecord.read(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_record_of_a_run_that_diverged_can_be_written_and_read(value: float, tmp_path: Path) -> None:
    diverged = record(status="failed", final=epoch(validation={"loss": value}))
    diverged.write(tmp_path / "record.json")
    assert RunRecord.read(tmp_path / "record.json").status == "failed"


# -------------------------------------------------------------------------------------------- epoch records


def test_epochs_are_read_back_equal(tmp_path: Path) -> None:
    epochs = [epoch(number) for number in (1, 2, 3)]
    write_epochs(tmp_path / "metrics.jsonl", epochs)
    assert read_epochs(tmp_path / "metrics.jsonl") == epochs
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1))
def test_numbers_survive_to_the_last_bit(tmp_path_factory: pytest.TempPathFactory, loss: float, eps: float) -> None:
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    write_epochs(path, [epoch(train={"loss": loss}, eps=eps)])
    (found,) = read_epochs(path)
    assert (found.train["loss"], found.eps) == (loss, eps)
    assert math.copysign(1, found.train["loss"]) == math.copysign(1, loss)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_epochs_that_diverged_can_be_written_and_read(value: float, tmp_path: Path) -> None:
    write_epochs(tmp_path / "metrics.jsonl", [epoch(validation={"loss": value})])
    (found,) = read_epochs(tmp_path / "metrics.jsonl")
    assert not math.isfinite(found.validation["loss"])


def test_no_file_and_an_empty_one_are_no_epochs(tmp_path: Path) -> None:
    assert read_epochs(tmp_path / "metrics.jsonl") == []
    write_epochs(tmp_path / "metrics.jsonl", [])
    assert read_epochs(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("damage", [b"{", b"[]\n", b"\xff\xfe\n", b"\n", b'{"epoch": 1}\n', b"\x00\n"])
def test_damaged_lines_are_corrupt(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_epochs(path, [epoch()])
    path.write_bytes(path.read_bytes() + damage)
    with pytest.raises(CorruptDataError, match=r"metrics\.jsonl"):
        read_epochs(path)


# ------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_record_and_no_temporary(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    record(steps=1).write(path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space"):
        record(steps=2).write(path)
    with pytest.raises(OSError, match="No space"):
        record().write(tmp_path / "new.json")
    assert RunRecord.read(path).steps == 1
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_text_is_utf8(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "file", "é")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == "é".encode()


@pytest.mark.skipif(sys.platform == "win32", reason="has no named pipes")
def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    """A pipe or a device stays one, and a symbolic link goes on pointing where it did."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, "a")
    assert os.read(reader, 9) == b"a"
    os.close(reader)
    assert pipe.is_fifo()
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    for text in ("first", "second"):
        write_atomic(link, text)
        assert link.is_symlink()
        assert target.read_text() == text


def test_what_is_wrong_with_a_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"a": NaN}')
    with pytest.raises(CorruptDataError, match=r"name: Field required, and \d+ more\.$"):
        RunRecord.read(tmp_path / "record.json")


def test_json_is_written_and_read(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"a": [1, 0.1, None], "é": "\u2028"})
    assert read_json(tmp_path / "file.json") == {"a": [1, 0.1, None], "é": "\u2028"}
    with pytest.raises(TightropeError):
        read_json(tmp_path / "nowhere.json")


def test_no_two_files_of_a_run_are_the_same() -> None:
    folder = RunFolder(Path("run"))
    files = [folder.config, folder.record, folder.metrics, folder.network, folder.weights, folder.checkpoint]
    files += [folder.certification("digits-test-0.1"), folder.certification("digits-test-0.2")]
    assert len(set(files)) == len(files)
    assert all(file.parent == folder.path for file in files)
