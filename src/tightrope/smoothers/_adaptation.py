"""The std of the noise as something that is learned: one factor for every tensor.

The smoothed loss has dL_sigma / d log sigma = E[(L - b) (|z|^2 - d)] over the d weights that share the sigma, for any b
that does not depend on z: here the mean loss of the other pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tightrope.core.protocols import SmootherState
from tightrope.errors import InputError
from tightrope.smoothers._population import Half, Totals

MOST = 0.2  # change in a step
_FACTOR = "std_factor/"


def check(rate: float, floor: float) -> None:
    """Refuse settings that make no sense.

    Raises:
        InputError: a negative or infinite rate, or a floor outside (0, 1].
    """
    if not (math.isfinite(rate) and rate >= 0 and 0.0 < floor <= 1.0):
        raise InputError(f"adapt must be >= 0 and adapt_floor in (0, 1], got {rate} and {floor}.")


def start(trainable: tuple[str, ...]) -> dict[str, Tensor]:
    """The factors before the first step. On the CPU, where the noise needs them."""
    return {f"{_FACTOR}{name}": torch.ones((), dtype=torch.float64) for name in trainable}


def scaled(std: Mapping[str, float], state: SmootherState) -> dict[str, float]:
    """The std with the factors of the state."""
    return {name: value * float(state.tensors[f"{_FACTOR}{name}"]) for name, value in std.items()}


def add(totals: Totals, halves: tuple[Half, Half], values: Tensor, keep: Tensor, std: Mapping[str, float]) -> None:
    """Add what some pairs say about the std: sums of the losses L, of s = |z|^2 - d, and of L s, by tensor."""
    antithetic = halves[0].noise is halves[1].noise
    samples = [(halves[0], values.mean(dim=0))] if antithetic else list(zip(halves, values, strict=True))
    for half, losses in samples:
        kept = losses.double() * keep
        totals.add("adapt/samples", keep.sum())
        totals.add("adapt/losses", kept.sum())
        for name, noise in half.noise.items():
            excess = (noise.flatten(1).double().square() / std[name] ** 2 - 1.0).sum(dim=1) * keep
            totals.add(f"adapt/excess/{name}", excess.sum())
            totals.add(f"adapt/both/{name}", (kept * excess).sum())


def stepped(state: SmootherState, totals: Totals, rate: float, floor: float) -> SmootherState:
    """The state after one step of descent on the logarithm of every std.

    With the mean of the others as baseline, the mean of (L_i - b_i) s_i is the sum of (L_i - mean L) s_i over n - 1.
    """
    samples, losses = totals["adapt/samples"], totals["adapt/losses"]
    tensors = dict(state.tensors)
    for name in state.trainable:
        if not totals.has(f"adapt/both/{name}"):
            continue
        centred = totals[f"adapt/both/{name}"] - losses / samples * totals[f"adapt/excess/{name}"]
        slope = centred / (samples - 1).clamp(min=1)
        change = (1.0 - rate * slope).clamp(1.0 - MOST, 1.0 + MOST).nan_to_num(1.0)
        key = f"{_FACTOR}{name}"
        tensors[key] = (tensors[key] * change.cpu()).clamp(min=floor)
    return SmootherState(state.trainable, tensors)
