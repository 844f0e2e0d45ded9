"""Interval bound propagation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tightrope.core.bounds import Bounds, Interval, Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.spec import Spec
from tightrope.relaxations._backward import Engine
from tightrope.relaxations._interval import forward_intervals
from tightrope.relaxations._rounding import to_intervals


@dataclass(frozen=True)
class Ibp:
    """Every node lies in an interval computed from those of its inputs: cheapest and loosest.

    An affine map of [c - r, c + r] is [A c + b - |A| r, A c + b + |A| r]. The affine layers after the last non-linear
    one are merged with the spec's rows, which is never looser than bounding the outputs first.

    Cost: two forward passes.

    Source: Gowal et al. 2018 (arXiv 1810.12715); Mirman et al. 2018, the Box domain.

    Example:
        >>> import torch, tightrope as tr
        >>> net, params = tr.from_module(torch.nn.Linear(2, 2), (2,))
        >>> box = tr.linf_box(torch.rand(3, 2), 0.1)
        >>> Ibp().bounds(net, params, box, tr.margin_spec(torch.tensor([0, 1, 0]), 2)).margins.shape
        torch.Size([3, 1])
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
        forward = forward_intervals(network, params, box, pre=pre, rigorous=rigorous)
        engine = Engine(network, params, forward)
        if rigorous:
            engine.rounding = to_intervals(network, params, forward)
        margins = engine.spec_bounds(spec)
        return Bounds(margins, {name: forward.intervals[name] for name in network.pre_activations})
