"""What every dataset returns, and pure functions on it: scaling, splitting, ordering, augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from tightrope.errors import InputError

Split = Literal["train", "test"]

# Independent random streams of one seed.
_SPLIT_STREAM, _ORDER_STREAM = 0, 1


class Samples(NamedTuple):
    """Labelled images as integers: a quarter of the memory of floats, and exact; a pixel is image / scale.

    Attributes:
        images: uint8, (n, c, h, w).
        labels: int64, (n,).
        scale: the integer that stands for white.
    """

    images: Tensor
    labels: Tensor
    scale: float = 255.0

    @property
    def size(self) -> int:
        """The number of images (`len` counts the fields of a tuple)."""
        return self.labels.shape[0]


class Dataset(Protocol):
    """What a file of this package provides: facts, and a function that loads a split.

    Attributes:
        name: the registry name.
        input_shape: (c, h, w) of one image.
        num_classes: labels are 0 .. num_classes - 1.
        mean: channel means on [0, 1].
        std: channel standard deviations on [0, 1].
    """

    @property
    def name(self) -> str: ...
    @property
    def input_shape(self) -> tuple[int, int, int]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...

    def files(self, split: Split) -> tuple[str, ...]:
        """Paths below the data root that every copy of a split has; none if the data come with a package."""

    def load(self, root: Path | str | None, split: Split) -> Samples:
        """Read a split.

        Args:
            root: the data root; None for the environment variable TIGHTROPE_DATA, or else a download.
            split: 'train' or 'test'.

        Raises:
            MissingDataError: the data are not there, or cannot be downloaded.
            CorruptDataError: a file is not what it should be.
            InputError: there is no such split.
        """


def check_split(split: str) -> None:
    """Refuse the name of a split that does not exist.

    Raises:
        InputError: it is neither 'train' nor 'test'.
    """
    if split not in get_args(Split):
        raise InputError(f"A split is one of {', '.join(map(repr, get_args(Split)))}, got {split!r}.")


def from_tensors(images: Tensor, labels: Tensor) -> Samples:
    """Samples of one's own.

    Args:
        images: floating point in [0, 1], (n, *shape).
        labels: integers, (n,).

    Raises:
        InputError: integer images, values that are not finite or outside [0, 1], labels that are not n integers.
    """
    if not images.is_floating_point() or images.ndim < 2:
        raise InputError(
            f"Images must be floating point in [0, 1] of shape (n, *shape), got {images.dtype} {tuple(images.shape)}. "
            "Divide 8-bit images by 255 first."
        )
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not integers or tuple(labels.shape) != (images.shape[0],):
        raise InputError(
            f"Labels must be {images.shape[0]} integers, one an image, got {labels.dtype} {tuple(labels.shape)}."
        )
    if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):  # NaN is neither
        raise InputError(
            "Images must lie in [0, 1] and be finite. Scale them; normalisation belongs inside the network."
        )
    return Samples(images, labels.long(), scale=1.0)


def to_unit(samples: Samples, dtype: torch.dtype) -> Tensor:
    """Images as floats in [0, 1]: integer / scale, divided in `dtype`.

    Args:
        samples: images (n, c, h, w).
        dtype: floating-point type of the result.

    Returns:
        Images (n, c, h, w) in [0, 1].

    Example:
        >>> samples = Samples(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8), torch.tensor([7]))
        >>> to_unit(samples, torch.float64).tolist()
        [[[[0.0, 0.2, 1.0]]]]
    """
    return samples.images.to(dtype) / samples.scale


def take(samples: Samples, index: Tensor) -> Samples:
    """The samples at some positions.

    Args:
        samples: n samples.
        index: int64 positions (k,).
    """
    return samples._replace(images=samples.images[index], labels=samples.labels[index])


def part_of(samples: Samples, start: int, stop: int) -> Samples:
    """The samples from `start` to before `stop`, as views."""
    return samples._replace(images=samples.images[start:stop], labels=samples.labels[start:stop])


def subset(samples: Samples, count: int) -> Samples:
    """The first `count` samples.

    Raises:
        InputError: `count` is not between 1 and the number of samples.
    """
    if not 1 <= count <= samples.size:
        raise InputError(f"A subset needs between 1 and {samples.size} samples, got {count}.")
    return part_of(samples, 0, count)


def split_validation(samples: Samples, size: float, seed: int) -> tuple[Samples, Samples]:
    """Hold out random samples; each side keeps the original order.

    Args:
        samples: the samples to divide.
        size: below 1 the share to hold out, from 1 on the number.
        seed: non-negative; the same seed holds out the same samples.

    Returns:
        The remaining samples and the held-out ones.

    Raises:
        InputError: a side would be empty, or the number is not whole.
    """
    count = round(size * samples.size) if size < 1 else int(size)
    if not 1 <= count < samples.size or (size >= 1 and count != size):
        raise InputError(
            f"A validation set needs a share below 1, or a whole number below {samples.size}, that leaves "
            f"both sides at least one sample, got {size}."
        )
    order = _permutation(samples.size, seed, (_SPLIT_STREAM,))
    held_out, kept = order[:count].sort().values, order[count:].sort().values
    return take(samples, kept), take(samples, held_out)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """A random order of the samples, a pure function of seed and epoch: nothing to store when a run resumes.

    Args:
        count: number of samples.
        seed: non-negative.
        epoch: non-negative.

    Returns:
        A permutation of 0 .. count - 1, int64, (count,).

    Raises:
        InputError: an argument is negative.
    """
    return _permutation(count, seed, (_ORDER_STREAM, epoch))


def _permutation(count: int, seed: int, stream: tuple[int, ...]) -> Tensor:
    # NumPy promises the raw output of its bit generators for ever, but not that of `permutation`.
    if min(count, seed, *stream) < 0:
        raise InputError(f"Sample counts, seeds and epochs must not be negative, got {(count, seed, *stream)}.")
    keys = np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)).random_raw(count)
    return torch.from_numpy(np.argsort(keys, kind="stable"))


class AugmentDraws(NamedTuple):
    """The random numbers of one augmented batch, drawn apart so that they can be sliced over devices.

    Attributes:
        shift: int64 (n, 2), rows and columns that the crop moves by.
        mirror: bool (n,), whether the image is flipped left to right.
    """

    shift: Tensor
    mirror: Tensor


def draw_augment(count: int, generator: torch.Generator, *, flip: bool, pad: int) -> AugmentDraws:
    """Draw the random numbers of :func:`apply_augment`, on the generator's device.

    Args:
        count: images in the batch.
        generator: source of the draws.
        flip: flip every second image on average.
        pad: largest shift of the crop in each direction, in pixels.

    Raises:
        InputError: `pad` is negative.
    """
    if pad < 0:
        raise InputError(f"The padding of a random crop must not be negative, got {pad}.")
    device = generator.device
    shift = torch.randint(-pad, pad + 1, (count, 2), generator=generator, device=device)
    mirror = torch.randint(0, 2, (count,), generator=generator, device=device) == 1
    return AugmentDraws(shift, mirror & flip)


def apply_augment(images: Tensor, draws: AugmentDraws) -> Tensor:
    """Shift and flip each image by its own draws; pixels from outside repeat the edge.

    The same as padding with copies of the edge, cropping to the old size and flipping, in one gather: a row
    outside the image is read from the nearest row inside.

    Args:
        images: (n, c, h, w), of any type.
        draws: random numbers of these n images.

    Returns:
        Images (n, c, h, w).
    """
    (batch, channels, height, width), device = images.shape, images.device
    shift, mirror = draws.shift.to(device), draws.mirror.to(device)
    rows = (torch.arange(height, device=device) + shift[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + shift[:, 1:]).clamp(0, width - 1)
    columns = torch.where(mirror[:, None], columns.flip(1), columns)
    image = torch.arange(batch, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def augment(images: Tensor, generator: torch.Generator, *, flip: bool, pad: int) -> Tensor:
    """Random flip and random crop with edge padding, drawn for each image.

    Args:
        images: (n, c, h, w), of any type.
        generator: source of the draws.
        flip: flip every second image on average.
        pad: largest shift of the crop in each direction, in pixels.

    Returns:
        Images (n, c, h, w).

    Raises:
        InputError: `pad` is negative.
    """
    return apply_augment(images, draw_augment(images.shape[0], generator, flip=flip, pad=pad))
