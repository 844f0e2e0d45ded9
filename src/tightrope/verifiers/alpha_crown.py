"""DeepPoly with lower slopes that are optimised for each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.precision import full_precision
from tightrope.core.protocols import Relaxation
from tightrope.core.spec import Spec
from tightrope.errors import InputError
from tightrope.relaxations.deeppoly import Deeppoly
from tightrope.verifiers._ascent import Ascent, optimised
from tightrope.verifiers._evidence import Ledger, with_evidence
from tightrope.verifiers._intermediate import Ends, tightened_parts
from tightrope.verifiers._problem import INF, Problem, checked, in_parts, undecided
from tightrope.verifiers._subproblems import Items, Subproblems


@dataclass(frozen=True)
class AlphaCrown:
    """Verified if and only if the best bound found, less its rounding error, is positive.

    Every clause of the property has slopes of its own (and weights of its rows, if it has several), optimised from
    DeepPoly's on. Pre-activation bounds are the relaxation's; for samples that are not proved with these, bounds of
    vectors (not of images, where it does not pay) get slopes of their own. Sound whatever the optimiser does; it never
    falsifies.

    Args:
        relaxation: of the pre-activation bounds.
        steps: gradient steps.
        rate: of the slopes at the first step.
        pre_steps: gradient steps for the pre-activation bounds of samples that are not proved by then.
        name: of this stage in outcomes and records.
        evidence: keep what a proof rests on.

    Cost: the relaxation, and ``steps`` times a back-substitution of one row a clause that is not proved by then, and
    its gradient; and ``pre_steps`` times the same for both ends of every unstable neuron that is tightened. A batch
    that does not fit the memory is halved.

    Source: Xu et al. 2021 (arXiv 2011.13824).

    Example:
        >>> import tightrope as tr
        >>> net, params = tr.from_module(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU()), (2,))
        >>> box, spec = tr.linf_box(torch.rand(1, 2), 0.1), tr.margin_spec(torch.tensor([0]), 4)
        >>> [outcome] = AlphaCrown(steps=5).verify(net, params, box, spec, generator=torch.Generator())
        >>> outcome.method
        'alpha_crown'
    """

    relaxation: Relaxation = field(default_factory=lambda: Deeppoly(sparse=True))
    steps: int = 30
    rate: float = 0.1
    pre_steps: int = 10
    name: str = "alpha_crown"
    evidence: bool = False

    def __post_init__(self) -> None:
        if min(self.steps, self.pre_steps) < 0 or not self.rate > 0:
            raise InputError(
                f"alpha_crown needs steps >= 0, pre_steps >= 0 and rate > 0, got {self.steps}, {self.pre_steps} and "
                f"{self.rate}."
            )

    @full_precision()
    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        """Verified or unknown, one outcome a sample, see :class:`tightrope.core.protocols.Verifier`.

        Raises:
            InputError: a box or spec that does not fit the network.
        """
        problem = checked(network, params, box, spec)
        return in_parts(self.name, problem.size, lambda index: self._decide(problem.rows(index)))

    def _decide(self, problem: Problem) -> list[Outcome]:
        items = Items(problem, self.relaxation)
        found, ends = self._bounded(items)
        lowers: Sequence[float] = found.lower.reshape(items.margins.shape).amin(1).tolist()
        outcomes = [self._outcome(lower) for lower in lowers]
        if not self.evidence:
            return outcomes
        ledger = Ledger(items, self.relaxation)
        for end in ends:
            ledger.keep_ends(end.node, end.sample, end.entry, end.side, end.slopes)
        return with_evidence(outcomes, ledger.keep(found))

    def _bounded(self, items: Items) -> tuple[Subproblems, list[Ends]]:
        """Every clause with its best bound, not finite where the relaxation's is not; and tightened pre-activations."""
        roots, ascent = items.roots(), Ascent(self.steps, self.rate)
        todo = (~(roots.lower > 0) & torch.isfinite(roots.lower)).nonzero()[:, 0]
        if len(todo) == 0:
            return roots, []
        found, ends = tightened_parts(items, optimised(items, roots.rows(todo), ascent), Ascent(self.pre_steps))
        found = optimised(items, found, ascent) if ends else found
        return Subproblems(*(old.index_copy(0, todo, new) for old, new in zip(roots, found, strict=True))), ends

    def _outcome(self, lower: float) -> Outcome:
        if not math.isfinite(lower):
            return undecided(self.name, f"{self.name}: {'NaN' if math.isnan(lower) else 'infinite'} bound")
        if lower > 0:
            return Outcome(Verdict.VERIFIED, lower, INF, self.name)
        return Outcome(Verdict.UNKNOWN, lower, INF, self.name, reason="the lower bound is not positive")
