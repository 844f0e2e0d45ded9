"""Digits: 8 x 8 handwritten digits that come with scikit-learn, 1,437 + 360."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from sklearn.datasets import load_digits

from tightrope.data._loader import Samples, Split, check_split, take


@dataclass(frozen=True)
class Digits:
    """Small handwritten digits that need no download: for tutorials and tests.

    There is no official split: every fifth image of the list sorted by class is a test image, so that the
    classes are represented alike and no random generator is involved.

    Reference:
        Alpaydin, Kaynak: "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """

    name: ClassVar[str] = "digits"
    input_shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)
    num_classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]] = (0.3058,)
    std: ClassVar[tuple[float, ...]] = (0.3762,)

    def files(self, split: Split) -> tuple[str, ...]:
        """None: the data come with scikit-learn."""
        check_split(split)
        return ()

    def load(self, root: Path | str | None, split: Split) -> Samples:
        """Read a split: images uint8 (n, 1, 8, 8) from 0 to 16, labels int64 (n,).

        Args:
            root: not used.
            split: 'train' (1,437) or 'test' (360).

        Raises:
            InputError: there is no such split.

        Example:
            >>> Digits().load(None, "test").images.shape
            torch.Size([360, 1, 8, 8])
        """
        check_split(split)
        images, labels = load_digits(return_X_y=True)
        everything = Samples(
            torch.from_numpy(images.astype(np.uint8)).view(-1, *self.input_shape),
            torch.from_numpy(labels.astype(np.int64)),
            scale=16.0,
        )
        is_test = torch.zeros(everything.size, dtype=torch.bool)
        is_test[everything.labels.argsort(stable=True)[::5]] = True
        wanted = is_test if split == "test" else ~is_test
        return take(everything, wanted.nonzero().squeeze(1))
