"""What an audit ends with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from tightrope.auditor.graph import Array


class Verdict(StrEnum):
    """Of an audit."""

    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    UNDECIDED = "cannot confirm"


@dataclass(frozen=True)
class Finding:
    """The result of an audit.

    Attributes:
        verdict: confirmed; rejected: it is not what it says; or cannot confirm: it may be true, but is not shown.
        reason: why it is not confirmed.
        margin: of a verified one the least bound of a leaf, of a falsified one the largest that the margin can be.
    """

    verdict: Verdict
    reason: str = ""
    margin: float | None = None


class Rejected(Exception):  # noqa: N818
    """The certificate is not what it says."""


class Undecided(Exception):  # noqa: N818
    """It may be true, but is not shown."""


def require(holds: bool, otherwise: str) -> None:
    """Reject it unless this holds."""
    if not holds:
        raise Rejected(otherwise)


def finite(value: npt.NDArray[Any], shape: tuple[int, ...], what: str) -> Array:
    """A float64 copy of an array of finite numbers of this shape."""
    require(value.shape == shape, f"{what} must be of shape {shape}, not {value.shape}")
    require(value.dtype.kind in "fi" and bool(np.isfinite(value).all()), f"{what} have NaN or infinite entries")
    return value.astype(np.float64)
