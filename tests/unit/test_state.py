"""Checkpoints: exact, atomic, and refused when anything about them is not as it was written."""

from __future__ import annotations

import errno
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tightrope.core.digest import tensor_digest
from tightrope.core.protocols import SmootherState
from tightrope.errors import CheckpointError, MissingDataError
from tightrope.training.state import Meter, State, load_tensors, save_tensors

RUN = "fingerprint of a run"
OPTIMIZERS: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.1),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
}
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def new_state(optimizer: str = "adam", width: int = 3, seed: int = 0) -> State:
    """A state as at the start of a run: two weights, a statistic and a counter."""
    generator = torch.Generator().manual_seed(seed)
    params = {
        "a.weight": torch.randn((width, 2), generator=generator),
        "a.bias": torch.randn(width, generator=generator, dtype=torch.float64),
        "norm.mean": torch.randn(2, generator=generator),
        "norm.count": torch.tensor(seed),
    }
    trainable = ("a.weight", "a.bias")
    smoother = SmootherState(trainable, {"memory": torch.randn(2, generator=generator)})
    return State(params, OPTIMIZERS[optimizer]([params[name] for name in trainable]), smoother, Meter())


def advance(state: State, steps: int, seed: int) -> State:
    """Steps with random gradients, which change everything that can change."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for name in state.smoother.trainable:
            weight = state.params[name]
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.params["norm.mean"].add_(0.5)
        state.params["norm.count"].add_(1)
        memory = {name: value + 1 for name, value in state.smoother.tensors.items()}
        state.smoother = SmootherState(state.smoother.trainable, memory)
        state.meter.add({"loss": torch.randn((), generator=generator), "l1": torch.tensor(0.1, dtype=torch.float64)})
        state.step += 1
        state.seconds += 0.125
    return state


def content(state: State, folder: Path) -> bytes:
    """Everything that the state holds."""
    path = folder / "snapshot"
    state.save(path, RUN)
    return path.read_bytes()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    advance(new_state(), 3, seed=1).save(path, RUN)
    return path


# ------------------------------------------------------------------------------------------------- round trip


@each_optimizer
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_restored_state_is_the_saved_one_bit_for_bit(optimizer: str, steps: int, tmp_path: Path) -> None:
    original = advance(new_state(optimizer), steps, seed=1)
    path = tmp_path / "checkpoint.safetensors"
    original.save(path, RUN)
    restored = advance(new_state(optimizer, seed=5), 2, seed=9)  # overwritten in every part
    restored.restore(path, RUN)
    assert content(restored, tmp_path) == content(original, tmp_path)
    assert (restored.step, restored.seconds) == (steps, 0.125 * steps)
    assert restored.meter.means() == original.meter.means()
    for name, value in original.params.items():
        assert restored.params[name].dtype == value.dtype
        assert torch.equal(restored.params[name], value)


@each_optimizer
def test_a_restored_state_goes_on_like_the_saved_one(optimizer: str, tmp_path: Path) -> None:
    original, restored = advance(new_state(optimizer), 3, seed=1), new_state(optimizer, seed=5)
    original.save(tmp_path / "checkpoint", RUN)
    restored.restore(tmp_path / "checkpoint", RUN)
    assert content(advance(restored, 4, seed=2), tmp_path) == content(advance(original, 4, seed=2), tmp_path)


def test_restoring_keeps_the_tensors_that_the_optimiser_holds(saved: Path) -> None:
    state = new_state()
    held = state.optimizer.param_groups[0]["params"][0]
    state.restore(saved, RUN)
    assert held is state.params["a.weight"]


def test_saving_changes_nothing(tmp_path: Path) -> None:
    state = advance(new_state(), 2, seed=1)
    assert content(state, tmp_path) == content(state, tmp_path)


# ----------------------------------------------------------------------------------------------- damaged files


def assert_refused(path: Path, folder: Path, fingerprint: str = RUN, **kind: int) -> None:
    """CheckpointError, and a state that is what it was."""
    state = advance(new_state(seed=5, **kind), 2, seed=9)
    before = content(state, folder)
    with pytest.raises(CheckpointError):
        state.restore(path, fingerprint)
    assert content(state, folder) == before


def test_truncations_are_refused(saved: Path, tmp_path: Path) -> None:
    data, cut = saved.read_bytes(), tmp_path / "cut"
    for length in range(0, len(data), 5):
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            load_tensors(cut)
    for length in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:length])
        assert_refused(cut, tmp_path)


def test_appended_bytes_are_refused(saved: Path, tmp_path: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    assert_refused(saved, tmp_path)


def test_flipped_bits_are_refused(saved: Path, tmp_path: Path) -> None:
    """A bit of every byte of the facts (the step among them), and of some bytes of names and tensors."""
    data, path, draw, accepted = saved.read_bytes(), tmp_path / "flipped", random.Random(0), []
    facts = range(data.index(b"__metadata__"), data.index(b"}", data.index(b"__metadata__")) + 2)
    for position in [*facts, *draw.sample(range(len(data)), 300)]:
        flipped = data[position] ^ 1 << draw.randrange(8)
        path.write_bytes(data[:position] + bytes([flipped]) + data[position + 1 :])
        try:
            new_state().restore(path, RUN)
        except CheckpointError:
            continue
        except Exception as error:
            accepted.append(f"{type(error).__name__} at {position}")
        else:
            accepted.append(f"restored with a flip at {position}: {data[position - 8 : position + 8]!r}")
    assert not accepted


def test_flipped_bits_leave_the_state_unchanged(saved: Path, tmp_path: Path) -> None:
    data, draw = saved.read_bytes(), random.Random(0)
    start = 8 + int.from_bytes(data[:8], "little")
    for position in draw.sample(range(start, len(data)), 20):
        flipped = data[position] ^ 1 << draw.randrange(8)
        (tmp_path / "flipped").write_bytes(data[:position] + bytes([flipped]) + data[position + 1 :])
        assert_refused(tmp_path / "flipped", tmp_path)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["pickle", "torch", "torch legacy"])
def test_a_pickle_is_refused_and_never_executed(how: str, tmp_path: Path) -> None:
    path, target = tmp_path / "checkpoint.safetensors", tmp_path / "executed"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Payload(target)))
    else:
        torch.save({"params": Payload(target)}, path, _use_new_zipfile_serialization=how == "torch")
    assert_refused(path, tmp_path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target)))
    assert target.exists()  # the payload is one


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert_refused(tmp_path / "empty", tmp_path)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="nowhere"):
        new_state().restore(tmp_path / "nowhere", RUN)


@pytest.mark.parametrize(
    "metadata", [None, {}, {"format": "pt"}, {"tightrope": "{"}, {"tightrope": "{}"}, {"tightrope": "[]"}]
)
def test_a_safetensors_file_of_someone_else_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "other", metadata)
    assert_refused(tmp_path / "other", tmp_path)


def test_a_checkpoint_of_another_configuration_is_refused(saved: Path, tmp_path: Path) -> None:
    assert_refused(saved, tmp_path, fingerprint="another run")


def test_a_checkpoint_of_another_network_is_refused(saved: Path, tmp_path: Path) -> None:
    """Even if it claims to be of the same run: other shapes, missing weights, extra ones."""
    assert_refused(saved, tmp_path, width=4)
    tensors, facts = load_tensors(saved)
    facts.pop("sha256")
    fewer = {name: value for name, value in tensors.items() if name != "params/a.bias"}
    for other in (fewer, tensors | {"params/b": torch.zeros(1)}):
        save_tensors(saved, other, facts)
        assert_refused(saved, tmp_path)


@pytest.mark.parametrize("part", ["meter", "optimizer", "step"])
def test_a_checkpoint_that_lacks_a_part_is_refused(part: str, saved: Path, tmp_path: Path) -> None:
    tensors, facts = load_tensors(saved)
    facts = {name: value for name, value in facts.items() if name not in ("sha256", part)}
    save_tensors(saved, {name: value for name, value in tensors.items() if not name.startswith(part)}, facts)
    assert_refused(saved, tmp_path)


# -------------------------------------------------------------------------------------------------- atomicity


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    function: str, error: BaseException, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, state = saved.read_bytes(), advance(new_state(), 5, seed=1)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, function, fail)
    for path in (saved, tmp_path / "new"):
        with pytest.raises(type(error)):
            state.save(path, RUN)
    assert saved.read_bytes() == before
    assert list(tmp_path.iterdir()) == [saved]


def test_what_a_killed_write_left_behind_is_no_obstacle(saved: Path, tmp_path: Path) -> None:
    for name in (f".{saved.name}.tmp", f"{saved.name}.tmp"):
        (tmp_path / name).write_bytes(b"half")
    state = advance(new_state(), 5, seed=1)
    state.save(saved, RUN)
    restored = new_state()
    restored.restore(saved, RUN)
    assert restored.step == 5


# ------------------------------------------------------------------------------------------- tensors and means


def test_the_digest_depends_on_names_types_shapes_and_values_alone() -> None:
    base = {"a": torch.arange(6.0), "b": torch.tensor(1)}
    assert tensor_digest({"b": base["b"].clone(), "a": base["a"].clone()}) == tensor_digest(base)
    assert tensor_digest({"a": torch.arange(12.0)[::2] / 2, "b": base["b"]}) == tensor_digest(
        base
    )  # another layout in memory
    others = [
        {"a": base["a"].reshape(2, 3), "b": base["b"]},
        {"a": base["a"].double(), "b": base["b"]},
        {"a": base["a"].nextafter(torch.tensor(1.0)), "b": base["b"]},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"]},
    ]
    assert len({tensor_digest(tensors) for tensors in [base, *others]}) == 1 + len(others)


def test_saved_tensors_come_back_with_their_facts(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([1.0, float("nan"), -0.0]), "n": torch.tensor(3), "e": torch.zeros(0, 2)}
    sha256 = save_tensors(tmp_path / "t", tensors, {"step": 3, "seconds": 0.1})
    found, facts = load_tensors(tmp_path / "t")
    assert tensor_digest(found) == tensor_digest(tensors) == sha256 == facts["sha256"]
    assert (facts["step"], facts["seconds"]) == (3, 0.1)


def test_a_meter_holds_means_and_keeps_what_it_was_given() -> None:
    meter, value = Meter(), torch.tensor(1.0)
    meter.add({"loss": value})
    value.fill_(100)
    meter.add({"loss": torch.tensor(2.0)})
    assert meter.means() == {"loss": 1.5}
    assert Meter().means() == {}
