"""Certification: right, resumable to the byte, and silent about nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import tightrope as tr
from certification import BLOCK, COUNT, Forger, Task, new_task, stop_after, timeless
from helpers import F64, FULL_PRECISION, careless_process, case, precision
from reference.exact import exact_min
from tightrope.attacks.pgd import Pgd
from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.protocols import Verifier
from tightrope.core.spec import Spec
from tightrope.errors import CorruptDataError, InputError, InvariantError, NumericalError, TightropeError
from tightrope.evaluation.certify import Progress
from tightrope.records.image import read, read_header, read_summary, summarise
from tightrope.verifiers.attack import AttackVerifier
from tightrope.verifiers.cascade import Cascade
from tightrope.verifiers.one_shot import OneShot


@pytest.fixture
def task() -> Task:
    """Images labelled as the network says, but every fourth."""
    return new_task()


# ---------------------------------------------------------------------------------------------- verdicts


def test_records_never_contradict_exact_enumeration(task: Task, tmp_path: Path) -> None:
    kinds = set()
    for eps in ("1/50", "1/8", "1/2"):
        path = tmp_path / f"{eps[2:]}.jsonl"
        task.run(path, eps=eps)
        box, spec = tr.linf_box(task.x, eps), tr.margin_spec(task.labels, 3, dtype=F64)
        for record in read(path):
            i = record.index
            bounds = box.lower[i].numpy(), box.upper[i].numpy()
            exact = min(exact_min(case("mlp").oracle, *bounds, row) for row in spec.matrix[i].numpy())
            kinds.add((record.verdict, record.natural))
            assert not record.certified or exact > -1e-9
            assert record.adversarial or exact <= 1e-9
            assert record.lower is None or record.lower <= exact + 1e-9
            assert record.upper is not None
            assert record.upper >= exact - 1e-9
    assert kinds >= {("verified", True), ("falsified", False)}


def test_the_summary_is_that_of_the_records_and_is_written_beside_them(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "run" / "certify-digits-0.125.jsonl"
    found = task.run(path)
    assert found == summarise(read(path)) == read_summary(tmp_path / "run" / "certify-digits-0.125.summary.json")
    assert found.count == COUNT
    assert found.eps == "1/8"
    assert found.natural == COUNT - 2
    assert found.verdicts["falsified"]["natural"] == 2
    assert [record.index for record in read(path)] == list(range(COUNT))
    assert [record.label for record in read(path)] == task.labels.tolist()


def test_the_verifier_sees_the_natural_images_only(task: Task, tmp_path: Path) -> None:
    seen: list[int] = []
    task.run(tmp_path / "r.jsonl", verifier=Forger(-1.0, seen))
    assert seen == [3, 2, 2, 2]
    task.run(tmp_path / "all-wrong.jsonl", verifier=Forger(-1.0, seen), labels=(task.labels + 1) % 3)
    assert len(seen) == 4  # blocks without natural images ask for nothing


@pytest.mark.parametrize("batch_size", [1, COUNT, 1000])
def test_any_batch_size_and_one_class_only(task: Task, tmp_path: Path, batch_size: int) -> None:
    found = task.run(tmp_path / "r.jsonl", batch_size=batch_size, labels=torch.zeros(COUNT, dtype=torch.int64))
    assert found.count == COUNT


def test_at_eps_zero_the_three_accuracies_are_one(task: Task, tmp_path: Path) -> None:
    found = task.run(tmp_path / "r.jsonl", eps=0.0)
    assert found.natural == found.adversarial == found.certified == COUNT - 2


def test_one_image(task: Task, tmp_path: Path) -> None:
    assert task.run(tmp_path / "r.jsonl", samples_x=task.x[:1], labels=task.labels[:1]).count == 1


@pytest.mark.parametrize(
    ("eps", "text"), [("1/8", "1/8"), (" 0.125 ", "0.125"), (0.1, "0.1"), (Fraction(1, 8), "1/8"), (0, "0")]
)
def test_eps_is_recorded_as_exact_text(task: Task, tmp_path: Path, eps: Any, text: str) -> None:
    assert task.run(tmp_path / "r.jsonl", eps=eps).eps == text
    assert {record.eps for record in read(tmp_path / "r.jsonl")} == {text}


def test_the_box_contains_the_exact_one_of_the_text(task: Task, tmp_path: Path) -> None:
    """0.3 as a float is less than 3/10: the verifier must still be given all of 3/10."""
    boxes: list[Box] = []

    @dataclass(frozen=True)
    class Looking(Forger):
        def verify(
            self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
        ) -> list[Outcome]:
            boxes.append(box)
            return Forger.verify(self, network, params, box, spec, generator=generator)

    x = torch.full((1, 3), 0.5, dtype=F64)
    labels = task.network(task.params, x).argmax(1)
    task.run(tmp_path / "r.jsonl", eps=0.3, samples_x=x, labels=labels, verifier=Looking(-1.0, []))
    assert Fraction(float(boxes[0].upper[0, 0])) >= Fraction(1, 2) + Fraction(3, 10)
    assert Fraction(float(boxes[0].lower[0, 0])) <= Fraction(1, 2) - Fraction(3, 10)


def test_float32_images_take_float32_weights(task: Task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rounded"):
        task.run(tmp_path / "r.jsonl", samples_x=task.x.float())
    narrow = {name: value.float() for name, value in task.params.items()}
    found = task.run(tmp_path / "r.jsonl", samples_x=task.x.float(), params=narrow)
    assert read_header(tmp_path / "r.jsonl")["run"]["dtype"] == "float32"
    wide = task.run(tmp_path / "wide.jsonl", samples_x=task.x.float().double(), params=narrow)
    assert (found.natural, found.adversarial) == (wide.natural, wide.adversarial)


@dataclass(frozen=True)
class Watching:
    """A verifier that proves nothing, and notes the precision that it is called in."""

    seen: set[tuple[Any, ...]]

    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        self.seen.add(precision())
        return [Outcome(Verdict.UNKNOWN, -math.inf, math.inf, "watching", reason="watching")] * box.lower.shape[0]


def test_certificates_are_made_in_full_precision_whatever_the_process_is_set_to(task: Task, tmp_path: Path) -> None:
    """So that also a verifier of somebody else's never uses TF32 or bfloat16 without knowing."""
    seen: set[tuple[Any, ...]] = set()
    with careless_process():
        task.run(tmp_path / "r.jsonl", verifier=Watching(seen))
    assert seen == {FULL_PRECISION}


