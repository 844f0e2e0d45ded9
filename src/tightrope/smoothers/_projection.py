"""Subspaces of the weights to which a search can be confined, as orthogonal projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from tightrope.core.bounds import Params

Subspace = Literal["gradient", "recent", "layers", "neurons"]
SUBSPACES = get_args(Subspace)
Projection = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""From vectors (pairs, *shape) by name to their projections."""


def projection(subspace: Subspace, params: Params, recent: Params) -> Projection:
    """The orthogonal projection onto a subspace.

    Args:
        subspace: ``gradient``: everything; ``recent``: the span of the recent gradients; ``layers``: the direction of
            each tensor, one dimension a tensor; ``neurons``: the direction of each row of a kernel, and every bias.
        params: the weights.
        recent: earlier gradients, (memory, *shape) by name, of the same tensors as what is projected.
    """
    if subspace == "gradient":
        return dict
    if subspace == "recent":
        return lambda each: _onto_span(each, {name: recent[name] for name in each})
    return lambda each: {name: _onto_scales(z, params[name], subspace == "neurons") for name, z in each.items()}


def _onto_scales(z: Tensor, weight: Tensor, rows: bool) -> Tensor:
    """Every z (pairs, *shape) onto the weight, or row by row."""
    if rows and weight.ndim < 2:
        return z
    start = 1 if rows else 0
    flat, direction = z.flatten(start + 1), weight.flatten(start) if weight.ndim else weight.reshape(1)
    along = (flat * direction).sum(-1, keepdim=True)
    length = direction.square().sum(-1, keepdim=True)
    share = torch.where(length > 0, along / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
    return (share * direction).reshape(z.shape)


def _onto_span(each: Mapping[str, Tensor], basis: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """B^T (B B^T)^+ B z for the rows B of the basis, which may depend on each other."""
    rows = {name: value.flatten(1).double() for name, value in basis.items()}
    gram = torch.stack([row @ row.T for row in rows.values()]).sum(dim=0)
    along = torch.stack([each[name].flatten(1).double() @ row.T for name, row in rows.items()]).sum(dim=0)
    share = along @ torch.linalg.pinv(gram, hermitian=True, rtol=1e-10)
    return {name: (share @ row).to(each[name].dtype).reshape(each[name].shape) for name, row in rows.items()}
