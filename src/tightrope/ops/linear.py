"""The fully connected layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from tightrope.core.bounds import Params, Shape
from tightrope.core.coef import Coef, Dense
from tightrope.core.lowering import matmul
from tightrope.core.op import AffineOp


@dataclass(frozen=True)
class Linear(AffineOp):
    """y = W x + b on vectors."""

    weight: str
    bias_key: str | None
    out_features: int

    modules = (nn.Linear,)

    @classmethod
    def from_module(cls, module: nn.Linear, path: str, shape: Shape) -> Linear:
        if shape != (module.in_features,):
            raise ValueError(f"expects vectors of {module.in_features}, gets samples of shape {shape}")
        bias = f"{path}bias" if module.bias is not None else None
        return cls(f"{path}weight", bias, module.out_features)

    @staticmethod
    def examples() -> list[tuple[nn.Module, Shape]]:
        return [(nn.Linear(5, 4), (5,)), (nn.Linear(3, 7, bias=False), (3,))]

    def forward(self, params: Params, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], params[self.weight], self.bias(params))

    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], params[self.weight])

    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        return F.linear(radii[0], params[self.weight].abs())

    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        return (Dense(matmul(coef.dense().value, params[self.weight])),)

    def bias(self, params: Params) -> Tensor | None:
        return None if self.bias_key is None else params[self.bias_key]

    def roundings(self, params: Params) -> int:
        return max(params[self.weight].shape)

    def output_shape(self, *shapes: Shape) -> Shape:
        return (self.out_features,)
