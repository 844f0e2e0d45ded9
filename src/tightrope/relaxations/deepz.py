"""DeepZ: parallel lines, the zonotope of least area."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tightrope.core.bounds import Bounds, Interval, Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.spec import Spec
from tightrope.relaxations import _slopes
from tightrope.relaxations._backward import backward_bounds


@dataclass(frozen=True)
class Deepz:
    """A crossing neuron lies between two lines of the slope u / (u - l) of its chord, the lower one through 0.

    Computed by back-substitution with parallel lines, which gives the bounds of the forward zonotope (also known as
    CAP and Fast-Lin). Continuous in the weights.

    Cost: as :class:`~tightrope.relaxations.deeppoly.Deeppoly`.

    Source: Singh et al. 2018 (NeurIPS), equation 2; Wong and Kolter 2018; Weng et al. 2018.
    """

    continuous: ClassVar[bool] = True

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
        return backward_bounds(network, params, box, spec, _slopes.parallel, pre, rigorous=rigorous)
