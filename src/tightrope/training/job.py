"""What a run is told, and what does not change during it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.compiled import Backend, Compiled, StepLoss
from tightrope.core.network import Network
from tightrope.core.precision import Precision
from tightrope.core.protocols import Batch, LossFn, Smoother, TrainingMethod
from tightrope.core.ranks import ALONE, Ranks
from tightrope.core.spec import Spec
from tightrope.data._loader import Samples
from tightrope.methods._regularizers import Penalty
from tightrope.schedules import Schedule
from tightrope.smoothers._population import Population, at_once
from tightrope.smoothers.none import Unsmoothed
from tightrope.training.accumulation import accumulated, pieces
from tightrope.training.averaging import Averaging
from tightrope.training.noise_policy import NoisePolicy
from tightrope.training.state import Meter, State


@dataclass(frozen=True)
class Job:
    """Everything that does not change during a run. Positions of schedules are epochs, fractions included.

    Attributes:
        params: the initial weights.
        make_spec: from labels to the property that each sample should have.
        eps: training radius, input units.
        std: of the smoother's noise, while it is in use.
        eps_test: radius of the validation surrogate.
        clip_norm: largest gradient norm; 0 for no clipping.
        flip, pad: augmentation by mirroring and by shifts of up to ``pad`` pixels.
        accumulate: pieces that the loss of a batch is computed in, one after the other.
        smoothed_epochs: that the smoother is in use; plain gradients follow.
        averaging: of the weights on the way; the run then ends with the average.
        exact_statistics: recompute batch statistics over the training split after every epoch.
        select: end with the epoch of smallest validation loss.
        label_smoothing: of the losses at points.
        backend: of ``torch.compile``, which then compiles the losses of a step; None to run them as they are.
        precision: of float32 products.
        noise: which tensors get noise, and in which units ``std`` is.
        parts: disjoint parts of a mini-batch over which the members are spread, each with statistics of its own.
        max_dropped: share of a step's pairs that may have a loss that is not finite; more stop the run.
        diagnose_every: steps between two looks at what a step does; 0 for none.
        ranks: the processes that train together. They share the pairs, or else the images, of every step.
    """

    network: Network
    params: Params
    method: TrainingMethod
    smoother: Smoother
    penalty: Penalty
    train: Samples
    validation: Samples | None
    make_spec: Callable[[Tensor], Spec]
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    eps: Schedule
    lr: Schedule
    std: Schedule
    eps_test: float
    eps_ramp_end: float
    epochs: int
    batch_size: int
    clip_norm: float
    flip: bool
    pad: int
    seed: int
    accumulate: int = 1
    smoothed_epochs: float = math.inf
    averaging: Averaging | None = None
    exact_statistics: bool = False
    select: bool = False
    label_smoothing: float = 0.0
    backend: Backend | None = None
    precision: Precision = "highest"
    noise: NoisePolicy = field(default_factory=NoisePolicy)
    parts: int = 1
    max_dropped: float = 0.25
    diagnose_every: int = 0
    ranks: Ranks = ALONE

    @property
    def steps_per_epoch(self) -> int:
        """The last batch of an epoch may be smaller."""
        return math.ceil(self.train.size / self.batch_size)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def smoothed_steps(self) -> int:
        """Those that the smoother is in use."""
        return math.ceil(min(self.smoothed_epochs, self.epochs) * self.steps_per_epoch)

    def smoother_at(self, step: int) -> Smoother:
        """What estimates the gradient of a step."""
        return self.smoother if step < self.smoothed_steps else Unsmoothed()

    def std_at(self, step: int) -> float:
        """The std of a step; 0 where it is not smoothed any more."""
        return self.std(step / self.steps_per_epoch) if step < self.smoothed_steps else 0.0

    def evaluations(self, steps: int) -> int:
        """Losses of a mini-batch that so many steps from the first evaluate."""
        smoothed = min(steps, self.smoothed_steps)
        return smoothed * self.smoother.evaluations + (steps - smoothed) * Unsmoothed().evaluations

    def fading(self, radius: float) -> float:
        """How much of the ramp is left at a radius: 1 at its start, 0 from its end on."""
        return max(0.0, 1.0 - radius / self.eps_ramp_end) if self.eps_ramp_end > 0 else 0.0

    @cached_property
    def loss_at(self) -> Callable[..., LossFn]:
        """``loss_at(batch, eps, draws)`` is the method's loss of a batch, with statistics recomputed at the params.

        ``draws`` are those of each of the pieces that the batch is divided in.
        """

        def loss(params: Params, batch: Batch, eps: Tensor, draws: tuple[Params, ...]) -> tuple[Tensor, Metrics]:
            parts = pieces(batch, len(draws))

            def of_piece(params: Params, piece: int) -> tuple[Tensor, Metrics]:
                return self.method.loss(self.network, params, parts[piece], eps, draws[piece])

            sizes = [part.x.shape[0] for part in parts]
            return accumulated(of_piece, _calibrated(self.network, params, batch), sizes)

        return self._at_inputs(loss)

    @cached_property
    def penalty_at(self) -> Callable[..., LossFn]:
        """``penalty_at(batch, eps, fading)`` is the penalty of a batch."""

        def loss(params: Params, batch: Batch, eps: Tensor, fading: Tensor | None) -> tuple[Tensor, Metrics]:
            return self.penalty.loss(self.network, _calibrated(self.network, params, batch), batch, eps, fading)

        return self._at_inputs(loss)

    def _at_inputs(self, loss: StepLoss) -> Callable[..., LossFn]:
        if self.backend is not None:
            return Compiled(loss, self.backend)
        return lambda *inputs: lambda params: loss(params, *inputs)

    def new_state(self) -> State:
        """The state before the first step."""
        params = {name: value.detach().clone() for name, value in self.params.items()}
        optimizer = self.optimizer([params[name] for name in self.network.trainable])
        population = self.smoother if isinstance(self.smoother, Population) else None
        chunk = None if population is None else min(population.pairs, at_once(population.chunk))
        return State(params, optimizer, self.smoother.init(params, self.network.trainable), Meter(), chunk)


def _calibrated(network: Network, params: Params, batch: Batch) -> Params:
    return network.calibrate(params, batch.x) if network.has_statistics else params
