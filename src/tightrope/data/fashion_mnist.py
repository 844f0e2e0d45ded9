"""Fashion-MNIST: articles of clothing, 28 x 28 grey, 60,000 + 10,000."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tightrope.data._idx import Digests, IdxSource
from tightrope.data._loader import Samples, Split

_SOURCE = IdxSource(
    dataset="fashion_mnist",
    folder="FashionMNIST/raw",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    digests={
        "train-images-idx3-ubyte": Digests("f4a8712d7a061bf5bd6d2ca38dc4d50a", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        "train-labels-idx1-ubyte": Digests("9018921c3c673c538a1fc5bad174d6f9", "25c81989df183df01b3e8a0aad5dffbe"),
        "t10k-images-idx3-ubyte": Digests("8181f5470baa50b63fa0f6fddb340f0a", "bef4ecab320f06d8554ea6380940ec79"),
        "t10k-labels-idx1-ubyte": Digests("15d484375f8d13e6eb1aabb0c3f46965", "bb300cfdad3c16e7a12a480ee83cd310"),
    },
)


@dataclass(frozen=True)
class FashionMnist:
    """Articles of clothing shaped like MNIST, in `FashionMNIST/raw/` below the data root, plain or gzipped.

    Reference:
        Xiao, Rasul, Vollgraf: "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
        Algorithms", arXiv 1708.07747, 2017.
    """

    name: ClassVar[str] = "fashion_mnist"
    input_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    num_classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]] = (0.2860,)
    std: ClassVar[tuple[float, ...]] = (0.3530,)

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
