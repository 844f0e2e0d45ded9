"""What each kind of plug-in provides. A plug-in is one public frozen dataclass that fits one of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tightrope.core.bounds import Bounds, Interval, Metrics, Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome
from tightrope.core.ranks import ALONE, Ranks
from tightrope.core.spec import Spec

LossFn = Callable[[Params], tuple[Tensor, Metrics]]
"""A pure function of the params: a scalar and the scalars it reports."""

Losses = LossFn | Sequence[LossFn]
"""One loss, or several whose mean is the loss: those of disjoint parts of a mini-batch."""

Std = float | Mapping[str, float]
"""Standard deviation of the weight noise: one for all trainable tensors, or one each (absent or 0 = untouched)."""


class Batch(NamedTuple):
    """Samples in [0, 1] with the property each should have.

    Attributes:
        x: (batch, *input shape).
        spec: the property of each sample's output.
        label_smoothing: share of the label that all classes divide among them, in losses at points.
    """

    x: Tensor
    spec: Spec
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class SmootherState:
    """What a smoother carries from step to step.

    Attributes:
        trainable: keys of the params that it perturbs and differentiates.
        tensors: its own memory by name; checkpointed.
    """

    trainable: tuple[str, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class GradEstimate(NamedTuple):
    """What a smoother returns.

    Attributes:
        value: estimate of the smoothed loss, a scalar.
        grad: estimate of its gradient by name, in autograd units (never multiplied by a power of the std).
        metrics: scalars, the mean over the evaluated losses' own metrics included.
        state: to be handed to the next call.
    """

    value: Tensor
    grad: dict[str, Tensor]
    metrics: Metrics
    state: SmootherState


class Relaxation(Protocol):
    """Sound bounds of a network over a box.

    Attributes:
        continuous: whether the margins depend continuously on the weights.
    """

    @property
    def continuous(self) -> bool: ...

    def bounds(
        self,
        network: Network,
        params: Params,
        box: Box,
        spec: Spec,
        *,
        pre: Mapping[str, Interval] | None = None,
        rigorous: bool = False,
    ) -> Bounds:
        """Bounds that hold for every input in the box.

        Args:
            network: the graph.
            params: weights by name.
            box: input bounds, (batch, *input shape).
            spec: rows about the output, (batch, rows, outputs).
            pre: pre-activation bounds from elsewhere by node name, taken as they are instead of computed.
            rigorous: also bound the rounding errors of the computation: what is returned then holds for real
                arithmetic on the weights, if ``pre`` does. Verifiers ask for that; it is not for training.

        Returns:
            Lower bounds of the rows, (batch, rows), and the pre-activation bounds they rest on. NaN and infinity pass
            through: they never become a finite bound.
        """
        ...


class Smoother(Protocol):
    """An estimator of the gradient of E[loss(params + std z)], z standard normal on the trainable params.

    Attributes:
        needs_gradient: whether it differentiates the loss with respect to the params.
        needs_noise: whether a std of 0 is refused.
        shares_pairs: whether processes that work on one run share its pairs; otherwise they share the mini-batch.
        evaluations: losses evaluated per step, forward, and backward too where it needs the gradient.
    """

    @property
    def needs_gradient(self) -> bool: ...

    @property
    def needs_noise(self) -> bool: ...

    @property
    def shares_pairs(self) -> bool: ...

    @property
    def evaluations(self) -> int: ...

    def init(self, params: Params, trainable: tuple[str, ...]) -> SmootherState:
        """The state before the first call."""
        ...

    def estimate(
        self,
        loss: Losses,
        params: Params,
        state: SmootherState,
        *,
        std: Std,
        generator: torch.Generator,
        ranks: Ranks = ALONE,
    ) -> GradEstimate:
        """Estimate value and gradient at ``params``.

        Args:
            loss: a pure function of params; or several, over which the members are spread, the same number on each.
            params: weights by name; not changed.
            state: from :meth:`init` or the call before.
            std: of the noise, in the units of the weights.
            generator: every draw of the call is determined by it, on every process alike.
            ranks: the processes that share the pairs, if it shares them; all of them get the same estimate.

        Returns:
            The estimate. Members whose loss is not finite are left out, with their pair; the metric ``dropped`` is
            their share, and without any member left the estimate is NaN.

        Raises:
            InputError: a std that is negative, NaN, or 0 where noise is needed.
        """
        ...


class TrainingMethod(Protocol):
    """A training loss as a pure function.

    Attributes:
        robust: whether it looks beyond the clean inputs.
    """

    @property
    def robust(self) -> bool: ...

    def draws(
        self, network: Network, batch: Batch, eps: Tensor, generator: torch.Generator, *, fading: float = 0.0
    ) -> dict[str, Tensor]:
        """What one evaluation needs beside its batch, once per step: all randomness, such as an attack's start noise.

        Args:
            network: the graph; weights are not known yet.
            batch: the samples.
            eps: radius, a scalar tensor.
            generator: of all draws.
            fading: how much of the ramp of eps is left: 1 at its start, 0 from its end on. A method that changes on the
                way may leave a key out, or hand the number on as a tensor.
        """
        ...

    def loss(
        self, network: Network, params: Params, batch: Batch, eps: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """The loss of a batch at radius ``eps`` (a scalar tensor, input units), a scalar, and what it reports.

        Metrics: ``natural_loss``, ``natural_accuracy``, and for robust methods ``surrogate_loss`` and
        ``surrogate_accuracy``: those of the training surrogate, which is not a certificate. No other name may claim
        robustness: not ``robust``, ``adversarial``, ``certified`` nor ``verified``.
        """
        ...


class Attack(Protocol):
    """A search for inputs in a box that break a property."""

    def noise(self, box: Box, generator: torch.Generator) -> Tensor:
        """Start noise: uniform in [0, 1], (restarts, batch, *input shape)."""
        ...

    def perturb(self, network: Network, params: Params, box: Box, spec: Spec, noise: Tensor) -> Tensor:
        """The worst inputs found, in the box, (batch, *input shape). Not differentiated."""
        ...


class Verifier(Protocol):
    """A decision about each sample of a batch."""

    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        """One outcome per sample; never raises for numerical trouble, which ends as unknown."""
        ...
