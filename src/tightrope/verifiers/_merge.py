"""Joining what several verifiers found about the same samples, and refusing what cannot be true together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tightrope.core.bounds import Interval
from tightrope.core.network import INPUT
from tightrope.core.op import AffineOp, ElementwiseOp
from tightrope.core.outcome import Outcome, Verdict
from tightrope.errors import InvariantError
from tightrope.verifiers._problem import Problem, concrete_margins, inside

_ROUNDING = 64  # in units of the last place of the largest number that bounds and margins are summed up from


class ContradictionError(InvariantError):
    """Two claims about one sample that cannot both be true.

    Attributes:
        position: of the sample.
        detail: what contradicts what.
    """

    def __init__(self, position: int, detail: str) -> None:
        self.position, self.detail = position, detail
        super().__init__(
            f"Sample {position}: {detail} One of the two is wrong, so that no result of this kind can be trusted. "
            "This is a bug in Tightrope or in a plug-in: please report it."
        )


@contextmanager
def numbered(positions: Sequence[int]) -> Iterator[None]:
    """Contradictions inside are about rows of a batch; outside they name those rows' own positions."""
    try:
        yield
    except ContradictionError as error:
        raise ContradictionError(positions[error.position], error.detail) from error


def merge(problem: Problem, earlier: Sequence[Outcome], later: Sequence[Outcome]) -> list[Outcome]:
    """What is known after a further verifier: the larger lower bound, the smaller upper bound.

    Args:
        problem: what both are about.
        earlier: undecided so far.
        later: of the verifier that came after.

    Raises:
        ContradictionError: a lower bound above the margin at a concrete input by more than rounding explains, or a
            counterexample that is outside the box or none. InvariantError: not one outcome a sample.
    """
    if len(later) != problem.size:
        raise InvariantError(f"A verifier returned {len(later)} outcomes for {problem.size} samples.")
    for position, (before, after) in enumerate(zip(earlier, later, strict=True)):
        _check_counterexample(problem, position, after)
        _check_order(problem, position, before, after)
    return [_join(before, after) for before, after in zip(earlier, later, strict=True)]


def _join(before: Outcome, after: Outcome) -> Outcome:
    upper = min(before.upper, after.upper)
    lower = min(max(before.lower, after.lower), upper)  # above it by rounding only, see _check_order
    reason = "; ".join(dict.fromkeys(part for part in (before.reason, after.reason) if part))
    if after.verdict is Verdict.FALSIFIED:
        return Outcome(Verdict.FALSIFIED, lower, upper, after.method, after.counterexample)
    if lower > 0:
        return Outcome(Verdict.VERIFIED, lower, upper, after.method, evidence=after.evidence)
    return Outcome(Verdict.UNKNOWN, lower, upper, after.method, reason=reason or "positive up to rounding only")


def _check_order(problem: Problem, position: int, before: Outcome, after: Outcome) -> None:
    lower, upper = max(before.lower, after.lower), min(before.upper, after.upper)
    if lower > upper and lower - upper > rounding(problem.rows([position])):
        claims = before.method if before.lower >= after.lower else after.method
        found = before.method if before.upper <= after.upper else after.method
        raise ContradictionError(
            position,
            f"{claims} claims a margin of at least {lower:g}, but {found} found an input in the box with {upper:g}.",
        )


def _check_counterexample(problem: Problem, position: int, outcome: Outcome) -> None:
    if outcome.counterexample is None:
        return
    one, x = problem.rows([position]), outcome.counterexample[None]
    if not inside(one.box, x):
        raise ContradictionError(position, f"the counterexample of {outcome.method} is not in the box.")
    margin = concrete_margins(one, x)[0]
    if not (margin <= 0 or margin <= rounding(one)):  # NaN is no counterexample either
        raise ContradictionError(position, f"{outcome.method} claims a counterexample; the margin there is {margin:g}.")


def rounding(problem: Problem) -> float:
    """A generous estimate of how far bounds and margins of one sample can differ by rounding alone.

    The last place, times a constant, of the largest sum of absolute values that the network and the spec can form over
    the box: ``|spec| |W_n| ... |W_1| |x|``, which also bounds what cancels on the way.
    """
    outputs = magnitudes(problem)[problem.network.output]
    rows = torch.einsum("bro,bo->br", problem.spec.matrix.abs(), outputs)
    return unit_roundoff(rows.dtype) * float((rows + problem.spec.offset.abs()).max())


def unit_roundoff(dtype: torch.dtype) -> float:
    """The rounding error of a bound as a share of the absolute values that it sums up."""
    return _ROUNDING * torch.finfo(dtype).eps


def magnitudes(problem: Problem) -> dict[str, Tensor]:
    """The largest sum of absolute values that can form at every node over the box, (batch, *shape) by name."""
    sizes = {INPUT: torch.maximum(problem.box.lower.abs(), problem.box.upper.abs())}
    with torch.no_grad():
        for node in problem.network.nodes:
            sizes[node.name] = _size(problem, node.op, [sizes[name] for name in node.inputs])
    return sizes


def _size(problem: Problem, op: object, inputs: list[Tensor]) -> Tensor:
    if isinstance(op, AffineOp):
        grown, bias = op.linear_abs(problem.params, *inputs), op.bias(problem.params)
        return grown if bias is None else grown + bias.abs()
    assert isinstance(op, ElementwiseOp)
    lower, upper = op.interval(Interval(-inputs[0], inputs[0]))
    return torch.maximum(lower.abs(), upper.abs())
