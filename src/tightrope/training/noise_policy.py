"""How much noise each tensor gets: the std of a step, in units of the weights or of what they are expected to be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from tightrope.core.bounds import Params
from tightrope.core.network import Network
from tightrope.core.protocols import Std

Unit = Literal["absolute", "weight", "fan_in"]


class _Role(NamedTuple):
    """What a tensor is to its layer.

    Attributes:
        leader: the tensor whose scale counts: the layer's kernel, or the scale of a normalisation.
    """

    name: str
    leader: str
    kind: Literal["kernel", "bias", "normalisation"]


@dataclass(frozen=True)
class NoisePolicy:
    """Which tensors get noise, and in which units.

    Args:
        unit: ``absolute``: the std is that of the noise. ``weight``: it is a share of the root mean square of the
            layer's kernel now (for a bias too), so that noise and weights keep their proportion. ``fan_in``: it is
            divided by the root of the number of inputs of a neuron, as initial weights are.
        biases: whether biases get noise.
        normalisation: whether scale and shift of normalisations get noise.

    Tensors without noise are trained by their averaged gradient; PGPE, which has none, leaves them as they are.
    """

    unit: Unit = "absolute"
    biases: bool = True
    normalisation: bool = True

    def std(self, value: float, network: Network, params: Params) -> Std:
        """The std by tensor, 0 for none; or the value itself where it is that of all tensors.

        Waits for the device where the unit is ``weight``.
        """
        if self == NoisePolicy():
            return value
        chosen = [role for role in _roles(network, params) if self._takes(role)]
        scales = self._scales([role.leader for role in chosen], params)
        return {role.name: value * scale for role, scale in zip(chosen, scales, strict=True)}

    def _takes(self, role: _Role) -> bool:
        return {"kernel": True, "bias": self.biases, "normalisation": self.normalisation}[role.kind]

    def _scales(self, leaders: list[str], params: Params) -> list[float]:
        if self.unit == "fan_in":
            return [1.0 / math.sqrt(params[name][0].numel()) if params[name].ndim > 1 else 1.0 for name in leaders]
        if self.unit == "weight" and leaders:
            squares = [params[name].detach().double().square().mean() for name in leaders]
            found: list[float] = torch.stack(squares).sqrt().tolist()
            return found
        return [1.0] * len(leaders)


def _roles(network: Network, params: Params) -> Iterator[_Role]:
    """Every trainable tensor once, in the order of the layers."""
    seen: set[str] = set()
    for node in network.nodes:
        names = [key for key in vars(node.op).values() if isinstance(key, str) and key in network.trainable]
        normalises = node.op.statistics is not None
        for name in names:
            if name not in seen:
                seen.add(name)
                own = "kernel" if params[name].ndim > 1 else "bias"
                yield _Role(name, names[0], "normalisation" if normalises else own)  # type: ignore[arg-type]


def noise_norm(std: Std, params: Params, trainable: tuple[str, ...]) -> float:
    """The root of the expected squared norm of the noise."""
    sizes = {name: params[name].numel() for name in trainable}
    if not isinstance(std, float | int):
        return math.sqrt(sum(sizes[name] * value**2 for name, value in std.items()))
    return std * math.sqrt(sum(sizes.values()))
