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
from tightrope.verifiers._problem import INF, Problem, checked, in_parts, undecided
from tightrope.verifiers._subproblems import Items, Subproblems


@dataclass(frozen=True)
class AlphaCrown:
    """Verified if and only if the best bound found, less its rounding error, is positive.

    Every clause of the property has slopes of its own (and weights of its rows, if it has several), optimised from
    DeepPoly's on. Pre-activation bounds are the relaxation's. Sound whatever the optimiser does; it never falsifies.

    Args:
        relaxation: of the pre-activation bounds.
        steps: gradient steps.
        rate: of the slopes at the first step.
        name: of this stage in outcomes and records.
        evidence: keep what a proof rests on.

    Cost: the relaxation, and ``steps`` times a back-substitution of one row a clause that is not proved by then, and
    its gradient. A batch that does not fit the memory is halved.

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
    name: str = "alpha_crown"
    evidence: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0 or not self.rate > 0:
            raise InputError(f"alpha_crown needs steps >= 0 and rate > 0, got {self.steps} and {self.rate}.")

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
        found = optimised_roots(items, Ascent(self.steps, self.rate))
        lowers: Sequence[float] = found.lower.reshape(items.margins.shape).amin(1).tolist()
        outcomes = [self._outcome(lower) for lower in lowers]
        return with_evidence(outcomes, Ledger(items, self.relaxation).keep(found)) if self.evidence else outcomes

    def _outcome(self, lower: float) -> Outcome:
        if not math.isfinite(lower):
            return undecided(self.name, f"{self.name}: {'NaN' if math.isnan(lower) else 'infinite'} bound")
        if lower > 0:
            return Outcome(Verdict.VERIFIED, lower, INF, self.name)
        return Outcome(Verdict.UNKNOWN, lower, INF, self.name, reason="the lower bound is not positive")


def optimised_roots(items: Items, ascent: Ascent) -> Subproblems:
    """Every clause with its optimised bound; not finite where the relaxation's is not."""
    roots = items.roots()
    todo = (~(roots.lower > 0) & torch.isfinite(roots.lower)).nonzero()[:, 0]
    if len(todo):
        found = optimised(items, roots.rows(todo), ascent)
        roots = Subproblems(*(old.index_copy(0, todo, new) for old, new in zip(roots, found, strict=True)))
    return roots
