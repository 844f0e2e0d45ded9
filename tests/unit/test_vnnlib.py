"""VNN-LIB files: the spec says what the formula says, in exact arithmetic, and bad input is refused in one sentence."""

from __future__ import annotations

import gzip
import itertools
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tightrope as tr
from tightrope.core.box import Box
from tightrope.core.spec import evaluate, worst_margin
from tightrope.errors import CorruptDataError, InputError, MissingDataError, TightropeError
from tightrope.frontend import _sexpr, _source, vnnlib
from tightrope.frontend.vnnlib import Property, parse_property, read_property, robustness_property

F64 = torch.float64
SQUARE = "(assert (and (<= -1 X_0 1) (<= -1 X_1 1)))"


def declared(inputs: int = 2, outputs: int = 2) -> str:
    names = [*(f"X_{i}" for i in range(inputs)), *(f"Y_{i}" for i in range(outputs))]
    return "".join(f"(declare-const {name} Real)" for name in names)


def parse(assertions: str, inputs: int = 2, outputs: int = 2) -> Property:
    return parse_property(declared(inputs, outputs) + assertions)


def margin(found: Property, *y: float) -> float:
    """The property's margin at an output, of a property with one box."""
    [problem] = found.problems
    spec = problem.spec(found.outputs)
    return float(worst_margin(evaluate(spec, torch.tensor([y], dtype=F64)), spec.clause))


# ------------------------------------------------------------------------------------------ what it says


def test_conjunction_is_one_clause_and_disjunction_several() -> None:
    both = parse(f"{SQUARE}(assert (<= Y_0 Y_1))(assert (<= Y_0 3))")
    assert both.problems[0].spec(2).clause == (0, 0)
    either = parse(f"{SQUARE}(assert (or (<= Y_0 Y_1) (<= Y_0 3)))")
    assert either.problems[0].spec(2).clause == (0, 1)
    assert (margin(both, 4.0, 5.0), margin(either, 4.0, 5.0)) == (1.0, -1.0)


def test_disjuncts_with_one_box_are_one_problem_and_others_their_own() -> None:
    found = parse(
        "(assert (<= 0 X_0 1))"
        "(assert (or (and (<= 0 X_1 1) (<= Y_0 0)) (and (<= 2 X_1 3) (<= Y_1 0)) (and (<= 0 X_1 1) (>= Y_0 5))))"
    )
    assert [problem.box.lower for problem in found.problems] == [(0, 0), (0, 2)]
    assert [len(problem.unsafe) for problem in found.problems] == [2, 1]


def test_common_output_constraints_hold_in_every_case() -> None:
    found = parse(f"(assert (>= Y_1 7)){SQUARE}(assert (or (<= Y_0 0) (>= Y_0 5)))")
    assert found.problems[0].spec(2).clause == (0, 0, 1, 1)


def test_tightest_bounds_count() -> None:
    [problem] = parse(f"{SQUARE}(assert (>= X_0 0.5))(assert (< X_1 1))(assert (<= Y_0 0))").problems
    assert problem.box.lower == (Fraction(1, 2), -1)
    assert problem.box.open_upper == {1}


@pytest.mark.parametrize(
    ("bound", "value"),
    [
        ("(<= X_0 0.1)", Fraction(1, 10)),
        ("(<= X_0 1e-3)", Fraction(1, 1000)),
        ("(<= X_0 +.5E+1)", Fraction(5)),
        ("(<= X_0 (/ 1 3))", Fraction(1, 3)),
        ("(<= X_0 (- (/ 1 -4)))", Fraction(1, 4)),
        ("(>= (- 2 (* 3 X_0)) 1)", Fraction(1, 3)),
        ("(<= (+ X_0 X_0 (* 2 (- X_0 1) 0.5)) 2)", Fraction(1)),
        ("(not (> X_0 0.25))", Fraction(1, 4)),
        ("(=> true (<= X_0 0.25))", Fraction(1, 4)),
        ("(and (<= X_0 0.25) (or false true))", Fraction(1, 4)),
    ],
)
def test_numbers_and_bounds_are_exact(bound: str, value: Fraction) -> None:
    [problem] = parse(f"(assert (>= X_0 -1))(assert {bound})(assert (<= Y_0 0))", 1).problems
    assert problem.box.upper == (value,)
    box = problem.bounds()
    assert Fraction(float(box.upper[0, 0])) >= value
    assert Fraction(float(torch.nextafter(box.upper, box.lower))) < value


