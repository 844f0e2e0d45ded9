"""Flatten, view and reshape: the same numbers in another shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from tightrope.core.bounds import Params, Shape
from tightrope.core.coef import Coef, Dense
from tightrope.core.op import AffineOp


@dataclass(frozen=True)
class Reshape(AffineOp):
    """One sample's entries in row-major order, in a new shape."""

    before: Shape
    after: Shape

    modules = (nn.Flatten, nn.Unflatten)
    monomial = True

    @classmethod
    def from_module(cls, module: nn.Flatten | nn.Unflatten, path: str, shape: Shape) -> Reshape:
        dims = len(shape) + 1
        if isinstance(module, nn.Flatten):
            start, end = module.start_dim % dims, module.end_dim % dims
            if start == 0:
                raise ValueError("flattens the batch axis; use start_dim=1")
            return cls(shape, (*shape[: start - 1], math.prod(shape[start - 1 : end]), *shape[end:]))
        axis = int(module.dim) % dims
        if axis == 0:
            raise ValueError("unflattens the batch axis")
        parts = [int(n) for n in module.unflattened_size]
        if parts.count(-1) == 1:
            parts[parts.index(-1)] = shape[axis - 1] // max(1, -math.prod(parts))
        if math.prod(parts) != shape[axis - 1] or min(parts) < 1:
            raise ValueError(f"cannot split {shape[axis - 1]} entries into {tuple(module.unflattened_size)}")
        return cls(shape, (*shape[: axis - 1], *parts, *shape[axis:]))

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [(nn.Flatten(), (2, 3, 2)), (nn.Unflatten(1, (3, 4)), (12,)), (nn.Flatten(2), (2, 3, 2))]

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(inputs[0].shape[0], *self.after)

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return self.linear(params, *radii)

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        value = coef.dense().value
        return (Dense(value.reshape(*value.shape[:2], *self.before)),)

    def bias(self, params: Params) -> Tensor | None:
        return None

    def roundings(self, params: Params) -> int:
        return 0

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.after
