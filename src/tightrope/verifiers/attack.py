"""Falsify by searching for a counterexample."""

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
from tightrope.core.protocols import Attack
from tightrope.core.spec import Spec
from tightrope.errors import InputError
from tightrope.verifiers._problem import INF, NEAR_TIE, Margin, Problem, checked, in_parts, margin_bounds, undecided


@dataclass(frozen=True)
class AttackVerifier:
    """Falsified if and only if an attack's input lies in the box and breaks the property when evaluated again.

    The input is projected on the box, and its margin evaluated in float64, whatever the attack says: it must not be
    positive by more than its rounding error. It never verifies; an output of NaN or infinity decides nothing. Several
    attacks come one after the other, each for the samples that those before it have not broken.

    Args:
        attack: the search, or several.
        name: of this stage in outcomes and records.

    Cost: the attacks and one forward pass each in float64; a batch that does not fit the memory is halved.
    """

    attack: Attack | tuple[Attack, ...]
    name: str = "pgd"

    def __post_init__(self) -> None:
        if self.attack == ():
            raise InputError("An attack stage needs at least one attack.")

    @full_precision()
    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        """Falsified or unknown, one outcome a sample, see :class:`tightrope.core.protocols.Verifier`.

        Raises:
            InputError: a box or spec that does not fit the network.
        """
        problem = checked(network, params, box, spec)
        attacks = self.attack if isinstance(self.attack, tuple) else (self.attack,)
        starts = [(attack, attack.noise(box, generator)) for attack in attacks]  # drawn once: halving changes no draw
        return in_parts(self.name, problem.size, lambda index: self._decide(problem, starts, index))

    def _decide(self, problem: Problem, starts: Sequence[tuple[Attack, Tensor]], index: Sequence[int]) -> list[Outcome]:
        """One outcome for each of the samples in ``index``."""
        outcomes: dict[int, Outcome] = {}
        for attack, noise in starts:
            left = [i for i in index if i not in outcomes or outcomes[i].verdict is Verdict.UNKNOWN]
            if left:
                found = self._try(attack, problem.rows(left), noise[:, left])
                outcomes |= {i: _closer(outcomes.get(i), new) for i, new in zip(left, found, strict=True)}
        return [outcomes[i] for i in index]

    def _try(self, attack: Attack, problem: Problem, noise: Tensor) -> list[Outcome]:
        network, params, box, spec = problem
        found = attack.perturb(network, params, box, spec, noise).detach()
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


def _closer(before: Outcome | None, after: Outcome) -> Outcome:
    """The outcome of the smaller margin."""
    return after if before is None or after.upper < before.upper else before
