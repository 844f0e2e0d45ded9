"""Other libraries, where they are importable. None is needed, and none is installed by this project."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.showwarning = lambda *arguments, **options: None  # not a filter: the library resets those on import
    try:
        import auto_LiRPA as lirpa  # type: ignore[import-not-found]
    except ImportError:
        lirpa = None

VERSION: str | None = None if lirpa is None else lirpa.__version__

# What the library calls the relaxations that both have.
METHODS = {"ibp": "IBP", "crown_ibp": "CROWN-IBP", "deeppoly": "CROWN"}
PREFIX = "auto_LiRPA "


class AutoLirpa:
    """Margins of a module by auto_LiRPA, with its defaults (patches for convolutions).

    Args:
        module: built of layers that it supports, on the device to compute on.
        lower: box, (batch, *input shape).
        upper: box, (batch, *input shape).
        method: its name of the relaxation.
    """

    def __init__(self, module: nn.Module, lower: Tensor, upper: Tensor, method: str) -> None:
        centre = (lower + upper) / 2
        self._method = method
        self._bounded = lirpa.BoundedModule(module, centre, device=lower.device)
        ball = lirpa.PerturbationLpNorm(norm=float("inf"), x_L=lower, x_U=upper)
        self._input = lirpa.BoundedTensor(centre, ball)

    def parameters(self) -> Sequence[Tensor]:
        """The weights that it differentiates."""
        return list(self._bounded.parameters())

    def margins(self, matrix: Tensor) -> Tensor:
        """Lower bounds, (batch, rows), of ``matrix @ output`` for a matrix of (batch, rows, outputs)."""
        lower: Tensor
        lower, _ = self._bounded.compute_bounds(
            x=(self._input,), C=matrix, method=self._method, bound_lower=True, bound_upper=False
        )
        return lower
