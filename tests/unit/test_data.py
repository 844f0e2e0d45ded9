"""Datasets: file formats and their damage, lookup and download, splits, order, augmentation; real data if present."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tightrope.core import registry
from tightrope.data import _files, cifar10, tinyimagenet
from tightrope.data._files import Remote, data_root
from tightrope.data._idx import Digests, IdxSource, parse_idx
from tightrope.data._loader import (
    AugmentDraws,
    Dataset,
    Samples,
    Split,
    apply_augment,
    augment,
    draw_augment,
    epoch_order,
    split_validation,
    subset,
    take,
    to_unit,
)
from tightrope.data.cifar10 import Cifar10
from tightrope.data.digits import Digits
from tightrope.data.tinyimagenet import TinyImageNet
from tightrope.errors import CorruptDataError, InputError, MissingDataError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def samples(count: int) -> Samples:
    return Samples(torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(count))


# The idx format.


def idx(values: Tensor) -> bytes:
    sizes = struct.pack(f">{values.dim()}I", *values.shape)
    return bytes([0, 0, 8, values.dim()]) + sizes + values.numpy().tobytes()


IMAGES = torch.arange(24, dtype=torch.uint8).view(2, 3, 4)
LABELS = torch.tensor([3, 1], dtype=torch.uint8)
IMAGE_FILE, LABEL_FILE = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
SOURCE = IdxSource(
    "toy",
    "Toy/raw",
    "http://invalid.example/",
    {
        IMAGE_FILE: Digests(md5(idx(IMAGES)), md5(gzip.compress(idx(IMAGES), mtime=0))),
        LABEL_FILE: Digests(md5(idx(LABELS)), md5(gzip.compress(idx(LABELS), mtime=0))),
    },
)


def write_toy(root: Path, suffix: str = "") -> None:
    for name, values in ((IMAGE_FILE, IMAGES), (LABEL_FILE, LABELS)):
        data = idx(values)
        write(root / "Toy/raw" / f"{name}{suffix}", gzip.compress(data, mtime=0) if suffix else data)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_plain_and_gzipped(tmp_path: Path, suffix: str) -> None:
    write_toy(tmp_path, suffix)
    images, labels, scale = SOURCE.load(tmp_path, "train")
    assert torch.equal(images, IMAGES.unsqueeze(1))
    assert torch.equal(labels, LABELS.long())
    assert scale == 255


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_idx_round_trip(shape: list[int]) -> None:
    values = torch.arange(int(np.prod(shape))).to(torch.uint8).view(shape)
    assert torch.equal(parse_idx(idx(values), "file"), values)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08",
        idx(IMAGES)[:3],
        idx(IMAGES)[:10],
        idx(IMAGES)[:-1],
        idx(IMAGES) + b"\0",
        b"\0\0\x0d" + idx(IMAGES)[3:],
        b"\x1f\x8b" + idx(IMAGES)[2:],
    ],
)
def test_damaged_idx_data_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptDataError, match="file"):
        parse_idx(data, "file")


def test_a_changed_idx_file_is_refused(tmp_path: Path) -> None:
    write_toy(tmp_path)
    changed = IMAGES.clone()
    changed[0, 0, 0] += 1
    path = tmp_path / "Toy/raw" / IMAGE_FILE
    write(path, idx(changed))
    with pytest.raises(CorruptDataError, match="delete it and fetch it again") as caught:
        SOURCE.load(tmp_path, "train")
    for part in (str(path), md5(idx(changed)), md5(idx(IMAGES))):
        assert part in str(caught.value)


GZIPPED = gzip.compress(idx(IMAGES), mtime=0)


@pytest.mark.parametrize("data", [b"", b"no gzip", GZIPPED[:-9], GZIPPED[:20]], ids=["empty", "none", "end", "begin"])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, data: bytes) -> None:
    write_toy(tmp_path, ".gz")
    write(tmp_path / "Toy/raw" / f"{IMAGE_FILE}.gz", data)
    with pytest.raises(CorruptDataError, match=IMAGE_FILE):
        SOURCE.load(tmp_path, "train")


# Where the data are.


def test_missing_data_name_the_paths_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        SOURCE.load(tmp_path, "train")
    path = str(tmp_path / "Toy/raw" / IMAGE_FILE)
    for part in (path, f"{path}.gz", "--data-dir", "TIGHTROPE_DATA", "download"):
        assert part in str(caught.value)


def test_the_argument_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy(tmp_path / "given")
    monkeypatch.setenv("TIGHTROPE_DATA", str(tmp_path / "named"))
    assert SOURCE.load(tmp_path / "given", "train").size == 2
    assert SOURCE.load(str(tmp_path / "given"), "train").size == 2
    with pytest.raises(MissingDataError, match="named"):
        SOURCE.load(None, "train")
    write_toy(tmp_path / "named")
    assert SOURCE.load(None, "train").size == 2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache, and no data root in the environment."""
    monkeypatch.delenv("TIGHTROPE_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "tightrope"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine: its address and its folder."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", folder
        server.shutdown()


def test_data_are_downloaded_once_into_the_cache(cache: Path, site: tuple[str, Path]) -> None:
    url, folder = site
    write_toy(folder, ".gz")
    source = IdxSource("toy", "Toy/raw", f"{url}Toy/raw/", SOURCE.digests)
    assert torch.equal(source.load(None, "train").images[:, 0], IMAGES)
    assert (cache / "Toy/raw" / f"{IMAGE_FILE}.gz").is_file()
    for path in folder.rglob("*.gz"):
        path.unlink()
    assert torch.equal(source.load(None, "train").images[:, 0], IMAGES)


def test_a_wrong_download_is_refused_and_not_kept(cache: Path, site: tuple[str, Path]) -> None:
    url, folder = site
    write(folder / "file", b"something else")
    with pytest.raises(CorruptDataError, match="toy"):
        data_root(None, "toy", [Remote(f"{url}file", md5(b"the file"), "Toy/file")])
    assert not (cache / "Toy/file").exists()


def test_a_failed_download_says_what_to_do(cache: Path, site: tuple[str, Path]) -> None:
    url = f"{site[0]}absent"
    with pytest.raises(MissingDataError) as caught:
        data_root(None, "toy", [Remote(url, md5(b""), "Toy/file")])
    for part in (url, "Toy/file", "--data-dir", "TIGHTROPE_DATA"):
        assert part in str(caught.value)


# CIFAR-10.


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def cifar_batch(first: int) -> bytes:
    data = (np.arange(2 * 3072, dtype=np.int64) + first).astype(np.uint8).reshape(2, 3072)
    return pickle.dumps({"data": data, "labels": [first, first + 1]}, protocol=2)


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Two training batches, known to the loader by their digests."""
    contents = {"data_batch_1": cifar_batch(0), "data_batch_2": cifar_batch(2)}
    monkeypatch.setattr(cifar10, "_BATCHES", {"train": {name: md5(data) for name, data in contents.items()}})
    return contents


def cifar_archive(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_batches_are_read_in_order(tmp_path: Path, cifar: dict[str, bytes], packed: bool) -> None:
    if packed:
        write(tmp_path / "cifar-10-python.tar.gz", cifar_archive(dict(reversed(cifar.items()))))
    else:
        for name, data in cifar.items():
            write(tmp_path / "cifar-10-batches-py" / name, data)
    images, labels, _ = Cifar10().load(tmp_path, "train")
    assert labels.tolist() == [0, 1, 2, 3]
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert images[0, 0, 1, :3].tolist() == [32, 33, 34]  # planes, then rows, then columns


def test_a_malicious_pickle_is_not_executed(tmp_path: Path, cifar: dict[str, bytes]) -> None:
    for name, data in cifar.items():
        write(tmp_path / "cifar-10-batches-py" / name, data)
    target = tmp_path / "executed"
    write(tmp_path / "cifar-10-batches-py/data_batch_2", pickle.dumps(Bomb(target)))
    with pytest.raises(CorruptDataError, match="data_batch_2"):
        Cifar10().load(tmp_path, "train")
    assert not target.exists()
    pickle.loads(pickle.dumps(Bomb(target)))  # the bomb does work
    assert target.exists()


def test_a_truncated_archive_is_refused(tmp_path: Path, cifar: dict[str, bytes]) -> None:
    write(tmp_path / "cifar-10-python.tar.gz", cifar_archive(cifar)[:-200])
    with pytest.raises(CorruptDataError, match=r"cifar-10-python\.tar\.gz"):
        Cifar10().load(tmp_path, "train")


def test_an_archive_without_a_batch_is_refused(tmp_path: Path, cifar: dict[str, bytes]) -> None:
    write(tmp_path / "cifar-10-python.tar.gz", cifar_archive({"data_batch_1": cifar["data_batch_1"]}))
    with pytest.raises(CorruptDataError, match="data_batch_2"):
        Cifar10().load(tmp_path, "train")


# TinyImageNet.

WNIDS = [f"n{number:08d}" for number in range(200)]


def jpeg(colour: int | tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def tiny_files() -> dict[str, bytes]:
    files = {f"train/{wnid}/images/{wnid}_0.JPEG": jpeg((number, 0, 255)) for number, wnid in enumerate(WNIDS[:3])}
    return files | {
        "wnids.txt": "\n".join(reversed(WNIDS)).encode(),
        "val/val_annotations.txt": b"val_1.JPEG\tn00000007\t0\t0\t9\t9\nval_0.JPEG\tn00000002\t0\t0\t9\t9\n",
        "val/images/val_0.JPEG": jpeg(128),
        "val/images/val_1.JPEG": jpeg((250, 130, 10)),
    }


def write_tiny(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        write(folder / name, data)


@pytest.mark.parametrize("folder", ["tiny-imagenet-200", "tiny-imagenet-200-mini", "."])
def test_tinyimagenet_is_read_from_a_folder(tmp_path: Path, folder: str) -> None:
    write_tiny(tmp_path / folder, tiny_files())
    check_tiny(tmp_path)


def test_tinyimagenet_is_read_from_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in tiny_files().items():
            archive.writestr(f"tiny-imagenet-200/{name}", data)
    with pytest.raises(CorruptDataError, match=r"tiny-imagenet-200\.zip"):
        TinyImageNet().load(tmp_path, "train")
    monkeypatch.setattr(tinyimagenet, "_REMOTE", Remote("", md5(path.read_bytes()), ""))
    check_tiny(tmp_path)


def check_tiny(root: Path) -> None:
    train, test = TinyImageNet().load(root, "train"), TinyImageNet().load(root, "test")
    assert train.labels.tolist() == [0, 1, 2]
    assert test.labels.tolist() == [7, 2]
    assert train.images.shape == (3, 3, 64, 64)
    torch.testing.assert_close(test.images[0, :, 5, 5].long(), torch.tensor([250, 130, 10]), atol=4, rtol=0)
    assert test.images[1, :, 5, 5].tolist() == [128, 128, 128]  # grey becomes RGB


@pytest.mark.parametrize(
    ("split", "name", "data", "message"),
    [
        ("train", "wnids.txt", b"n00000001\n", "names 1 classes, expected 200"),
        ("train", "train/n00000001/images/n00000001_0.JPEG", jpeg(9)[:150], "n00000001_0.JPEG"),
        ("train", "train/n00000001/images/n00000001_0.JPEG", b"", "n00000001_0.JPEG"),
        ("train", "train/n00000001/images/n00000001_0.JPEG", jpeg(9, (32, 64)), "expected 64 x 64"),
        ("train", "train/n99999999/images/n99999999_0.JPEG", jpeg(9), "n99999999"),
        ("test", "val/val_annotations.txt", b"val_0.JPEG", "val_annotations.txt"),
        ("test", "val/val_annotations.txt", b"", "val_annotations.txt"),
        ("test", "val/val_annotations.txt", b"val_9.JPEG n00000001", "val_9.JPEG"),
        ("test", "val/val_annotations.txt", b"val_0.JPEG n99999999", "n99999999"),
    ],
)
def test_damaged_tinyimagenet_is_refused(tmp_path: Path, split: Split, name: str, data: bytes, message: str) -> None:
    write_tiny(tmp_path / "tiny-imagenet-200", tiny_files() | {name: data})
    with pytest.raises(CorruptDataError, match=message):
        TinyImageNet().load(tmp_path, split)


def test_tinyimagenet_without_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "tiny-imagenet-200/wnids.txt", tiny_files()["wnids.txt"])
    with pytest.raises(CorruptDataError, match="no images"):
        TinyImageNet().load(tmp_path, "train")


# Digits.


def test_digits_splits_are_disjoint_stratified_and_complete() -> None:
    train, test = Digits().load(None, "train"), Digits().load(None, "test")
    assert (train.size, test.size) == (1437, 360)
    counts = torch.bincount(train.labels), torch.bincount(test.labels)
    torch.testing.assert_close(counts[0] / 4, counts[1].float(), atol=1.5, rtol=0)
    assert int(torch.cat([train.images, test.images]).max()) == train.scale == 16


def test_the_digits_statistics_are_those_of_the_training_images() -> None:
    pixels = to_unit(Digits().load(None, "train"), torch.float64)
    assert pixels.mean().item() == pytest.approx(Digits.mean[0], abs=5e-5)
    assert pixels.std().item() == pytest.approx(Digits.std[0], abs=5e-5)


# Samples.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [16.0, 255.0])
def test_to_unit_is_the_correctly_rounded_quotient(dtype: torch.dtype, scale: float) -> None:
    values = torch.arange(int(scale) + 1, dtype=torch.uint8).view(-1, 1, 1, 1)
    unit = to_unit(Samples(values, values.flatten().long(), scale), dtype).flatten()
    number = np.float32 if dtype == torch.float32 else np.float64
    assert unit.dtype == dtype
    assert unit.tolist() == [float(np.divide(value, scale, dtype=number)) for value in range(int(scale) + 1)]


def test_take_and_subset() -> None:
    picked = take(samples(5), torch.tensor([4, 0]))
    assert picked.labels.tolist() == picked.images.flatten().tolist() == [4, 0]
    assert subset(samples(5), 2).labels.tolist() == [0, 1]
    assert subset(samples(5), 5).size == 5


@pytest.mark.parametrize("count", [0, -1, 6])
def test_impossible_subsets_are_refused(count: int) -> None:
    with pytest.raises(InputError, match="between 1 and 5"):
        subset(samples(5), count)


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 2**40))
def test_validation_split_is_a_reproducible_partition(count: int, size: float, seed: int) -> None:
    if not 1 <= round(size * count) < count:
        return
    train, held_out = split_validation(samples(count), size, seed)
    assert held_out.size == round(size * count)
    assert sorted(train.labels.tolist() + held_out.labels.tolist()) == list(range(count))
    assert train.labels.tolist() == sorted(train.labels.tolist())
    assert torch.equal(train.images.flatten().long(), train.labels)
    again = split_validation(samples(count), size, seed)
    assert torch.equal(again[1].labels, held_out.labels)


def test_validation_split_by_number_depends_on_the_seed() -> None:
    first, second = (split_validation(samples(100), 20, seed)[1].labels for seed in (0, 1))
    assert first.shape == second.shape == (20,)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [0, 0.01, 0.99, 10, 11, -1, -0.5, 2.5])
def test_impossible_validation_splits_are_refused(size: float) -> None:
    with pytest.raises(InputError, match="validation"):
        split_validation(samples(10), size, 0)


# Order.


@given(st.integers(0, 200), st.integers(0, 2**63), st.integers(0, 10_000))
def test_epoch_order_is_a_pure_permutation(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(count))
    assert torch.equal(order, epoch_order(count, seed, epoch))


def test_epoch_orders_differ_by_seed_and_epoch() -> None:
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_epoch_order_stays_the_same_for_ever() -> None:
    assert epoch_order(8, seed=1, epoch=2).tolist() == [3, 6, 7, 0, 5, 4, 1, 2]


@pytest.mark.parametrize("arguments", [(-1, 0, 0), (3, -1, 0), (3, 0, -1)])
def test_negative_seeds_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="negative"):
        epoch_order(*arguments)


# Augmentation.


def naive_augment(images: Tensor, draws: AugmentDraws, pad: int) -> Tensor:
    """Pad, crop and flip one image at a time."""
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad), mode="replicate")
    height, width = images.shape[2:]
    results = []
    for image, (down, right), mirror in zip(padded, draws.shift.tolist(), draws.mirror.tolist(), strict=True):
        crop = image[:, pad + down : pad + down + height, pad + right : pad + right + width]
        results.append(crop.flip(2) if mirror else crop)
    return torch.stack(results)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 2, 5])
def test_augmentation_equals_pad_crop_and_flip(flip: bool, pad: int) -> None:
    images = torch.rand(40, 3, 5, 7, generator=generator(1))
    draws = draw_augment(40, generator(2), flip=flip, pad=pad)
    expected = naive_augment(images, draws, pad)
    assert torch.equal(apply_augment(images, draws), expected)
    assert torch.equal(augment(images, generator(2), flip=flip, pad=pad), expected)


def test_no_augmentation_is_the_identity() -> None:
    images = torch.randint(0, 255, (6, 1, 4, 4), generator=generator(), dtype=torch.uint8)
    assert torch.equal(augment(images, generator(), flip=False, pad=0), images)


def test_draws_cover_every_shift_and_flip_half_of_the_images() -> None:
    draws = draw_augment(4000, generator(), flip=True, pad=2)
    assert [column.unique().tolist() for column in draws.shift.T] == [[-2, -1, 0, 1, 2]] * 2
    assert draws.mirror.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert not draw_augment(100, generator(), flip=False, pad=2).mirror.any()


def test_flipping_does_not_change_the_shifts() -> None:
    with_flip, without = (draw_augment(50, generator(3), flip=flip, pad=4) for flip in (True, False))
    assert torch.equal(with_flip.shift, without.shift)


def test_slices_of_a_batch_are_augmented_as_the_whole() -> None:
    images = torch.rand(6, 2, 4, 4, generator=generator())
    draws = draw_augment(6, generator(1), flip=True, pad=1)
    half = apply_augment(images[3:], AugmentDraws(draws.shift[3:], draws.mirror[3:]))
    assert torch.equal(half, apply_augment(images, draws)[3:])


def test_augmentation_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    augment(torch.rand(2, 1, 4, 4, generator=generator()), generator(), flip=True, pad=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_negative_padding_is_refused() -> None:
    with pytest.raises(InputError, match="negative"):
        draw_augment(1, generator(), flip=True, pad=-1)


# Real data.

MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def real(name: str, split: Split) -> tuple[Dataset, Samples]:
    if not os.environ.get(_files.ENVIRONMENT_VARIABLE):
        pytest.skip("TIGHTROPE_DATA is not set")
    dataset: Dataset = registry.create("datasets", name)
    try:
        return dataset, dataset.load(None, split)
    except MissingDataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("mnist", "train", MNIST_TRAIN),
        ("mnist", "test", MNIST_TEST),
        ("mnist_7x7", "test", MNIST_TEST),
        ("fashion_mnist", "train", [6000] * 10),
        ("fashion_mnist", "test", [1000] * 10),
        ("cifar10", "train", [5000] * 10),
        ("cifar10", "test", [1000] * 10),
    ],
)
def test_real_label_counts(name: str, split: Split, counts: list[int]) -> None:
    dataset, loaded = real(name, split)
    assert loaded.images.shape == (sum(counts), *dataset.input_shape)
    assert torch.bincount(loaded.labels).tolist() == counts


@pytest.mark.parametrize("name", ["mnist", "mnist_7x7", "fashion_mnist", "cifar10"])
def test_real_statistics(name: str) -> None:
    dataset, loaded = real(name, "train")
    pixels = to_unit(loaded, torch.float32)
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(dataset.mean, abs=1e-4)
    within_images = pixels.std((2, 3)).mean(0) if name == "cifar10" else pixels.std().view(1)
    assert within_images.tolist() == pytest.approx(dataset.std, abs=3e-4)


def test_real_tinyimagenet_has_every_class_alike() -> None:
    for split in ("train", "test"):
        _, loaded = real("tinyimagenet", split)
        assert len(set(torch.bincount(loaded.labels, minlength=200).tolist())) == 1


def test_mnist_7x7_has_the_brightest_pixel_of_every_block() -> None:
    _, large = real("mnist", "test")
    _, small = real("mnist_7x7", "test")
    assert torch.equal(small.labels, large.labels)
    pooled = torch.nn.functional.max_pool2d(large.images[:500].float(), 4)
    assert torch.equal(small.images[:500].float(), pooled)
