"""Records of images: contradictions cannot be built, damage is named, a cut-off last line is forgiven."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tightrope.errors import CorruptDataError, InputError, InvariantError, MissingDataError
from tightrope.records import image
from tightrope.records.image import ImageRecord, Summary, append, create, read, read_header, summarise

VERIFIED: dict[str, Any] = {
    "index": 0,
    "label": 3,
    "natural": True,
    "adversarial": True,
    "certified": True,
    "verdict": "verified",
    "method": "ibp",
    "eps": "8/255",
    "lower": 0.25,
    "upper": 1.5,
    "seconds": 0.125,
}
UNKNOWN = VERIFIED | {"certified": False, "verdict": "unknown", "lower": -0.5, "method": "deeppoly", "reason": "why"}
FALSIFIED = UNKNOWN | {"adversarial": False, "verdict": "falsified", "lower": None, "upper": -0.5, "method": "pgd"}
MISTAKEN = FALSIFIED | {"natural": False, "method": "natural"}
KINDS = {"verified": VERIFIED, "unknown": UNKNOWN, "falsified": FALSIFIED, "mistaken": MISTAKEN}


def records(*kinds: str) -> list[ImageRecord]:
    return [ImageRecord(**(KINDS[kind] | {"index": index})) for index, kind in enumerate(kinds)]


# ----------------------------------------------------------------------------------------------- one record


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_result_can_be_written_and_read_back(kind: str, tmp_path: Path) -> None:
    append(tmp_path / "r.jsonl", records(kind))
    assert read(tmp_path / "r.jsonl") == records(kind)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("verified", {"natural": False}),
        ("verified", {"adversarial": False}),
        ("verified", {"certified": False}),
        ("verified", {"verdict": "unknown"}),
        ("verified", {"verdict": "falsified"}),
        ("verified", {"lower": 0.0}),
        ("verified", {"lower": None}),
        ("verified", {"lower": 2.0}),  # above the upper bound
        ("unknown", {"certified": True}),
        ("unknown", {"adversarial": False}),
        ("unknown", {"verdict": "verified"}),
        ("unknown", {"lower": 0.5}),
        ("falsified", {"adversarial": True}),
        ("falsified", {"upper": 0.5}),
        ("falsified", {"upper": None}),
        ("falsified", {"certified": True}),
        ("falsified", {"natural": False}),
        ("falsified", {"method": "natural"}),
        ("mistaken", {"natural": True}),
        ("mistaken", {"adversarial": True}),
        ("mistaken", {"certified": True}),
    ],
)
def test_contradictions_cannot_be_built(kind: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ImageRecord(**(KINDS[kind] | change))


@pytest.mark.parametrize(
    "change",
    [
        {"index": -1},
        {"index": "0"},
        {"natural": 1},
        {"verdict": "maybe"},
        {"seconds": -1.0},
        {"lower": float("nan")},
        {"upper": float("inf")},
        {"eps": "8/0"},
        {"eps": "-0.1"},
        {"eps": "nan"},
        {"eps": 0.1},
        {"extra": 1},
    ],
)
def test_wrong_types_and_values_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ImageRecord(**(VERIFIED | change))


def test_a_record_is_frozen() -> None:
    with pytest.raises(ValidationError):
        records("unknown")[0].certified = True  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------- files


def test_a_header_comes_first_and_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.jsonl"
    create(path, {"eps": "8/255", "stages": ["pgd", "ibp"]})
    append(path, records("verified", "unknown"))
    assert read_header(path) == {"eps": "8/255", "stages": ["pgd", "ibp"]}
    assert read(path) == records("verified", "unknown")


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_last_line_cut_off_by_a_kill_is_dropped_and_removed_before_appending(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "r.jsonl"
    create(path, {}, records("verified", "unknown", "falsified"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert read(path) == records("verified", "unknown")
    append(path, records("verified", "unknown", "falsified")[2:])
    assert path.read_bytes() == whole


def test_a_header_cut_off_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"format": "tight')
    assert read(path) == []
    append(path, records("verified"))
    assert read(path) == records("verified")


@pytest.mark.parametrize(
    "damage", [b"{", b"", b"null", b"[1]", b"\x00\xff", b'{"index": 1}', b'{"format": "tightrope-images"}']
)
def test_any_other_bad_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "r.jsonl"
    create(path, {}, records("verified", "unknown", "falsified"))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]))
    with pytest.raises(CorruptDataError, match=r"r\.jsonl:3 "):
        read(path)


def test_a_tampered_verdict_is_not_a_record(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    create(path, {}, records("unknown"))
    path.write_text(path.read_text().replace('"certified":false', '"certified":true'))
    with pytest.raises(CorruptDataError, match="certified"):
        read(path)


def test_other_schemas_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for reader in (read, read_header):
        with pytest.raises(MissingDataError):
            reader(path)
    create(path, {})
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
    for reader in (read, read_header):
        with pytest.raises(CorruptDataError, match="schema 1"):
            reader(path)


def test_a_header_that_is_not_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for value in (object(), float("nan")):
        with pytest.raises(InputError):
            create(tmp_path / "r.jsonl", {"value": value})
    assert not list(tmp_path.iterdir())


def test_an_image_twice_is_one_image_if_both_agree_and_an_error_if_not(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    create(path, {}, [*records("verified"), *records("verified")])
    assert read(path) == records("verified")
    for other in ("unknown", "falsified", "mistaken"):
        create(path, {}, [*records("verified"), *records(other)])
        with pytest.raises(InvariantError, match="image 0 twice"):
            read(path)


# ----------------------------------------------------------------------------------------------- summary


def test_a_summary_counts_three_different_things() -> None:
    found = summarise(records("verified", "verified", "unknown", "falsified", "mistaken"))
    assert (found.count, found.natural, found.adversarial, found.certified, found.unknown) == (5, 4, 3, 2, 1)
    assert (found.natural_accuracy, found.adversarial_accuracy, found.certified_accuracy) == (0.8, 0.6, 0.4)
    assert found.verdicts == {
        "falsified": {"natural": 1, "pgd": 1},
        "unknown": {"deeppoly": 1},
        "verified": {"ibp": 2},
    }
    assert found.seconds == 0.625
    assert found.certified_interval[0] < 0.4 < found.certified_interval[1]


def test_a_summary_is_written_and_read_back(tmp_path: Path) -> None:
    found = summarise(records("verified", "unknown"))
    image.write_summary(tmp_path / "s.json", found)
    assert image.read_summary(tmp_path / "s.json") == found
    (tmp_path / "s.json").write_text("{}")
    with pytest.raises(CorruptDataError):
        image.read_summary(tmp_path / "s.json")
    with pytest.raises(MissingDataError):
        image.read_summary(tmp_path / "none.json")


def test_more_certified_than_adversarial_is_an_invariant_violated() -> None:
    forged = ImageRecord.model_construct(**(VERIFIED | {"adversarial": False, "reason": ""}))
    with pytest.raises(InvariantError, match="certified <= adversarial <= natural"):
        summarise([forged])
    good = summarise(records("verified", "unknown")).model_dump()
    for change in ({"certified": 2}, {"natural": 1}, {"unknown": 0}, {"count": 3}):
        with pytest.raises(ValidationError):
            Summary(**(good | change))


def test_a_summary_needs_images_of_one_radius_each_once() -> None:
    with pytest.raises(InputError, match="no records"):
        summarise([])
    with pytest.raises(InputError, match="one radius"):
        summarise([*records("verified"), ImageRecord(**(UNKNOWN | {"index": 1, "eps": "0.1"}))])
    with pytest.raises(InvariantError, match="twice"):
        summarise([*records("verified"), *records("verified")])


def test_records_need_no_torch() -> None:
    code = "import sys, tightrope.records.image; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