def test_progress_counts_what_is_done(task: Task, tmp_path: Path) -> None:
    calls: list[Progress] = []
    found = task.run(tmp_path / "r.jsonl", on_batch=calls.append)
    assert [(call.done, call.total) for call in calls] == [(3, 11), (6, 11), (9, 11), (11, 11)]
    last = calls[-1]
    assert (last.natural, last.adversarial, last.certified, last.unknown) == (
        found.natural,
        found.adversarial,
        found.certified,
        found.unknown,
    )


# ------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_interrupted_and_resumed_equals_uninterrupted(task: Task, tmp_path: Path, blocks: int) -> None:
    whole = task.run(tmp_path / "whole.jsonl")
    path = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        task.run(path, on_batch=stop_after(blocks))
    assert len(read(path)) == min(blocks * BLOCK, COUNT)
    assert not path.with_suffix(".summary.json").exists()
    before, kept = path.read_bytes(), timeless(path)
    resumed = task.run(path)
    assert path.read_bytes().startswith(before)
    assert timeless(path) == timeless(tmp_path / "whole.jsonl")
    assert timeless(path)[: len(kept)] == kept
    assert resumed.model_copy(update={"seconds": 0.0}) == whole.model_copy(update={"seconds": 0.0})


@pytest.mark.parametrize("lines", [1, 2, 3, 4, 5, 10, 11])
@pytest.mark.parametrize("cut", [0, 1, 30])
def test_killed_while_writing(task: Task, tmp_path: Path, lines: int, cut: int) -> None:
    """The file ends in the middle of a block, or of a line: that block is done again."""
    path = tmp_path / "r.jsonl"
    task.run(path)
    expected, content = timeless(path), path.read_bytes().split(b"\n")
    partial = b"\n".join([*content[: lines + 1], content[lines + 1][:cut]])
    path.write_bytes(partial)
    task.run(path)
    assert timeless(path) == expected