def test_constants_are_rounded_so_that_the_spec_implies_the_property() -> None:
    found = parse(f"{SQUARE}(assert (<= Y_0 0.1))")
    assert Fraction(float(found.problems[0].spec(2).offset[0, 0])) <= Fraction(-1, 10)


def test_coefficients_are_exact() -> None:
    [problem] = parse(f"{SQUARE}(assert (<= (+ (* 0.1 Y_0) (/ Y_1 3)) 1))").problems
    assert problem.spec(2).matrix.tolist() == [[[3.0, 10.0]]]
    assert problem.spec(2).offset.tolist() == [[-30.0]]


@pytest.mark.parametrize(("sign", "at_zero"), [("<=", True), ("<", False)])
def test_the_boundary_of_a_strict_set_is_safe(sign: str, at_zero: bool) -> None:
    [problem] = parse(f"{SQUARE}(assert ({sign} Y_0 Y_1))").problems
    x = (Fraction(0), Fraction(0))
    assert problem.refuted_by(x, (Fraction(1), Fraction(1))) is at_zero
    assert problem.refuted_by(x, (Fraction(0), Fraction(1)))
    assert not problem.refuted_by((Fraction(2), Fraction(0)), (Fraction(0), Fraction(1)))


def test_open_ends_belong_to_no_counterexample() -> None:
    [problem] = parse("(assert (and (< 0 X_0) (<= X_0 1) (<= Y_0 0)))", 1, 1).problems
    assert not problem.refuted_by((Fraction(0),), (Fraction(-1),))
    assert problem.refuted_by((Fraction(1),), (Fraction(-1),))
    assert problem.box.nearest((Fraction(0),)) == (Fraction(1, 2**20),)
    assert problem.box.nearest((Fraction(2),)) == (Fraction(1),)


def test_without_output_constraints_everything_is_unsafe() -> None:
    assert margin(parse(SQUARE), 3.0, 4.0) == -1.0


def test_comments_and_other_commands_say_nothing() -> None:
    text = "; Müller (( \n(set-logic QF_LRA)(declare-fun X_0 () Real)\n(declare-const Y_0 Real); )\n"
    text += "(assert (and (>= X_0 0) ; ( \n (<= X_0 1) (<= Y_0 0)))(check-sat)(get-model)"
    assert parse_property(text).problems[0].box.upper == (1,)


def test_robustness_of_a_box_and_back() -> None:
    x = torch.rand(1, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    box = tr.linf_box(x, "1/10")
    found = parse_property(robustness_property(Box(box.lower[0], box.upper[0]), 2, 4, "an image"))
    lower, upper = (side.reshape(1, 3, 2) for side in found.problems[0].bounds())
    assert bool((lower <= box.lower).all() & (upper >= box.upper).all())
    assert bool((lower >= box.lower.nextafter(lower - 1)).all() & (upper <= box.upper.nextafter(upper + 1)).all())
    expected = tr.margin_spec(torch.tensor([2]), 4, dtype=F64)
    assert torch.equal(found.problems[0].spec(4).matrix, expected.matrix)
    with pytest.raises(InputError, match="label 4"):
        robustness_property(box, 4, 4)


# ------------------------------------------------------------------------------------ all formulas, by points

ATOMS = [
    f"({sign} {a} {b})" for sign in ("<=", "<", ">=", ">", "=") for a, b in (("Y_0", "Y_1"), ("Y_0", "1"), ("0", "Y_1"))
]
FORMULAS = st.recursive(
    st.sampled_from([*ATOMS, "true", "false", "(<= X_0 0)", "(> X_0 0)"]),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["and", "or", "=>"]), inner, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda f: f"(not {f})"),
    ),
    max_leaves=8,
)


def truth(form: _sexpr.Form, values: dict[str, int]) -> object:
    """The value of a formula or term, straight from its definition."""
    if isinstance(form, str):
        return {"true": True, "false": False}.get(
            form, values[form] if form in values else int(form) if form.lstrip("-").isdigit() else None
        )
    word, *parts = (form[0], *(truth(part, values) for part in form[1:]))
    a, b = parts[0], parts[-1]
    return {
        "and": lambda: all(parts),
        "or": lambda: any(parts),
        "not": lambda: not a,
        "=>": lambda: not a or b,
        "<=": lambda: a <= b,  # type: ignore[operator]
        "<": lambda: a < b,  # type: ignore[operator]
        ">=": lambda: a >= b,  # type: ignore[operator]
        ">": lambda: a > b,  # type: ignore[operator]
        "=": lambda: a == b,
    }[str(word)]()


