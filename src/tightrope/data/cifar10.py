"""CIFAR-10: small colour photographs, 32 x 32, 50,000 + 10,000."""

from __future__ import annotations

import pickle
import tarfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from tightrope.data._files import Remote, checked, data_root, missing
from tightrope.data._loader import Samples, Split, check_split
from tightrope.errors import CorruptDataError

_FOLDER = "cifar-10-batches-py"
_ARCHIVE = "cifar-10-python.tar.gz"
_REMOTE = Remote(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", _ARCHIVE
)
_BATCHES: Mapping[Split, Mapping[str, str]] = {
    "train": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
}


@dataclass(frozen=True)
class Cifar10:
    """Photographs of ten kinds of animals and vehicles.

    Read from `cifar-10-batches-py/` or `cifar-10-python.tar.gz` below the data root. The standard deviations
    are those that certified training uses (the mean over images of the deviation within an image), not those
    over all pixels (0.2470, 0.2435, 0.2616): published networks and figures are for these.

    Reference:
        Krizhevsky: "Learning Multiple Layers of Features from Tiny Images", technical report, 2009.
    """

    name: ClassVar[str] = "cifar10"
    input_shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)
    num_classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2023, 0.1994, 0.2010)

    def files(self, split: Split) -> tuple[str, ...]:
        """Paths of a split below the data root, unless the archive is there."""
        check_split(split)
        return tuple(f"{_FOLDER}/{name}" for name in _BATCHES[split])

    def load(self, root: Path | str | None, split: Split) -> Samples:
        """Read a split: images uint8 (n, 3, 32, 32), labels int64 (n,).

        Args:
            root: the data root; None for the environment variable TIGHTROPE_DATA, or else a download.
            split: 'train' (50,000) or 'test' (10,000).

        Raises:
            MissingDataError: the data are not there, or cannot be downloaded.
            CorruptDataError: a file is not the published one; it is never unpickled then.
            InputError: there is no such split.
        """
        check_split(split)
        digests = _BATCHES[split]
        contents = _contents(data_root(root, self.name, [_REMOTE]), digests)
        # A pickle can run code: only the published bytes may reach `loads`.
        safe = [checked(contents[name], md5, f"{_FOLDER}/{name}") for name, md5 in digests.items()]
        batches = [pickle.loads(data, encoding="latin1") for data in safe]
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, *self.input_shape)
        labels = np.concatenate([batch["labels"] for batch in batches])
        return Samples(torch.from_numpy(images), torch.from_numpy(labels).long())


def _contents(root: Path, names: Collection[str]) -> dict[str, bytes]:
    """The batches as bytes by name, from the folder or else from the archive."""
    archive = root / _ARCHIVE
    if not (root / _FOLDER).is_dir() and archive.is_file():
        return _unpack(archive, names)
    for name in names:
        if not (root / _FOLDER / name).is_file():
            raise missing("cifar10", root, (f"{_FOLDER}/{name}", _ARCHIVE))
    return {name: (root / _FOLDER / name).read_bytes() for name in names}


def _unpack(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                file = members.extractfile(member)
                name = member.name.removeprefix(f"{_FOLDER}/")
                if file is not None and name in names:
                    contents[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise CorruptDataError(f"{archive}: not a complete archive ({error}). Delete it and fetch it again.") from error
    if absent := sorted(set(names) - set(contents)):
        raise CorruptDataError(f"{archive}: {', '.join(absent)} is not in it. Delete it and fetch it again.")
    return contents
