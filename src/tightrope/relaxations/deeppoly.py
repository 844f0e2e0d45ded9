"""DeepPoly (CROWN): linear bounds pulled back to the input for every neuron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightrope.core.bounds import Bounds, Interval, Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.spec import Spec
from tightrope.relaxations._backward import backward_bounds
from tightrope.relaxations._slopes import CONTINUOUS, LOWER, Slope, check_slope


@dataclass(frozen=True)
class Deeppoly:
    """Upper lines are the chords; lower lines follow ``slope``. Every pre-activation is bounded by back-substitution.

    Args:
        slope: ``"adaptive"``, 0 where u < -l else 1, as published (jumps where the two are equal); ``"soft"``, the same
            beyond a factor of two and 3 u / (u - l) - 1 between, where -l / 2 < u < -2 l (continuous); ``"parallel"``,
            that of the chord (continuous); ``"zero"``, always flat (jumps where a neuron becomes active).
        sparse: where rounding is bounded too (verifying), neurons that are stable on the intervals which follow from
            the bounds of earlier neurons keep these. They are one line there, so that nothing is lost by wider bounds;
            where intervals see that and back-substitution does not, something is won. Plain bounds do not change.

    Cost: quadratic in depth; one coefficient per neuron (with ``sparse`` per unstable one) and entry of every earlier
    layer.

    Source: Singh et al. 2019 (POPL), section 4; Zhang et al. 2018 (CROWN, arXiv 1811.00866), theorem 3.2.
    """

    slope: Slope = "adaptive"
    sparse: bool = False

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
        return backward_bounds(network, params, box, spec, rule, pre, rigorous=rigorous, sparse=self.sparse)
