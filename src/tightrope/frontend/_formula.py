"""Formulas of VNN-LIB in disjunctive normal form, in exact arithmetic."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from tightrope.errors import InputError
from tightrope.frontend._sexpr import Form, shown

MOST_CASES = 20_000
MOST_COMPARISONS = 2_000_000
_LONGEST_NUMBER = 20_000  # bits
_MINUS = Fraction(-1)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


class Bound(NamedTuple):
    """X_i is at most ``value`` (at least, where not ``upper``), and not equal to it where strict."""

    i: int
    value: Fraction
    upper: bool
    strict: bool


class HalfSpace(NamedTuple):
    """Outputs with ``sum coef[i] Y_i + offset <= 0``, or < 0 where strict; ``coef`` as pairs, in ascending order."""

    coef: tuple[tuple[int, Fraction], ...]
    offset: Fraction
    strict: bool

    def holds(self, outputs: Sequence[Fraction]) -> bool:
        """Whether an output lies in it."""
        value = sum((c * outputs[i] for i, c in self.coef), self.offset)
        return value < 0 or (value == 0 and not self.strict)


Comparison = Bound | HalfSpace
Cases = list[tuple[Comparison, ...]]
"""A disjunction of conjunctions: [] is false, [()] is true."""


class Names(NamedTuple):
    """The declared inputs and outputs, number by name."""

    inputs: dict[str, int]
    outputs: dict[str, int]


def cases_of(form: Form, names: Names, *, negated: bool = False) -> Cases:
    """The disjunctive normal form of a formula, or of its negation.

    Raises:
        InputError: other operators, comparisons that are not linear or are about several inputs, undeclared names, or
            too many cases.
    """
    if isinstance(form, str):
        if form not in ("true", "false"):
            raise InputError(f"{shown(form)} is no formula.")
        return [()] if (form == "true") != negated else []
    if not form or not isinstance(form[0], str):
        raise InputError(f"{shown(form)} is no formula.")
    word, parts = form[0], form[1:]
    if word in ("and", "or"):
        found = (cases_of(part, names, negated=negated) for part in parts)
        return _all(found) if (word == "and") != negated else _any(found)
    if word == "not" and len(parts) == 1:
        return cases_of(parts[0], names, negated=not negated)
    if word == "=>" and len(parts) == 2:
        found = (cases_of(part, names, negated=flip) for part, flip in zip(parts, (not negated, negated), strict=True))
        return _all(found) if negated else _any(found)
    if word in _COMPARISONS and len(parts) >= 2:
        terms = [_linear(part, names) for part in parts]
        pairs = (_COMPARISONS[word](a, b, negated) for a, b in pairwise(terms))
        return _any(pairs) if negated else _all(pairs)
    raise InputError(f"{shown(form)} is not supported: and, or, not, =>, <=, >=, <, > and = of linear terms are.")


def _any(found: Iterable[Cases]) -> Cases:
    cases = []
    for more in found:
        cases += more
        _check_size(len(cases), 0)
    return cases


def _all(found: Iterable[Cases]) -> Cases:
    cases: Cases = [()]
    for more in found:
        cases = conjunction(cases, more)
    return cases


def conjunction(first: Cases, second: Cases) -> Cases:
    """All combinations of a case of one with a case of the other."""
    lengths = [sum(map(len, cases)) for cases in (first, second)]
    _check_size(len(first) * len(second), lengths[0] * len(second) + lengths[1] * len(first))
    return [(*a, *b) for a in first for b in second]


def _check_size(cases: int, comparisons: int) -> None:
    if cases > MOST_CASES or comparisons > MOST_COMPARISONS:
        raise InputError(
            f"The property has more than {MOST_CASES:,} cases or {MOST_COMPARISONS:,} comparisons as a disjunction of "
            "conjunctions. Split it into several files."
        )


# ------------------------------------------------------------------------------------------- comparisons


class _Linear(NamedTuple):
    """``sum inputs[i] X_i + sum outputs[i] Y_i + constant``, no coefficient 0."""

    inputs: Mapping[int, Fraction]
    outputs: Mapping[int, Fraction]
    constant: Fraction

    def times(self, factor: Fraction) -> _Linear:
        if factor == 0:
            return _number(Fraction(0))
        inputs, outputs = ({i: _sized(c * factor) for i, c in part.items()} for part in self[:2])
        return _Linear(inputs, outputs, _sized(self.constant * factor))

    @property
    def is_constant(self) -> bool:
        return not self.inputs and not self.outputs


def _at_most(a: _Linear, b: _Linear, negated: bool) -> Cases:
    return _below(b, a, strict=True) if negated else _below(a, b, strict=False)


def _less(a: _Linear, b: _Linear, negated: bool) -> Cases:
    return _below(b, a, strict=False) if negated else _below(a, b, strict=True)


def _equal(a: _Linear, b: _Linear, negated: bool) -> Cases:
    sides = [_below(x, y, strict=negated) for x, y in ((a, b), (b, a))]
    return _any(sides) if negated else _all(sides)


_COMPARISONS: dict[str, Callable[[_Linear, _Linear, bool], Cases]] = {
    "<=": _at_most,
    ">=": lambda a, b, negated: _at_most(b, a, negated),
    "<": _less,
    ">": lambda a, b, negated: _less(b, a, negated),
    "=": _equal,
}


def _below(a: _Linear, b: _Linear, *, strict: bool) -> Cases:
    """a <= b, or a < b."""
    inputs, outputs, constant = _sum([a, b.times(_MINUS)])
    if inputs and outputs:
        raise InputError("A comparison is about inputs and outputs at once; only one of them is supported.")
    if len(inputs) > 1:
        raise InputError(f"A comparison is about {len(inputs)} inputs; only bounds of single inputs are supported.")
    if inputs:
        [(index, coef)] = inputs.items()
        return [(Bound(index, _sized(-constant / coef), coef > 0, strict),)]
    if outputs:
        return [(HalfSpace(tuple(sorted(outputs.items())), constant, strict),)]
    return [()] if constant < 0 or (constant == 0 and not strict) else []


# ------------------------------------------------------------------------------------------ linear terms


def _linear(form: Form, names: Names) -> _Linear:
    if isinstance(form, str):
        return _atom(form, names)
    if len(form) < 2 or not isinstance(form[0], str):
        raise InputError(f"{shown(form)} is no term.")
    word, parts = form[0], [_linear(part, names) for part in form[1:]]
    if word == "+":
        return _sum(parts)
    if word == "-":
        return (
            parts[0].times(Fraction(-1)) if len(parts) == 1 else _sum([parts[0], _sum(parts[1:]).times(Fraction(-1))])
        )
    if word == "*":
        return _product(parts)
    if word == "/" and len(parts) > 1:
        return _quotient(parts)
    raise InputError(f"{shown(form)} is no term: +, -, *, / of numbers, inputs and outputs are.")


def _atom(token: str, names: Names) -> _Linear:
    if token in names.inputs:
        return _Linear({names.inputs[token]: Fraction(1)}, {}, Fraction(0))
    if token in names.outputs:
        return _Linear({}, {names.outputs[token]: Fraction(1)}, Fraction(0))
    if _NUMBER.fullmatch(token):
        return _number(Fraction(token))
    raise InputError(f"{shown(token)} is neither a number nor declared.")


def _number(value: Fraction) -> _Linear:
    return _Linear({}, {}, value)


def _sum(parts: Iterable[_Linear]) -> _Linear:
    inputs: dict[int, Fraction] = {}
    outputs: dict[int, Fraction] = {}
    constant = Fraction(0)
    for part in parts:
        for total, more in ((inputs, part.inputs), (outputs, part.outputs)):
            for index, value in more.items():
                total[index] = _sized(total.get(index, Fraction(0)) + value)
        constant = _sized(constant + part.constant)
    return _Linear(_nonzero(inputs), _nonzero(outputs), constant)


def _nonzero(terms: Mapping[int, Fraction]) -> dict[int, Fraction]:
    return {i: value for i, value in terms.items() if value}


def _product(parts: Sequence[_Linear]) -> _Linear:
    result = _number(Fraction(1))
    for part in parts:
        if not (result.is_constant or part.is_constant):
            raise InputError("A product of inputs or outputs is not linear.")
        result = part.times(result.constant) if result.is_constant else result.times(part.constant)
    return result


def _quotient(parts: Sequence[_Linear]) -> _Linear:
    result = parts[0]
    for part in parts[1:]:
        if not part.is_constant or part.constant == 0:
            raise InputError("A division by 0, or by an input or output, is not linear.")
        result = result.times(1 / part.constant)
    return result


def _sized(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _LONGEST_NUMBER:
        raise InputError("A number has too many digits.")
    return value
