"""The worst margin over a box, between a proof and an input, by asking a verifier again and again."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.outcome import Verdict
from tightrope.core.protocols import Attack, Verifier
from tightrope.core.spec import Spec, evaluate, worst_margin
from tightrope.relaxations.deeppoly import Deeppoly
from tightrope.verifiers._problem import Problem

_WIDE = 1.001  # times the tolerance: what rounding may add to a bracket of that width


class Bracket(NamedTuple):
    """Where the worst margin of each sample lies, (batch,): above a proved bound, below the margin of an input."""

    lower: Tensor
    upper: Tensor


def worst_margins(
    network: Network,
    params: Params,
    box: Box,
    spec: Spec,
    *,
    attack: Attack,
    verifier: Verifier,
    tolerance: float,
    generator: torch.Generator,
) -> Bracket:
    """Bisection on the margin: is it above t everywhere in the box?

    Starts from DeepPoly's bound and an attack. The first question is whether the attack is right up to the tolerance.

    Args:
        attack: ends the bracket from above, at first.
        verifier: answers; where it does not know, the bracket stays as wide as it is.
        tolerance: the width at which a bracket is narrow enough.

    Returns:
        The brackets: no wider than the tolerance where the verifier decided everything.

    Raises:
        InputError: a box or spec that does not fit the network.
    """
    problem = Problem(network, params, box, spec)
    with torch.no_grad():
        rows = Deeppoly().bounds(network, params, box, spec, rigorous=True).margins
        lower = worst_margin(rows, spec.clause)
        upper = _margins(problem, attack.perturb(network, params, box, spec, attack.noise(box, generator)))
    known, question = ~torch.isfinite(lower), upper - tolerance
    while len(index := ((upper - lower > _WIDE * tolerance) & ~known).nonzero()[:, 0]):
        part = problem.rows(index.tolist())
        asked = part.spec._replace(offset=part.spec.offset - question[index, None])
        outcomes = verifier.verify(network, params, part.box, asked, generator=generator)
        for i, outcome in zip(index.tolist(), outcomes, strict=True):
            if outcome.counterexample is None:
                proved = float(question[i]) + min(outcome.lower, 0.0)
                lower[i], known[i] = max(float(lower[i]), proved), outcome.verdict is Verdict.UNKNOWN
            else:
                upper[i] = _margins(problem.rows([i]), outcome.counterexample[None].to(upper))[0]
        question = (lower + upper) / 2
    return Bracket(lower, upper)


def _margins(problem: Problem, x: Tensor) -> Tensor:
    network, params, _, spec = problem
    return worst_margin(evaluate(spec, network(params, x)), spec.clause)
