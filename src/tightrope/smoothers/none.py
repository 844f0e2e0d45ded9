"""No smoothing: the plain gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tightrope.core.bounds import Params
from tightrope.core.protocols import GradEstimate, LossFn, SmootherState, Std


@dataclass(frozen=True)
class Unsmoothed:
    """The gradient of the loss itself, by automatic differentiation. ``std`` is not used.

    Example:
        >>> smoother = Unsmoothed()
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> loss = lambda p: ((p["w"] ** 2).sum(), {})
        >>> smoother.estimate(loss, params, smoother.init(params, ("w",)), std=0.0, generator=None).grad["w"]
        tensor([2., 4.])
    """

    needs_gradient: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = False

    def init(self, params: Params, trainable: tuple[str, ...]) -> SmootherState:
        """See :meth:`tightrope.core.protocols.Smoother.init`."""
        return SmootherState(trainable)

    def estimate(
        self,
        loss: LossFn,
        params: Params,
        state: SmootherState,
        *,
        std: Std = 0.0,
        generator: torch.Generator | None = None,
    ) -> GradEstimate:
        """See :meth:`tightrope.core.protocols.Smoother.estimate`."""
        leaves = {name: params[name].detach().requires_grad_() for name in state.trainable}
        value, metrics = loss({**params, **leaves})
        grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        return GradEstimate(
            value.detach(),
            dict(zip(leaves, grads, strict=True)),
            {name: metric.detach() for name, metric in metrics.items()},
            state,
        )
