"""The losses of the training methods by their papers' equations, one sample and one margin at a time, in float64.

Samples are (x, label); every loss is of one sample. Attacks are not repeated here: the points that they found are
arguments, and so are the points that have to be searched for by enumeration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from reference.interval import ibp, node_intervals
from reference.network import Add, Affine, Array, LeakyRelu, Net, Node, Relu, activate, output, sequential


def rows_of(label: int, classes: int) -> Array:
    """y_label - y_i for every other i, in order."""
    eye = np.eye(classes)
    return np.array([eye[label] - eye[i] for i in range(classes) if i != label])


def cross_entropy(logits: Array, label: int) -> float:
    """-log softmax(logits)[label]."""
    return math.log(sum(math.exp(value - logits[label]) for value in logits))


def margin_loss(margins: Array) -> float:
    """The cross-entropy of the logits (0, -margins) with label 0 (Wong and Kolter 2018, theorem 2)."""
    return cross_entropy(np.array([0.0, *(-margin for margin in margins)]), 0)


def ball(x: Array, eps: float) -> tuple[Array, Array]:
    """The l-infinity ball within [0, 1]."""
    return np.clip(x - eps, 0.0, 1.0), np.clip(x + eps, 0.0, 1.0)


# ----------------------------------------------------------------------------------------------- intervals


def ibp_loss(net: Net, lower: Array, upper: Array, label: int, classes: int) -> float:
    """Gowal et al. 2018, equation 9, the last layer merged with the margins."""
    return margin_loss(ibp(net, lower, upper, rows_of(label, classes)).margins)


def shrunken(net: Net, lower: Array, upper: Array, keep: float) -> dict[str, tuple[Array, Array]]:
    """Intervals of a feed-forward net whose activations, where not stable, keep the lower share of their range."""
    found, low, high = {}, lower, upper
    for name, layer, _ in net.nodes:
        if isinstance(layer, Affine):
            low, high = node_intervals(sequential([layer]), low, high)["0"]
        else:
            crossing = (low < 0) & (high > 0)
            low, high = activate(layer, low), activate(layer, high)
            high = np.where(crossing, low + keep * (high - low), high)
        found[name] = (low, high)
    return found


def shrunken_loss(net: Net, lower: Array, upper: Array, label: int, classes: int, keep: float) -> float:
    """The IBP loss with such intervals (Mueller et al. 2023)."""
    last = net.nodes[-1].layer
    assert isinstance(last, Affine)
    low, high = shrunken(net, lower, upper, keep)[net.nodes[-2].name]
    rows = rows_of(label, classes)
    return ibp_loss_of_layer(rows @ last.weight, rows @ last.bias, low, high)


def ibp_loss_of_layer(weight: Array, bias: Array, low: Array, high: Array) -> float:
    """The loss of margins that are one affine layer of a box."""
    return margin_loss(node_intervals(sequential([Affine(weight, bias)]), low, high)["0"][0])


def small_box(x: Array, eps: float, ratio: float, centre: Array) -> tuple[Array, Array]:
    """Mueller et al. 2023: the box of ratio times the clipped ball around a centre that keeps it inside."""
    lower, upper = ball(x, eps)
    half = ratio * (upper - lower) / 2
    assert np.all(centre - half >= lower - 1e-9)
    assert np.all(centre + half <= upper + 1e-9)
    return centre - half, centre + half


# ---------------------------------------------------------------------------------------------------- TAPS


def split(net: Net, count: int) -> tuple[Net, Net]:
    """The first nodes of a feed-forward net, and the rest."""
    layers = [node.layer for node in net.nodes]
    return sequential(layers[:count]), sequential(layers[count:])


def taps_margins(first: Net, second: Net, lower: Array, upper: Array, rows: Array) -> Array:
    """Mao et al. 2023, the multi-estimator: for each margin the least value over the corners of the latent box.

    Where the second part is affine that is the exact minimum over the box.
    """
    low, high = node_intervals(first, lower, upper)[first.output]
    corners = np.array(list(product(*zip(low, high, strict=True))))
    values = output(second, corners) if second.nodes else corners
    return (values @ rows.T).min(axis=0)


def connector(point: float, lower: float, upper: float, threshold: float) -> tuple[float, float]:
    """Mao et al. 2023, the gradient connector: derivatives of a latent entry to both ends of its interval."""
    reach = threshold * (upper - lower)
    return max(0.0, 1.0 - (point - lower) / reach), max(0.0, 1.0 - (upper - point) / reach)


# ------------------------------------------------------------------------------------- losses in between


def mtl_ibp(adversarial: Array, bounds: Array, alpha: float) -> float:
    """De Palma et al. 2024, MTL-IBP: (1 - alpha) L(adversarial) + alpha L(IBP)."""
    return (1 - alpha) * margin_loss(adversarial) + alpha * margin_loss(bounds)


def cc_ibp(adversarial: Array, bounds: Array, alpha: float) -> float:
    """De Palma et al. 2024, CC-IBP: L((1 - alpha) adversarial + alpha IBP)."""
    return margin_loss((1 - alpha) * adversarial + alpha * bounds)


def exp_ibp(adversarial: Array, bounds: Array, alpha: float) -> float:
    """De Palma et al. 2024, Exp-IBP: L(adversarial)^(1 - alpha) L(IBP)^alpha."""
    return margin_loss(adversarial) ** (1 - alpha) * margin_loss(bounds) ** alpha


# ------------------------------------------------------------------------------------------------- attacks


def softmax(logits: Array) -> Array:
    """exp(logits), normalised."""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def trades(clean: Array, moved: Array, label: int, weight: float) -> float:
    """Zhang et al. 2019, equation 5: CE(f(x), y) + weight KL(p(x) || p(x'))."""
    p, q = softmax(clean), softmax(moved)
    return cross_entropy(clean, label) + weight * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def certainty(logits: Sequence[Array]) -> float:
    """Zhang, Backes and Zhang 2023: the mean over samples of the variance over classes of the logits."""
    return float(np.mean([np.mean((each - each.mean()) ** 2) for each in logits]))


def shifted(net: Net, steps: dict[tuple[str, str], Array]) -> Net:
    """A net with other weights: ``steps[node, "weight" or "bias"]`` is added."""
    nodes = []
    for name, layer, inputs in net.nodes:
        if isinstance(layer, Affine):
            zero = np.zeros(1)
            layer = Affine(
                layer.weight + steps.get((name, "weight"), zero), layer.bias + steps.get((name, "bias"), zero)
            )
        nodes.append(Node(name, layer, inputs))
    return Net(tuple(nodes))


def certainty_gradient(net: Net, points: Sequence[Array], step: float = 1e-5) -> dict[tuple[str, str], Array]:
    """Of the certainty at fixed points to every weight, by central differences."""
    found: dict[tuple[str, str], Array] = {}
    for name, layer, _ in net.nodes:
        assert not isinstance(layer, Add)
        if isinstance(layer, Relu | LeakyRelu) or not isinstance(layer, Affine):
            continue
        for kind, value in (("weight", layer.weight), ("bias", layer.bias)):
            gradient = np.zeros_like(value)
            for index in np.ndindex(value.shape):
                change = np.zeros_like(value)
                change[index] = step
                ends = [
                    certainty([output(shifted(net, {(name, kind): sign * change}), x) for x in points])
                    for sign in (1, -1)
                ]
                gradient[index] = (ends[0] - ends[1]) / (2 * step)
            found[name, kind] = gradient
    return found
