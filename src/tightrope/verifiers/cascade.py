"""Verifiers one after the other, cheap ones first."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.precision import full_precision
from tightrope.core.protocols import Verifier
from tightrope.core.spec import Spec
from tightrope.errors import InputError
from tightrope.verifiers._merge import merge, numbered
from tightrope.verifiers._problem import Problem, checked, undecided


@dataclass(frozen=True)
class Cascade:
    """Each stage sees only the samples that the stages before it left undecided.

    Bounds are joined: the largest lower bound, the smallest margin at a concrete input. An attack among the first
    stages therefore also checks the later ones: a proof of more than the attack has already refuted is an error, not a
    verdict.

    Args:
        stages: at least one.
    """

    stages: tuple[Verifier, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError("A cascade needs at least one stage.")

    @full_precision()
    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        """One outcome a sample, of the stage that decided it, see :class:`tightrope.core.protocols.Verifier`.

        Raises:
            InputError: a box or spec that does not fit the network.
            InvariantError: two stages contradict each other, naming the sample's index in the batch.
        """
        problem = checked(network, params, box, spec)
        outcomes = [undecided("", "")] * problem.size
        for stage in self.stages:
            undone = [i for i, outcome in enumerate(outcomes) if outcome.verdict is Verdict.UNKNOWN]
            if undone:
                with numbered(undone):
                    found = _advance(stage, problem.rows(undone), [outcomes[i] for i in undone], generator)
                for i, outcome in zip(undone, found, strict=True):
                    outcomes[i] = outcome
        return outcomes


def _advance(stage: Verifier, problem: Problem, earlier: list[Outcome], generator: torch.Generator) -> list[Outcome]:
    network, params, box, spec = problem
    return merge(problem, earlier, stage.verify(network, params, box, spec, generator=generator))
