"""VNN-LIB 1.0: from a file to boxes of inputs and specs of outputs.

The assertions of a file describe the *unsafe* set, that of counterexamples; the property is that it is empty. All
numbers are exact rationals until they become a box or a spec.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from tightrope.core.box import Box, round_up
from tightrope.core.deadline import check_time
from tightrope.core.spec import Spec
from tightrope.errors import CorruptDataError, InputError
from tightrope.frontend._formula import Bound, Cases, Comparison, HalfSpace, Names, cases_of, conjunction
from tightrope.frontend._sexpr import Form, forms, shown
from tightrope.frontend._source import read_limited

LARGEST_FILE = 64 * 2**20
MOST_NUMBERS = 20_000_000
_NAME = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})", re.ASCII)
_INSIDE = Fraction(1, 2**20)
_IGNORED = {"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"}


@dataclass(frozen=True)
class InputBox:
    """Inputs between ``lower`` and ``upper``, without those ends that ``open_lower`` and ``open_upper`` name."""

    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]
    open_lower: frozenset[int]
    open_upper: frozenset[int]

    def contains(self, x: Sequence[Fraction]) -> bool:
        """Whether an input lies in it."""
        inside = all(low <= value <= high for low, value, high in zip(self.lower, x, self.upper, strict=True))
        ends = ((self.lower, self.open_lower), (self.upper, self.open_upper))
        return inside and all(x[i] != side[i] for side, without in ends for i in without)

    def nearest(self, x: Sequence[Fraction]) -> tuple[Fraction, ...]:
        """The closest input that it contains, a millionth of its width inside the ends that it is without."""
        ends = zip(self.lower, x, self.upper, strict=True)
        return tuple(
            max(
                low + _INSIDE * (high - low) * (i in self.open_lower),
                min(value, high - _INSIDE * (high - low) * (i in self.open_upper)),
            )
            for i, (low, value, high) in enumerate(ends)
        )


@dataclass(frozen=True)
class Problem:
    """A box of inputs, and the sets of outputs that none of them may have.

    Attributes:
        box: of inputs.
        unsafe: sets of outputs, each the half-spaces that it is the intersection of (none: all outputs).
    """

    box: InputBox
    unsafe: tuple[tuple[HalfSpace, ...], ...]

    def refuted_by(self, x: Sequence[Fraction], y: Sequence[Fraction]) -> bool:
        """Whether an input with its output is a counterexample, in exact arithmetic."""
        return self.box.contains(x) and any(all(half.holds(y) for half in halves) for halves in self.unsafe)

    def bounds(self) -> Box:
        """The box in float64, rounded outward, (1, inputs).

        Raises:
            InputError: an end beyond the range of float64.
        """
        return outward_box(self.box.lower, self.box.upper)

    def spec(self, outputs: int) -> Spec:
        """The property in float64: of every unsafe set some half-space is missed; batch of one.

        Coefficients are exact, if need be after multiplication of the row; constants are rounded down, so that the spec
        implies the property.

        Raises:
            InputError: coefficients that float64 cannot represent.
        """
        return self._rows(outputs, 1)

    def unsafe_spec(self, outputs: int) -> Spec:
        """The rows of :meth:`spec` with the other sign, constants rounded down as well.

        Where all rows of a clause are >= 0 (> 0, if their half-space is strict) the output is unsafe.
        """
        return self._rows(outputs, -1)

    def _rows(self, outputs: int, sign: int) -> Spec:
        rows = [_floats(half, outputs, sign) for halves in self.clauses for half in halves]
        return Spec(
            torch.tensor([[coef for coef, _ in rows]], dtype=torch.float64),
            torch.tensor([[offset for _, offset in rows]], dtype=torch.float64),
            tuple(index for index, halves in enumerate(self.clauses) for _ in halves),
        )

    @property
    def clauses(self) -> tuple[tuple[HalfSpace, ...], ...]:
        """The half-spaces of every unsafe set, at least one each."""
        everything = HalfSpace((), Fraction(-1), False)
        return tuple(halves or (everything,) for halves in self.unsafe)


@dataclass(frozen=True)
class Property:
    """What a VNN-LIB file says: a network has the property if it has it on every box.

    Attributes:
        inputs, outputs: their numbers.
        problems: at least one, with different boxes.
    """

    inputs: int
    outputs: int
    problems: tuple[Problem, ...]


def read_property(path: Path | str) -> Property:
    """Read a VNN-LIB 1.0 file, ``.vnnlib`` or ``.vnnlib.gz``.

    Raises:
        MissingDataError, CorruptDataError: no such file; damaged, or no text.
        InputError: what :func:`parse_property` refuses.
    """
    try:
        text = read_limited(path, LARGEST_FILE).decode("utf-8")
    except UnicodeDecodeError:
        raise CorruptDataError(f"{path} is not a text file.") from None
    try:
        return parse_property(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse_property(text: str) -> Property:
    """The property that a VNN-LIB 1.0 text describes.

    Declared are constants ``X_0 ...`` and ``Y_0 ...`` of type Real; asserted are formulas of ``and``, ``or``, ``not``,
    ``=>`` over comparisons of linear terms, each about one input (a bound) or about outputs. Cases of a
    disjunction that nothing satisfies are left out, as far as two comparisons at a time tell. An open end of a box
    counts as closed for proofs, but is not part of a counterexample.

    Raises:
        InputError: not such a text, naming the line; an input without bounds; or contradictory assertions, which would
            make every network right.

    Example:
        >>> declared = "(declare-const X_0 Real) (declare-const Y_0 Real)"
        >>> found = parse_property(declared + "(assert (and (>= X_0 -1) (<= X_0 0.5) (<= Y_0 1e-3)))")
        >>> found.problems[0].box.upper, found.problems[0].spec(1).matrix
        ((Fraction(1, 2),), tensor([[[1.]]], dtype=torch.float64))
    """
    names = Names({}, {})
    common: list[Comparison] = []
    cases: Cases = [()]
    for line, form in forms(text):
        try:
            for formula in _command(form, names):
                found = cases_of(formula, names)
                if len(found) == 1:  # true in every case, kept once
                    common += found[0]
                else:
                    cases = conjunction(cases, found)
        except InputError as error:
            raise InputError(f"line {line}: {error}") from None
    inputs, outputs = _count(names.inputs, "input", "X"), _count(names.outputs, "output", "Y")
    return Property(inputs, outputs, tuple(_problems(common, cases, inputs)))


# --------------------------------------------------------------------------------------------- commands


def _command(form: Form, names: Names) -> list[Form]:
    """Do what a top-level form says; the formula that it asserts, if any."""
    if isinstance(form, str) or not form or not isinstance(form[0], str):
        raise InputError(f"{shown(form)} is no command.")
    word = form[0]
    if word == "assert" and len(form) == 2:
        return form[1:]
    if word in ("declare-const", "declare-fun"):
        _declare(form, names)
    elif word in ("vnnlib-version", "declare-network"):
        raise InputError("This is VNN-LIB 2.0, which is not supported yet; write it as VNN-LIB 1.0, with X_i and Y_i.")
    elif word not in _IGNORED:
        raise InputError(f"{shown(form)} is not supported: declare-const, declare-fun and assert are.")
    return []


def _declare(form: list[Form], names: Names) -> None:
    kind = ["Real"] if form[0] == "declare-const" else [[], "Real"]
    if form[2:] != kind:
        raise InputError(f"{shown(form)} is not supported: only constants of type Real are.")
    match = _NAME.fullmatch(form[1]) if isinstance(form[1], str) else None
    if match is None:
        raise InputError(f"The name {shown(form[1])} is not supported: inputs are X_0, X_1 ..., outputs Y_0, Y_1 ...")
    known = names.inputs if match[1] == "X" else names.outputs
    if match[0] in known:
        raise InputError(f"{match[0]} is declared twice.")
    known[match[0]] = int(match[2])


def _count(known: dict[str, int], what: str, letter: str) -> int:
    if not known:
        raise InputError(f"It declares no {what} ({letter}_0 ...): it is no VNN-LIB 1.0 property, or empty.")
    missing = sorted(set(range(len(known))) - set(known.values()))
    if missing:
        raise InputError(f"It does not declare {letter}_{missing[0]}, but {letter}_{max(known.values())}.")
    return len(known)


# -------------------------------------------------------------------------------------- boxes and clauses


def _problems(common: Sequence[Comparison], cases: Cases, inputs: int) -> Iterator[Problem]:
    """The cases that something can satisfy, those with the same box together."""
    groups: dict[tuple[Bound, ...], list[tuple[HalfSpace, ...]]] = {}
    always = tuple(c for c in common if isinstance(c, HalfSpace))
    for case in cases:
        check_time()
        halves = (*always, *(c for c in case if isinstance(c, HalfSpace)))
        if not _exclude_each_other(halves):
            groups.setdefault(tuple(c for c in case if isinstance(c, Bound)), []).append(halves)
    if len(groups) * inputs > MOST_NUMBERS:
        raise InputError(f"{len(groups):,} boxes of {inputs:,} inputs are too many. Split the property.")
    bounds = [c for c in common if isinstance(c, Bound)]
    boxes = {own: _box([*bounds, *own], inputs) for own in groups}
    found = [Problem(box, tuple(dict.fromkeys(groups[own]))) for own, box in boxes.items() if box is not None]
    if not found:
        raise InputError(
            "The assertions contradict each other: no input and output satisfy them all, so that every network would "
            "have the property. Check for a lower bound above the upper one."
        )
    yield from found


def _box(bounds: Iterable[Bound], inputs: int) -> InputBox | None:
    """The tightest bounds of every input; None if some exclude each other."""
    check_time()
    ends: dict[bool, dict[int, Bound]] = {False: {}, True: {}}
    for bound in bounds:
        side = ends[bound.upper]
        known = side.get(bound.i)
        if known is None or _tighter(bound, known):
            side[bound.i] = bound
    lower, upper = ends[False], ends[True]
    if missing := [i for i in range(inputs) if i not in lower or i not in upper]:
        shown_names = ", ".join(f"X_{i}" for i in missing[:5]) + " ..." * (len(missing) > 5)
        raise InputError(f"Inputs without a lower or an upper bound: {shown_names}. Boxes must be finite.")
    if any(
        low.value > upper[i].value or (low.value == upper[i].value and (low.strict or upper[i].strict))
        for i, low in lower.items()
    ):
        return None
    return InputBox(
        tuple(lower[i].value for i in range(inputs)),
        tuple(upper[i].value for i in range(inputs)),
        frozenset(i for i, bound in lower.items() if bound.strict),
        frozenset(i for i, bound in upper.items() if bound.strict),
    )


def _tighter(bound: Bound, known: Bound) -> bool:
    if bound.value == known.value:
        return bound.strict
    return (bound.value < known.value) == bound.upper


def _exclude_each_other(halves: Iterable[HalfSpace]) -> bool:
    """Whether two half-spaces with opposite coefficients have no common point."""
    tightest: dict[tuple[tuple[int, Fraction], ...], tuple[Fraction, bool]] = {}
    for half in halves:
        scale = abs(half.coef[0][1])
        key = tuple((i, value / scale) for i, value in half.coef)
        end = (half.offset / scale, half.strict)
        tightest[key] = max(tightest.get(key, end), end)
    for key, (offset, strict) in tightest.items():
        opposite = tightest.get(tuple((i, -value) for i, value in key))
        if opposite and (offset + opposite[0] > 0 or (offset + opposite[0] == 0 and (strict or opposite[1]))):
            return True
    return False


def _floats(half: HalfSpace, outputs: int, sign: int) -> tuple[list[float], float]:
    """A row of a spec and its constant, see :meth:`Problem.spec`."""
    coef, offset = {i: sign * value for i, value in half.coef}, sign * half.offset
    if not all(_exact(value) for value in coef.values()):
        scale = math.lcm(*(value.denominator for value in coef.values()))
        coef, offset = {i: value * scale for i, value in coef.items()}, offset * scale
    row = [0.0] * outputs
    for i, value in coef.items():
        if not _exact(value):
            raise InputError(f"The coefficients of Y_{i} and others have more digits than float64 can represent.")
        row[i] = float(value)
    try:
        return row, -round_up(-offset)
    except OverflowError:
        raise InputError("A constant is beyond the range of float64.") from None


def outward_box(lower: Iterable[Fraction], upper: Iterable[Fraction]) -> Box:
    """The smallest box in float64 that contains an exact one, (1, inputs).

    Raises:
        InputError: an end beyond the range of float64.
    """
    try:
        ends = [-round_up(-value) for value in lower], [round_up(value) for value in upper]
    except OverflowError:
        raise InputError("A bound of an input is beyond the range of float64.") from None
    return Box(*(torch.tensor([side], dtype=torch.float64) for side in ends))


def _exact(value: Fraction) -> bool:
    try:
        return Fraction(float(value)) == value
    except OverflowError:
        return False


# ------------------------------------------------------------------------------------------------ writing


def robustness_property(box: Box, label: int, num_classes: int, comment: str = "") -> str:
    """VNN-LIB 1.0 for: over this box no class gets more than ``label``, nor as much.

    Args:
        box: of one sample in float64, without a batch axis. Its ends are written with the digits that float64 needs.
        label: 0 .. num_classes - 1.
        num_classes: at least 2.
        comment: of the first line.

    Raises:
        InputError: a label out of range.

    Example:
        >>> side = torch.tensor([0.25], dtype=torch.float64)
        >>> parse_property(robustness_property(Box(side, side), 0, 3)).problems[0].spec(3).matrix[0]
        tensor([[ 1., -1.,  0.],
                [ 1.,  0., -1.]], dtype=torch.float64)
    """
    if not 0 <= label < num_classes:
        raise InputError(f"The label {label} is not in 0 .. {num_classes - 1}.")
    lower, upper = (side.flatten().tolist() for side in box)
    lines = [f"; {comment}"] * bool(comment)
    lines += [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(num_classes)]
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {low!r}))", f"(assert (<= X_{i} {high!r}))"]
    unsafe = (f"    (and (>= Y_{i} Y_{label}))" for i in range(num_classes) if i != label)
    return "\n".join([*lines, "(assert (or", *unsafe, "))", ""])
