"""Of which degree a bound is as a function of the weights, counted from its formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tightrope.core.network import INPUT, Network
from tightrope.core.op import ElementwiseOp


class Formula(NamedTuple):
    """What kind of functions of the weights the bounds of a relaxation are, piece by piece.

    Attributes:
        rational: whether lines have slopes u / (u - l); otherwise bounds are polynomials.
        substituted: whether the l and u of pre-activations rest on such lines, too, not on intervals.
    """

    rational: bool
    substituted: bool


FORMULAS = {
    "ibp": Formula(rational=False, substituted=False),
    "hbox": Formula(rational=False, substituted=False),
    "crown_ibp": Formula(rational=True, substituted=False),
    "deepz": Formula(rational=True, substituted=True),
    "deeppoly": Formula(rational=True, substituted=True),
}
"""By the name of a relaxation, whatever its slope rule."""


def degree_bound(network: Network, crossing: Mapping[str, int], formula: Formula) -> int | None:
    """An upper bound of the degree of one sample's margin bounds as a function of the position on a line of weights.

    On a piece, where no sign and no rule changes, every matrix contributes one degree. Lines of slope u / (u - l) make
    the bound a rational function: each neuron that crosses 0 contributes the degree of u - l to the denominator. That
    is the number of matrices before it, plus, where l and u come from back-substitution, the degree of all denominators
    before it: so with depth degrees multiply.

    Args:
        network: the graph.
        crossing: by the name of a pre-activation, how many of its neurons cross 0.
        formula: of the relaxation.

    Returns:
        The degree of the numerator, which is the larger one; None if an activation is not made of two lines.

    Example:
        >>> import tightrope as tr
        >>> from torch import nn
        >>> net, _ = tr.from_module(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), (2,))
        >>> [degree_bound(net, {net.nodes[0].name: 3}, FORMULAS[name]) for name in ("ibp", "deepz")]
        [2, 5]
    """
    degrees, denominators = {INPUT: 0}, 0
    for node in network.nodes:
        trained = any(key in network.trainable for key in vars(node.op).values() if isinstance(key, str))
        degrees[node.name] = max(degrees[name] for name in node.inputs) + trained
        if isinstance(node.op, ElementwiseOp):
            if node.op.breakpoints != (0.0,):
                return None
            before = degrees[node.inputs[0]] + (denominators if formula.substituted else 0)
            denominators += crossing[node.inputs[0]] * before if formula.rational else 0
    return degrees[network.output] + denominators
