"""What heuristics share: the cut at a neuron, and first-order estimates of what it would gain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tightrope.core.bounds import Lines
from tightrope.verifiers._subproblems import Lagrangian, Subproblems, joined


class Branching(Protocol):
    """A heuristic."""

    def children(self, bound: Lagrangian) -> Subproblems:
        """Two subproblems for each of ``bound.part``, which together cover it: all first halves, then all second ones.

        Every subproblem has an unstable neuron that is splittable. The children have its variables and its bound.
        """
        ...


def split_at(part: Subproblems, neuron: Tensor) -> Subproblems:
    """Cut each subproblem by the sign of one neuron, (batch,)."""
    here = F.one_hot(neuron, part.signs.shape[1]).to(part.signs.dtype)
    lower = torch.where(here > 0, part.pre_lower.clamp(min=0.0), part.pre_lower)
    upper = torch.where(here > 0, part.pre_upper.clamp(max=0.0), part.pre_upper)
    above = part._replace(pre_lower=lower, signs=part.signs + here)
    return joined([above, part._replace(pre_upper=upper, signs=part.signs - here)])


def candidates(bound: Lagrangian) -> Tensor:
    """Neurons that may be split, (batch, neurons)."""
    neurons = bound.items.neurons
    return neurons.unstable(bound.part.pre) & neurons.splittable


class Estimates(NamedTuple):
    """First-order changes of a bound, each (batch, neurons).

    Attributes:
        above, below: if the lines of that neuron alone became those of the child where it is >= 0, or <= 0.
        offset: what the offset of its upper line costs.
    """

    above: Tensor
    below: Tensor
    offset: Tensor


def estimates(bound: Lagrangian) -> Estimates:
    """What splitting each neuron would gain, by one gradient with respect to all lines."""
    part = bound.part
    now = {name: _complete(lines) for name, lines in bound.lines(part.slopes).items()}
    with torch.enable_grad():
        flat = [value.detach().requires_grad_() for lines in now.values() for value in lines]
        leaves = dict(zip(now, map(Lines._make, _fours(flat)), strict=True))
        value = bound.with_lines(leaves, part.variables).sum()
    found = torch.autograd.grad(value, flat, allow_unused=True, materialize_grads=True)
    grads = dict(zip(now, _fours(found), strict=True))

    def change(lines: Mapping[str, Lines]) -> Tensor:
        moves = {
            name: [g * (new - old) for g, new, old in zip(grads[name], _complete(lines[name]), now[name], strict=True)]
            for name in now
        }
        return _by_neuron(bound, {name: torch.stack(parts).sum(0) for name, parts in moves.items()})

    above = Lagrangian(bound.items, part._replace(pre_lower=part.pre_lower.clamp(min=0.0)))
    below = Lagrangian(bound.items, part._replace(pre_upper=part.pre_upper.clamp(max=0.0)))
    offset = {name: grads[name][3] * lines.upper_bias for name, lines in leaves.items()}
    return Estimates(change(above.lines(part.slopes)), change(below.lines(part.slopes)), -_by_neuron(bound, offset))


def _complete(lines: Lines) -> tuple[Tensor, ...]:
    slope, offset, upper_slope, upper_offset = lines
    return slope, torch.zeros_like(slope) if offset is None else offset, upper_slope, upper_offset


def _fours(values: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    return (values[i : i + 4] for i in range(0, len(values), 4))


def _by_neuron(bound: Lagrangian, values: Mapping[str, Tensor]) -> Tensor:
    """Values by non-linear node, added up at the neurons they belong to."""
    total: dict[str, Tensor] = {}
    for node in bound.network.nodes:
        if node.name in values:
            name = node.inputs[0]
            total[name] = total[name] + values[node.name] if name in total else values[node.name]
    return bound.items.neurons.of(total, bound.part.size)