@settings(max_examples=150, deadline=None)
@given(FORMULAS)
def test_counterexamples_are_the_points_that_satisfy_the_formula(formula: str) -> None:
    points = list(itertools.product((-1, 0, 1), (-1, 0, 1, 2), (-1, 0, 1, 2)))
    [(_, form)] = _sexpr.forms(formula) if formula.startswith("(") else [(1, formula)]
    expected = [bool(truth(form, {"X_0": x, "Y_0": a, "Y_1": b})) for x, a, b in points]
    text = f"(assert (<= -1 X_0 1))(assert {formula})"
    try:
        found = parse(text, 1)
    except InputError:
        assert not any(expected)
        with pytest.raises(InputError, match="contradict"):
            parse(text, 1)
        return
    for (x, *y), unsafe in zip(points, expected, strict=True):
        exact = [Fraction(value) for value in y]
        assert any(problem.refuted_by([Fraction(x)], exact) for problem in found.problems) == unsafe
        for problem in found.problems:  # positive margins are safe, negative ones unsafe
            if problem.box.contains([Fraction(x)]):
                spec = problem.spec(2)
                value = float(worst_margin(evaluate(spec, torch.tensor([y], dtype=F64)), spec.clause))
                assert not (value > 0 and problem.refuted_by([Fraction(x)], exact))
                assert not (value < 0 and not problem.refuted_by([Fraction(x)], exact))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="()XY_01.e-+*/<>=andort ;\n", max_size=60))
def test_any_text_is_a_property_or_one_of_our_errors(text: str) -> None:
    for content in (text, f"{declared()}{SQUARE}(assert {text})"):
        try:
            found = parse_property(content)
        except TightropeError:
            continue
        assert found.problems


