"""The values that bounds travel in. NamedTuples, so that ``torch.func`` and ``torch.compile`` see through them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

Params = Mapping[str, Tensor]
"""Weights, statistics and constants of a network by their ``state_dict`` keys."""

Shape = tuple[int, ...]
"""Shape of one sample, without the batch axis."""

Metrics = dict[str, Tensor]
"""Scalars that a loss reports beside its value."""


class Interval(NamedTuple):
    """Elementwise bounds of one node, each (batch, *shape)."""

    lower: Tensor
    upper: Tensor


class Lines(NamedTuple):
    """One lower and one upper line per neuron: ``slope * x + bias`` bounds the activation on its interval.

    ``lower_bias`` None means that all lower lines pass through 0, which saves a pass over the coefficients.
    """

    lower_slope: Tensor
    lower_bias: Tensor | None
    upper_slope: Tensor
    upper_bias: Tensor


class Bounds(NamedTuple):
    """What a relaxation returns.

    Attributes:
        margins: lower bounds of the spec's rows, (batch, rows).
        pre: bounds of every node that feeds a non-linear layer, by node name.
    """

    margins: Tensor
    pre: dict[str, Interval]
