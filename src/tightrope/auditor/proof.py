"""Whether the leaves of a certificate cover its box, and whether each of them is proved."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from tightrope.auditor.bounds import Bound, Recipe, Region, gamma, lower_bounds, magnitude
from tightrope.auditor.cover import Cell, Leaf, cells
from tightrope.auditor.finding import Rejected, Undecided, finite, require
from tightrope.auditor.graph import Activation, Array, Graph, Ints
from tightrope.auditor.lines import Interval, lines
from tightrope.records.certificate import Certificate, Leaves

_CHUNK = 64  # leaves bounded together


def check_leaves(given: Certificate, graph: Graph) -> float:
    """The least bound of a leaf, all of them positive.

    Raises:
        Rejected, Undecided, NoCover: it is not shown that the property holds on the box.
    """
    require(given.leaves is not None, "a verified certificate has no leaves")
    assert given.leaves is not None
    leaves, clause = _checked(given.leaves, given, graph), np.array(given.clause)
    recipe = _recipe(leaves.relaxation)
    whole = Cell(given.lower.astype(np.float64).ravel(), given.upper.astype(np.float64).ravel())
    tighten = None if leaves.ends is None else partial(_tightened, leaves)
    root = Region(graph, Interval(whole.lower, whole.upper), recipe, tighten=tighten)
    least = np.inf
    for number in sorted(set(given.clause)):
        foreign = leaves.weights[leaves.clause == number][:, clause != number]
        require(not foreign.any(), f"leaves of clause {number} have weights of other clauses' rows")
        parts: dict[Cell, list[Leaf]] = {}
        regions = {whole: root}
        for leaf, cell in cells(_leaves_of(leaves, number, whole), whole):
            parts.setdefault(cell, []).append(leaf)
        for cell, found in parts.items():
            region = _region(cell, regions)
            for first in range(0, len(found), _CHUNK):
                least = min(least, _bounded(given, leaves, found[first : first + _CHUNK], region))
    return float(least)


def _recipe(relaxation: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.of(relaxation)
    except LookupError:
        raise Undecided(f"the relaxation {dict(relaxation)} is not known here") from None


def _checked(leaves: Leaves, given: Certificate, graph: Graph) -> Leaves:
    count, rows, neurons = leaves.size, len(given.clause), len(leaves.neurons)
    weights = finite(leaves.weights, (count, rows), "leaves' weights")
    require(bool((weights >= 0).all()), "weights of rows are negative")
    require(bool((np.abs(weights.sum(1) - 1) <= 1e-5).all()), "weights of rows do not add up to 1")
    slopes = finite(leaves.slopes, (count, neurons), "leaves' slopes")
    require(bool(((slopes >= 0) & (slopes <= 1)).all()), "slopes are outside [0, 1]")
    multipliers = finite(leaves.multipliers, (len(leaves.splits),), "multipliers")
    require(bool((multipliers >= 0).all()), "multipliers are negative")
    if leaves.boxes is not None:
        finite(leaves.boxes, (count, 2, *graph.shapes["input"]), "leaves' boxes")
    known = leaves.clause.dtype.kind == "i" and set(leaves.clause.tolist()) <= set(given.clause)
    require(known, "a leaf has no clause")
    _check_neurons(leaves, graph)
    if leaves.ends is not None:
        _check_ends(leaves, leaves.ends)
    return leaves


def _check_neurons(leaves: Leaves, graph: Graph) -> None:
    count = len(leaves.neurons)
    require(leaves.neurons.shape == (count, 2) and leaves.neurons.dtype.kind == "i", "neurons must be pairs")
    require(leaves.splits.shape[1:] == (3,) and leaves.splits.dtype.kind == "i", "splits must be triples")
    require(len({tuple(pair) for pair in leaves.neurons.tolist()}) == count, "a neuron is named twice")
    require(len(set(leaves.nodes)) == len(leaves.nodes), "a node is named twice")
    known = graph.pre_activations()
    for node, index in leaves.neurons.tolist():
        exists = 0 <= node < len(leaves.nodes) and leaves.nodes[node] in known
        require(exists and 0 <= index < graph.size(leaves.nodes[node]), f"there is no neuron {node}, {index}")
    for leaf, neuron, sign in leaves.splits.tolist():
        right = 0 <= leaf < leaves.size and 0 <= neuron < count and sign in (1, -1)
        require(right, f"{sign} is no sign of neuron {neuron} in leaf {leaf}")


def _check_ends(leaves: Leaves, ends: Array) -> None:
    require(ends.shape[1:] == (2,) and ends.dtype.kind == "i", "ends must be pairs")
    require(leaves.end_slopes is not None, "ends have no slopes")
    assert leaves.end_slopes is not None
    slopes = finite(leaves.end_slopes, (len(ends), len(leaves.neurons)), "slopes of ends")
    require(bool(((slopes >= 0) & (slopes <= 1)).all()), "slopes are outside [0, 1]")
    for neuron, side in ends.tolist():
        require(0 <= neuron < len(leaves.neurons) and side in (1, -1), f"neuron {neuron} has no end {side}")


def _leaves_of(leaves: Leaves, clause: int, whole: Cell) -> list[Leaf]:
    signs: dict[int, dict[int, int]] = {}
    for leaf, neuron, sign in leaves.splits.tolist():
        require(neuron not in signs.setdefault(leaf, {}), f"leaf {leaf} is split twice at neuron {neuron}")
        signs[leaf][neuron] = sign
    found = []
    for number in np.flatnonzero(leaves.clause == clause).tolist():
        lower, upper = (whole.lower, whole.upper) if leaves.boxes is None else leaves.boxes[number].astype(np.float64)
        found.append(Leaf(number, lower.ravel(), upper.ravel(), signs.get(number, {})))
    return found


def _region(cell: Cell, known: dict[Cell, Region]) -> Region:
    """What holds on a cell, and on all that it was cut out of; ``known`` keeps both."""
    waiting = [cell]
    while waiting[-1] not in known:
        assert waiting[-1].parent is not None  # what has none is known
        waiting.append(waiting[-1].parent)
    for part, parent in reversed(list(pairwise(waiting))):
        around = known[parent]
        known[part] = Region(around.graph, Interval(part.lower, part.upper), around.recipe, around)
    return known[cell]


# ------------------------------------------------------------------------------------- bounds of pre-activations


def _tightened(leaves: Leaves, region: Region, name: str) -> Interval:
    """Ends of a node's entries that have slopes of their own; infinite for the others."""
    assert leaves.ends is not None
    assert leaves.end_slopes is not None
    graph = region.graph
    lower, upper = np.full(graph.size(name), -np.inf), np.full(graph.size(name), np.inf)
    here, index = _columns(leaves, name)
    place = dict(zip(here.tolist(), index.tolist(), strict=True))
    numbers = np.flatnonzero(np.isin(leaves.ends[:, 0], here))
    for first in range(0, len(numbers), _CHUNK):
        rows = numbers[first : first + _CHUNK]
        entries, sides = [place[neuron] for neuron in leaves.ends[rows, 0].tolist()], leaves.ends[rows, 1]
        coef = np.zeros((len(rows), graph.size(name)))
        coef[np.arange(len(rows)), entries] = sides
        found = {}
        for step in graph.steps.values():
            if isinstance(step.op, Activation) and step.inputs[0] in region.pre and step.inputs[0] != name:
                tilt = _tilts(leaves, leaves.end_slopes[rows], step.inputs[0], graph)
                found[step.name] = lines(step.op, region.pre[step.inputs[0]], "adaptive", tilt)
        for entry, side, bound in zip(entries, sides, lower_bounds(region, {name: coef}, found).rigorous, strict=True):
            if side > 0:
                lower[entry] = max(lower[entry], bound)
            else:
                upper[entry] = min(upper[entry], -bound)
    return Interval(lower, upper)


