"""What every dataset promises.

Real data are read from TIGHTROPE_DATA, and their part is skipped where it is not set: a test never downloads.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import get_args

import pytest
import torch

from tightrope.core import registry
from tightrope.data._loader import Dataset, Samples, Split, to_unit
from tightrope.errors import CorruptDataError, InputError, MissingDataError

NAMES = registry.names("datasets")
SPLITS = get_args(Split)
pytestmark = pytest.mark.parametrize("name", NAMES)


def embedded(dataset: Dataset) -> bool:
    return not dataset.files("train")


def load(name: str, split: Split) -> tuple[Dataset, Samples]:
    """Real samples, or skip."""
    dataset: Dataset = registry.create("datasets", name)
    if not embedded(dataset) and not os.environ.get("TIGHTROPE_DATA"):
        pytest.skip("TIGHTROPE_DATA is not set")
    try:
        return dataset, dataset.load(None, split)
    except MissingDataError as error:
        pytest.skip(str(error))


def external(name: str) -> Dataset:
    dataset: Dataset = registry.create("datasets", name)
    if embedded(dataset):
        pytest.skip(f"{name} comes with a package, there are no files to lose or to damage")
    return dataset


def test_facts(name: str) -> None:
    dataset = registry.create("datasets", name)
    assert dataset.name == name
    assert len(dataset.input_shape) == 3
    assert min(dataset.input_shape) >= 1
    assert dataset.num_classes >= 2
    assert len(dataset.mean) == len(dataset.std) == dataset.input_shape[0]
    assert all(0 < value < 1 for value in (*dataset.mean, *dataset.std))


def test_is_a_frozen_dataclass(name: str) -> None:
    dataset = registry.create("datasets", name)
    assert dataclasses.is_dataclass(type(dataset))
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "another"


@pytest.mark.parametrize("split", SPLITS)
def test_samples_have_the_announced_shapes_and_classes(name: str, split: Split) -> None:
    dataset, samples = load(name, split)
    assert samples.images.dtype == torch.uint8
    assert samples.labels.dtype == torch.int64
    assert samples.images.shape == (samples.size, *dataset.input_shape)
    assert samples.labels.unique().tolist() == list(range(dataset.num_classes))


@pytest.mark.parametrize("split", SPLITS)
def test_pixels_lie_in_the_unit_interval(name: str, split: Split) -> None:
    _, samples = load(name, split)
    pixels = to_unit(samples, torch.float32)
    assert pixels.min() == 0
    assert pixels.max() == 1


def test_loading_is_deterministic(name: str) -> None:
    first, second = load(name, "test")[1], load(name, "test")[1]
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_unknown_splits_are_refused(name: str, tmp_path: Path) -> None:
    dataset = registry.create("datasets", name)
    with pytest.raises(InputError, match="'train', 'test'"):
        dataset.load(tmp_path, "validation")
    with pytest.raises(InputError, match="'train', 'test'"):
        dataset.files("validation")


@pytest.mark.parametrize("split", SPLITS)
def test_missing_data_name_what_was_looked_for(name: str, split: Split, tmp_path: Path) -> None:
    dataset = external(name)
    with pytest.raises(MissingDataError) as caught:
        dataset.load(tmp_path, split)
    for part in (str(tmp_path / dataset.files(split)[0]), "--data-dir", "TIGHTROPE_DATA", "download"):
        assert part in str(caught.value)


@pytest.mark.parametrize("split", SPLITS)
def test_altered_files_are_refused(name: str, split: Split, tmp_path: Path) -> None:
    dataset = external(name)
    for file in dataset.files(split):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not the published content")
    with pytest.raises(CorruptDataError, match=r"(?s)expected.*(found|names)|names.*expected"):
        dataset.load(tmp_path, split)
