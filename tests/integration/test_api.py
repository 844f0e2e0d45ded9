"""The functions for whole tasks: what they do with a module, data and a property of one's own, and what they refuse."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope.data.digits import Digits
from tightrope.errors import (
    CheckpointError,
    ConfigError,
    CorruptDataError,
    InputError,
    MissingDataError,
    NumericalError,
    TightropeError,
    UnknownNameError,
    UnsupportedLayerError,
)
from tightrope.records.image import ImageRecord, read, read_header, read_summary

CLASSES = 3
CONFIG: dict[str, Any] = {
    "data": {"name": "digits", "validation": 0},
    "model": {"name": "mlp", "width": [6]},
    "method": {"name": "certified", "relaxation": "ibp"},
    "eps": {"train": "1/50"},
    "optimizer": {"lr": 0.02},
    "train": {"epochs": 15, "batch_size": 8},
}
FAST = {"name": "pgd", "steps": 3, "restarts": 1, "loss": "margin"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and runs set the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(**changes: Any) -> dict[str, Any]:
    """The settings with others, named ``section__key``."""
    values = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values.setdefault(section, {})[key] = value
    return values


def blobs(count: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around three corners of [0, 1]^4, with the corner's label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    corners = torch.eye(4)[:CLASSES] * 0.6 + 0.2
    return (corners[labels] + 0.1 * torch.randn((count, 4), generator=generator)).clamp(0, 1), labels


def small(width: int = 6, outputs: int = CLASSES, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, outputs))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tr.Run:
    """A finished run on the blobs; not to be changed."""
    return tr.fit(small(), config=settings(), dataset=blobs(), out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def own(run: tr.Run, tmp_path: Path) -> Path:
    """A copy of the run's folder, to be damaged."""
    folder = tmp_path / "own"
    folder.mkdir()
    for path in run.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def one_of_two(labels: Tensor) -> tr.Spec:
    """Class y or class y + 1 (modulo 3) wins: for the third class c, one of them is above it."""
    eye = torch.eye(CLASSES, dtype=torch.float64)
    second, third = (labels + 1) % CLASSES, (labels + 2) % CLASSES
    matrix = torch.stack([eye[labels] - eye[third], eye[second] - eye[third]], dim=1)
    return tr.Spec(matrix, torch.zeros(len(labels), 2, dtype=torch.float64), clause=(0, 0))


def one_of_two32(labels: Tensor) -> tr.Spec:
    spec = one_of_two(labels)
    return tr.Spec(spec.matrix.float(), spec.offset.float(), spec.clause)


def natural_accuracy(network: tr.Network, params: Any, data: tuple[Tensor, Tensor]) -> float:
    x, labels = data
    return float((network(params, x).argmax(1) == labels).float().mean())


# ------------------------------------------------------------------------------------------------- fit


def test_a_module_is_trained_on_given_data(run: tr.Run) -> None:
    assert run.record.status == "finished"
    assert run.record.samples == {"train": 30, "validation": 0}
    assert run.record.steps == 15 * 4
    assert run.epochs[-1].train["loss"] < run.epochs[0].train["loss"]
    assert natural_accuracy(run.network, run.params, blobs()) > 0.9


def test_the_module_handed_in_is_not_changed(tmp_path: Path) -> None:
    module = small()
    before = copy.deepcopy(module.state_dict())
    trained = tr.fit(module, config=settings(), dataset=blobs(), out=tmp_path / "run").params
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
        assert not torch.equal(value, trained[name])


def test_settings_may_come_first_or_as_config(tmp_path: Path) -> None:
    overrides = ["train.epochs=1", "data.train=64"]
    one = tr.fit(settings(), out=tmp_path / "a", overrides=overrides)
    other = tr.fit(config=settings(), out=tmp_path / "b", overrides=overrides)
    assert one.record.weights_sha256 == other.record.weights_sha256
    assert one.record.config["train"]["epochs"] == 1


def test_a_dataset_can_be_named(tmp_path: Path) -> None:
    mnist = settings(data__name="mnist", data__train=64, train__epochs=1)
    run = tr.fit(mnist, dataset="digits", out=tmp_path / "run")
    assert run.record.config["data"]["name"] == "digits"
    assert run.network.input_shape == (1, 8, 8)


