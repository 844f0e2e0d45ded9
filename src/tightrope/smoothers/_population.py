"""Everything the smoothers share: checked std, members of a population, averages over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.compiled import at_members
from tightrope.core.noise import weight_noise
from tightrope.core.protocols import LossFn, Smoother, Std
from tightrope.errors import InputError

Chunk = int | Literal["auto"]
"""Pairs evaluated at once; ``auto``: as many as training finds fastest within its memory, one elsewhere."""

_VALUE = "\0value"  # a key that no metric has


@runtime_checkable
class Population(Protocol):
    """A smoother that evaluates antithetic pairs, some of them at once."""

    @property
    def pairs(self) -> int: ...
    @property
    def chunk(self) -> Chunk: ...


def at_once(chunk: Chunk) -> int:
    """Pairs that a smoother evaluates at once.

    Raises:
        InputError: neither ``auto`` nor an integer >= 1.
    """
    count = 1 if chunk == "auto" else chunk
    check_counts(chunk=count)
    return count


def resized(smoother: Population, pairs: int, chunk: int) -> Smoother:
    """The same smoother (a frozen dataclass, as all plug-ins) with a population of another size."""
    return cast(Smoother, replace(cast(Any, smoother), pairs=pairs, chunk=chunk))


def check_std(std: Std, trainable: Sequence[str], *, needs_noise: bool) -> dict[str, float]:
    """The std by trainable name.

    Raises:
        InputError: negative, NaN or infinite, an unknown name, or all 0 where noise is needed.
    """
    if isinstance(std, Mapping):
        if unknown := [name for name in std if name not in trainable]:
            raise InputError(f"std names {unknown[0]!r}, which is not trainable. Trainable: {', '.join(trainable)}.")
        by_name = {name: float(std.get(name, 0.0)) for name in trainable}
    else:
        by_name = dict.fromkeys(trainable, float(std))
    if bad := [value for value in by_name.values() if not (math.isfinite(value) and value >= 0)]:
        raise InputError(f"std = {bad[0]} is not a standard deviation; give a finite number >= 0.")
    if needs_noise and not any(by_name.values()):
        raise InputError("std = 0 leaves nothing to search with; use a positive std, or the smoother 'rgs' or 'none'.")
    return by_name


def check_counts(**counts: int) -> None:
    """Refuse counts that are not positive integers."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be an integer >= 1, got {value!r}.")


def shifted(params: Params, noise: Params, sign: float = 1.0) -> dict[str, Tensor]:
    """A new mapping with ``params + sign * noise``; tensors without noise are shared."""
    return {name: value.add(noise[name], alpha=sign) if name in noise else value for name, value in params.items()}


def stacked_noise(params: Params, std: Mapping[str, float], seed: int, indices: Sequence[int]) -> dict[str, Tensor]:
    """Noise of several pairs, each tensor (pairs, *shape)."""
    each = [weight_noise(params, std, seed, index) for index in indices]
    return {name: torch.stack([noise[name] for noise in each]) for name in each[0]}


def evaluate_members(
    loss: LossFn, params: Params, noise: Mapping[str, Tensor], sign: float = 1.0
) -> tuple[Tensor, dict[str, Any]]:
    """The loss at ``params + sign * noise[i]`` for every member i: (members,) and metrics of (members,).

    The one place that maps a loss over weight vectors. A single member is evaluated as it is; several go through
    ``torch.func.vmap``.
    """
    members = next(iter(noise.values())).shape[0]
    if members == 1:
        value, metrics = loss(shifted(params, {name: z[0] for name, z in noise.items()}, sign))
        return value[None], {name: metric[None] for name, metric in metrics.items()}
    perturbed = {name: params[name] + sign * z for name, z in noise.items()}
    return at_members(loss, perturbed, {name: value for name, value in params.items() if name not in noise})


class Averages:
    """Running means over members of the loss and of what it reports."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._members = 0

    def add(self, values: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """Take in losses and metrics of (members,)."""
        self._members += values.shape[0]
        for name, each in {**metrics, _VALUE: values}.items():
            total = each.detach().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def value(self) -> Tensor:
        """The mean loss."""
        return self._sums[_VALUE] / self._members

    def metrics(self) -> Metrics:
        """The mean of every metric."""
        return {name: total / self._members for name, total in self._sums.items() if name != _VALUE}


def chunks(count: int, size: int) -> list[range]:
    """``range(count)`` in consecutive pieces of at most ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
