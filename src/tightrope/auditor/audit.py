"""Whether a certificate proves what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from tightrope.auditor.bounds import Bound, Recipe, Region, gamma, lower_bounds, magnitude
from tightrope.auditor.cover import Cell, Leaf, NoCover, cells
from tightrope.auditor.graph import Activation, Array, Graph, GraphError, Ints
from tightrope.auditor.lines import Interval, lines
from tightrope.records.certificate import Certificate, Leaves, Model, Origin

_CHUNK = 64  # leaves bounded together
_RATIONAL = r"-?\d{1,50}(/\d{1,50}|(\.\d{1,50})?([eE][+-]?\d{1,3})?)"
_LOOSE = Fraction(1, 10**6)  # by which a box may be larger than asked for: rounding, of float32 as well


class Verdict(StrEnum):
    """What an audit ends with."""

    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    UNDECIDED = "cannot confirm"


@dataclass(frozen=True)
class Finding:
    """The result of an audit.

    Attributes:
        verdict: confirmed; rejected: it is not what it says; or cannot confirm: it may be true, but is not shown.
        reason: why it is not confirmed.
        margin: the least rigorous bound of the property's margin that was found, or of a counterexample the largest.
    """

    verdict: Verdict
    reason: str = ""
    margin: float | None = None


class _Rejected(Exception):  # noqa: N818
    pass


class _Undecided(Exception):  # noqa: N818
    pass


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
    except _Undecided as error:
        return Finding(Verdict.UNDECIDED, str(error))
    except (_Rejected, NoCover, GraphError) as error:
        return Finding(Verdict.REJECTED, str(error))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return Finding(Verdict.REJECTED, f"malformed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _check(given: Certificate, model: Model | None) -> float:
    if model is None:
        raise _Undecided("its network is not there: give the model file that it refers to")
    sha256, graph = _interpreted(model)
    _require(sha256 == given.model_sha256, "the network is another one: its hash is not that of the certificate")
    _check_property(given, graph)
    _check_box(given, graph)
    if given.verdict == "falsified":
        return _check_counterexample(given, graph)
    _require(given.verdict == "verified", f"{given.verdict!r} is no verdict that can be certified")
    _require(given.counterexample is None, "a verified certificate has a counterexample")
    return _check_leaves(given, graph)


@lru_cache(maxsize=2)
def _interpreted(model: Model) -> tuple[str, Graph]:
    return model.sha256, Graph(model.graph, model.weights)


def outputs(model: Model, x: Array) -> Interval:
    """Between which numbers the outputs at an input (*input shape) lie."""
    _, graph = _interpreted(model)
    point = x.astype(np.float64).ravel()
    return Region(graph, Interval(point, point), Recipe("intervals", "intervals")).ranges[graph.output]


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Rejected(otherwise)


def _finite(value: Array, shape: tuple[int, ...], what: str) -> Array:
    _require(value.shape == shape, f"{what} must be of shape {shape}, not {value.shape}")
    _require(value.dtype.kind in "fi" and bool(np.isfinite(value).all()), f"{what} has NaN or infinite entries")
    return value.astype(np.float64)


# ---------------------------------------------------------------------------------------------- what is claimed


def _check_property(given: Certificate, graph: Graph) -> None:
    rows, outputs = len(given.clause), graph.size(graph.output)
    matrix = _finite(given.matrix, (rows, outputs), "the property's matrix")
    offset = _finite(given.offset, (rows,), "the property's offset")
    _require(rows > 0 and set(given.clause) == set(range(max(given.clause) + 1)), "clause numbers have gaps")
    if given.origin is not None and given.origin.label is not None:
        eye, label = np.eye(outputs), given.origin.label
        _require(0 <= label < outputs, f"there is no class {label}")
        wanted = {tuple(eye[label] - eye[other]) for other in range(outputs) if other != label}
        separate = len(set(given.clause)) == rows and not offset.any()
        _require(separate and {tuple(row) for row in matrix} == wanted, f"the property is not that of label {label}")


def _check_box(given: Certificate, graph: Graph) -> None:
    shape = graph.shapes["input"]
    lower, upper = (_finite(end, shape, "the box") for end in (given.lower, given.upper))
    _require(bool((lower <= upper).all()), "the box is empty")
    if given.origin is not None:
        _finite(given.origin.image, shape, "the image")
        for low, high, (least, most) in zip(lower.flat, upper.flat, _exact_box(given.origin), strict=True):
            inside = Fraction(low) <= least and most <= Fraction(high)
            _require(inside, f"the box does not contain all inputs within eps = {given.origin.eps} of the image")
            close = least - Fraction(low) <= _LOOSE and Fraction(high) - most <= _LOOSE
            _require(close, f"the box is larger than eps = {given.origin.eps} around the image")


def _exact_box(origin: Origin) -> Iterator[tuple[Fraction, Fraction]]:
    """The ends of every entry in rational numbers."""
    eps = _rational(origin.eps)
    _require(eps >= 0, f"the radius {origin.eps} is negative")
    low, high = (None, None) if origin.data_range is None else map(_rational, origin.data_range)
    for value in origin.image.astype(np.float64).flat:
        least, most = Fraction(value) - eps, Fraction(value) + eps
        yield least if low is None else max(least, low), most if high is None else min(most, high)


def _rational(text: str) -> Fraction:
    _require(re.fullmatch(_RATIONAL, text) is not None, f"{text[:40]!r} is not a rational number")
    return Fraction(text)


# ------------------------------------------------------------------------------------------------- falsified


def _check_counterexample(given: Certificate, graph: Graph) -> float:
    _require(given.leaves is None, "a falsified certificate has leaves")
    _require(given.counterexample is not None, "a falsified certificate has no counterexample")
    assert given.counterexample is not None
    x = _finite(given.counterexample, graph.shapes["input"], "the counterexample").ravel()
    if given.origin is None:
        inside = bool(((x >= given.lower.ravel()) & (x <= given.upper.ravel())).all())
    else:
        inside = all(
            least <= Fraction(value) <= most for value, (least, most) in zip(x, _exact_box(given.origin), strict=True)
        )
    _require(inside, "the counterexample is not in the box")
    low, high = margin_at(given, graph, x)
    _require(not low > 0, f"the margin at the counterexample is positive: {low:.3g}")
    if not high <= 0:
        raise _Undecided(f"the margin at the counterexample is between {low:.3g} and {high:.3g}, a tie up to rounding")
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


# -------------------------------------------------------------------------------------------------- verified


def _check_leaves(given: Certificate, graph: Graph) -> float:
    _require(given.leaves is not None, "a verified certificate has no leaves")
    assert given.leaves is not None
    leaves, clause = _checked(given.leaves, given, graph), np.array(given.clause)
    recipe = _recipe(leaves.relaxation)
    whole = Cell(given.lower.astype(np.float64).ravel(), given.upper.astype(np.float64).ravel())
    regions: dict[Cell, Region] = {}
    least = np.inf
    for number in sorted(set(given.clause)):
        foreign = leaves.weights[leaves.clause == number][:, clause != number]
        _require(not foreign.any(), f"leaves of clause {number} have weights of other clauses' rows")
        parts: dict[Cell, list[Leaf]] = {}
        for leaf, cell in cells(_leaves_of(leaves, number, whole), whole):
            parts.setdefault(cell, []).append(leaf)
        for cell, found in parts.items():
            region = _region(graph, cell, recipe, regions)
            for first in range(0, len(found), _CHUNK):
                least = min(least, _bounded(given, leaves, found[first : first + _CHUNK], region))
    return float(least)


def _recipe(relaxation: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.of(relaxation)
    except LookupError:
        raise _Undecided(f"the relaxation {dict(relaxation)} is not known here") from None


def _checked(leaves: Leaves, given: Certificate, graph: Graph) -> Leaves:
    count, rows, neurons = leaves.size, len(given.clause), len(leaves.neurons)
    weights = _finite(leaves.weights, (count, rows), "leaves' weights")
    _require(bool((weights >= 0).all()), "weights of rows are negative")
    _require(bool((np.abs(weights.sum(1) - 1) <= 1e-5).all()), "weights of rows do not add up to 1")
    slopes = _finite(leaves.slopes, (count, neurons), "leaves' slopes")
    _require(bool(((slopes >= 0) & (slopes <= 1)).all()), "slopes are outside [0, 1]")
    multipliers = _finite(leaves.multipliers, (len(leaves.splits),), "multipliers")
    _require(bool((multipliers >= 0).all()), "multipliers are negative")
    if leaves.boxes is not None:
        _finite(leaves.boxes, (count, 2, *graph.shapes["input"]), "leaves' boxes")
    _require(
        leaves.clause.dtype.kind == "i" and set(leaves.clause.tolist()) <= set(given.clause), "a leaf has no clause"
    )
    _check_neurons(leaves, graph)
    return leaves


def _check_neurons(leaves: Leaves, graph: Graph) -> None:
    count = len(leaves.neurons)
    _require(leaves.neurons.shape == (count, 2) and leaves.neurons.dtype.kind == "i", "neurons must be pairs")
    _require(leaves.splits.shape[1:] == (3,) and leaves.splits.dtype.kind == "i", "splits must be triples")
    _require(len({tuple(pair) for pair in leaves.neurons.tolist()}) == count, "a neuron is named twice")
    _require(len(set(leaves.nodes)) == len(leaves.nodes), "a node is named twice")
    known = graph.pre_activations()
    for node, index in leaves.neurons.tolist():
        exists = 0 <= node < len(leaves.nodes) and leaves.nodes[node] in known
        _require(exists and 0 <= index < graph.size(leaves.nodes[node]), f"there is no neuron {node}, {index}")
    for leaf, neuron, sign in leaves.splits.tolist():
        right = 0 <= leaf < leaves.size and 0 <= neuron < count and sign in (1, -1)
        _require(right, f"{sign} is no sign of neuron {neuron} in leaf {leaf}")


def _leaves_of(leaves: Leaves, clause: int, whole: Cell) -> list[Leaf]:
    signs: dict[int, dict[int, int]] = {}
    for leaf, neuron, sign in leaves.splits.tolist():
        _require(neuron not in signs.setdefault(leaf, {}), f"leaf {leaf} is split twice at neuron {neuron}")
        signs[leaf][neuron] = sign
    found = []
    for number in np.flatnonzero(leaves.clause == clause).tolist():
        lower, upper = (whole.lower, whole.upper) if leaves.boxes is None else leaves.boxes[number].astype(np.float64)
        found.append(Leaf(number, lower.ravel(), upper.ravel(), signs.get(number, {})))
    return found


def _region(graph: Graph, cell: Cell, recipe: Recipe, known: dict[Cell, Region]) -> Region:
    """The bounds on a cell and on all that it was cut out of; ``known`` keeps them."""
    waiting = [cell]
    while waiting[-1].parent is not None and waiting[-1] not in known:
        waiting.append(waiting[-1].parent)
    for part in reversed(waiting):
        if part not in known:
            around = None if part.parent is None else known[part.parent]
            known[part] = Region(graph, Interval(part.lower, part.upper), recipe, around)
    return known[cell]


# ------------------------------------------------------------------------------------------- bounds of leaves


def _bounded(given: Certificate, leaves: Leaves, part: list[Leaf], region: Region) -> float:
    """The least bound of some leaves with one box."""
    bound = _bound(given, leaves, part, region, own=True)
    if not (bound.rigorous > 0).all():  # a bound of the relaxation itself has no slopes of its own
        other = _bound(given, leaves, part, region, own=False)
        bound = Bound(*(np.fmax(first, second) for first, second in zip(bound, other, strict=True)))
    for leaf, computed, rigorous in zip(part, *bound, strict=True):
        if not rigorous > 0:
            text = f"the bound of leaf {leaf.number} is {computed:.3g}"
            if 2 * computed > rigorous:  # computed + its error > 0
                raise _Undecided(f"{text}, which rounding may account for")
            raise _Rejected(text)
    return float(bound.rigorous.min())


def _bound(given: Certificate, leaves: Leaves, part: list[Leaf], region: Region, *, own: bool) -> Bound:
    graph, numbers = region.graph, [leaf.number for leaf in part]
    rows, offset, slack = _weighted(given, leaves.weights[numbers].astype(np.float64), region)
    rows |= _multipliers(leaves, numbers, graph)  # of pre-activations, which the output is not
    pre = {name: _clamped(region.pre[name], name, leaves, part) for name in region.pre}
    found = {}
    for step in graph.steps.values():
        if isinstance(step.op, Activation) and own:
            tilt = _tilts(leaves, numbers, step.inputs[0], graph)
            found[step.name] = lines(step.op, pre[step.inputs[0]], "adaptive", tilt)
        elif isinstance(step.op, Activation) and region.recipe.rule != "intervals":
            found[step.name] = lines(step.op, pre[step.inputs[0]], region.recipe.rule)
    bound = lower_bounds(region, rows, found, offset, slack)
    empty = np.any([(lower > upper).any(1) for lower, upper in pre.values()], axis=0) if pre else False
    return Bound(*(np.where(empty, np.inf, value) for value in bound))


def _weighted(given: Certificate, weights: Array, region: Region) -> tuple[dict[str, Array], Array, Array]:
    """The mean of the rows, and what rounding can make of it."""
    matrix, offset = given.matrix.astype(np.float64), given.offset.astype(np.float64)
    output, share = region.graph.output, gamma(len(offset) + 2)
    size = np.abs(matrix) @ magnitude(region, output) + np.abs(offset)
    return {output: weights @ matrix}, weights @ offset, 2 * share * (weights @ size)


def _columns(leaves: Leaves, name: str) -> tuple[Ints, Ints]:
    """Which neurons belong to a node, and where they are in it."""
    owner = leaves.nodes.index(name) if name in leaves.nodes else -1
    here = np.flatnonzero(leaves.neurons[:, 0] == owner)
    return here, leaves.neurons[here, 1]


def _tilts(leaves: Leaves, numbers: list[int], name: str, graph: Graph) -> Array:
    tilt = np.full((len(numbers), graph.size(name)), np.nan)
    here, index = _columns(leaves, name)
    tilt[:, index] = leaves.slopes[numbers][:, here]
    return tilt


def _multipliers(leaves: Leaves, numbers: list[int], graph: Graph) -> dict[str, Array]:
    """Coefficients of the split neurons, -multiplier sign, by node."""
    row = {number: i for i, number in enumerate(numbers)}
    found: dict[str, Array] = {}
    here = np.flatnonzero(np.isin(leaves.splits[:, 0], numbers) & (leaves.multipliers > 0))
    for (leaf, neuron, sign), value in zip(leaves.splits[here].tolist(), leaves.multipliers[here], strict=True):
        node, index = leaves.neurons[neuron]
        name = leaves.nodes[node]
        coef = found.setdefault(name, np.zeros((len(numbers), graph.size(name))))
        coef[row[leaf], index] = -value * sign
    return found


def _clamped(pre: Interval, name: str, leaves: Leaves, part: list[Leaf]) -> Interval:
    lower, upper = (np.repeat(end[None], len(part), 0) for end in pre)
    for row, leaf in enumerate(part):
        for neuron, sign in leaf.signs.items():
            node, index = leaves.neurons[neuron]
            if leaves.nodes[node] == name and sign > 0:
                lower[row, index] = max(lower[row, index], 0.0)
            elif leaves.nodes[node] == name:
                upper[row, index] = min(upper[row, index], 0.0)
    return Interval(lower, upper)
