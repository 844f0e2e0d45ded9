"""Properties of output vectors: margins, clauses (AND of OR), the loss of a margin vector, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import tightrope as tr
from tightrope.core.spec import (
    MarginSpec,
    Spec,
    check_spec,
    clause_margins,
    evaluate,
    margin_cross_entropy,
    margins_of,
    worst_margin,
)
from tightrope.errors import InputError

F64 = torch.float64
quick = settings(max_examples=60, deadline=None)


@st.composite
def rows_and_clauses(draw: st.DrawFn) -> tuple[list[list[float]], tuple[int, ...]]:
    """Values (batch, rows), and clause numbers 0 .. k-1 without gaps in any order."""
    rows = draw(st.integers(1, 6))
    clause = draw(st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows))
    order = sorted(set(clause))
    values = st.lists(st.integers(-3, 3).map(float), min_size=rows, max_size=rows)
    return draw(st.lists(values, min_size=1, max_size=4)), tuple(order.index(c) for c in clause)


# ---------------------------------------------------------------------------------------------- margin_spec


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_margin_rows_are_differences_of_logits(classes: int) -> None:
    labels = torch.arange(classes)
    spec, logits = tr.margin_spec(labels, classes, dtype=F64), torch.randn((classes, classes), dtype=F64)
    rows = evaluate(spec, logits)
    for sample, label in enumerate(labels.tolist()):
        others = [i for i in range(classes) if i != label]
        torch.testing.assert_close(rows[sample], logits[sample, label] - logits[sample, others])
    assert spec.clause == tuple(range(classes - 1))
    assert torch.equal(spec.offset, torch.zeros((classes, classes - 1), dtype=F64))


def test_margin_spec_holds_where_the_label_wins() -> None:
    logits, labels = torch.randn((50, 4)), torch.randint(0, 4, (50,))
    spec = tr.margin_spec(labels, 4)
    assert torch.equal(worst_margin(evaluate(spec, logits), spec.clause) > 0, logits.argmax(dim=1) == labels)


def test_a_tie_is_not_a_win() -> None:
    spec = tr.margin_spec(torch.tensor([0]), 2)
    assert not worst_margin(evaluate(spec, torch.tensor([[1.0, 1.0]])), spec.clause) > 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_integer_labels_of_every_width(dtype: torch.dtype) -> None:
    labels = torch.tensor([2, 0], dtype=dtype)
    assert torch.equal(tr.margin_spec(labels, 3).matrix, margins_of(labels.long(), 3, torch.float32).matrix)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0, 100]])
def test_labels_out_of_range_are_refused(labels: list[int]) -> None:
    with pytest.raises(InputError, match=r"0 \.\. 2 for 3 classes"):
        tr.margin_spec(torch.tensor(labels), 3)


@pytest.mark.parametrize(
    "labels", [torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]]), torch.tensor(0), torch.tensor([True])]
)
def test_labels_of_another_kind_are_refused(labels: torch.Tensor) -> None:
    with pytest.raises(InputError, match="Labels must be integers"):
        tr.margin_spec(labels, 3)


@pytest.mark.parametrize("classes", [1, 0, -2])
def test_fewer_than_two_classes_are_refused(classes: int) -> None:
    with pytest.raises(InputError, match="at least 2 classes"):
        tr.margin_spec(torch.tensor([0]), classes)


# -------------------------------------------------------------------------------------------------- clauses


@quick
@given(rows_and_clauses())
def test_worst_margin_is_and_over_clauses_of_or_over_rows(case: tuple[list[list[float]], tuple[int, ...]]) -> None:
    """Against the definition, sample by sample."""
    values, clause = case
    margin = worst_margin(torch.tensor(values), clause)
    for sample, rows in enumerate(values):
        members = [[row for row, owner in zip(rows, clause, strict=True) if owner == c] for c in range(max(clause) + 1)]
        assert bool(margin[sample] > 0) == all(any(row > 0 for row in rows) for rows in members)
        assert margin[sample] == min(max(rows) for rows in members)


@quick
@given(rows_and_clauses())
def test_clause_margins_are_sound(case: tuple[list[list[float]], tuple[int, ...]]) -> None:
    """Lower bounds of the rows give lower bounds of the clauses: the maximum is monotone."""
    values, clause = case
    rows = torch.tensor(values)
    assert torch.all(clause_margins(rows - 0.5, clause) <= clause_margins(rows, clause))


@pytest.mark.parametrize("clause", [(0, 0, 1), (0, 1, 0), (0, 1, 2), (0, 0, 0)])
def test_nan_in_a_row_is_nan_in_its_clause(clause: tuple[int, ...]) -> None:
    rows = torch.tensor([[1.0, math.nan, 2.0]])
    found = clause_margins(rows, clause)
    assert found[0, clause[1]].isnan()
    assert worst_margin(rows, clause).isnan()
    assert not bool(worst_margin(rows, clause) > 0)


def test_custom_spec_on_outputs() -> None:
    """Class 0 beats class 1, and output 2 or output 3 is above 1."""
    matrix = torch.tensor([[[1.0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]])
    spec = Spec(matrix, torch.tensor([[0.0, -1, -1]]), clause=(0, 1, 1))
    for outputs, holds in [([2, 1, 2, 0], True), ([2, 1, 0, 2], True), ([2, 1, 0, 1], False), ([1, 2, 2, 2], False)]:
        rows = evaluate(spec, torch.tensor([outputs], dtype=torch.float32))
        assert bool(worst_margin(rows, spec.clause) > 0) == holds


# ----------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_margin_cross_entropy_is_cross_entropy(scale: float) -> None:
    """Value and gradient, also where the exponentials overflow."""
    logits, labels = scale * torch.randn((20, 5), dtype=F64), torch.randint(0, 5, (20,))
    spec = tr.margin_spec(labels, 5, dtype=F64)
    one, two = (logits.clone().requires_grad_() for _ in range(2))
    ours = margin_cross_entropy(evaluate(spec, one), spec.clause)
    theirs = F.cross_entropy(two, labels, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-10, atol=1e-10)


@quick
@given(rows_and_clauses())
def test_margin_cross_entropy_of_clauses(case: tuple[list[list[float]], tuple[int, ...]]) -> None:
    values, clause = case
    rows = torch.tensor(values, dtype=F64)
    expected = (1 + clause_margins(rows, clause).neg().exp().sum(dim=1)).log()
    torch.testing.assert_close(margin_cross_entropy(rows, clause), expected)


def test_smaller_margins_cost_more() -> None:
    rows = torch.randn((10, 4), dtype=F64)
    assert torch.all(margin_cross_entropy(rows - 0.1, range(4)) > margin_cross_entropy(rows, range(4)))


def test_nan_margin_is_a_nan_loss() -> None:
    assert margin_cross_entropy(torch.tensor([[1.0, math.nan]]), (0, 1)).isnan()


# ------------------------------------------------------------------------------------------------ check_spec


def good() -> dict[str, Any]:
    return {"matrix": torch.ones((2, 3, 4)), "offset": torch.zeros((2, 3)), "clause": (0, 1, 1)}


def test_check_spec_returns_a_fitting_spec() -> None:
    spec = Spec(**good())
    assert check_spec(spec, 2, 4) is spec


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("matrix", torch.ones((3, 3, 4))),
        ("matrix", torch.ones((2, 3, 5))),
        ("matrix", torch.ones((3, 4))),
        ("matrix", torch.full((2, 3, 4), math.nan)),
        ("matrix", torch.full((2, 3, 4), math.inf)),
        ("offset", torch.zeros((2, 4))),
        ("offset", torch.zeros(3)),
        ("offset", torch.full((2, 3), math.nan)),
        ("clause", (0, 1)),
        ("clause", (0, 2, 2)),
        ("clause", (1, 1, 1)),
        ("clause", (-1, 0, 1)),
        ("clause", ()),
    ],
)
def test_check_spec_refuses(field: str, value: Any) -> None:
    with pytest.raises(InputError):
        check_spec(Spec(**(good() | {field: value})), 2, 4)


def test_check_spec_refuses_no_rows() -> None:
    with pytest.raises(InputError, match="rows >= 1"):
        check_spec(Spec(torch.ones((2, 0, 4)), torch.zeros((2, 0)), ()), 2, 4)


# -------------------------------------------------------------------------------------------- known margins


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([2, 0, 2, 1])])
def test_samples_of_a_margin_spec_are_that_of_their_labels(index: Any) -> None:
    labels = torch.tensor([1, 0, 2])
    found, expected = tr.margin_spec(labels, 3).samples(index), tr.margin_spec(labels[index], 3)
    assert isinstance(found, MarginSpec)
    assert isinstance(expected, MarginSpec)
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ("matrix", "offset", "labels"))
    assert found.clause == expected.clause
    assert not isinstance(Spec(**good()).samples(slice(1)), MarginSpec)


def test_what_is_derived_from_a_margin_spec_knows_no_labels() -> None:
    """Other rows are no margins of the labels, and a spec is three values to whoever takes it apart."""
    spec = tr.margin_spec(torch.tensor([1, 0]), 3)
    matrix, offset, clause = spec
    assert isinstance(spec, MarginSpec)
    assert spec.labels is not None
    for other in (spec._replace(matrix=-matrix), spec._replace(offset=offset), Spec(matrix, offset, clause)):
        assert getattr(other, "labels", None) is None
        assert getattr(other.samples(slice(1)), "labels", None) is None
