"""The idx format of MNIST: a magic number, big-endian sizes, then bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tightrope.data._files import Remote, checked, data_root, missing
from tightrope.data._loader import Samples, Split, check_split
from tightrope.errors import CorruptDataError

_UINT8 = 8
_PREFIXES: Mapping[Split, str] = {"train": "train", "test": "t10k"}


class Digests(NamedTuple):
    """MD5 digests of one file.

    Attributes:
        content: of the idx data after gunzip; the same for every copy, which the compressed form is not.
        download: of the published .gz file.
    """

    content: str
    download: str


@dataclass(frozen=True)
class IdxSource:
    """A dataset in four idx files, plain or gzipped.

    Args:
        dataset: name for messages.
        folder: folder of the files below the data root.
        url: where the .gz files are published.
        digests: expected digests by file name without .gz.
    """

    dataset: str
    folder: str
    url: str
    digests: Mapping[str, Digests]

    def files(self, split: Split) -> tuple[str, ...]:
        """Paths of the images and the labels of a split below the data root, without .gz.

        Raises:
            InputError: there is no such split.
        """
        check_split(split)
        prefix = f"{self.folder}/{_PREFIXES[split]}"
        return f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"

    def load(self, root: Path | str | None, split: Split) -> Samples:
        """Read a split.

        Args:
            root: the data root; None for the environment variable or a download.
            split: 'train' or 'test'.

        Raises:
            MissingDataError: a file is not there.
            CorruptDataError: a file is damaged.
            InputError: there is no such split.
        """
        paths = self.files(split)
        folder = data_root(root, self.dataset, [self._remote(path) for path in paths])
        images, labels = (self._read(folder, path) for path in paths)
        return Samples(images.unsqueeze(1), labels.long())

    def _remote(self, path: str) -> Remote:
        name = Path(path).name
        return Remote(f"{self.url}{name}.gz", self.digests[name].download, f"{path}.gz")

    def _read(self, root: Path, path: str) -> Tensor:
        plain, packed = root / path, root / f"{path}.gz"
        if plain.is_file():
            source, data = plain, plain.read_bytes()
        elif packed.is_file():
            source, data = packed, _gunzip(packed)
        else:
            raise missing(self.dataset, root, (path, f"{path}.gz"))
        return parse_idx(checked(data, self.digests[plain.name].content, source), source)


def _gunzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorruptDataError(f"{path}: not a complete gzip file ({error}). Delete it and fetch it again.") from error


def parse_idx(data: bytes, source: Path | str) -> Tensor:
    """Read an idx file of bytes.

    Args:
        data: the whole file: two zero bytes, the type code 8, the number of dimensions, one big-endian
            32-bit size a dimension, then the values in row-major order.
        source: the file, for messages.

    Returns:
        A uint8 tensor of the announced shape.

    Raises:
        CorruptDataError: the magic number is another one, or the sizes do not fit the length.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 7]), "labels").tolist()
        [5, 7]
    """
    if len(data) < 4 or data[:3] != bytes([0, 0, _UINT8]):
        raise CorruptDataError(f"{source}: not an idx file of bytes, it starts with {data[:4].hex() or 'nothing'}.")
    dimensions = data[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", data[4:start]) if len(data) >= start else ()
    expected = start + math.prod(shape)
    if len(data) != expected:
        raise CorruptDataError(
            f"{source}: an idx file of {dimensions} dimension(s) with the sizes {shape} has {expected} "
            f"bytes, got {len(data)}. It is truncated or damaged: delete it and fetch it again."
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy())
