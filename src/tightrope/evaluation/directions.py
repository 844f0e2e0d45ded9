"""Directions in weight space to look along."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.noise import derive_seed, weight_noise
from tightrope.core.protocols import LossFn, SmootherState
from tightrope.errors import InputError
from tightrope.smoothers.none import Unsmoothed

Direction = dict[str, Tensor]
"""What one step of length 1 adds to the weights, by name; tensors that it leaves alone are absent."""


def random_direction(params: Params, trainable: Sequence[str], seed: int, index: int = 0) -> Direction:
    """A Gaussian direction, filter-normalised: every filter is as long as that of the weights in its place.

    A filter is a slice along the first axis of a kernel: what makes one output. Biases and normalisations stay as they
    are. Coordinates are then comparable between networks: at 1 the step is as large as the weights.

    Args:
        params: the weights.
        trainable: names of those that may move.
        seed: of the draws.
        index: of the direction.

    Raises:
        InputError: there are no kernels.

    Source: Li et al. 2018 (arXiv 1712.09913), section 4.

    Example:
        >>> params = {"w": torch.tensor([[3.0, 4.0], [0.0, 2.0]]), "b": torch.ones(2)}
        >>> random_direction(params, ("w", "b"), seed=0)["w"].norm(dim=1)
        tensor([5., 2.])
    """
    kernels = {name: 1.0 for name in trainable if params[name].ndim > 1}
    drawn = weight_noise(params, kernels, derive_seed(seed, "direction"), index)
    scaled = {name: z * (_filter_norms(params[name]) / _filter_norms(z)) for name, z in drawn.items()}
    return _not_zero(scaled, "random direction")


def gradient_direction(loss: LossFn, params: Params, trainable: Sequence[str]) -> Direction:
    """The gradient of a loss, as long as the weights: the loss rises along it.

    Raises:
        InputError: the gradient is 0 or not finite.
    """
    grad = Unsmoothed().estimate(loss, params, SmootherState(tuple(trainable))).grad
    size = length({name: params[name] for name in trainable}) / _checked_length(grad, "gradient")
    return {name: part * size for name, part in grad.items()}


def difference(params: Params, other: Params, trainable: Sequence[str]) -> Direction:
    """From these weights, at 0, to others, at 1.

    Raises:
        InputError: they are the same.
    """
    return _not_zero({name: other[name] - params[name] for name in trainable}, "difference of the weights")


class Components(NamedTuple):
    """The principal components of a trajectory.

    Attributes:
        directions: of unit length, the first one explains most.
        shares: of the trajectory's variance.
        path: coordinates of every checkpoint from the centre, (checkpoints, components).
    """

    directions: tuple[Direction, ...]
    shares: tuple[float, ...]
    path: Tensor


def principal_components(
    params: Params, checkpoints: Sequence[Params], trainable: Sequence[str], count: int
) -> Components:
    """Of checkpoints on the way of training. The first checkpoint is on the negative side of every component.

    With the rows X of displacements from their mean, the eigenvectors v of the small matrix X X^T give the components
    X^T v / |X^T v|.

    Args:
        params: the centre, from which the path is measured.
        checkpoints: at least one more than components.
        trainable: names of the weights that count.
        count: of components.

    Raises:
        InputError: too few checkpoints, or they are on one point or, for two components, on one line.

    Cost: memory of all checkpoints.

    Source: Li et al. 2018 (arXiv 1712.09913), section 7.2.
    """
    if len(checkpoints) <= count:
        raise InputError(f"{count} principal components need {count + 1} checkpoints, there are {len(checkpoints)}.")
    rows = {name: torch.stack([each[name] for each in checkpoints]).double().flatten(1) for name in trainable}
    centred = {name: each - each.mean(dim=0) for name, each in rows.items()}
    values, vectors = torch.linalg.eigh(_product(centred, centred))
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    if not values[count - 1] > 1e-12 * values.sum():
        raise InputError(f"The checkpoints do not span {count} direction{'s' if count > 1 else ''}.")
    signs = -torch.where(vectors[0, :count] == 0, 1.0, vectors[0, :count].sign())
    mix = (vectors[:, :count] * signs / values[:count].sqrt()).T
    units = {name: mix @ each for name, each in centred.items()}
    path = _product({name: each - params[name].double().flatten() for name, each in rows.items()}, units)
    directions = tuple(
        {name: unit[index].reshape(params[name].shape).to(params[name].dtype) for name, unit in units.items()}
        for index in range(count)
    )
    return Components(directions, tuple((values[:count] / values.sum()).tolist()), path)


def length(direction: Params) -> float:
    """Euclidean norm over all tensors."""
    return math.sqrt(sum(float(part.double().square().sum()) for part in direction.values()))


def _product(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([one[name] @ other[name].T for name in one]).sum(dim=0)


def _filter_norms(kernel: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(kernel.flatten(1), dim=1)
    return norms.reshape(-1, *[1] * (kernel.ndim - 1))


def _not_zero(direction: Direction, what: str) -> Direction:
    _checked_length(direction, what)
    return direction


def _checked_length(direction: Params, what: str) -> float:
    found = length(direction)
    if not (math.isfinite(found) and found > 0):
        raise InputError(f"The {what} has length {found:g}: there is nothing to look along. Choose another direction.")
    return found