def test_a_finished_certification_asks_nothing_again(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    found, content = task.run(path), path.read_bytes()
    path.with_suffix(".summary.json").unlink()
    seen: list[int] = []
    assert task.run(path, verifier=Forger(1e9, seen)) == found
    assert (seen, path.read_bytes()) == ([], content)
    assert read_summary(path.with_suffix(".summary.json")) == found


def test_an_empty_file_is_a_fresh_start(task: Task, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").touch()
    assert task.run(tmp_path / "r.jsonl").count == COUNT


def other_weights(task: Task) -> dict[str, Any]:
    return {"params": {name: value * 1.01 for name, value in task.params.items()}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: {"eps": "0.125"}, "run.eps: '1/8' there, '0.125' now"),
        (lambda t: {"seed": 6}, "run.seed: 5 there, 6 now"),
        (lambda t: {"batch_size": 4}, "run.batch_size"),
        (lambda t: {"samples_x": t.x[:9], "labels": t.labels[:9]}, "run.count: 11 there, 9 now"),
        (lambda t: {"samples_x": 1 - t.x}, "run.samples"),
        (lambda t: {"labels": (t.labels + 1) % 3}, "run.samples"),
        (other_weights, "run.weights"),
        (lambda t: {"header": {"dataset": "made up", "split": "train"}}, "split: 'test' there, 'train' now"),
        (lambda t: {"header": {"dataset": "made up"}}, "split: 'test' there, 'nothing' now"),
    ],
)
def test_records_of_other_settings_are_left_alone(
    task: Task, tmp_path: Path, change: Callable[[Task], dict[str, Any]], named: str
) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        task.run(path, on_batch=stop_after(2))
    content = path.read_bytes()
    with pytest.raises(InputError) as caught:
        task.run(path, **change(task))
    assert named in str(caught.value)
    assert "delete" in str(caught.value)
    assert path.read_bytes() == content


def test_a_damaged_or_foreign_file_is_left_alone(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    task.run(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for content in (b"".join([*lines, lines[-1].replace(b'"index":10', b'"index":11')]), b"notes\n"):
        path.write_bytes(content)
        with pytest.raises(CorruptDataError):
            task.run(path)
        assert path.read_bytes() == content


def test_a_file_in_another_order_is_brought_into_that_of_the_images(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    task.run(path)
    content = path.read_bytes()
    first, *lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join([first, *lines[5:], *lines[:5]]))
    task.run(path, verifier=Forger(1e9, []))
    assert path.read_bytes() == content


# --------------------------------------------------------------------------------------------- bad input


def outside(task: Task) -> dict[str, Any]:
    x = task.x.clone()
    x[-1, 0] = 1.5
    return {"samples_x": x}


def bad_label(task: Task) -> dict[str, Any]:
    labels = task.labels.clone()
    labels[-1] = 3
    return {"labels": labels}


def bad_weights(value: float) -> Callable[[Task], dict[str, Any]]:
    return lambda task: {"params": {**task.params, "0.bias": task.params["0.bias"] * value}}


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (lambda t: {"eps": -0.1}, InputError, "negative"),
        (lambda t: {"eps": math.nan}, InputError, "nan"),
        (lambda t: {"eps": math.inf}, InputError, "inf"),
        (lambda t: {"eps": "2/0"}, InputError, "2/0"),
        (lambda t: {"eps": "eight"}, InputError, "eight"),
        (lambda t: {"eps": None}, InputError, "None"),
        (lambda t: {"eps": 8}, InputError, "larger than the data range"),
        (outside, InputError, "1.5"),
        (lambda t: {"samples_x": t.x * math.nan}, InputError, "NaN"),
        (lambda t: {"samples_x": (t.x * 255).to(torch.uint8)}, InputError, "float"),
        (lambda t: {"samples_x": t.x[:, :2]}, InputError, "shape"),
        (lambda t: {"samples_x": t.x[:0], "labels": t.labels[:0]}, InputError, "no images"),
        (lambda t: {"labels": t.labels[:3]}, InputError, "11 integers"),
        (lambda t: {"labels": t.labels.double()}, InputError, "integers"),
        (bad_label, InputError, "Labels must be in 0 .. 2"),
        (lambda t: {"make_spec": lambda labels: tr.margin_spec(labels, 4, dtype=F64)}, InputError, "spec.matrix"),
        (lambda t: {"make_spec": lambda labels: tr.margin_spec(labels, 1)}, InputError, "2 classes"),
        (lambda t: {"batch_size": 0}, InputError, "batch_size"),
        (lambda t: {"header": {"value": object()}}, InputError, "JSON"),
        (bad_weights(math.nan), NumericalError, "0.bias"),
        (bad_weights(math.inf), NumericalError, "0.bias"),
    ],
)
def test_bad_input_is_named_before_any_file_is_touched(
    task: Task, tmp_path: Path, change: Callable[[Task], dict[str, Any]], error: type[TightropeError], named: str
) -> None:
    with pytest.raises(error) as caught:
        task.run(tmp_path / "run" / "r.jsonl", **change(task))
    assert named in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_records_must_be_called_jsonl(task: Task, tmp_path: Path) -> None:
    """Otherwise the summary of certify-0.1 would be called certify-0.summary.json."""
    with pytest.raises(InputError, match="jsonl"):
        task.run(tmp_path / "certify-0.1")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- forgeries


