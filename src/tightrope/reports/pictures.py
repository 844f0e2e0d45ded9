"""The images that a network fails on worst, beside the counterexamples that its certificates hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tightrope.auditor.audit import audit, outputs
from tightrope.auditor.finding import Verdict
from tightrope.auditor.graph import GraphError
from tightrope.errors import CorruptDataError
from tightrope.records.certificate import MODEL_FILE, SUFFIX, Array, Certificate, Model
from tightrope.records.image import NATURAL, ImageRecord
from tightrope.reports.gather import Certification

MOST = 6


@dataclass(frozen=True)
class Picture:
    """A PNG as a ``data:`` address.

    Attributes:
        alt: what it shows.
    """

    address: str
    alt: str
    title: str


@dataclass(frozen=True)
class Failure:
    """An image with a counterexample.

    Attributes:
        taken_for: class of the largest output at the counterexample; None if the network cannot be evaluated here.
        margin: at the counterexample, at most 0.
        distance: largest change of a pixel, input units.
        confirmed: whether the auditor, which shares no code with what found it, confirms the counterexample.
        pictures: image, counterexample, difference; empty where the inputs are no images.
    """

    index: int
    label: int | None
    taken_for: int | None
    margin: float
    distance: float
    confirmed: bool
    pictures: tuple[Picture, ...]


def folder_of(given: Certification) -> Path:
    """Where the certificates of a certification lie."""
    return given.path.parent / "certificates" / given.path.stem


def worst(given: Certification, most: int = MOST) -> list[Failure]:
    """Of the images that are right when clean, those with a counterexample of the smallest margins.

    Raises:
        CorruptDataError: a certificate or the network beside it is damaged; the file is named.
    """
    folder = folder_of(given)
    return list(_failures(folder, worst_records(given.records)[:most])) if folder.is_dir() else []


def worst_records(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Records of the images that are natural and falsified, the smallest margin first."""
    broken = [record for record in records if record.verdict == "falsified" and record.method != NATURAL]
    return sorted(broken, key=lambda record: (record.upper or 0.0, record.index))


def _failures(folder: Path, records: Sequence[ImageRecord]) -> Iterator[Failure]:
    model = Model.read(folder / MODEL_FILE) if (folder / MODEL_FILE).is_file() else None
    for record in records:
        path = folder / f"{record.index}{SUFFIX}"
        if path.is_file():
            yield _failure(path, record, model)


def _failure(path: Path, record: ImageRecord, model: Model | None) -> Failure:
    given = Certificate.read(path)
    if given.origin is None or given.counterexample is None or given.origin.image.shape != given.counterexample.shape:
        raise CorruptDataError(f"{path} holds no image with a counterexample, though its record is falsified.")
    image, found = given.origin.image, given.counterexample
    model = given.model or model
    return Failure(
        index=record.index,
        label=record.label,
        taken_for=_class_at(model, found),
        margin=record.upper or 0.0,  # falsified records have one
        distance=float(np.abs(found - image).max()),
        confirmed=audit(given, model).verdict is Verdict.CONFIRMED,
        pictures=_pictures(record, image, found),
    )


def _class_at(model: Model | None, x: Array) -> int | None:
    if model is None:
        return None
    try:
        lower, upper = outputs(model, x)
    except (GraphError, ArithmeticError, LookupError, TypeError, ValueError):
        return None  # a forged file; the audit says so
    return int(np.argmax(lower + upper))


def _pictures(record: ImageRecord, image: Array, found: Array) -> tuple[Picture, ...]:
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        return ()
    what = f"image {record.index}" + ("" if record.label is None else f", class {record.label}")
    scale = max(float(np.abs(found - image).max()), 1e-12)
    return (
        Picture(png(image), f"{what}, as it is in the test set", "image"),
        Picture(png(found), f"{what}: the counterexample", "counterexample"),
        Picture(
            png((found - image) / (2 * scale) + 0.5),
            f"{what}: counterexample minus image; grey is no change, white and black are {scale:.3g} more and less",
            "difference",
        ),
    )


def png(pixels: Array) -> str:
    """An image (channels, height, width) in [0, 1] as a ``data:`` address, a pixel a pixel: the page enlarges it."""
    values = np.clip(np.nan_to_num(pixels.astype(np.float64)), 0, 1)
    array = np.moveaxis(np.rint(255 * values).astype(np.uint8), 0, -1)
    picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