# ------------------------------------------------------------------------------------------- bounds of leaves


def _bounded(given: Certificate, leaves: Leaves, part: list[Leaf], region: Region) -> float:
    """The least bound of some leaves with one box.

    Tighter bounds of pre-activations are nearly always better, but not always; and a bound of the relaxation itself has
    no slopes of its own. What proves a leaf may be any of these.
    """
    bound = Bound(*np.full((2, len(part)), -np.inf))
    for pre, own in ((region.pre, True), (region.plain, True), (region.plain, False)):
        if not (bound.rigorous > 0).all():
            other = _bound(given, leaves, part, region, pre, own=own)
            bound = Bound(*(np.fmax(first, second) for first, second in zip(bound, other, strict=True)))
    for leaf, computed, rigorous in zip(part, *bound, strict=True):
        if not rigorous > 0:
            text = f"the bound of leaf {leaf.number} is {computed:.3g}"
            if 2 * computed > rigorous:  # computed + its error > 0
                raise Undecided(f"{text}, which rounding may account for")
            raise Rejected(text)
    return float(bound.rigorous.min())


def _bound(
    given: Certificate, leaves: Leaves, part: list[Leaf], region: Region, known: Mapping[str, Interval], *, own: bool
) -> Bound:
    """The bounds of leaves from bounds of pre-activations, with their ``own`` slopes or those of the relaxation."""
    graph, numbers = region.graph, [leaf.number for leaf in part]
    rows, offset, slack = _weighted(given, leaves.weights[numbers].astype(np.float64), region)
    rows |= _multipliers(leaves, numbers, graph)  # of pre-activations, which the output is not
    pre = {name: _clamped(interval, name, leaves, part) for name, interval in known.items()}
    found = {}
    for step in graph.steps.values():
        if isinstance(step.op, Activation) and own:
            tilt = _tilts(leaves, leaves.slopes[numbers], step.inputs[0], graph)
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


def _tilts(leaves: Leaves, slopes: Array, name: str, graph: Graph) -> Array:
    """Slopes of the neurons, (rows, k), at a node, (rows, entries); NaN at entries that are no neurons."""
    tilt = np.full((len(slopes), graph.size(name)), np.nan)
    here, index = _columns(leaves, name)
    tilt[:, index] = slopes[:, here]
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
