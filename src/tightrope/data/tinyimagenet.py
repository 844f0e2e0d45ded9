"""TinyImageNet: colour photographs of 200 classes, 64 x 64, 100,000 + 10,000."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tightrope.data._files import Remote, checked, data_root, missing
from tightrope.data._loader import Samples, Split, check_split
from tightrope.errors import CorruptDataError

_FOLDER = "tiny-imagenet-200"
_ARCHIVE = f"{_FOLDER}.zip"
_REMOTE = Remote("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", _ARCHIVE)
_CLASSES, _ANNOTATIONS = "wnids.txt", "val/val_annotations.txt"


@dataclass(frozen=True)
class TinyImageNet:
    """Photographs of 200 of the classes of ImageNet.

    Read from a folder `tiny-imagenet-200*` with a `wnids.txt`, or from `tiny-imagenet-200.zip` below the data
    root (or the root itself is that folder). Its own test images have no public labels: as everywhere in the
    literature, the 'test' split is its validation folder. Classes are numbered in the alphabetical order of
    their WordNet identifiers, as folder-based loaders number them, so that networks trained elsewhere keep
    their meaning.

    Reference:
        Le, Yang: "Tiny ImageNet Visual Recognition Challenge", Stanford CS231N report, 2015.
    """

    name: ClassVar[str] = "tinyimagenet"
    input_shape: ClassVar[tuple[int, int, int]] = (3, 64, 64)
    num_classes: ClassVar[int] = 200
    mean: ClassVar[tuple[float, ...]] = (0.4802, 0.4481, 0.3975)
    std: ClassVar[tuple[float, ...]] = (0.2302, 0.2265, 0.2262)

    def files(self, split: Split) -> tuple[str, ...]:
        """Index files of a split below the data root, unless the archive is there."""
        check_split(split)
        names = (_CLASSES,) if split == "train" else (_CLASSES, _ANNOTATIONS)
        return tuple(f"{_FOLDER}/{name}" for name in names)

    def load(self, root: Path | str | None, split: Split) -> Samples:
        """Read a split: images uint8 (n, 3, 64, 64), labels int64 (n,).

        Args:
            root: the data root; None for the environment variable TIGHTROPE_DATA, or else a download.
            split: 'train' (100,000, class by class) or 'test' (10,000, in the order of its annotations).

        Raises:
            MissingDataError: the data are not there, or cannot be downloaded.
            CorruptDataError: the archive is not the published one, an index file is malformed, or an image is
                missing or unreadable.
            InputError: there is no such split.
        """
        check_split(split)
        tree = _open(data_root(root, self.name, [_REMOTE]))
        numbers = _class_numbers(tree, self.num_classes)
        entries = _training_entries(tree) if split == "train" else _validation_entries(tree)
        if unknown := sorted({wnid for _, wnid in entries} - set(numbers)):
            raise CorruptDataError(f"{tree.source}: {', '.join(unknown[:5])} is not in {_CLASSES}.")
        images = _decode(tree, [path for path, _ in entries], self.input_shape)
        return Samples(images, torch.tensor([numbers[wnid] for _, wnid in entries]))


class _Tree(NamedTuple):
    """The files of the dataset by their path, out of a folder or the archive."""

    source: Path
    names: Sequence[str]
    content: Callable[[str], bytes]

    def read(self, name: str) -> bytes:
        try:
            return self.content(name)
        except (KeyError, FileNotFoundError) as error:
            raise CorruptDataError(f"{self.source}: {name} is not there. Fetch the data again.") from error

    def lines(self, name: str) -> list[list[str]]:
        """Rows of a text file, split at white space."""
        return [line.split() for line in self.read(name).decode(errors="replace").splitlines() if line.strip()]


def _open(root: Path) -> _Tree:
    folders = (root, *sorted(root.glob(f"{_FOLDER}*")))
    folder = next((folder for folder in folders if (folder / _CLASSES).is_file()), None)
    archive = root / _ARCHIVE
    if folder is not None:
        return _open_folder(folder)
    if archive.is_file():
        return _open_archive(archive)
    raise missing("tinyimagenet", root, (f"{_FOLDER}/{_CLASSES}", _ARCHIVE))


def _open_folder(folder: Path) -> _Tree:
    names = [path.relative_to(folder).as_posix() for path in folder.glob("train/*/images/*.JPEG")]
    return _Tree(folder, names, lambda name: (folder / name).read_bytes())


def _open_archive(archive: Path) -> _Tree:
    members = zipfile.ZipFile(io.BytesIO(checked(archive.read_bytes(), _REMOTE.md5, archive)))
    names = [name.removeprefix(f"{_FOLDER}/") for name in members.namelist()]
    return _Tree(archive, names, lambda name: members.read(f"{_FOLDER}/{name}"))


def _class_numbers(tree: _Tree, num_classes: int) -> dict[str, int]:
    wnids = sorted({row[0] for row in tree.lines(_CLASSES)})
    if len(wnids) != num_classes:
        raise CorruptDataError(f"{tree.source}: {_CLASSES} names {len(wnids)} classes, expected {num_classes}.")
    return {wnid: number for number, wnid in enumerate(wnids)}


def _training_entries(tree: _Tree) -> list[tuple[str, str]]:
    """(path, class) of every training image."""
    paths = sorted(name for name in tree.names if name.startswith("train/") and name.endswith(".JPEG"))
    if not paths:
        raise CorruptDataError(f"{tree.source}: there are no images train/*/images/*.JPEG. Fetch the data again.")
    return [(path, path.split("/")[1]) for path in paths]


def _validation_entries(tree: _Tree) -> list[tuple[str, str]]:
    rows = tree.lines(_ANNOTATIONS)
    if not rows or min(map(len, rows)) < 2:
        raise CorruptDataError(f"{tree.source}: {_ANNOTATIONS} needs an image and a class in every line.")
    return [(f"val/images/{row[0]}", row[1]) for row in rows]


def _decode(tree: _Tree, paths: Sequence[str], shape: tuple[int, int, int]) -> Tensor:
    images = torch.empty((len(paths), *shape), dtype=torch.uint8)
    for target, path in zip(images, paths, strict=True):
        try:
            # A few images are grey.
            pixels = np.array(Image.open(io.BytesIO(tree.read(path)), formats=("JPEG",)).convert("RGB"))
        except OSError as error:
            raise CorruptDataError(f"{tree.source}: {path} is not a readable image ({error}).") from error
        if pixels.shape != (shape[1], shape[2], 3):
            raise CorruptDataError(f"{tree.source}: {path} has the shape {pixels.shape}, expected 64 x 64.")
        target.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
    return images