def test_a_proof_of_more_than_the_clean_image_allows_is_an_error_that_names_the_image(
    task: Task, tmp_path: Path
) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(InvariantError, match="Sample 0: forger claims"):
        task.run(path, verifier=Forger(1e6, []))
    assert read(path) == []
    wrong = (task.labels + (torch.arange(COUNT) < 4)) % 3  # 0 .. 3 are not natural: 4 comes first in its batch
    with pytest.raises(InvariantError, match="Sample 4: forger claims"):
        task.run(tmp_path / "s.jsonl", verifier=Cascade((Forger(1e6, []),)), labels=wrong)
    inside = Cascade((AttackVerifier(Pgd(steps=3)), Forger(1e6, [])))
    with pytest.raises(InvariantError, match="Sample 4: forger claims"):
        task.run(tmp_path / "t.jsonl", verifier=inside, labels=wrong, eps=0.0)


def test_a_verifier_that_loses_samples_is_refused(task: Task, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Losing(Forger):
        def verify(
            self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
        ) -> list[Outcome]:
            return Forger.verify(self, network, params, box, spec, generator=generator)[1:]

    with pytest.raises(InvariantError, match="outcomes"):
        task.run(tmp_path / "r.jsonl", verifier=Losing(-1.0, []))


def test_outputs_that_overflow_are_neither_natural_nor_anything_else(task: Task, tmp_path: Path) -> None:
    huge = {name: value * 1e200 for name, value in task.params.items()}
    found = task.run(tmp_path / "r.jsonl", params=huge)
    assert (found.natural, found.adversarial, found.certified, found.unknown) == (0, 0, 0, COUNT)
    assert all("output at the clean image" in record.reason for record in read(tmp_path / "r.jsonl"))


def test_a_verifier_that_fails_leaves_unknown_with_the_reason(task: Task, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Full:
        continuous = True

        def bounds(self, *args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("no memory left")

    verifier: Verifier = Cascade((OneShot(Full(), "full"),))
    found = task.run(tmp_path / "r.jsonl", verifier=verifier)
    assert (found.certified, found.unknown) == (0, COUNT - 2)
    assert found.adversarial == found.natural  # nothing was refuted either
    unknown = [record for record in read(tmp_path / "r.jsonl") if record.verdict == "unknown"]
    assert all("no memory left" in record.reason for record in unknown)
