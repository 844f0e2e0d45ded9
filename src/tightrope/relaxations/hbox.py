"""hBox, the hybrid zonotope: linear where stable, a fresh box where crossing."""

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
class Hbox:
    """A neuron that cannot cross 0 keeps its linear form; one that can becomes the fresh interval [0, u].

    Computed by back-substitution with the constant lines 0 and u, which gives the bounds of the forward zonotope. Jumps
    where a pre-activation bound passes 0.

    Cost: as :class:`~tightrope.relaxations.deeppoly.Deeppoly`.

    Source: Mirman et al. 2018 (ICML), the hybrid zonotope; Jovanovic et al. 2022 (TMLR).
    """

    continuous: ClassVar[bool] = False

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
        return backward_bounds(network, params, box, spec, _slopes.constant, pre, rigorous=rigorous)
