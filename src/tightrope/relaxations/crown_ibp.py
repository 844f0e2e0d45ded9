"""CROWN-IBP: pre-activation bounds by intervals, margins by one backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightrope.core.bounds import Bounds, Interval, Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.spec import Spec
from tightrope.relaxations._backward import backward_bounds
from tightrope.relaxations._interval import forward_intervals
from tightrope.relaxations._slopes import CONTINUOUS, LOWER, Slope, check_slope


@dataclass(frozen=True)
class CrownIbp:
    """IBP's pre-activation bounds and one back-substitution of the margins, without the mixing of its training recipe.

    Args:
        slope: rule of the lower lines, as for :class:`~tightrope.relaxations.deeppoly.Deeppoly`.

    Cost: two forward passes and one backward pass of as many rows as the spec has. Not always at least as tight as IBP.

    Source: Zhang et al. 2020 (arXiv 1906.06316), section 3.
    """

    slope: Slope = "adaptive"

    def __post_init__(self) -> None:
        check_slope(self.slope)

    @property
    def continuous(self) -> bool:
        """Whether the margins depend continuously on the weights."""
        return self.slope in CONTINUOUS

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
        """Bounds of the spec's rows and of every pre-activation, see :class:`tightrope.core.protocols.Relaxation`."""
        rule = LOWER[self.slope]
        if pre is not None and all(name in pre for name in network.pre_activations):
            return backward_bounds(network, params, box, spec, rule, pre, rigorous=rigorous)
        forward = forward_intervals(network, params, box, pre=pre, rigorous=rigorous)
        return backward_bounds(network, params, box, spec, rule, forward.intervals, forward, rigorous=rigorous)
