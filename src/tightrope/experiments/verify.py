"""One property of one network: from files to a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tightrope.attacks.pgd import Pgd
from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.deadline import now, seconds_left, time_is_up, time_limit, unlimited
from tightrope.core.network import Network
from tightrope.core.noise import derived_generator
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.spec import Spec
from tightrope.errors import InputError, MissingExtraError, TimeUpError
from tightrope.experiments.evidence import Evidence, close, new_folder
from tightrope.frontend.onnx import from_onnx
from tightrope.frontend.onnx_runtime import run_onnx
from tightrope.frontend.vnnlib import Problem, Property, outward_box, read_property
from tightrope.relaxations.crown_ibp import CrownIbp
from tightrope.relaxations.ibp import Ibp
from tightrope.verifiers._problem import TIMEOUT
from tightrope.verifiers._problem import Problem as Decided
from tightrope.verifiers.attack import AttackVerifier
from tightrope.verifiers.bab import Bab
from tightrope.verifiers.cascade import Cascade
from tightrope.verifiers.one_shot import OneShot

FEW_INPUTS = 8
"""Up to here boxes are cut, beyond it the signs of neurons."""
_TOGETHER = 64


class _Counterexample(NamedTuple):
    """Inputs that break the problem of that number, and the outcome with them in float64."""

    number: int
    inputs: tuple[Fraction, ...]
    outcome: Outcome


@dataclass(frozen=True)
class Verification:
    """The verdict on a property.

    Attributes:
        verdict: VERIFIED, FALSIFIED or UNKNOWN.
        reason: of UNKNOWN.
        timed_out: whether only more time could tell.
        inputs: of a counterexample, exact and in the box.
        outputs: of the network there.
        replay: what onnxruntime says about the counterexample.
        seconds: that it took.
    """

    verdict: Verdict
    reason: str = ""
    timed_out: bool = False
    inputs: tuple[Fraction, ...] = ()
    outputs: tuple[float, ...] = ()
    replay: str = ""
    seconds: float = 0.0

    def counterexample(self) -> str:
        """The counterexample in VNN-LIB form, ``((X_0 0.5)\\n(Y_0 -1.0))``; "" without one."""
        values = [f"(X_{i} {_decimal(value)})" for i, value in enumerate(self.inputs)]
        values += [f"(Y_{i} {value!r})" for i, value in enumerate(self.outputs)]
        return f"({chr(10).join(values)})" if values else ""


def verify(
    source: Path | str | tuple[Network, Params],
    prop: Path | str | Property,
    *,
    timeout: float = 60.0,
    memory_gib: float = 2.0,
    seed: int = 0,
    evidence: Path | str | None = None,
) -> Verification:
    """Decide whether a network has a property, in float64: attack, bounds, then branch and bound.

    A counterexample lies in the exact box of the file, and its outputs are unsafe in real arithmetic: rounding errors
    are bounded, and near-ties are UNKNOWN. Where the network is a file and onnxruntime is installed, that evaluates it
    too (in the file's own precision): if its outputs are others, the verdict is UNKNOWN.

    Args:
        source: an ONNX file, or a network and its params.
        prop: a VNN-LIB file, or what :func:`tightrope.frontend.vnnlib.read_property` returns.
        timeout: seconds in all, reading included.
        memory_gib: for open subproblems of branch and bound.
        seed: of the attack's starts.
        evidence: a new folder for certificates, of every box that is proved or of the one that is broken, and for the
            network; see :func:`tightrope.audit`.

    Raises:
        MissingExtraError: a file is given and the package onnx is not installed.
        InputError, MissingDataError, CorruptDataError, UnsupportedLayerError: what cannot be read, a property of
            another number of inputs or outputs, and a folder for evidence that holds something.
        InvariantError: results that contradict each other.

    Example:
        >>> tr.verify("net.onnx", "property.vnnlib", timeout=30).verdict  # doctest: +SKIP
    """
    begin = now()
    if not (math.isfinite(timeout) and timeout > 0 and math.isfinite(memory_gib) and memory_gib > 0):
        raise InputError(f"timeout and memory must be positive, got {timeout} s and {memory_gib} GiB.")
    folder = None if evidence is None else new_folder(evidence)
    try:
        with time_limit(timeout):
            found = _verify(source, prop, memory_gib, seed, timeout, folder)
    except TimeUpError:
        found = Verification(Verdict.UNKNOWN, TIMEOUT, timed_out=True)
    return replace(found, seconds=now() - begin)


def _verify(
    source: Path | str | tuple[Network, Params],
    given: Path | str | Property,
    memory_gib: float,
    seed: int,
    timeout: float,
    folder: Path | None,
) -> Verification:
    prop = given if isinstance(given, Property) else read_property(given)
    network, params = source if isinstance(source, tuple) else from_onnx(source)
    _check_fit(network, prop)
    params = {name: value.double() if value.is_floating_point() else value for name, value in params.items()}
    kept = None
    if folder is not None:
        kept = Evidence.begin(folder, source, given, network, params, len(prop.problems))
    search = _Search(network, params, prop, memory_gib, seed, kept)
    found = search.run()
    if found is None:
        return search.conclusion(timeout)
    replay, agrees = _replay(source, network, params, found.inputs)
    if not agrees:
        return Verification(Verdict.UNKNOWN, replay)
    search.keep(found.number, found.outcome)
    y = tuple(evaluate(network, params, found.inputs))
    return Verification(Verdict.FALSIFIED, inputs=found.inputs, outputs=y, replay=replay)


def _check_fit(network: Network, prop: Property) -> None:
    inputs = math.prod(network.input_shape)
    if (inputs, network.num_outputs) != (prop.inputs, prop.outputs):
        raise InputError(
            f"The network has {inputs} inputs and {network.num_outputs} outputs, the property is about {prop.inputs} "
            f"and {prop.outputs}. Is it the property of another network?"
        )


class _Search:
    """Which of the problems of a property are decided, and how the others ended."""

    def __init__(
        self, network: Network, params: Params, prop: Property, memory_gib: float, seed: int, kept: Evidence | None
    ) -> None:
        self._network, self._params, self._prop = network, params, prop
        self._memory_gib, self._kept = memory_gib, kept
        self._generator = derived_generator(torch.device("cpu"), seed, "verify")
        self._open = list(range(len(prop.problems)))
        self._reason = ""

    def run(self) -> _Counterexample | None:
        """A counterexample, exact; None if there is none among what was found in time.

        Cheap verifiers see all problems before branch and bound sees the first, which gives each an equal share of the
        time, and what is left of it to those that needed more.
        """
        one_shot = OneShot(CrownIbp(), "crown_ibp", evidence=self._kept is not None)
        cheap = Cascade((AttackVerifier(Pgd(restarts=2, steps=20, loss="margin")), one_shot))
        for part in self._batches():
            if time_is_up():
                return None
            if found := self._decide(cheap, part):
                return found
        share = 0.0
        bab = Bab(edges=FEW_INPUTS, memory_gib=self._memory_gib, evidence=self._kept is not None)
        while self._open and seconds_left() > 1.5 * share * len(self._open):
            share = seconds_left() / len(self._open)
            for part in self._batches():
                if time_is_up():
                    return None
                verifier = replace(bab, timeout=min(share, seconds_left() / len(part)))
                if found := self._decide(verifier, part):
                    return found
        return None

    def conclusion(self, timeout: float) -> Verification:
        """The verdict without a counterexample."""
        if not self._open:
            return Verification(Verdict.VERIFIED)
        late = seconds_left() <= 0.05 * timeout
        reason = TIMEOUT if late or not self._reason else self._reason
        count = len(self._prop.problems)
        reason += f"; {len(self._open)} of {count} boxes are open" * (count > 1)
        return Verification(Verdict.UNKNOWN, reason, timed_out=late)

    def keep(self, number: int, outcome: Outcome) -> None:
        """Write the certificate of a problem, if there is evidence to keep."""
        if self._kept is not None:
            boxes, specs = _stacked([self._prop.problems[number]], self._network)
            self._kept.keep(number, Decided(self._network, self._params, boxes, specs), outcome)

    def _batches(self) -> Iterator[list[int]]:
        """Open problems whose specs have the same clauses, some at a time."""
        clauses = {i: tuple(map(len, self._prop.problems[i].unsafe)) for i in self._open}
        for _, group in groupby(sorted(self._open, key=lambda i: (clauses[i], i)), key=clauses.__getitem__):
            members = list(group)
            yield from (members[start : start + _TOGETHER] for start in range(0, len(members), _TOGETHER))

    def _decide(self, verifier: Cascade | Bab, part: Sequence[int]) -> _Counterexample | None:
        problems = [self._prop.problems[i] for i in part]
        boxes, specs = _stacked(problems, self._network)
        outcomes = verifier.verify(self._network, self._params, boxes, specs, generator=self._generator)
        for i, problem, outcome in zip(part, problems, outcomes, strict=True):
            if outcome.verdict is Verdict.VERIFIED:
                self._open.remove(i)
                self.keep(i, outcome)
            elif outcome.verdict is Verdict.FALSIFIED:
                x = _exact(problem, outcome)
                if problem.box.contains(x) and self._is_unsafe(problem, x):
                    point = torch.tensor([float(value) for value in x], dtype=torch.float64)
                    return _Counterexample(
                        i, x, replace(outcome, counterexample=point.reshape(self._network.input_shape))
                    )
                self._reason = "the worst inputs are counterexamples up to rounding only"
            else:
                self._reason = outcome.reason
        return None

    @unlimited()
    def _is_unsafe(self, problem: Problem, x: Sequence[Fraction]) -> bool:
        """Whether the output at an exact input is unsafe in real arithmetic, rounding errors bounded."""
        point = _shaped(outward_box(x, x), self._network)
        spec = problem.unsafe_spec(self._network.num_outputs)
        with torch.no_grad():
            rows = Ibp().bounds(self._network, self._params, point, spec, rigorous=True).margins[0].tolist()
        left = iter(rows)
        surely = [[(low := next(left)) > 0 or (low == 0 and not half.strict) for half in c] for c in problem.clauses]
        return any(all(halves) for halves in surely)


def _exact(problem: Problem, outcome: Outcome) -> tuple[Fraction, ...]:
    """The input of the exact box that is closest to a counterexample, as it is printed."""
    assert outcome.counterexample is not None
    return problem.box.nearest([Fraction(repr(value)) for value in outcome.counterexample.flatten().tolist()])


def _shaped(box: Box, network: Network) -> Box:
    return Box(*(side.reshape(-1, *network.input_shape) for side in box))


def evaluate(network: Network, params: Params, x: Sequence[Fraction | float]) -> list[float]:
    """The outputs at one input, in float64."""
    with torch.no_grad():
        point = torch.tensor([float(value) for value in x], dtype=torch.float64)
        values: list[float] = network(params, point.reshape(1, *network.input_shape))[0].tolist()
    return values


def _stacked(problems: Sequence[Problem], network: Network) -> tuple[Box, Spec]:
    boxes = [problem.bounds() for problem in problems]
    specs = [problem.spec(network.num_outputs) for problem in problems]
    lower, upper = torch.cat([box.lower for box in boxes]), torch.cat([box.upper for box in boxes])
    matrix, offset = torch.cat([spec.matrix for spec in specs]), torch.cat([spec.offset for spec in specs])
    return _shaped(Box(lower, upper), network), Spec(matrix, offset, specs[0].clause)


def _replay(
    source: Path | str | tuple[Network, Params], network: Network, params: Params, x: Sequence[Fraction]
) -> tuple[str, bool]:
    """What onnxruntime makes of an input, in words, and whether that agrees with us."""
    if isinstance(source, tuple):
        return "", True
    try:
        rounded, theirs = run_onnx(source, np.array([float(value) for value in x]))
    except MissingExtraError:
        return "not replayed: onnxruntime is not installed", True
    except InputError as error:
        return f"a counterexample was found, but {error}", False
    ours = np.array(evaluate(network, params, rounded.tolist()))
    off = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else math.inf
    if close(ours, theirs):
        return f"onnxruntime agrees to {off:.1e}", True
    return f"a counterexample was found, but onnxruntime computes other outputs there (by up to {off:.1e})", False


def _decimal(value: Fraction) -> str:
    """A fraction as the shortest decimal that float64 reads as the same number, if it is that number; else in full."""
    if Fraction(shortest := repr(float(value))) == value:
        return shortest
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return shortest  # no decimal is that number
    digits = value.denominator.bit_length()
    whole = value.numerator * 10**digits // value.denominator
    text = str(abs(whole)).rjust(digits + 1, "0")
    return f"{'-' * (whole < 0)}{text[:-digits]}.{text[-digits:].rstrip('0') or '0'}"
