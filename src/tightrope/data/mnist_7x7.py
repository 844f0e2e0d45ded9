"""MNIST at 7 x 7: the brightest pixel of every 4 x 4 block, for networks of hundreds of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tightrope.data._loader import Samples, Split
from tightrope.data.mnist import Mnist

BLOCK = 4


@dataclass(frozen=True)
class Mnist7x7:
    """MNIST made small, from the same files: eps bounds the change of a block's brightest pixel.

    With 49 inputs a network has hundreds of weights instead of tens of thousands, so that many settings and seeds can
    be compared on a CPU, and PGPE, whose variance grows with the number of weights, has fewer of them. The brightest
    pixel of a block keeps thin strokes at full contrast; the mean would not.

    Reference:
        LeCun, Bottou, Bengio, Haffner: "Gradient-based learning applied to document recognition", Proc. IEEE
        86(11), 1998, for the images.
    """

    name: ClassVar[str] = "mnist_7x7"
    input_shape: ClassVar[tuple[int, int, int]] = (1, 7, 7)
    num_classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]] = (0.3200,)
    std: ClassVar[tuple[float, ...]] = (0.4454,)

    def files(self, split: Split) -> tuple[str, ...]:
        """Paths of a split below the data root, without .gz: those of MNIST."""
        return Mnist().files(split)

    def load(self, root: Path | str | None, split: Split) -> Samples:
        """Read a split: images uint8 (n, 1, 7, 7), labels int64 (n,).

        Args:
            root: the data root; None for the environment variable TIGHTROPE_DATA, or else a download.
            split: 'train' (60,000) or 'test' (10,000).

        Raises:
            MissingDataError: the data are not there, or cannot be downloaded.
            CorruptDataError: a file is not the published one.
            InputError: there is no such split.
        """
        samples = Mnist().load(root, split)
        _, height, width = self.input_shape
        blocks = samples.images.unflatten(3, (width, BLOCK)).unflatten(2, (height, BLOCK))
        return samples._replace(images=blocks.amax(dim=(3, 5)))
