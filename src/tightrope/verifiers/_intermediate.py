"""Pre-activation bounds with slopes that are optimised for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tightrope.core.bounds import Interval
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.spec import Spec
from tightrope.errors import TimeUpError
from tightrope.relaxations.deeppoly import Deeppoly
from tightrope.verifiers._ascent import Ascent, optimised
from tightrope.verifiers._problem import Problem
from tightrope.verifiers._subproblems import Items, Subproblems

_ENTRIES = 2**23  # of all neurons of the ends that are optimised together


class Ends(NamedTuple):
    """Ends of a node's intervals with all that their bounds are computed from.

    Attributes:
        node: its name.
        sample: of each end, (ends,).
        entry: of the node, (ends,).
        side: 1 for lower ends and -1 for upper ones, (ends,).
        lower: bounds of ``side * entry``, (ends,).
        slopes: the tilts of the lower lines that give them, by pre-activation, (ends, *shape).
    """

    node: str
    sample: Tensor
    entry: Tensor
    side: Tensor
    lower: Tensor
    slopes: dict[str, Tensor]


def tightened(items: Items, sample: Tensor, ascent: Ascent) -> tuple[Interval, list[Ends]]:
    """The neurons' bounds for samples, (n,), with optimised ends of unstable neurons, (n, neurons), and their proofs.

    An end of a neuron is the property ``side * z + end > 0`` of the network that ends there, so it is bounded as any
    other: with slopes of its own. Layers follow in order, each on the tightened bounds of those before, until the time
    is up. Only vectors are tightened: the windows of images are small, where that gains little and costs most.

    Cost: ``ascent.steps`` back-substitutions of one row for each unstable end, and their gradients.

    Source: Xu et al. 2021 (alpha-CROWN, arXiv 2011.13824), section 3.2.
    """
    problem = items.problem.rows(sample.tolist())
    pre = items.neurons.intervals(sample, Interval(*(end[sample] for end in items.neurons.pre())))
    found: list[Ends] = []
    for name in _nodes(problem.network):
        for rows in _unstable(pre[name], sum(end[0].numel() for end, _ in pre.values())):
            try:
                ends = _optimised(problem, pre, name, rows, ascent)
            except TimeUpError:
                break
            pre[name] = _with(pre[name], ends)
            found.append(ends._replace(sample=sample[ends.sample]))
    lower, upper = ({name: interval[side] for name, interval in pre.items()} for side in (0, 1))
    return Interval(items.neurons.of(lower, len(sample)), items.neurons.of(upper, len(sample))), found


def tightened_parts(items: Items, part: Subproblems, ascent: Ascent) -> tuple[Subproblems, list[Ends]]:
    """Whole clauses with :func:`tightened` bounds of their neurons, where they are not proved yet."""
    left = ~(part.lower > 0)
    if ascent.steps == 0 or not bool(left.any()):
        return part, []
    which, row = items.sample[part.item][left].unique(return_inverse=True)
    (lower, upper), found = tightened(items, which, ascent)
    pre_lower, pre_upper = part.pre_lower.clone(), part.pre_upper.clone()
    pre_lower[left], pre_upper[left] = lower[row], upper[row]
    return part._replace(pre_lower=pre_lower, pre_upper=pre_upper), found


def _nodes(network: Network) -> Iterator[str]:
    """The pre-activations that are worth it."""
    for name in network.pre_activations:
        if len(network.shapes[name]) == 1 and name not in network.exact_intervals:
            yield name


def _unstable(pre: Interval, neurons: int) -> Iterator[Tensor]:
    """Samples and entries, (2, rows), in pieces that do not take too much memory."""
    rows = ((pre.lower < 0) & (pre.upper > 0)).nonzero().T
    return (part for part in rows.split(max(1, _ENTRIES // (2 * neurons)), 1) if part.numel())


def _optimised(problem: Problem, pre: Mapping[str, Interval], name: str, rows: Tensor, ascent: Ascent) -> Ends:
    """Both ends of entries of a node."""
    sample, entry = rows.repeat(1, 2)
    side = torch.ones_like(entry).index_fill(0, torch.arange(rows.shape[1], 2 * rows.shape[1]), -1)
    network = problem.network.up_to(name)
    matrix = F.one_hot(entry, network.num_outputs) * side[:, None]
    spec = Spec(matrix[:, None].to(problem.spec.matrix), problem.spec.offset.new_zeros(len(entry), 1), (0,))
    box = Box(*(end[sample] for end in problem.box))
    given = {before: Interval(*(end[sample] for end in pre[before])) for before in network.pre_activations}
    clauses = Items(Problem(network, problem.params, box, spec), Deeppoly(), given)
    part: Subproblems = optimised(clauses, clauses.roots(), ascent)
    return Ends(name, sample, entry, side, part.lower, clauses.neurons.on_nodes(part.slopes))


def _with(pre: Interval, ends: Ends) -> Interval:
    """Intervals with the ends where these are better; NaN is not."""
    flat = (ends.sample, ends.entry)
    below, above = ends.side > 0, ends.side < 0
    lower, upper = torch.full_like(pre.lower, -torch.inf), torch.full_like(pre.upper, torch.inf)
    lower[tuple(i[below] for i in flat)] = ends.lower[below]
    upper[tuple(i[above] for i in flat)] = -ends.lower[above]
    return Interval(torch.fmax(pre.lower, lower), torch.fmin(pre.upper, upper))
