"""Everything the smoothers share: checked std, noise of pairs, members of a population, sums over pairs and ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.compiled import at_members
from tightrope.core.noise import derive_seed, drawn_together, weight_noise
from tightrope.core.protocols import Losses, LossFn, Smoother, Std
from tightrope.core.ranks import Ranks
from tightrope.errors import InputError

Chunk = int | Literal["auto"]
"""Pairs evaluated at once; ``auto``: as many as training finds fastest within its memory, one elsewhere."""

_VALUE, _KEPT, _METRIC = "value", "kept", "metric/"  # keys of Totals; a gradient's are "grad/" and the tensor's name


@runtime_checkable
class Population(Protocol):
    """A smoother that evaluates pairs of members, some of them at once."""

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


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is not among the choices."""
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


# ------------------------------------------------------------------------------------------------ noise


class Half(NamedTuple):
    """One member of each of some pairs: its noise, (pairs, *shape) by name, and the sign that it is added with."""

    noise: dict[str, Tensor]
    sign: float


@dataclass
class _Blocks:
    """Noise of consecutive pairs, cut from blocks. The last block is kept, as chunks follow each other."""

    around: Callable[[int], range]
    draw: Callable[[range], dict[str, Tensor]]
    _last: tuple[range, dict[str, Tensor]] = field(default=(range(0), {}), init=False, repr=False)

    def __call__(self, pairs: range) -> dict[str, Tensor]:
        found, index = [], pairs.start
        while index < pairs.stop:
            block, noise = self._block(self.around(index))
            rows = slice(index - block.start, pairs.stop - block.start)
            found.append({name: z[rows] for name, z in noise.items()})
            index = block.stop
        return found[0] if len(found) == 1 else {name: torch.cat([each[name] for each in found]) for name in found[0]}

    def _block(self, block: range) -> tuple[range, dict[str, Tensor]]:
        if self._last[0] != block:
            self._last = block, self.draw(block)
        return self._last


@dataclass
class Draws:
    """The noise of one step: a function of the seed and the index of a pair.

    Args:
        params: for shapes, dtypes and devices.
        std: by name.
        antithetic: the members of a pair are z and -z; otherwise two independent draws.
        orthogonal: pairs in blocks of so many orthogonal directions; 1 for independent ones.

    Raises:
        InputError: more orthogonal directions than weights.
    """

    params: Params
    std: Mapping[str, float]
    seed: int
    antithetic: bool = True
    orthogonal: int = 1

    def __post_init__(self) -> None:
        self._weights = sum(self.params[name].numel() for name, scale in self.std.items() if scale > 0)
        if self.orthogonal > self._weights:
            raise InputError(f"There are no {self.orthogonal} orthogonal directions of {self._weights} weights.")
        self._first = self._blocks(self.seed)
        self._second = self._blocks(derive_seed(self.seed, "second"))

    def halves(self, pairs: range) -> tuple[Half, Half]:
        """The two members of each of these consecutive pairs. Their noise is not to be written to."""
        first = self._first(pairs)
        return Half(first, 1.0), Half(first, -1.0) if self.antithetic else Half(self._second(pairs), 1.0)

    def _blocks(self, seed: int) -> _Blocks:
        independent = _Blocks(
            lambda index: drawn_together(index, self._weights),
            lambda block: weight_noise(self.params, self.std, seed, block.start, len(block)),
        )
        if self.orthogonal == 1:
            return independent
        return _Blocks(self._around, lambda block: orthogonalised(independent(block), self.std))

    def _around(self, index: int) -> range:
        start = index // self.orthogonal * self.orthogonal
        return range(start, start + self.orthogonal)


