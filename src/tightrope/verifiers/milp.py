"""Mixed-integer programming: finds the worst input of a small network; branch and bound proves what it claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.deadline import seconds_left, time_is_up, time_limit
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.precision import full_precision
from tightrope.core.spec import Spec, clause_margins
from tightrope.errors import InputError, TimeUpError
from tightrope.verifiers._merge import merge
from tightrope.verifiers._problem import INF, TIMEOUT, Problem, checked, concrete_margins, in_parts, undecided
from tightrope.verifiers._program import Program
from tightrope.verifiers.bab import Bab


@dataclass(frozen=True)
class Milp:
    """Falsified by the input that the program names; verified only if branch and bound proves what the program claims.

    The network on the box becomes a mixed-integer program, with a 0-1 variable for the phase of every unstable neuron,
    that minimises each clause which plain bounds do not prove. HiGHS solves it to a *tolerance*. So an input that
    it finds is evaluated by the network, in the box, and counts if its margin is not positive; and a claim that all
    margins are positive counts as a reason to prove them, no more. A claim without a proof is unknown, and says so.

    Args:
        proof: of what the program claims, or cannot decide; its relaxation bounds the pre-activations, from which the
            big-M constants come.
        neurons: samples with more unstable neurons than this are left undecided.
        timeout: seconds of a sample, of the program and the proof together.
        name: of this stage in outcomes and records.

    Cost: exponential in the unstable neurons at worst; samples one after the other, on a CPU.

    Source: Tjeng, Xiao and Tedrake 2019 (arXiv 1711.07356), section 4.

    Example:
        >>> import tightrope as tr
        >>> net, params = tr.from_module(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU()), (2,))
        >>> box, spec = tr.linf_box(torch.rand(1, 2), 0.1), tr.margin_spec(torch.tensor([0]), 4)
        >>> [outcome] = Milp(timeout=5).verify(net, params, box, spec, generator=torch.Generator())
        >>> outcome.method
        'milp'
    """

    proof: Bab = field(default_factory=lambda: Bab(edges=0))
    neurons: int = 500
    timeout: float = 60.0
    name: str = "milp"

    def __post_init__(self) -> None:
        if not self.timeout >= 0 or self.neurons < 0:
            raise InputError(f"milp needs timeout and neurons >= 0, got {self.timeout} and {self.neurons}.")

    @full_precision()
    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        """One outcome a sample, see :class:`tightrope.core.protocols.Verifier`.

        Raises:
            InputError: a box or spec that does not fit the network.
            UnsupportedLayerError: an op that is not made of two lines that meet at 0.
        """
        problem = checked(network, params, box, spec)
        return in_parts(
            self.name, problem.size, lambda index: [self._in_time(problem.rows([i]), generator) for i in index]
        )

    def _in_time(self, problem: Problem, generator: torch.Generator) -> Outcome:
        try:
            with time_limit(self.timeout):
                return self._decide(problem, generator)
        except TimeUpError:
            return undecided(self.name, self._late())

    def _late(self) -> str:
        return f"{self.name}: {TIMEOUT} of {self.timeout:g} s"

    def _decide(self, problem: Problem, generator: torch.Generator) -> Outcome:
        with torch.no_grad():
            bounds = self.proof.relaxation.bounds(*problem, rigorous=True)
            lowers: list[float] = clause_margins(bounds.margins, problem.spec.clause)[0].tolist()
            program = Program(problem, bounds.pre)
        if not all(map(math.isfinite, lowers)):
            kind = "NaN" if any(map(math.isnan, lowers)) else "infinite"
            return undecided(self.name, f"{self.name}: {kind} bound")
        if program.size > self.neurons:
            reason = f"{self.name}: {program.size} unstable neurons, more than {self.neurons}"
            return Outcome(Verdict.UNKNOWN, min(*lowers, 0.0), INF, self.name, reason=reason)
        claim = self._search(problem, program, [c for c, lower in enumerate(lowers) if not lower > 0])
        if claim.verdict is Verdict.FALSIFIED:
            return claim
        if time_is_up() and min(lowers) <= 0:
            reason = f"{self._late()}; {claim.reason}"
            return Outcome(Verdict.UNKNOWN, min(*lowers, claim.upper), claim.upper, self.name, reason=reason)
        return self._prove(problem, claim, generator)

    def _search(self, problem: Problem, program: Program, clauses: Sequence[int]) -> Outcome:
        """Falsified, or unknown with what the program claims as the reason."""
        lowest, upper = INF, INF
        for clause in clauses:
            if time_is_up():
                lowest = -INF
                break
            answer = program.minimum(clause, seconds_left())
            lowest = min(lowest, answer.lower if answer.complete else -INF)
            if answer.x is None:
                continue
            x = torch.minimum(torch.maximum(answer.x[None], problem.box.lower), problem.box.upper)
            [margin] = concrete_margins(problem, x)
            if margin <= 0 and math.isfinite(margin):
                return Outcome(Verdict.FALSIFIED, -INF, margin, self.name, x[0])
            upper = min(upper, margin) if math.isfinite(margin) else upper
        claim = f"claims a margin of {lowest:g}, which is no proof" if math.isfinite(lowest) else "has no answer"
        return undecided(self.name, f"the program {claim}", upper)

    def _prove(self, problem: Problem, claim: Outcome, generator: torch.Generator) -> Outcome:
        bab = replace(self.proof, timeout=seconds_left(), name=self.name)
        return merge(problem, [claim], bab.verify(*problem, generator=generator))[0]