def test_the_folder_is_named_after_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tr.fit("digits/mlp-ibp", overrides=["train.epochs=1", "data.train=64"])
    assert run.path == Path("runs/digits-mlp-ibp")
    assert tr.load("runs/digits-mlp-ibp").record == run.record


def test_training_in_double_precision_stays_there(tmp_path: Path) -> None:
    run = tr.fit(small().double(), config=settings(), dataset=blobs(), out=tmp_path / "run")
    assert {value.dtype for value in run.params.values()} == {torch.float64}


def test_eps_zero_trains(tmp_path: Path) -> None:
    """Without a radius the certified loss is the natural one."""
    run = tr.fit(small(), config=settings(eps__train=0), dataset=blobs(), out=tmp_path / "run")
    for epoch in run.epochs:
        assert epoch.eps == 0
        assert epoch.train["surrogate_loss"] == pytest.approx(epoch.train["natural_loss"], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 29, 1000])
def test_batches_of_any_size(batch_size: int, tmp_path: Path) -> None:
    """One sample a batch, one in the last batch, fewer samples than a batch; with batch statistics."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES))
    config = settings(train__batch_size=batch_size, train__epochs=1)
    run = tr.fit(module, config=config, dataset=blobs(), out=tmp_path / "run")
    assert run.record.steps == math.ceil(30 / batch_size)
    assert all(bool(torch.isfinite(value).all()) for value in run.params.values())


def test_labels_of_one_class_only(tmp_path: Path) -> None:
    x, labels = blobs()
    run = tr.fit(small(), config=settings(), dataset=(x, labels * 0 + 2), out=tmp_path / "run")
    assert natural_accuracy(run.network, run.params, (x, labels * 0 + 2)) == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_mean_the_same(dtype: torch.dtype, run: tr.Run, tmp_path: Path) -> None:
    x, labels = blobs()
    again = tr.fit(small(), config=settings(), dataset=(x, labels.to(dtype)), out=tmp_path / "run")
    assert again.record.weights_sha256 == run.record.weights_sha256
    found, expected = (
        certify(run, (x, y), 0.01, tmp_path / f"{i}.jsonl") for i, y in enumerate((labels.to(dtype), labels))
    )
    assert verdicts(found) == verdicts(expected)


DATA: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "label too large": lambda x, y: (x, y + 1),
    "negative label": lambda x, y: (x, y - 1),
    "floating labels": lambda x, y: (x, y.float()),
    "boolean labels": lambda x, y: (x, y > 1),
    "one-hot labels": lambda x, y: (x, torch.eye(CLASSES)[y]),
    "labels in a column": lambda x, y: (x, y[:, None]),
    "too few labels": lambda x, y: (x, y[1:]),
    "no samples": lambda x, y: (x[:0], y[:0]),
    "images above the range": lambda x, y: (x * 255, y),
    "images below the range": lambda x, y: (x - 0.5, y),
    "images with NaN": lambda x, y: (x.index_fill(0, torch.tensor(3), math.nan), y),
    "images with infinity": lambda x, y: (x.index_fill(0, torch.tensor(3), math.inf), y),
    "integer images": lambda x, y: ((x * 255).to(torch.uint8), y),
    "images of another shape": lambda x, y: (torch.cat([x, x], dim=1), y),
    "a single image": lambda x, y: (x[0], y[0]),
}
each_bad_data = pytest.mark.parametrize("label", DATA)


@each_bad_data
def test_bad_data_are_refused_before_training(label: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, UnsupportedLayerError)):
        tr.fit(small(), config=settings(), dataset=DATA[label](*blobs()), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@each_bad_data
def test_bad_data_are_refused_before_certifying(label: str, run: tr.Run, tmp_path: Path) -> None:
    for source in (run, small()):
        with pytest.raises((InputError, UnsupportedLayerError)):
            certify(source, DATA[label](*blobs()), 0.01, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_one_output_is_no_classification(tmp_path: Path) -> None:
    x, labels = blobs()
    with pytest.raises(InputError, match="2"):
        tr.fit(small(outputs=1), config=settings(), dataset=(x, labels * 0), out=tmp_path / "run")
    with pytest.raises(InputError):
        certify(small(outputs=1), (x, labels * 0), 0.01, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [30, 1, 0.99])
def test_an_empty_training_split_is_refused(size: float, tmp_path: Path) -> None:
    x, labels = blobs(30 if size != 1 else 1)
    with pytest.raises(InputError, match="sample"):
        tr.fit(small(), config=settings(data__validation=size), dataset=(x, labels), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    module = small()
    with torch.no_grad():
        module[0].weight[0, 0] = value
    with pytest.raises(NumericalError, match=r"0\.weight"):
        tr.fit(module, config=settings(), dataset=blobs(), out=tmp_path / "run")
    with pytest.raises(NumericalError, match=r"0\.weight"):
        certify(module, blobs(), 0.01, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_unsupported_layers_are_refused_before_any_work(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, CLASSES))
    with pytest.raises(UnsupportedLayerError, match=r"'1' \(GELU\)"):
        tr.fit(module, config=settings(), dataset=blobs(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="settings"):
        tr.fit()
    with pytest.raises(InputError, match="settings"):
        tr.fit(small(), dataset=blobs(), out=tmp_path / "run")
    with pytest.raises(UnknownNameError, match="digits/mlp-ibp"):
        tr.fit("digit/mlp-ibp")
    with pytest.raises(MissingDataError, match=r"my\.toml"):
        tr.fit(tmp_path / "my.toml")
    with pytest.raises(ConfigError, match="'digits'"):
        tr.fit(settings(), dataset="digit", out=tmp_path / "run")
    with pytest.raises(MissingDataError, match=r"--data-dir|TIGHTROPE_DATA") as caught:
        tr.fit("mnist-0.1/cnn3-ibp", data_dir=tmp_path, out=tmp_path / "run")
    assert str(tmp_path / "MNIST" / "raw") in str(caught.value)
    with pytest.raises(MissingDataError, match="MNIST"):
        tr.certify(small(), "mnist", 0.1, data_dir=tmp_path, out=tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- warm starts


def test_a_warm_start_begins_with_the_weights_of_the_run(run: tr.Run, tmp_path: Path) -> None:
    """With a learning rate too small to change a float, it also ends with them."""
    config = settings(optimizer__lr=1e-30, optimizer__name="sgd", train__epochs=1)
    for name, source in {"run": run, "path": run.path, "text": str(run.path)}.items():
        warm = tr.fit(small(seed=5), config=config, dataset=blobs(), init_from=source, out=tmp_path / name)
        assert warm.params.keys() == run.params.keys()
        assert all(torch.equal(warm.params[key], run.params[key]) for key in run.params)
    cold = tr.fit(small(seed=5), config=config, dataset=blobs(), out=tmp_path / "cold")
    assert not torch.equal(cold.params["0.weight"], run.params["0.weight"])


def test_a_warm_start_leaves_the_run_it_starts_from(run: tr.Run, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in run.params.items()}
    tr.fit(small(), config=settings(), dataset=blobs(), init_from=run, out=tmp_path / "warm")
    assert all(torch.equal(run.params[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    "other",
    [
        small(width=7),
        nn.Sequential(nn.Linear(4, CLASSES)),
        nn.Sequential(*small(), nn.ReLU(), nn.Linear(CLASSES, CLASSES)),
    ],
)
def test_a_warm_start_of_another_network_is_refused(other: nn.Module, run: tr.Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="another network"):
        tr.fit(other, config=settings(), dataset=blobs(), init_from=run, out=tmp_path / "warm")
    assert not (tmp_path / "warm").exists()


def test_a_warm_start_needs_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="nowhere"):
        tr.fit(settings(), init_from=tmp_path / "nowhere", out=tmp_path / "warm")
    assert not (tmp_path / "warm").exists()


# ------------------------------------------------------------------------------------------------- load


def test_a_run_is_loaded_as_it_was_returned(run: tr.Run) -> None:
    for source in (run.path, str(run.path)):
        again = tr.load(source)
        assert again.record == run.record
        assert again.network == run.network
        assert again.config == run.config
        assert again.epochs == run.epochs
        assert all(torch.equal(again.params[key], value) for key, value in run.params.items())


def test_a_run_becomes_a_module_again(run: tr.Run) -> None:
    """Of the graph, and of the class it came from."""
    x, _ = blobs()
    module, original = run.network.to_module(run.params), small(seed=9)
    original.load_state_dict(module.state_dict())
    assert module.state_dict().keys() == run.params.keys()
    torch.testing.assert_close(module(x), run.network(run.params, x))
    torch.testing.assert_close(original(x), run.network(run.params, x))


def test_folders_that_hold_no_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(MissingDataError, match="not a run folder"):
            tr.load(folder)


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_a_run_that_is_not_finished_says_how_to_go_on(status: str, own: Path) -> None:
    record = tr.load(own).record.model_copy(update={"status": status})
    record.write(own / "record.json")
    with pytest.raises(MissingDataError, match=status) as caught:
        tr.load(own)
    assert f"--resume {own}" in str(caught.value)


@pytest.mark.parametrize("name", ["record.json", "network.json", "weights.safetensors", "metrics.jsonl"])
@pytest.mark.parametrize("damage", ["empty", "cut", "binary", "gone"])
def test_damaged_files_of_a_run_are_refused(name: str, damage: str, own: Path) -> None:
    content = (own / name).read_bytes()
    if damage == "gone":
        (own / name).unlink()
    else:
        damaged = {"empty": b"", "cut": content[: len(content) // 2], "binary": b"\xff\xfe" * 20}
        (own / name).write_bytes(damaged[damage])
    if name == "metrics.jsonl" and damage in ("gone", "empty"):
        assert tr.load(own).epochs == []
        return
    with pytest.raises((CorruptDataError, MissingDataError), match=r"\.json|safetensors|run folder|graph"):
        _ = (tr.load(own).network, tr.load(own).params, tr.load(own).epochs)


@pytest.mark.parametrize(("seed", "width"), [(0, 7), (1, 6)], ids=["another network", "other weights of the network"])
def test_weights_of_another_run_are_refused(seed: int, width: int, own: Path, tmp_path: Path) -> None:
    """The record names the digest of the weights that were trained."""
    other = tr.fit(small(width, seed=seed), config=settings(), dataset=blobs(), out=tmp_path / "other")
    (own / "weights.safetensors").write_bytes((other.path / "weights.safetensors").read_bytes())
    with pytest.raises(CheckpointError):
        _ = tr.load(own).params


# ---------------------------------------------------------------------------------------------- certify


def certify(source: Any, data: tuple[Tensor, Tensor], eps: Any, out: Path, **options: Any) -> list[ImageRecord]:
    """The records."""
    tr.certify(source, data, eps, out=out, **{"attack": FAST, **options})
    return read(out)


def verdicts(records: list[ImageRecord]) -> list[tuple[int, str, float | None, float | None]]:
    return [(record.index, record.verdict, record.lower, record.upper) for record in records]


def test_a_module_is_certified(run: tr.Run, tmp_path: Path) -> None:
    """The same as the run it came from; natural accuracy by hand; certified points hold everywhere in the box."""
    (x, labels), eps = blobs(seed=3), 0.05
    module = small()
    module.load_state_dict(run.network.to_module(run.params).state_dict())
    records = certify(module, (x, labels), eps, tmp_path / "module.jsonl")
    assert verdicts(records) == verdicts(certify(run, (x, labels), eps, tmp_path / "run.jsonl"))
    summary = read_summary(tmp_path / "module.summary.json")
    assert summary.natural_accuracy == pytest.approx(natural_accuracy(run.network, run.params, (x, labels)))
    assert summary.certified > 0
    generator = torch.Generator().manual_seed(0)
    certified = torch.tensor([record.certified for record in records])
    for _ in range(200):
        point = (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
        assert bool((module(point).argmax(1) == labels)[certified].all())


def test_a_run_is_certified_at_its_own_radius_in_its_own_folder(tmp_path: Path) -> None:
    run = tr.fit(settings(eps__test="1/100", data__train=64, train__epochs=1), out=tmp_path / "run")
    summary = tr.certify(run, count=5, attack=FAST)
    (path,) = run.path.glob("certify-*.jsonl")
    assert {record.eps for record in read(path)} == {"1/100"} == {summary.eps}
    assert read_summary(path.with_suffix(".summary.json")) == summary
    assert read_header(path)["dataset"] == "digits"
    assert read_header(path)["split"] == "test"
    before = path.read_bytes()
    assert tr.certify(run.path, count=5, attack=FAST) == summary
    assert path.read_bytes() == before
    tr.certify(run, "digits", Fraction(1, 50), split="train", count=5, attack=FAST)
    assert len(list(run.path.glob("certify-*.jsonl"))) == 2
    tr.certify(run, count=5, attack=FAST, complete=True, timeout=5.0)
    (path,) = run.path.glob("certify-*-complete.jsonl")
    assert read_header(path)["complete"] == {"timeout": 5.0}


def test_the_first_images_are_those_of_the_test_split(tmp_path: Path) -> None:
    run = tr.fit(settings(data__train=64, train__epochs=1), out=tmp_path / "run")
    tr.certify(run, count=20, attack=FAST)
    (path,) = run.path.glob("certify-*.jsonl")
    assert [record.label for record in read(path)] == Digits().load(None, "test").labels[:20].tolist()


def test_what_the_relaxations_leave_undecided_is_attacked_again(run: tr.Run, tmp_path: Path) -> None:
    """By an attack that finds more than the first; it takes no proof away."""
    weak = {"name": "pgd", "steps": 0, "restarts": 1, "loss": "margin"}
    once = certify(run, blobs(seed=3), 0.1, tmp_path / "once.jsonl", attack=weak, last_attack=None)
    twice = certify(run, blobs(seed=3), 0.1, tmp_path / "twice.jsonl", attack=weak)
    assert "apgd" in {record.method for record in twice if record.verdict == "falsified"}
    for before, after in zip(once, twice, strict=True):
        assert before.verdict == after.verdict or (before.verdict, after.verdict) == ("unknown", "falsified")


@pytest.mark.parametrize("eps", [0.05, "0.05", "1/20", Fraction(1, 20)])
def test_radii_of_any_kind_mean_the_same(eps: Any, run: tr.Run, tmp_path: Path) -> None:
    found = certify(run, blobs(), eps, tmp_path / "a.jsonl")
    assert verdicts(found) == verdicts(certify(run, blobs(), "5/100", tmp_path / "b.jsonl"))


def test_at_eps_zero_whatever_is_natural_is_certified(run: tr.Run, tmp_path: Path) -> None:
    for eps in (0, 0.0, "0"):
        records = certify(run, blobs(), eps, tmp_path / f"{eps!r}.jsonl")
        assert all(record.natural == record.adversarial == record.certified for record in records)


def test_more_relaxations_decide_no_fewer_images(run: tr.Run, tmp_path: Path) -> None:
    few = certify(run, blobs(), 0.1, tmp_path / "few.jsonl", relaxations=["ibp"])
    many = certify(run, blobs(), 0.1, tmp_path / "many.jsonl", relaxations=["ibp", "deeppoly"])
    none = certify(run, blobs(), 0.1, tmp_path / "none.jsonl", relaxations=[])
    assert all(b.certified for a, b in zip(few, many, strict=True) if a.certified)
    assert not any(record.certified for record in none)


def test_float32_is_said_in_the_records(run: tr.Run, tmp_path: Path) -> None:
    certify(run, blobs(), 0.05, tmp_path / "single.jsonl", float32=True)
    assert read_header(tmp_path / "single.jsonl")["run"]["dtype"] == "float32"


def test_weights_are_never_rounded_to_be_certified(tmp_path: Path) -> None:
    """A certificate in float32 of a network in float64 would be one of another network."""
    module = small().double()
    with torch.no_grad():
        module[0].weight += 1e-12
    with pytest.raises(InputError, match="float32"):
        certify(module, blobs(), 0.05, tmp_path / "out.jsonl", float32=True)
    assert list(tmp_path.iterdir()) == []


def test_labels_are_never_taken_as_a_mask(tmp_path: Path) -> None:
    """As many images as classes and uint8 labels without a 0: indexing with them would select every class in turn."""
    module = nn.Linear(3, 3)
    with torch.no_grad():
        module.weight.copy_(torch.eye(3))
        module.bias.zero_()
    labels = torch.tensor([1, 2, 1], dtype=torch.uint8)
    records = certify(module, (torch.eye(3)[labels.long()], labels), 0.1, tmp_path / "out.jsonl")
    assert all(record.certified for record in records)


@pytest.mark.parametrize("eps", ["-0.1", -0.1, "nan", math.nan, "2/0", "abc", 1.5, "2", math.inf])
def test_bad_radii_are_refused_before_certifying(eps: Any, run: tr.Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="eps"):
        certify(run, blobs(), eps, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"relaxations": ["ipb"]}, "'ibp'"),
        ({"attack": "pdg"}, "'pgd'"),
        ({"attack": {"name": "pgd", "stesp": 3}}, "'steps'"),
        ({"attack": {"name": "pgd", "steps": -1}}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"complete": True, "timeout": -1.0}, "timeout"),
        ({"count": 0}, "0"),
        ({"count": 31}, "30"),
        ({"device": "abacus"}, "device"),
        ({"device": "cuda"}, "device"),
    ],
)
def test_bad_options_are_refused_before_certifying(
    options: dict[str, Any], word: str, run: tr.Run, tmp_path: Path
) -> None:
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(TightropeError, match=word):
        certify(run, blobs(), 0.05, tmp_path / "out.jsonl", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_certifying_a_module_needs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="out="):
        tr.certify(small(), blobs(), 0.1)
    with pytest.raises(InputError, match="dataset and eps"):
        tr.certify(small(), eps=0.1, out=tmp_path / "out.jsonl")
    with pytest.raises(InputError, match="dataset and eps"):
        tr.certify(small(), blobs(), out=tmp_path / "out.jsonl")
    with pytest.raises(InputError, match=r"\.jsonl"):
        tr.certify(small(), blobs(), 0.1, out=tmp_path / "out.json")
    with pytest.raises(UnknownNameError, match="'digits'"):
        tr.certify(small(), "digit", 0.1, out=tmp_path / "out.jsonl")
    with pytest.raises(InputError, match="'test'"):
        tr.certify(small(), "digits", 0.1, split="tset", out=tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_shape_than_the_run(run: tr.Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(4,\).*\(1, 8, 8\)"):
        tr.certify(run, "digits", 0.1, out=tmp_path / "out.jsonl")


def test_other_settings_into_the_same_file_are_refused(run: tr.Run, tmp_path: Path) -> None:
    certify(run, blobs(), 0.05, tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    for changes in ({"eps": 0.06}, {"relaxations": ["ibp"]}, {"seed": 1}, {"attack": "pgd"}, {"float32": True}):
        with pytest.raises(InputError, match="other settings"):
            certify(run, blobs(), **{"eps": 0.05, "out": tmp_path / "out.jsonl", **changes})
    assert (tmp_path / "out.jsonl").read_bytes() == before


# ------------------------------------------------------------------------------ a property of one's own


def test_a_property_of_ones_own_is_trained_and_certified(tmp_path: Path) -> None:
    """One of two classes wins: easier than one, for the same network and images."""
    data = blobs()
    run = tr.fit(small(), config=settings(), dataset=data, spec=one_of_two32, out=tmp_path / "run")
    assert run.epochs[-1].train["loss"] < run.epochs[0].train["loss"]
    records = certify(run, data, 0.05, tmp_path / "own.jsonl", spec=one_of_two)
    logits = run.network({name: value.double() for name, value in run.params.items()}, data[0].double())
    third = (data[1] + 2) % CLASSES
    assert [record.natural for record in records] == (logits.argmax(1) != third).tolist()
    assert sum(record.certified for record in records) > 0
    strict = certify(run, data, 0.05, tmp_path / "strict.jsonl")
    assert all(easy.certified for easy, hard in zip(records, strict, strict=True) if hard.certified)
    assert sum(r.natural for r in records) > sum(r.natural for r in strict)


def test_certified_properties_hold_at_attacked_points(tmp_path: Path, run: tr.Run) -> None:
    (x, labels), eps = blobs(), 0.08
    records = certify(run, (x, labels), eps, tmp_path / "out.jsonl", spec=one_of_two)
    certified = torch.tensor([record.certified for record in records])
    assert certified.any()
    params = {name: value.double() for name, value in run.params.items()}
    box, spec = tr.linf_box(x.double(), eps), one_of_two(labels)
    attacked = tr.attack(run.network, params, box, spec, method={"name": "pgd", "steps": 30, "restarts": 3})
    assert bool((run.network(params, attacked).argmax(1) != (labels + 2) % CLASSES)[certified].all())


@pytest.mark.parametrize(
    "spec",
    [
        lambda labels: tr.margin_spec(labels, CLASSES + 1),
        lambda labels: tr.margin_spec(labels[1:], CLASSES),
        lambda labels: tr.Spec(torch.zeros(len(labels), 0, CLASSES), torch.zeros(len(labels), 0), ()),
        lambda labels: one_of_two32(labels)._replace(clause=(0, 2)),
    ],
    ids=["outputs", "batch", "no rows", "clauses"],
)
def test_properties_that_do_not_fit_are_refused(spec: Callable[[Tensor], tr.Spec], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"spec\."):
        certify(small(), blobs(), 0.05, tmp_path / "out.jsonl", spec=spec)
    with pytest.raises(InputError, match=r"spec\."):
        tr.fit(small(), config=settings(), dataset=blobs(), spec=spec, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------- attack


def test_an_attack_on_an_affine_network_finds_the_worst_corner() -> None:
    torch.manual_seed(0)
    net, params = tr.from_module(nn.Linear(4, 2).double(), (4,))
    x = torch.rand(6, 4, dtype=torch.float64)
    box, labels = tr.linf_box(x, 0.1), torch.arange(6) % 2
    found = tr.attack(net, params, box, labels, method={"name": "pgd", "loss": "margin"})
    direction = (params["weight"][0] - params["weight"][1]) * (1 - 2 * labels[:, None])
    assert torch.equal(found, torch.where(direction > 0, box.lower, box.upper))


def test_attacks_stay_in_the_box_and_follow_their_seed(run: tr.Run) -> None:
    x, labels = blobs()
    box = tr.linf_box(x, "1/10")
    options = {"method": {"name": "pgd", "steps": 2}}
    one, same, other = (tr.attack(run.network, run.params, box, labels, seed=s, **options) for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert bool(((one >= box.lower) & (one <= box.upper)).all())
    state = torch.get_rng_state()
    tr.attack(run.network, run.params, box, labels)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_attack_takes_labels_or_the_property_they_stand_for(run: tr.Run) -> None:
    x, labels = blobs()
    box = tr.linf_box(x, "1/10")
    found = tr.attack(run.network, run.params, box, labels)
    assert torch.equal(found, tr.attack(run.network, run.params, box, tr.margin_spec(labels, CLASSES)))


@pytest.mark.parametrize(
    ("target", "method"),
    [
        (torch.arange(30) % 4, "pgd"),
        (torch.arange(30) % 3 - 1, "pgd"),
        (torch.arange(29) % 3, "pgd"),
        (torch.rand(30), "pgd"),
        (torch.arange(30) % 3, "pdg"),
        (torch.arange(30) % 3, {"name": "pgd", "step": 3}),
        (torch.arange(30) % 3, {"steps": 3}),
    ],
)
def test_attacks_refuse_what_does_not_fit(target: Tensor, method: Any, run: tr.Run) -> None:
    with pytest.raises((InputError, UnknownNameError)):
        tr.attack(run.network, run.params, tr.linf_box(blobs()[0], 0.1), target, method=method)


# ------------------------------------------------------------------------------------------------ names


def test_the_documented_names_are_there() -> None:
    names = {"from_module", "linf_box", "margin_spec", "relaxation", "certified_loss", "smoother"}
    names |= {"fit", "certify", "attack", "load", "Spec", "Run"}
    assert names <= set(dir(tr)) & set(tr.__all__)
    assert all(callable(getattr(tr, name)) for name in names)
    with pytest.raises(AttributeError, match="fitt"):
        _ = tr.fitt


def test_methods_are_built_from_names_and_tables() -> None:
    assert tr.method("certified", relaxation="ibp") == tr.method("certified", relaxation={"name": "ibp"})
    assert tr.method("pgd", attack={"name": "pgd", "steps": 3}).attack.steps == 3
    with pytest.raises(ConfigError, match="'certified'"):
        tr.method("certifed")
    for build in (tr.relaxation, tr.smoother):
        with pytest.raises(UnknownNameError):
            build("nothing like it")


def test_smoothed_training_by_hand() -> None:
    """The pieces of the README together: bounds, loss, estimate."""
    net, params = tr.from_module(small(), input_shape=(4,))
    x, labels = blobs()
    box, spec = tr.linf_box(x, eps="8/255", data_range=(0, 1)), tr.margin_spec(labels, num_classes=CLASSES)
    bounds = tr.relaxation("deeppoly").bounds(net, params, box, spec)
    assert bounds.margins.shape == (30, CLASSES - 1)
    loss = tr.certified_loss(net, tr.relaxation("crown_ibp"), box, labels)
    smoother, generator = tr.smoother("pgpe", pairs=64), torch.Generator().manual_seed(0)
    state, first = smoother.init(params, net.trainable), float(loss(params)[0])
    for _ in range(20):
        estimate = smoother.estimate(loss, params, state, std=0.05, generator=generator)
        params = {name: value - 0.1 * estimate.grad[name] for name, value in params.items()}
        state = estimate.state
    assert float(loss(params)[0]) < first


# ------------------------------------------------------------------------------------------- handed in by the caller


def test_a_run_on_data_of_ones_own_names_no_dataset_to_certify_on(run: tr.Run) -> None:
    assert run.record.handed_in == ("module", "dataset")
    with pytest.raises(InputError, match="handed in"):
        tr.certify(run)


def test_resuming_needs_what_was_handed_in(tmp_path: Path) -> None:
    x, labels = blobs()
    with pytest.raises(KeyboardInterrupt):
        tr.fit(small(), config=settings(), dataset=(x, labels), out=tmp_path / "run", watcher=_Stop())
    with pytest.raises(InputError, match="hand it in again"):
        tr.fit(resume=True, out=tmp_path / "run")
    with pytest.raises(CheckpointError):
        tr.fit(small(), config=settings(), dataset=(1 - x, labels), out=tmp_path / "run", resume=True)
    resumed = tr.fit(small(), config=settings(), dataset=(x, labels), out=tmp_path / "run", resume=True)
    assert resumed.record.status == "finished"


def test_a_network_made_a_module_can_be_certified_again(run: tr.Run, tmp_path: Path) -> None:
    network, params = tr.from_module(run.network.to_module(run.params), run.network.input_shape)
    assert network == run.network
    assert all(torch.equal(params[name], value) for name, value in run.params.items())


class _Stop:
    def on_step(self, event: object) -> None:
        raise KeyboardInterrupt

    def on_epoch(self, record: object) -> None: ...


def test_a_complete_certification_decides_what_relaxations_leave_undecided(run: tr.Run, tmp_path: Path) -> None:
    cheap = certify(run, blobs(), 0.15, tmp_path / "cheap.jsonl", relaxations=["ibp"])
    complete = certify(run, blobs(), 0.15, tmp_path / "complete.jsonl", relaxations=["ibp"], complete=True)
    assert "unknown" in {record.verdict for record in cheap}
    assert "unknown" not in {record.verdict for record in complete}
    for before, after in zip(cheap, complete, strict=True):
        assert before.verdict in ("unknown", after.verdict)