def orthogonalised(noise: Mapping[str, Tensor], std: Mapping[str, float]) -> dict[str, Tensor]:
    """Gram-Schmidt over the pairs, in units of the std, each direction with the length that it had.

    Every row alone is standard normal still, since lengths and directions of normal vectors are independent. Computed
    by Householder reflections, Z^T = Q R, which stay accurate for as many directions as weights.
    """
    rows = torch.cat([z.flatten(1).double() / std[name] for name, z in noise.items()], dim=1)
    basis, triangle = torch.linalg.qr(rows.T)
    lengths = torch.linalg.vector_norm(rows, dim=1) * triangle.diagonal().sign()
    found = (basis * lengths).T.split([z[0].numel() for z in noise.values()], dim=1)
    return {
        name: (part * std[name]).to(z.dtype).reshape(z.shape)
        for (name, z), part in zip(noise.items(), found, strict=True)
    }


# ---------------------------------------------------------------------------------------------- members


def losses_of(loss: Losses) -> Sequence[LossFn]:
    """The losses over which pairs are spread; one, if all see the same."""
    return (loss,) if callable(loss) else loss


def pieces(loss: Losses, pairs: int, chunk: Chunk, ranks: Ranks) -> Iterator[tuple[LossFn, range]]:
    """This process's pairs by their index over all, at most ``chunk`` together. Of several losses each has its share
    of consecutive pairs.

    Raises:
        InputError: fewer pairs than processes.
    """
    if pairs < ranks.size:
        raise InputError(f"{pairs} pairs cannot be shared by {ranks.size} processes; use more pairs, or fewer of them.")
    losses, size, own = losses_of(loss), at_once(chunk), ranks.share(pairs)
    for part, each in enumerate(losses):
        begin = max(own.start, part * pairs // len(losses))
        end = min(own.stop, (part + 1) * pairs // len(losses))
        for start in range(begin, end, size):
            yield each, range(start, min(start + size, end))


def shifted(params: Params, noise: Params, sign: float = 1.0) -> dict[str, Tensor]:
    """A new mapping with ``params + sign * noise``; tensors without noise are shared."""
    return {name: value.add(noise[name], alpha=sign) if name in noise else value for name, value in params.items()}


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


def evaluate_pairs(loss: LossFn, params: Params, halves: tuple[Half, Half], totals: Totals) -> tuple[Tensor, Tensor]:
    """Losses of pairs, (2, pairs), and which pairs to keep, (pairs,): those whose losses are finite.

    The losses of the others are 0 here, and are counted.
    """
    found = [evaluate_members(loss, params, half.noise, half.sign) for half in halves]
    values = torch.stack([value.detach() for value, _ in found])
    keep = torch.isfinite(values).all(dim=0)
    totals.add_pairs(values, [metrics for _, metrics in found], keep)
    return torch.where(keep, values, 0.0), keep


def differentiate_pairs(
    loss: LossFn, params: Params, trainable: Sequence[str], halves: tuple[Half, Half], totals: Totals
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """As :func:`evaluate_pairs`, and the mean gradient of the two members of each pair, (pairs, *shape) by name.

    Differentiated is the sum over members, outside vmap, with respect to their noise. Pairs with a gradient that is
    not finite are dropped too.
    """
    values, metrics, grads = zip(*(_differentiate(loss, params, trainable, half) for half in halves), strict=True)
    losses = torch.stack(values)
    mean = {name: (grads[0][name] + grads[1][name]) / 2 for name in trainable}
    finite = [torch.isfinite(grad.flatten(1)).all(dim=1) for grad in mean.values()]
    keep = torch.stack([*finite, *torch.isfinite(losses)]).all(dim=0)
    totals.add_pairs(losses, list(metrics), keep)
    kept = {name: torch.where(per_pair(keep, grad), grad, 0.0) for name, grad in mean.items()}
    return torch.where(keep, losses, 0.0), keep, kept


def _differentiate(
    loss: LossFn, params: Params, trainable: Sequence[str], half: Half
) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
    members = next(iter(half.noise.values())).shape[0]
    still = {name: params[name].new_zeros(members, *params[name].shape) for name in trainable if name not in half.noise}
    leaves = {name: z.detach().requires_grad_() for name, z in {**half.noise, **still}.items()}
    values, metrics = evaluate_members(loss, params, leaves, half.sign)
    grads = torch.autograd.grad(values.sum(), list(leaves.values()), materialize_grads=True)
    return values.detach(), metrics, {name: half.sign * grad for name, grad in zip(leaves, grads, strict=True)}


def per_pair(values: Tensor, like: Tensor) -> Tensor:
    """(pairs,) as (pairs, 1, ...), to go with a tensor (pairs, *shape)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def dots(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Inner products pair by pair over all tensors, (pairs,); a tensor (1, *shape) goes with every pair."""
    products = [torch.linalg.vecdot(one[name].flatten(1), other[name].flatten(1)) for name in one]
    return torch.stack(products).sum(dim=0)


# ------------------------------------------------------------------------------------------------- sums


class Totals:
    """Sums over the kept pairs of one step: of this process, and after :meth:`reduce` of all."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum. The first value becomes the sum, so it must be nobody else's."""
        if name in self._sums:
            self._sums[name].add_(value)
        else:
            self._sums[name] = value

    def add_pairs(self, values: Tensor, metrics: Sequence[Mapping[str, Tensor]], keep: Tensor) -> None:
        """Take in losses (2, pairs), what they report, and which pairs count."""
        self.add(_KEPT, keep.sum())
        self.add(_VALUE, torch.where(keep, values, 0.0).sum() / 2)
        for each in metrics:
            for name, metric in each.items():
                self.add(_METRIC + name, torch.where(keep, metric.detach(), 0.0).sum() / 2)

    def add_samples(self, weights: Tensor, each: Mapping[str, Tensor], std: Mapping[str, float] | None = None) -> None:
        """Add the samples ``weights[i] each[i]``, by default of noise in units of its std, to the gradient.

        Noise is sigma z and its sample z / sigma: hence the square.
        """
        lengths = []
        for name, z in each.items():
            scale = 1.0 if std is None else std[name] ** -2
            self.add(f"grad/{name}", torch.tensordot((scale * weights).to(z.dtype), z, dims=1))
            lengths.append(scale * torch.linalg.vector_norm(z.flatten(1), dim=1))
        self.add("power", (weights * torch.stack(lengths).norm(dim=0)).square().sum())

    def reduce(self) -> None:
        """From the sums of this process to those of all; once."""
        self._sums = self._ranks.sum(self._sums)

    def __getitem__(self, name: str) -> Tensor:
        return self._sums[name]

    def has(self, name: str) -> bool:
        """Whether anything was added under that name."""
        return name in self._sums

    @property
    def kept(self) -> Tensor:
        """Pairs that count."""
        return self._sums[_KEPT]

    def value(self) -> Tensor:
        """The mean loss."""
        return self._sums[_VALUE] / self.kept

    def grad(self, params: Params, trainable: Sequence[str], count: Tensor) -> dict[str, Tensor]:
        """The sum of gradients over ``count``; 0 where there is none."""
        zeros = {name: torch.zeros_like(params[name]) for name in trainable}
        return {name: self._sums.get(f"grad/{name}", zero) / count for name, zero in zeros.items()}

    def metrics(self, pairs: int) -> Metrics:
        """The mean of every metric, and the share of the pairs that was dropped."""
        means = {k.removeprefix(_METRIC): v / self.kept for k, v in self._sums.items() if k.startswith(_METRIC)}
        return {**means, "dropped": 1.0 - self.kept / pairs}


def variance_metrics(grad: Mapping[str, Tensor], power: Tensor, samples: Tensor, orthogonal: int = 1) -> Metrics:
    """The squared norm of a mean of samples, and an estimate of its variance.

    Args:
        grad: the mean.
        power: the sum of the samples' squared norms.
        samples: how many; without two of them nothing is known of the variance, which is reported as 0.
        orthogonal: as of :class:`Draws`. The spread of directions that depend on each other says nothing of the
            variance of their mean either.
    """
    norm = torch.stack([torch.linalg.vector_norm(each).double() for each in grad.values()]).square().sum()
    spread = (power.double() - samples * norm).clamp(min=0.0)
    known = torch.where((samples > 1) & (orthogonal == 1), spread, 0.0)  # of one sample the spread is rounding
    return {"grad_power": norm, "grad_variance": known / (samples * (samples - 1)).clamp(min=1)}