# ----------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("assertions", "words"),
    [
        ("(assert (<= X_0 1))", "X_0, X_1"),
        ("(assert (<= -1 X_0 1))(assert (<= X_1 1))", "without a lower or an upper bound: X_1"),
        (f"{SQUARE}(assert (>= X_0 2))", "contradict"),
        (f"{SQUARE}(assert (and (< X_0 1) (>= X_0 1)))", "contradict"),
        (f"{SQUARE}(assert (and (<= Y_0 Y_1) (>= Y_0 (+ Y_1 1))))", "contradict"),
        (f"{SQUARE}(assert (and (<= (* 2 Y_0) 1) (> Y_0 0.5)))", "contradict"),
        (f"{SQUARE}(assert false)", "contradict"),
        (f"{SQUARE}(assert (<= Y_2 0))", "'Y_2' is neither a number nor declared"),
        (f"{SQUARE}(assert (<= (* Y_0 Y_1) 0))", "not linear"),
        (f"{SQUARE}(assert (<= (/ 1 Y_0) 0))", "not linear"),
        (f"{SQUARE}(assert (<= (/ Y_0 0) 0))", "not linear"),
        (f"{SQUARE}(assert (<= (+ X_0 X_1) 0))", "about 2 inputs"),
        (f"{SQUARE}(assert (<= X_0 Y_0))", "inputs and outputs at once"),
        (f"{SQUARE}(assert (<= Y_0 nan))", "'nan'"),
        (f"{SQUARE}(assert (<= Y_0 1e99999999))", "neither a number"),
        (f"{SQUARE}(assert (<= Y_0 1e999))", "beyond the range"),
        (f"{SQUARE}(assert (<= Y_0 {'9' * 300}))", "characters"),
        (f"{SQUARE}(assert (<= (+ (* {'1.' + '1' * 30} Y_0) (* 3 Y_1)) 0))", "more digits than float64"),
        (f"{SQUARE}(assert (xor true false))", r"\(xor true false\) is not supported"),
        (f"{SQUARE}(assert (<= Y_0))", "is not supported"),
        (f"{SQUARE}(assert Y_0)", "'Y_0' is no formula"),
        (f"{SQUARE}(assert (<= Y_0 (+)))", "is no term"),
        (f"{SQUARE}(assert (<= Y_0 (exp 1)))", "is no term"),
        (f"{SQUARE}(assert)", "not supported"),
        (f"{SQUARE}(assert (<= Y_0 0)", r"not closed, 1 '\)' missing"),
        (f"{SQUARE})", "that nothing opens"),
        (f"{SQUARE} stray", "'stray' is no command"),
        (f"{SQUARE}(push 1)", r"\(push 1\) is not supported"),
        (f"{SQUARE}(declare-const Y_0 Real)", "declared twice"),
        (f"{SQUARE}(declare-const Y_9 Real)", "does not declare Y_2, but Y_9"),
        (f"{SQUARE}(declare-const Y_2 Int)", "type Real"),
        (f"{SQUARE}(declare-const Z Real)", "The name 'Z'"),
        (f"{SQUARE}(declare-const Y_01 Real)", "The name 'Y_01'"),
        (f"{SQUARE}(assert (<= Ü 0))", "not ASCII"),
        (f"{SQUARE}(assert {'(not ' * 200}true{')' * 200})", "nested more than"),
        (f"{SQUARE}\n\n(assert (<= Y_0 oops))", "line 3: 'oops'"),
        ("(vnnlib-version <2.0>)", "VNN-LIB 2.0, which is not supported yet"),
    ],
)
def test_what_is_refused(assertions: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        [problem.spec(2) for problem in parse(assertions).problems]


def test_a_name_that_is_far_away_costs_nothing() -> None:
    with pytest.raises(InputError, match="does not declare X_0"):
        parse_property("(declare-const X_999999999 Real)(declare-const Y_0 Real)")


def test_numbers_that_grow_are_refused() -> None:
    with pytest.raises(InputError, match="too many digits"):
        parse(f"{SQUARE}(assert (<= Y_0 (* {'1e300 ' * 100})))")


def test_cases_that_multiply_are_refused() -> None:
    either = "(or (<= Y_0 0) (<= Y_1 0))"
    with pytest.raises(InputError, match="20,000 cases"):
        parse(f"{SQUARE}(assert (and {either * 40}))")


def test_long_forms_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sexpr, "LONGEST_FORM", 50)
    with pytest.raises(InputError, match="more than 50 words"):
        parse(f"{SQUARE}(assert (or {'true ' * 60}))")


def test_many_boxes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vnnlib, "MOST_NUMBERS", 3)
    with pytest.raises(InputError, match="2 boxes of 2 inputs are too many"):
        parse(f"{SQUARE}(assert (or (<= X_0 0) (>= X_0 0.5)))")


def test_files(tmp_path: Path) -> None:
    text = f"{declared()}{SQUARE}(assert (<= Y_0 0))"
    (tmp_path / "a.vnnlib").write_text(text)
    (tmp_path / "a.vnnlib.gz").write_bytes(gzip.compress(text.encode()))
    assert read_property(tmp_path / "a.vnnlib") == read_property(tmp_path / "a.vnnlib.gz") == parse_property(text)
    with pytest.raises(MissingDataError):
        read_property(tmp_path / "b.vnnlib")
    (tmp_path / "b.vnnlib").write_text("")
    with pytest.raises(InputError, match=r"b\.vnnlib: It declares no input"):
        read_property(tmp_path / "b.vnnlib")
    (tmp_path / "c.vnnlib.gz").write_bytes(gzip.compress(text.encode())[:-12])
    with pytest.raises(CorruptDataError, match=r"no valid \.gz"):
        read_property(tmp_path / "c.vnnlib.gz")
    (tmp_path / "d.vnnlib.gz").write_text(text)
    with pytest.raises(CorruptDataError, match=r"no valid \.gz"):
        read_property(tmp_path / "d.vnnlib.gz")
    (tmp_path / "e.vnnlib").write_bytes(b"\xff\xfe(assert")
    with pytest.raises(CorruptDataError, match="not a text file"):
        read_property(tmp_path / "e.vnnlib")


def test_a_small_file_that_unpacks_to_a_large_one_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "bomb.vnnlib.gz").write_bytes(gzip.compress(b" " * 2**20))
    with pytest.raises(InputError, match="the most that is read"):
        _source.read_limited(tmp_path / "bomb.vnnlib.gz", 2**16)
    assert len(_source.read_limited(tmp_path / "bomb.vnnlib.gz", 2**20)) == 2**20
