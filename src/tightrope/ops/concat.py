"""Several branches side by side, as in networks with dense connections."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tightrope.core.bounds import Params, Shape
from tightrope.core.coef import Coef, Dense
from tightrope.core.op import AffineOp


@dataclass(frozen=True)
class Concat(AffineOp):
    """The inputs one after another along an axis of a sample; ``sizes`` are theirs along it."""

    axis: int
    sizes: tuple[int, ...]

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [(_Branches(nn.Linear(4, 3)), (4,)), (_Branches(nn.Conv2d(2, 1, 3, padding=1)), (2, 3, 4))]

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.axis + 1)

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return self.linear(params, *radii)

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        return tuple(Dense(part) for part in coef.dense().value.split(self.sizes, self.axis + 2))

    def bias(self, params: Params) -> Tensor | None:
        return None

    def roundings(self, params: Params) -> int:
        return 0

    def output_shape(self, *shapes: Shape) -> Shape:
        first, axis = shapes[0], self.axis
        if not 0 <= axis < len(first):
            raise ValueError(f"concatenates along axis {axis + 1}, which samples of shape {first} do not have")
        if any((*shape[:axis], *shape[axis + 1 :]) != (*first[:axis], *first[axis + 1 :]) for shape in shapes):
            raise ValueError(f"concatenates samples of shapes {', '.join(map(str, shapes))} along axis {axis + 1}")
        if tuple(shape[axis] for shape in shapes) != self.sizes:
            raise ValueError(f"concatenates samples of shapes {', '.join(map(str, shapes))}, not of sizes {self.sizes}")
        return (*first[:axis], sum(self.sizes), *first[axis + 1 :])


class _Branches(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x).relu(), x], 1)
