"""One bound, one answer: verified where a relaxation's bound is positive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.precision import full_precision
from tightrope.core.protocols import Relaxation
from tightrope.core.spec import Spec, worst_margin
from tightrope.errors import InvariantError
from tightrope.verifiers._evidence import whole_box
from tightrope.verifiers._problem import INF, Problem, checked, in_parts, undecided


@dataclass(frozen=True)
class OneShot:
    """Verified if and only if the relaxation's lower bound of the property's margin is finite and positive.

    Sound as the relaxation is, its rounding errors included. It never falsifies.

    Args:
        relaxation: what bounds the margins.
        name: of this stage in outcomes and records.
        evidence: keep what a proof rests on.

    Cost: one call of the relaxation; a batch that does not fit the memory is halved.

    Example:
        >>> import tightrope as tr
        >>> net, params = tr.from_module(torch.nn.Linear(2, 2), (2,))
        >>> box, spec = tr.linf_box(torch.rand(1, 2), 0.0), tr.margin_spec(torch.tensor([0]), 2)
        >>> verifier = OneShot(tr.relaxation("ibp"), "ibp")
        >>> [outcome] = verifier.verify(net, params, box, spec, generator=torch.Generator())
        >>> outcome.method
        'ibp'
    """

    relaxation: Relaxation
    name: str
    evidence: bool = False

    @full_precision()
    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        """Verified or unknown, one outcome a sample, see :class:`tightrope.core.protocols.Verifier`.

        Raises:
            InputError: a box or spec that does not fit the network. InvariantError: bounds of another shape.
        """
        problem = checked(network, params, box, spec)
        return in_parts(self.name, problem.size, lambda index: self._decide(problem.rows(index)))

    def _decide(self, problem: Problem) -> list[Outcome]:
        with torch.no_grad():
            network, params, box, spec = problem
            rows = self.relaxation.bounds(network, params, box, spec, rigorous=True).margins
            if rows.shape != problem.spec.offset.shape:
                raise InvariantError(
                    f"{self.name} must return margins of shape {tuple(problem.spec.offset.shape)}, got "
                    f"{tuple(rows.shape)}."
                )
            lowers: Sequence[float] = worst_margin(rows, problem.spec.clause).tolist()
        return [self._outcome(lower, row, problem.spec) for lower, row in zip(lowers, rows, strict=True)]

    def _outcome(self, lower: float, rows: Tensor, spec: Spec) -> Outcome:
        if math.isnan(lower):
            return undecided(self.name, f"{self.name}: NaN bound")
        if lower == INF:  # only an overflow looks like that
            return undecided(self.name, f"{self.name}: infinite bound")
        if lower > 0:
            evidence = whole_box(self.relaxation, rows, spec.clause) if self.evidence else None
            return Outcome(Verdict.VERIFIED, lower, INF, self.name, evidence=evidence)
        return Outcome(Verdict.UNKNOWN, lower, INF, self.name, reason="the lower bound is not positive")
