"""Whether a certificate proves what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import numpy as np

from tightrope.auditor.bounds import Recipe, Region, lower_bounds
from tightrope.auditor.cover import NoCover
from tightrope.auditor.finding import Finding, Rejected, Undecided, Verdict, finite, require
from tightrope.auditor.graph import Array, Graph, GraphError
from tightrope.auditor.lines import Interval
from tightrope.auditor.proof import check_leaves
from tightrope.records.certificate import Certificate, Model, Origin

_RATIONAL = r"-?\d{1,50}(/\d{1,50}|(\.\d{1,50})?([eE][+-]?\d{1,3})?)"
_LOOSE = Fraction(1, 10**6)
"""Share of its size, or of 1, by which a box may be larger than asked for: rounding, of float32 as well."""


def audit(certificate: Certificate, model: Model | None = None) -> Finding:
    """Re-check a certificate from scratch.

    A verified one is confirmed if box and property are those of its image, radius and label, its leaves cover the box
    for every clause, and the bound of each, recomputed here, is positive by more than the rounding of the
    computation. A falsified one is confirmed if its counterexample is inside the exact box and some clause has no
    positive row there, again by more than rounding.

    Args:
        certificate: as it was read.
        model: the network, where the certificate refers to it by its hash.

    Cost: a verified one takes the relaxation's bounds of every neuron, and a back-substitution a leaf.
    """
    try:
        with np.errstate(all="ignore"):
            return Finding(Verdict.CONFIRMED, margin=_check(certificate, certificate.model or model))
    except Undecided as error:
        return Finding(Verdict.UNDECIDED, str(error))
    except (Rejected, NoCover, GraphError) as error:
        return Finding(Verdict.REJECTED, str(error))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return Finding(Verdict.REJECTED, f"malformed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _check(given: Certificate, model: Model | None) -> float:
    if model is None:
        raise Undecided("its network is not there: give the model file that it refers to")
    sha256, graph = _interpreted(model)
    require(sha256 == given.model_sha256, "the network is another one: its hash is not that of the certificate")
    _check_property(given, graph)
    _check_box(given, graph)
    if given.verdict == "falsified":
        return _check_counterexample(given, graph)
    require(given.verdict == "verified", f"{given.verdict!r} is no verdict that can be certified")
    require(given.counterexample is None, "a verified certificate has a counterexample")
    return check_leaves(given, graph)


@lru_cache(maxsize=2)
def _interpreted(model: Model) -> tuple[str, Graph]:
    return model.sha256, Graph(model.graph, model.weights)


def outputs(model: Model, x: Array) -> Interval:
    """Between which numbers the outputs at an input (*input shape) lie."""
    _, graph = _interpreted(model)
    point = x.astype(np.float64).ravel()
    return Region(graph, Interval(point, point), Recipe("intervals", "intervals")).ranges[graph.output]


# ---------------------------------------------------------------------------------------------- what is claimed


def _check_property(given: Certificate, graph: Graph) -> None:
    rows, outputs = len(given.clause), graph.size(graph.output)
    matrix = finite(given.matrix, (rows, outputs), "the property's matrix")
    offset = finite(given.offset, (rows,), "the property's offset")
    require(rows > 0 and set(given.clause) == set(range(max(given.clause) + 1)), "clause numbers have gaps")
    if given.origin is not None and given.origin.label is not None:
        eye, label = np.eye(outputs), given.origin.label
        require(0 <= label < outputs, f"there is no class {label}")
        wanted = {tuple(eye[label] - eye[other]) for other in range(outputs) if other != label}
        separate = len(set(given.clause)) == rows and not offset.any()
        require(separate and {tuple(row) for row in matrix} == wanted, f"the property is not that of label {label}")


def _check_box(given: Certificate, graph: Graph) -> None:
    shape = graph.shapes["input"]
    lower, upper = (finite(end, shape, "the box") for end in (given.lower, given.upper))
    require(bool((lower <= upper).all()), "the box is empty")
    if given.origin is not None:
        finite(given.origin.image, shape, "the image")
        for low, high, (least, most) in zip(lower.flat, upper.flat, _exact_box(given.origin), strict=True):
            inside = Fraction(low) <= least and most <= Fraction(high)
            require(inside, f"the box does not contain all inputs within eps = {given.origin.eps} of the image")
            slack = _LOOSE * max(Fraction(1), abs(least), abs(most))
            close = least - Fraction(low) <= slack and Fraction(high) - most <= slack
            require(close, f"the box is larger than eps = {given.origin.eps} around the image")


def _exact_box(origin: Origin) -> Iterator[tuple[Fraction, Fraction]]:
    """The ends of every entry in rational numbers."""
    eps = _rational(origin.eps)
    require(eps >= 0, f"the radius {origin.eps} is negative")
    low, high = (None, None) if origin.data_range is None else map(_rational, origin.data_range)
    for value in origin.image.astype(np.float64).flat:
        least, most = Fraction(value) - eps, Fraction(value) + eps
        yield (least if low is None else max(least, low)), (most if high is None else min(most, high))


def _rational(text: str) -> Fraction:
    require(re.fullmatch(_RATIONAL, text) is not None, f"{text[:40]!r} is not a rational number")
    return Fraction(text)


# ------------------------------------------------------------------------------------------------- falsified


def _check_counterexample(given: Certificate, graph: Graph) -> float:
    require(given.leaves is None, "a falsified certificate has leaves")
    require(given.counterexample is not None, "a falsified certificate has no counterexample")
    assert given.counterexample is not None
    x = finite(given.counterexample, graph.shapes["input"], "the counterexample").ravel()
    if given.origin is None:
        inside = bool(((x >= given.lower.ravel()) & (x <= given.upper.ravel())).all())
    else:
        inside = all(
            least <= Fraction(value) <= most for value, (least, most) in zip(x, _exact_box(given.origin), strict=True)
        )
    require(inside, "the counterexample is not in the box")
    low, high = margin_at(given, graph, x)
    require(not low > 0, f"the margin at the counterexample is positive: {low:.3g}")
    if not high <= 0:
        raise Undecided(f"the margin at the counterexample is between {low:.3g} and {high:.3g}, a tie up to rounding")
    return high


def margin_at(given: Certificate, graph: Graph, x: Array) -> tuple[float, float]:
    """Between which numbers the property's margin at an input (flattened) lies."""
    region, clause = Region(graph, Interval(x, x), Recipe("intervals", "intervals")), np.array(given.clause)
    ends = []
    for sign in (1.0, -1.0):
        rows = {graph.output: sign * given.matrix.astype(np.float64)}
        found = lower_bounds(region, rows, {}, sign * given.offset.astype(np.float64))
        ends.append(sign * found.rigorous)
    low, high = (min(float(rows[clause == c].max()) for c in set(given.clause)) for rows in ends)
    return low, high
