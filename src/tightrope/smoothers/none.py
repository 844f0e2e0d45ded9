"""No smoothing: the plain gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tightrope.core.bounds import Params
from tightrope.core.protocols import GradEstimate, Losses, SmootherState, Std
from tightrope.core.ranks import ALONE, Ranks
from tightrope.smoothers._population import losses_of


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
    shares_pairs: ClassVar[bool] = False

    @property
    def evaluations(self) -> int:
        """Losses evaluated, and differentiated, per step."""
        return 1

    def init(self, params: Params, trainable: tuple[str, ...]) -> SmootherState:
        """See :meth:`tightrope.core.protocols.Smoother.init`."""
        return SmootherState(trainable)

    def estimate(
        self,
        loss: Losses,
        params: Params,
        state: SmootherState,
        *,
        std: Std = 0.0,
        generator: torch.Generator | None = None,
        ranks: Ranks = ALONE,
    ) -> GradEstimate:
        """See :meth:`tightrope.core.protocols.Smoother.estimate`."""
        leaves = {name: params[name].detach().requires_grad_() for name in state.trainable}
        losses = losses_of(loss)
        found = [each({**params, **leaves}) for each in losses]
        value = torch.stack([each for each, _ in found]).mean()
        grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        means = {name: torch.stack([metrics[name] for _, metrics in found]).detach() for name in found[0][1]}
        metrics = {name: each.mean() if len(losses) > 1 else each[0] for name, each in means.items()}
        return GradEstimate(value.detach(), dict(zip(leaves, grads, strict=True)), metrics, state)
