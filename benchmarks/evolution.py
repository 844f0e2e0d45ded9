"""PGPE of evotorch, where it is importable: its sampling and its update around a loss of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

try:
    import evotorch  # type: ignore[import-not-found]
    from evotorch.algorithms import functional  # type: ignore[import-not-found]
except ImportError:
    evotorch = None

VERSION: str | None = None if evotorch is None else evotorch.__version__
PREFIX = "evotorch "


class Evotorch:
    """A population over the named params, flattened into one vector as that library wants it.

    Args:
        loss: a function of the params.
        params: all of them.
        names: those to perturb.
        pairs: antithetic pairs.
        chunk: members that ``vmap`` evaluates at once.
        std: of the noise.
    """

    def __init__(
        self,
        loss: Callable[[Mapping[str, Tensor]], Tensor],
        params: Mapping[str, Tensor],
        names: Sequence[str],
        *,
        pairs: int,
        chunk: int,
        std: float,
    ) -> None:
        self._loss, self._params, self._pairs = loss, params, pairs
        self._shapes = {name: params[name].shape for name in names}
        self._evaluate = torch.func.vmap(self.value, chunk_size=chunk)
        self.centre = torch.cat([params[name].detach().flatten() for name in names])
        self._state = functional.pgpe(
            center_init=self.centre,
            center_learning_rate=1.0,
            stdev_learning_rate=0.0,
            objective_sense="min",
            ranking_method="raw",
            optimizer="sgd",
            stdev_init=std,
        )

    @torch.no_grad()
    def step(self) -> Tensor:
        """Sample, evaluate, move: the new centre. The state is not kept, so that every step does the same."""
        members = functional.pgpe_ask(self._state, popsize=2 * self._pairs)
        moved = functional.pgpe_tell(self._state, members, self._evaluate(members))
        centre: Tensor = moved.optimizer_state.center
        return centre

    def value(self, flat: Tensor) -> Tensor:
        """The loss at one flat weight vector."""
        pieces = flat.split([shape.numel() for shape in self._shapes.values()])
        shaped = zip(self._shapes.items(), pieces, strict=True)
        return self._loss({**self._params, **{name: piece.view(shape) for (name, shape), piece in shaped}})
