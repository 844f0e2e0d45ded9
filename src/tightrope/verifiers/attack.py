"""Falsify by searching for a counterexample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.precision import full_precision
from tightrope.core.protocols import Attack
from tightrope.core.spec import Spec
from tightrope.verifiers._problem import INF, NEAR_TIE, Margin, Problem, checked, in_parts, margin_bounds, undecided


@dataclass(frozen=True)
class AttackVerifier:
    """Falsified if and only if the attack's input lies in the box and breaks the property when evaluated again.

    The input is projected on the box, and its margin evaluated in float64, whatever the attack says: it must not be
    positive by more than its rounding error. It never verifies; an output of NaN or infinity decides nothing.

    Args:
        attack: the search.
        name: of this stage in outcomes and records.

    Cost: the attack and one forward pass in float64; a batch that does not fit the memory is halved.
    """

    attack: Attack
    name: str = "pgd"

    @full_precision()
    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        """Falsified or unknown, one outcome a sample, see :class:`tightrope.core.protocols.Verifier`.

        Raises:
            InputError: a box or spec that does not fit the network.
        """
        problem = checked(network, params, box, spec)
        noise = self.attack.noise(box, generator)  # for the whole batch: halving it changes no draw
        return in_parts(self.name, problem.size, lambda index: self._decide(problem.rows(index), noise[:, list(index)]))

    def _decide(self, problem: Problem, noise: Tensor) -> list[Outcome]:
        network, params, box, spec = problem
        found = self.attack.perturb(network, params, box, spec, noise).detach()
        found = torch.minimum(torch.maximum(found, box.lower), box.upper)
        margins = margin_bounds(problem, found)
        return [self._outcome(margin, x) for margin, x in zip(margins, found, strict=True)]

    def _outcome(self, margin: Margin, x: Tensor) -> Outcome:
        lower, upper = margin
        if not math.isfinite(upper):
            return undecided(self.name, f"{self.name}: NaN or infinite output")
        if upper <= 0:
            return Outcome(Verdict.FALSIFIED, -INF, upper, self.name, counterexample=x.clone())
        return undecided(self.name, NEAR_TIE if lower <= 0 else "no counterexample found", upper=upper)
