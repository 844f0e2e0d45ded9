"""MNIST: handwritten digits, 28 x 28 grey, 60,000 + 10,000."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tightrope.data._idx import Digests, IdxSource
from tightrope.data._loader import Samples, Split

_SOURCE = IdxSource(
    dataset="mnist",
    folder="MNIST/raw",
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    digests={
        "train-images-idx3-ubyte": Digests("6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        "train-labels-idx1-ubyte": Digests("a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
        "t10k-images-idx3-ubyte": Digests("2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
        "t10k-labels-idx1-ubyte": Digests("27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
    },
)


@dataclass(frozen=True)
class Mnist:
    """Handwritten digits of LeCun, Cortes and Burges, in `MNIST/raw/` below the data root, plain or gzipped.

    Reference:
        LeCun, Bottou, Bengio, Haffner: "Gradient-based learning applied to document recognition", Proc. IEEE
        86(11), 1998.
    """

    name: ClassVar[str] = "mnist"
    input_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    num_classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]] = (0.1307,)
    std: ClassVar[tuple[float, ...]] = (0.3081,)

    def files(self, split: Split) -> tuple[str, ...]:
        """Paths of a split below the data root, without .gz."""
        return _SOURCE.files(split)

    def load(self, root: Path | str | None, split: Split) -> Samples:
        """Read a split: images uint8 (n, 1, 28, 28), labels int64 (n,).

        Args:
            root: the data root; None for the environment variable TIGHTROPE_DATA, or else a download.
            split: 'train' (60,000) or 'test' (10,000).

        Raises:
            MissingDataError: the data are not there, or cannot be downloaded.
            CorruptDataError: a file is not the published one.
            InputError: there is no such split.
        """
        return _SOURCE.load(root, split)
