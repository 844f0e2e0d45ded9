"""The weights that a run ends with, where they are not simply the last: averages, exact statistics, selection."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.network import Network
from tightrope.training.state import State


@dataclass(frozen=True)
class Averaging:
    """An average of the weights on the way.

    Args:
        kind: ``swa``, the mean of all that are taken; ``ema``, an exponential average.
        begin: epoch from which on they are taken.
        every: steps from one to the next.
        decay: share of the exponential average that stays.

    Source: Izmailov et al. 2018 (arXiv 1803.05407), stochastic weight averaging.
    """

    kind: Literal["swa", "ema"]
    begin: float = 0.0
    every: int = 1
    decay: float = 0.999

    def take_in(self, state: State, trainable: Iterable[str], steps_per_epoch: int) -> None:
        """Take in the weights after a step, if it is time."""
        if state.step % self.every or state.step < self.begin * steps_per_epoch:
            return
        share = 1.0 / (state.averaged + 1) if self.kind == "swa" or state.averaged == 0 else 1.0 - self.decay
        for name in trainable:
            average = state.average.setdefault(name, torch.zeros_like(state.params[name]))
            average.lerp_(state.params[name].detach(), share)
        state.averaged += 1


@torch.no_grad()
def exact_statistics(network: Network, params: Params, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The params with batch statistics of a whole set instead of running averages.

    Every batch is normalised by its own statistics, as in training. Of these: the mean of the means, and the unbiased
    variance from the mean of the second moments.

    Args:
        network: the graph.
        params: weights by name.
        batches: samples, (batch, *input shape) each.

    Source: Wu and Johnson 2021 (arXiv 2105.07576), precise BatchNorm.
    """
    count, sums = 0, dict[str, Tensor]()
    nodes = [(node.op.statistics, network.shapes[node.name]) for node in network.nodes if node.op.statistics]
    for x in batches:
        fresh = network.calibrate(params, x)
        count += x.shape[0]
        for keys, _ in nodes:
            mean, var = fresh[keys.mean].double(), fresh[keys.var].double()
            for key, value in ((keys.mean, mean), (keys.var, var + mean**2)):
                sums[key] = sums.get(key, torch.zeros_like(value)) + x.shape[0] * value
    found = dict(params)
    for keys, shape in nodes:
        mean, samples = sums[keys.mean] / count, count * math.prod(shape[1:])
        var = (sums[keys.var] / count - mean**2).clamp(min=0.0) * (samples / max(1, samples - 1))
        found[keys.mean], found[keys.var] = mean.to(params[keys.mean].dtype), var.to(params[keys.var].dtype)
    return found


def keep(state: State, params: Params, loss: float, *, select: bool, arrived: bool, epoch: int) -> None:
    """Keep these weights as those that the run ends with.

    If ``select``, only where their loss on the validation split is smaller than that of all kept since eps has
    ``arrived`` at the end of its ramp; before, the losses are of easier tasks, and the last ones are kept.
    """
    if select and arrived and not loss < state.kept_loss:
        return
    state.kept = {name: value.detach().clone() for name, value in params.items()}
    state.kept_epoch, state.kept_loss = epoch, loss if arrived else math.inf
