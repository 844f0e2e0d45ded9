"""Branch and bound: complete for networks of piecewise linear ops."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from tightrope.attacks.pgd import Pgd
from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.deadline import time_limit
from tightrope.core.network import Network
from tightrope.core.op import ElementwiseOp
from tightrope.core.outcome import Outcome
from tightrope.core.precision import full_precision
from tightrope.core.protocols import Attack, Relaxation
from tightrope.core.spec import Spec
from tightrope.errors import InputError, TimeUpError
from tightrope.relaxations._symbolic import SymbolicIntervals
from tightrope.relaxations.deeppoly import Deeppoly
from tightrope.verifiers._ascent import Ascent, optimised
from tightrope.verifiers._evidence import Ledger, with_evidence
from tightrope.verifiers._intermediate import tightened_parts
from tightrope.verifiers._leaf import solutions
from tightrope.verifiers._problem import INF, Problem, checked, concrete_margins, in_parts
from tightrope.verifiers._queue import Queue
from tightrope.verifiers._subproblems import Items, Lagrangian, Subproblems, joined
from tightrope.verifiers.branching._split import Branching
from tightrope.verifiers.branching.filtered import Filtered
from tightrope.verifiers.branching.longest_edge import LongestEdge

_DECAY = ((15, 0.3), (28, 0.3))
_ENTRIES = 2**23  # of all neurons of the subproblems that are bounded together
_BOXES = 2  # times as many boxes are bounded together as subproblems whose bounds are optimised
_ROUNDS = 8  # rounds of the search from attack to attack
_SHARE = 0.2  # of a sample's time for its pre-activation bounds
_STARTS = 8  # of each sample's attack
_SHALLOW = 3  # non-linear layers
_NEARLY_ALL = 0.95


@dataclass(frozen=True)
class Bab:
    """Verified if every subproblem of a cover of the box has a positive bound, falsified by an input found on the way.

    After an attack and optimised bounds of every clause, subproblems are cut in two, by the sign of a neuron or through
    the middle of their box, until each is decided: by its bound (beta-CROWN), by an input that breaks the property, or,
    where no neuron is unstable, by a linear program, of which the multipliers are evaluated as any others are. A bound
    is positive only if it is so by more than a bound of its rounding error. What is left open is unknown: near-ties and
    what does not fit the limits.

    The subproblems of all samples are in one queue. A batch takes the worst ones of each open sample, as many of one as
    of another.

    Args:
        attack: tried first, and from the inputs where bounds of open subproblems are attained.
        relaxation: of pre-activation bounds.
        branching: where to cut.
        edges: networks with at most so many inputs are cut through their boxes instead, without gradient steps; shallow
            ones with up to twice as many where nearly every neuron is unstable, as on boxes that are no neighbourhoods.
        timeout: seconds of a sample. Samples share the time of a batch by their subproblems, so that n of them may take
            n times as long.
        batch_size: subproblems bounded together, twice as many where boxes are cut; fewer in large networks, and
            halved where they do not fit the memory.
        memory_gib: for open subproblems. When it is used up, those closest to a proof come first, which needs no more.
        root_steps: gradient steps for a whole clause.
        pre_steps: gradient steps for the pre-activation bounds of samples of which some clause is not proved by then.
        steps: gradient steps for a subproblem.
        name: of this stage in outcomes and records.
        evidence: keep what a proof rests on.

    Cost: exponential in the unstable neurons at worst.

    Source: Wang et al. 2021 (beta-CROWN, arXiv 2103.06624); Bunel et al. 2020 (JMLR 21).

    Example:
        >>> import tightrope as tr
        >>> net, params = tr.from_module(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU()), (2,))
        >>> box, spec = tr.linf_box(torch.rand(1, 2), 0.1), tr.margin_spec(torch.tensor([0]), 4)
        >>> [outcome] = Bab(timeout=5).verify(net, params, box, spec, generator=torch.Generator())
        >>> outcome.method
        'bab'
    """

    attack: Attack = field(default_factory=lambda: Pgd(restarts=2, steps=40, decay=_DECAY, loss="margin"))
    relaxation: Relaxation = field(default_factory=lambda: Deeppoly(sparse=True))
    branching: Branching = field(default_factory=Filtered)
    edges: int = 8
    timeout: float = 60.0
    batch_size: int = 256
    memory_gib: float = 2.0
    root_steps: int = 30
    pre_steps: int = 10
    steps: int = 12
    name: str = "bab"
    evidence: bool = False

    def __post_init__(self) -> None:
        if not (self.timeout >= 0 and self.memory_gib > 0):
            raise InputError(f"bab needs timeout >= 0 and memory_gib > 0, got {self.timeout} and {self.memory_gib}.")
        if self.batch_size < 1 or min(self.root_steps, self.pre_steps, self.steps, self.edges) < 0:
            raise InputError(
                f"bab needs batch_size >= 1, root_steps, pre_steps, steps and edges >= 0, got {self.batch_size}, "
                f"{self.root_steps}, {self.pre_steps}, {self.steps} and {self.edges}."
            )

    def on_parts(self, network: Network) -> Relaxation:
        """What bounds the parts of cut boxes: forwards where that is fast and loses little, several times as many.

        With evidence it is what an audit recomputes.
        """
        return SymbolicIntervals() if is_shallow(network) and not self.evidence else self.relaxation

    @full_precision()
    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        """One outcome a sample, see :class:`tightrope.core.protocols.Verifier`.

        Raises:
            InputError: a box or spec that does not fit the network.
        """
        problem = checked(network, params, box, spec)
        noise = self.attack.noise(box, generator)
        return in_parts(self.name, problem.size, lambda index: self._decide(problem.rows(index), noise[:, list(index)]))

    def _decide(self, problem: Problem, noise: Tensor) -> list[Outcome]:
        neurons = sum(math.prod(problem.network.shapes[name]) for name in problem.network.pre_activations)
        batch_size = min(self.batch_size, max(1, _ENTRIES // (neurons or 1)))
        queue = Queue(problem.size, self.timeout, batch_size, int(self.memory_gib * 2**30))
        network, params, box, spec = problem
        search = _Search(problem, queue, self)
        with queue.charged(torch.arange(problem.size)):
            search.judge(self.attack.perturb(network, params, box, spec, noise), range(problem.size))
            search.begin()
        while (part := queue.take()) is not None:
            search.advance(part)
        outcomes = [progress.outcome(self.name) for progress in queue.samples]
        return with_evidence(outcomes, search.ledger) if self.evidence else outcomes


def is_shallow(network: Network) -> bool:
    """Whether symbolic intervals lose little."""
    return sum(isinstance(node.op, ElementwiseOp) for node in network.nodes) <= _SHALLOW


class _Search:
    """What happens to the subproblems of a batch of problems."""

    def __init__(self, problem: Problem, queue: Queue, options: Bab) -> None:
        self._problem, self._queue, self._options = problem, queue, options
        self._rounds = 0  # of tried inputs

    @cached_property
    def _cuts_edges(self) -> bool:
        """Whether boxes are cut, and not at neurons."""
        inputs, edges = math.prod(self._problem.network.input_shape), self._options.edges
        if inputs <= edges or inputs > 2 * edges or not is_shallow(self._problem.network):
            return inputs <= edges
        unstable = self._items.neurons.unstable(self._items.roots().pre)
        return bool(unstable.double().mean() > _NEARLY_ALL)

    @cached_property
    def _items(self) -> Items:
        options = self._options
        return Items(self._problem, options.relaxation, on_parts=options.on_parts(self._problem.network))

    @cached_property
    def ledger(self) -> Ledger:
        """The evidence, if asked for."""
        return Ledger(self._items, self._options.relaxation)

    def judge(self, x: Tensor, sample: Sequence[int]) -> list[float]:
        """The margins at inputs, each projected on the box of its sample."""
        problem = self._problem.rows(sample)
        x = torch.minimum(torch.maximum(x.detach(), problem.box.lower), problem.box.upper)
        margins = concrete_margins(problem, x)
        for i, margin, point in zip(sample, margins, x, strict=True):
            self._queue.samples[i].saw(margin, point)
        return margins

    def begin(self) -> None:
        """Open every clause of every sample that is not decided yet, with its optimised bound."""
        samples = self._queue.samples
        try:
            items, roots = self._items, self._items.roots()
        except TimeUpError:
            for progress in samples:
                progress.settle(-INF, self._queue.timeout)
            return
        if self._cuts_edges:
            self._queue.batch_size = _BOXES * self._options.batch_size
        for progress, margin in zip(samples, items.margins.amin(1).tolist(), strict=True):
            if not math.isfinite(margin):
                progress.settle(-INF, f"{'NaN' if math.isnan(margin) else 'infinite'} bound")
        unknown = _of_items(items, [not progress.reason for progress in samples])
        todo = unknown & _of_items(items, [p.counterexample is None for p in samples]) & ~(roots.lower > 0)
        self._add(roots.rows(unknown & ~todo))
        part = self._tightened(optimised(items, roots.rows(todo), Ascent(self._options.root_steps)))
        try:
            self._bound(part, self._options.root_steps)
        except TimeUpError:
            self._add(part)

    def _tightened(self, part: Subproblems) -> Subproblems:
        """Whole clauses that are not proved yet, with optimised bounds of their neurons, in a part of the time."""
        if self._cuts_edges:
            return part
        open_samples = self._items.sample[part.item[~(part.lower > 0)]].unique()
        with time_limit(_SHARE * self._options.timeout * len(open_samples)):
            part, found = tightened_parts(self._items, part, Ascent(self._options.pre_steps))
        if self._options.evidence:
            for ends in found:
                self.ledger.keep_ends(ends.node, ends.sample, ends.entry, ends.side, ends.slopes)
        return part

    def advance(self, part: Subproblems) -> None:
        """Decide the subproblems, or put what they are cut into in their place."""
        sample = self._items.sample[part.item]
        try:
            with self._queue.charged(sample):
                self._cut(part)
        except TimeUpError:
            self._queue.add(sample, part)
        except NotImplementedError:  # an unsupported layer is no numerical trouble, though a RuntimeError
            raise
        except (RuntimeError, MemoryError, ArithmeticError) as error:
            if part.size > 1:
                self._queue.batch_size = part.size // 2
                self._queue.add(sample, part)
            else:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                self._queue.samples[int(sample)].settle(float(part.lower), reason)

    def _cut(self, part: Subproblems) -> None:
        neurons = self._items.neurons
        unstable = neurons.unstable(part.pre)
        leaf, at_neuron = ~unstable.any(1), (unstable & neurons.splittable).any(1) & (not self._cuts_edges)
        children = [
            branching.children(Lagrangian(self._items, part.rows(where)))
            for branching, where in ((self._options.branching, at_neuron), (LongestEdge(), ~leaf & ~at_neuron))
            if bool(where.any())
        ]
        if children:
            self._bound(joined(children), 0 if self._cuts_edges else self._options.steps)
        for row in leaf.nonzero()[:, 0]:
            self._solve(part.rows(row[None]))

    def _bound(self, part: Subproblems, steps: int) -> None:
        """Optimise bounds, try the inputs where they are attained, and put what is left into the queue."""
        part = optimised(self._items, part, Ascent(steps))
        left = part.rows(~(part.lower > 0))
        if left.size:
            self._attack(left)
        self._add(part)

    def _add(self, part: Subproblems) -> None:
        """Proved ones are evidence, others wait for their turn."""
        self._queue.add(self._items.sample[part.item], part)
        if self._options.evidence:
            self.ledger.keep(part)

    def _attack(self, part: Subproblems) -> None:
        """Try the inputs where the bounds are attained; in some rounds start the attack at the best ones."""
        bound = Lagrangian(self._items, part).single()
        x = bound.minimisers(bound.part.variables)[0].to(part.box_lower)
        sample = self._items.sample[part.item].tolist()
        margins = self.judge(x, sample)
        self._rounds += 1
        if self._rounds % _ROUNDS != 1:
            return
        starts = _least(sample, margins, _STARTS)
        owners = [sample[row] for row in starts]
        network, params, box, spec = self._problem.rows(owners)
        noise = (x[starts] - box.lower) / (box.upper - box.lower)
        found = self._options.attack.perturb(network, params, box, spec, noise.nan_to_num(0.0).clamp(0.0, 1.0)[None])
        self.judge(found, owners)

    def _solve(self, leaf: Subproblems) -> None:
        sample = int(self._items.sample[leaf.item])
        progress, lower = self._queue.samples[sample], float(leaf.lower)
        try:
            for found, x in solutions(Lagrangian(self._items, leaf)):
                self.judge(x, [sample])
                lower = max(lower, float(found.lower.nan_to_num(-INF)))
                if self._options.evidence:
                    self.ledger.keep(found)
                if lower > 0 or progress.counterexample is not None:
                    progress.settle(lower)
                    return
        except TimeUpError:
            self._queue.add(self._items.sample[leaf.item], leaf)
            return
        progress.settle(lower, "a linear piece of the network comes as close to 0 as rounding errors")


def _least(sample: Sequence[int], margins: Sequence[float], count: int) -> list[int]:
    """The ``count`` rows of each sample that have the least margins."""
    taken: Counter[int] = Counter()
    found = []
    for row in sorted(range(len(sample)), key=margins.__getitem__):
        if taken[sample[row]] < count:
            taken[sample[row]] += 1
            found.append(row)
    return found


def _of_items(items: Items, values: Sequence[bool]) -> Tensor:
    """What is true of samples, by item."""
    return torch.tensor(values, dtype=torch.bool, device=items.sample.device)[items.sample]
