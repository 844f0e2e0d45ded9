"""A batch of verification problems, and its evaluation at concrete inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.deadline import unlimited
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.spec import Spec, check_spec, worst_margin
from tightrope.errors import InputError, TimeUpError
from tightrope.relaxations.ibp import Ibp

INF = float("inf")
NEAR_TIE = "a margin as close to 0 as rounding errors"
TIMEOUT = "timeout"


class Problem(NamedTuple):
    """What :meth:`tightrope.core.protocols.Verifier.verify` decides, one property and box a sample."""

    network: Network
    params: Params
    box: Box
    spec: Spec

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.box.lower.shape[0]

    def rows(self, index: Sequence[int]) -> Problem:
        """The problems of some of the samples."""
        where = torch.tensor(index, dtype=torch.int64, device=self.box.lower.device)
        box = Box(self.box.lower[where], self.box.upper[where])
        return self._replace(box=box, spec=self.spec.samples(where))


def checked(network: Network, params: Params, box: Box, spec: Spec) -> Problem:
    """The arguments of ``verify`` as one value.

    Raises:
        InputError: the box or the spec does not fit the network, or the box is empty or not finite.
    """
    shape = tuple(box.lower.shape)
    if shape[1:] != network.input_shape or tuple(box.upper.shape) != shape:
        raise InputError(f"The box must be (batch, *{network.input_shape}), got {shape} and {tuple(box.upper.shape)}.")
    finite = torch.isfinite(box.lower) & torch.isfinite(box.upper)
    if not bool((finite & (box.lower <= box.upper)).all()):
        raise InputError("A box needs finite bounds with lower <= upper everywhere. Build it with linf_box.")
    return Problem(network, params, box, check_spec(spec, shape[0], network.num_outputs))


class Margin(NamedTuple):
    """Where the property's margin at an input lies, in real arithmetic on the weights; NaN where nothing is known."""

    lower: float
    upper: float


@unlimited()
def margin_bounds(problem: Problem, x: Tensor) -> list[Margin]:
    """Bounds of the property's margin at one input a sample, in float64 whatever the dtype of the problem.

    The interval pass over a box of one point, rounded outwards: the network's value and a bound of its rounding error.

    Args:
        problem: of batch n.
        x: (n, *input shape).
    """
    spec, x = problem.spec, x.double()
    params = {name: v.double() if v.is_floating_point() else v for name, v in problem.params.items()}
    matrix, offset = spec.matrix.double(), spec.offset.double()
    both = Spec(torch.cat([matrix, -matrix], 1), torch.cat([offset, -offset], 1), spec.clause * 2)
    with torch.no_grad():
        lower, negated = Ibp().bounds(problem.network, params, Box(x, x), both, rigorous=True).margins.chunk(2, 1)
        ends = (worst_margin(rows, spec.clause).tolist() for rows in (lower, -negated))
    return [Margin(*pair) for pair in zip(*ends, strict=True)]


def concrete_margins(problem: Problem, x: Tensor) -> list[float]:
    """The upper ends of :func:`margin_bounds`: not positive only where the property does not hold at the input."""
    return [margin.upper for margin in margin_bounds(problem, x)]


def inside(box: Box, x: Tensor) -> bool:
    """Whether every sample lies in its box; NaN does not."""
    return x.shape == box.lower.shape and bool(((x >= box.lower) & (x <= box.upper)).all())


def undecided(name: str, reason: str, upper: float = INF) -> Outcome:
    """An outcome that claims no lower bound."""
    return Outcome(Verdict.UNKNOWN, -INF, upper, name, reason=reason)


def in_parts(name: str, size: int, decide: Callable[[Sequence[int]], list[Outcome]]) -> list[Outcome]:
    """Decide a batch; where that fails for numerical or memory reasons, its halves, down to single samples.

    So a batch that is too large for the memory is still decided, and one bad sample costs only its own verdict. What is
    not decided when the time is up is unknown.

    Args:
        name: of the verifier.
        size: samples in the batch.
        decide: from the positions of some of them to their outcomes.
    """
    outcomes: list[Outcome] = []
    waiting = [range(size)] if size else []
    while waiting:
        index = waiting.pop()
        found = _attempt(name, index, decide)
        if found is None:
            half = len(index) // 2
            waiting += [index[half:], index[:half]]
        else:
            outcomes += found
    return outcomes


def _attempt(name: str, index: range, decide: Callable[[Sequence[int]], list[Outcome]]) -> list[Outcome] | None:
    try:
        return decide(index)
    except TimeUpError:
        return [undecided(name, f"{name}: {TIMEOUT}")] * len(index)
    except NotImplementedError:  # an unsupported layer is no numerical trouble, though a RuntimeError
        raise
    except (RuntimeError, MemoryError, ArithmeticError, SystemError) as error:  # SystemError: torch.func out of memory
        if len(index) > 1:
            return None
        return [undecided(name, f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")]
