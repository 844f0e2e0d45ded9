"""What is claimed holds in exact arithmetic, and little is lost for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from helpers import F64, Residual, as_oracle, randomise
from reference import exact_arithmetic as rational
from reference import network as ref
from tightrope.attacks.pgd import Pgd
from tightrope.core.bounds import Interval, Lines, Params
from tightrope.core.box import Box, inner_box
from tightrope.core.network import Network
from tightrope.core.op import ElementwiseOp, Tilt
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.rounding import FUNCTION_ERROR, gamma, roundoff
from tightrope.core.spec import Spec
from tightrope.ops.leaky_relu import LeakyRelu
from tightrope.ops.relu import Relu
from tightrope.ops.sigmoid import Sigmoid
from tightrope.ops.tanh import Tanh
from tightrope.relaxations import _slopes
from tightrope.relaxations._symbolic import SymbolicIntervals
from tightrope.verifiers._merge import within
from tightrope.verifiers._problem import Problem, margin_bounds
from tightrope.verifiers._subproblems import Items, Lagrangian, Variables
from tightrope.verifiers.alpha_crown import AlphaCrown
from tightrope.verifiers.attack import AttackVerifier
from tightrope.verifiers.bab import Bab
from tightrope.verifiers.one_shot import OneShot

DTYPES = [torch.float64, torch.float32]
BATCH, CLASSES = 2, 3
RULES = {"deeppoly": _slopes.adaptive, "deepz": _slopes.parallel, "hbox": _slopes.constant}


class Pooled(nn.Module):
    """A convolution, the largest of each window, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(1, 2, 2), nn.MaxPool2d(2, 1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.conv(x)).flatten(1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, CLASSES)), (4,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES)), (3,)),
    "leaky": (lambda: nn.Sequential(nn.Linear(3, 5), nn.LeakyReLU(0.1), nn.Linear(5, CLASSES)), (3,)),
    "residual": (lambda: Residual(3, 5, CLASSES), (3,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, 1, 1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Conv2d(3, 2, 3, 2, 1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(2, CLASSES),
        ),
        (1, 4, 4),
    ),
}


def build(name: str, scale: float = 1.0, dtype: torch.dtype = F64) -> tuple[nn.Module, Network, Params]:
    """A network whose first layer is scaled up and whose last one is scaled down by as much."""
    make, shape = NETS[name]
    module = randomise(make(), len(name))
    linear = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        for layer, factor in ((linear[0], scale), (linear[-1], 1 / scale)):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)
    module = module.to(dtype)
    return module, *tr.from_module(module, shape)


def exact(module: nn.Module, shape: tuple[int, ...]) -> ref.Net:
    """The network in rationals: pooling and normalisation from their definitions, the rest from the weights."""
    if not isinstance(module, nn.Sequential):
        return rational.exact(as_oracle(module.double(), shape))
    layers: list[ref.Layer] = []
    for layer in module:
        x = torch.zeros(1, *shape, dtype=next(module.parameters()).dtype)
        if isinstance(layer, nn.BatchNorm2d):
            facts = (t.detach().numpy() for t in (layer.weight, layer.bias, layer.running_mean, layer.running_var))
            layers.append(rational.batchnorm(*facts, layer.eps, math.prod(shape[1:])))
        elif isinstance(layer, nn.AvgPool2d):
            taps = rational.rational(ref.avgpool_matrix(shape, layer.kernel_size).weight != 0)  # type: ignore[arg-type]
            layers.append(ref.Affine(taps / int(layer.kernel_size) ** 2, rational.rational(np.zeros(len(taps)))))
        else:
            layers += [node.layer for node in rational.exact(ref.sequential(_oracle(layer, shape))).nodes]
        shape = tuple(layer(x).shape[1:])
    return ref.sequential(layers)


def _oracle(layer: nn.Module, shape: tuple[int, ...]) -> list[ref.Layer]:
    return [node.layer for node in as_oracle(nn.Sequential(layer), shape).nodes]


def problem(name: str, scale: float, dtype: torch.dtype, eps: float = 0.1) -> tuple[nn.Module, Problem]:
    module, net, params = build(name, scale, dtype)
    x = torch.rand(BATCH, *net.input_shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(dtype)
    spec = tr.margin_spec(net(params, x).argmax(1), CLASSES, dtype=dtype)
    return module, Problem(net, params, tr.linf_box(x, eps), spec)


def rows_of(given: Problem, i: int) -> rational.Rationals:
    """The rows of a sample's spec."""
    return flat(given.spec.matrix[i]).reshape(-1, CLASSES)


def flat(value: Tensor) -> rational.Rationals:
    return rational.rational(value.detach().double().numpy().ravel())


def exact_lines(given: Problem, oracle: ref.Net, lines: dict[str, Lines], i: int) -> dict[str, rational.Lines]:
    """The lines of a sample by the oracle's names: activations come in the same order."""
    own = [node.name for node in given.network.nodes if isinstance(node.op, ElementwiseOp)]
    theirs = [node.name for node in oracle.nodes if not isinstance(node.layer, ref.Affine | ref.Add)]
    found = {}
    for mine, name in zip(own, theirs, strict=True):
        zero = torch.zeros_like(lines[mine].lower_slope)
        found[name] = rational.Lines(*(flat((zero if part is None else part)[i]) for part in lines[mine]))
    return found


SETTINGS = [(name, scale, dtype) for name in NETS for scale in (1e-6, 1.0, 1e6) for dtype in DTYPES]


# -------------------------------------------------------------------------------------------------- points


@pytest.mark.parametrize(("name", "scale", "dtype"), SETTINGS)
def test_the_margin_at_a_point_lies_between_its_bounds(name: str, scale: float, dtype: torch.dtype) -> None:
    module, given = problem(name, scale, dtype)
    for x in (given.box.lower, given.box.upper):
        oracle = exact(module, given.network.input_shape)
        for i, found in enumerate(margin_bounds(given, x)):
            margin = min(rows_of(given, i) @ rational.evaluate(oracle, flat(x[i]))[oracle.output])
            assert Fraction(found.lower) <= margin <= Fraction(found.upper)
            assert found.upper - found.lower <= 1e-9 * (1 + abs(float(margin)))


def test_a_pooled_margin_lies_between_its_bounds() -> None:
    module = randomise(Pooled(), 0)
    net, params = tr.from_module(module, (1, 4, 4))
    x = torch.rand(BATCH, 1, 4, 4, dtype=F64)
    given = Problem(net, params, Box(x, x), tr.margin_spec(torch.tensor([0, 1]), CLASSES, dtype=F64))
    conv, head = (rational.affine(_oracle(m, s)[0]) for m, s in ((module.conv, (1, 4, 4)), (module.head, (8,))))  # type: ignore[arg-type]
    for i, found in enumerate(margin_bounds(given, x)):
        image = (conv.weight @ flat(x[i]) + conv.bias).reshape(2, 3, 3)
        pooled = np.array([[image[c, r : r + 2, q : q + 2].max() for r in (0, 1) for q in (0, 1)] for c in (0, 1)])
        outputs = head.weight @ pooled.ravel() + head.bias
        assert Fraction(found.lower) <= min(rows_of(given, i) @ outputs) <= Fraction(found.upper)
        assert found.upper - found.lower < 1e-11


# -------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize(("name", "scale", "dtype"), SETTINGS)
def test_symbolic_intervals_hold_in_exact_arithmetic(name: str, scale: float, dtype: torch.dtype, eps: float) -> None:
    """Every pre-activation at rational points of the box; on a single point they are as wide as rounding errors."""
    module, given = problem(name, scale, dtype, eps)
    found = SymbolicIntervals().bounds(*given, rigorous=True).pre
    oracle = exact(module, given.network.input_shape)
    hidden = [node.inputs[0] for node in oracle.nodes if isinstance(node.layer, ref.Relu | ref.LeakyRelu)]
    generator = np.random.default_rng(0)
    for i in range(BATCH):
        lower, upper = (flat(end[i]) for end in given.box)
        for share in (
            0,
            1,
            *(rational.rational(generator.integers(0, 2, len(lower))) for _ in range(3)),
            Fraction(1, 3),
        ):
            values = rational.evaluate(oracle, lower + share * (upper - lower))
            for mine, theirs in zip(given.network.pre_activations, hidden, strict=True):
                below, above = (flat(end[i]) for end in found[mine])
                assert all(below <= values[theirs])
                assert all(values[theirs] <= above)
                size = float(max(abs(values[theirs]))) + scale
                assert eps > 0 or float(max(above - below)) <= 1e5 * roundoff(dtype) * size


@pytest.mark.parametrize("relu", [False, True])
def test_symbolic_intervals_remember_errors_that_cancellation_leaves_over(relu: bool) -> None:
    """(K a . x + b) - K a . x is as small as b, and as wrong as the large numbers that it is computed from."""
    generator, wrong = torch.Generator().manual_seed(0), 0
    for _ in range(50):
        large = 1e9 * torch.rand(1, 3, generator=generator, dtype=F64)
        first, second = nn.Linear(3, 2).double(), nn.Linear(2, 1).double()
        with torch.no_grad():
            first.weight.copy_(large.expand(2, 3))
            first.bias.copy_(torch.rand(2, generator=generator, dtype=F64))
            second.weight.copy_(torch.tensor([[1.0, -1.0]]) * torch.rand(1, generator=generator, dtype=F64))
            second.bias.zero_()
        middle = [nn.ReLU()] if relu else []
        module = nn.Sequential(first, *middle, second, nn.ReLU(), nn.Linear(1, 2).double())
        net, params = tr.from_module(module, (3,))
        x = torch.rand(1, 3, generator=generator, dtype=F64)
        spec = tr.margin_spec(torch.zeros(1, dtype=torch.int64), 2, dtype=F64)
        found = SymbolicIntervals().bounds(net, params, Box(x, x), spec, rigorous=True).pre
        oracle, last = exact(module, (3,)), net.pre_activations[-1]
        names = [node.inputs[0] for node in oracle.nodes if isinstance(node.layer, ref.Relu)]
        [value] = rational.evaluate(oracle, flat(x[0]))[names[-1]]
        lower, upper = (Fraction(float(end)) for end in found[last])
        assert lower <= value <= upper
        wrong += abs(float(value - (lower + upper) / 2)) > 1e-9
    assert wrong > 10


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("name", "scale", "dtype"), SETTINGS)
def test_a_bound_is_below_the_exact_value_of_its_certificate(
    rule: str, name: str, scale: float, dtype: torch.dtype
) -> None:
    """Margins and pre-activations against back-substitution of the same lines in rational arithmetic."""
    module, given = problem(name, scale, dtype)
    found = tr.relaxation(rule).bounds(*given, rigorous=True)
    lines = {
        node.name: node.op.outward(pre, RULES[rule](node.op, pre))
        for node in given.network.nodes
        if isinstance(node.op, ElementwiseOp) and (pre := found.pre[node.inputs[0]])
    }
    oracle = exact(module, given.network.input_shape)
    hidden = [node.inputs[0] for node in oracle.nodes if isinstance(node.layer, ref.Relu | ref.LeakyRelu)]

    def check(i: int, claimed: float, row: dict[str, rational.Rationals]) -> None:
        box = [flat(end[i]) for end in given.box]
        value = rational.certificate(oracle, exact_lines(given, oracle, lines, i), *box, row)
        assert Fraction(claimed) <= value
        assert value - Fraction(claimed) <= Fraction(1e6 * roundoff(dtype) * (1 + abs(float(value))))

    for i in range(BATCH):
        for row, bound in zip(rows_of(given, i), found.margins[i].tolist(), strict=True):
            check(i, bound, {oracle.output: row})
        for mine, theirs in zip(given.network.pre_activations, hidden, strict=True):
            lower, upper = (end[i].flatten() for end in found.pre[mine])
            last = rational.rational(np.arange(len(lower)) == len(lower) - 1)
            check(i, float(lower[-1]), {theirs: last})
            check(i, -float(upper[-1]), {theirs: -last})


def cancelling(seed: int) -> tuple[Problem, Fraction]:
    """Two large neurons that cancel out but for a number near 0, and the exact minimum of the margin."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, generator=generator, dtype=F64) * 1e8
    weight[1] = weight[0] * (1 + 1e-9 * torch.randn(3, generator=generator, dtype=F64))
    last = torch.tensor([[1.0, -1.0, 1e-8, -1e-8]], dtype=F64)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).to(F64)
    net, _ = tr.from_module(module, (3,))
    x = torch.rand(1, 3, generator=generator, dtype=F64)
    bias = torch.full((4,), 1e9, dtype=F64)  # all neurons are on
    matrix = rational.rational(last.numpy()) @ rational.rational(weight.numpy())
    rest = rational.rational(last.numpy()) @ rational.rational(bias.numpy())
    least = (matrix @ flat(x))[0] + rest[0]
    offset = -float(least)  # rounded: what is left is a rounding error of the sum
    params = {"0.weight": weight, "0.bias": bias, "2.weight": last, "2.bias": torch.tensor([offset], dtype=F64)}
    spec = Spec(torch.ones(1, 1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64), (0,))
    return Problem(net, params, Box(x, x), spec), least + Fraction(offset)


def test_what_is_positive_by_rounding_only_is_not_verified() -> None:
    """The plain bounds are often on the wrong side, so that this test can fail."""
    wrong = 0
    for seed in range(12):
        given, least = cancelling(seed)
        plain = float(tr.relaxation("deeppoly").bounds(*given).margins)
        wrong += plain > 0 >= least
        for name in ("ibp", "hbox", "deepz", "crown_ibp", "deeppoly"):
            assert Fraction(float(tr.relaxation(name).bounds(*given, rigorous=True).margins)) <= least
        once, attack = OneShot(tr.relaxation("deeppoly"), "deeppoly"), AttackVerifier(Pgd(steps=1))
        for verifier in (once, AlphaCrown(steps=2), attack):
            [outcome] = verifier.verify(*given, generator=torch.Generator())
            assert outcome.verdict is Verdict.UNKNOWN
            assert Fraction(outcome.upper) >= least if math.isfinite(outcome.upper) else True
    assert wrong > 3


def test_branch_and_bound_does_not_decide_by_rounding_either() -> None:
    for seed in range(4):
        given, least = cancelling(seed)
        [outcome] = Bab(timeout=1.0).verify(*given, generator=torch.Generator().manual_seed(0))
        assert outcome.verdict is Verdict.UNKNOWN
        assert Fraction(outcome.lower) <= least <= Fraction(outcome.upper)


@pytest.mark.parametrize("seed", range(6))
def test_a_lagrangian_bound_is_below_its_exact_value(seed: int) -> None:
    """Multipliers of split neurons, and weights of the rows of a disjunction that do not sum up to 1."""
    module, given = problem("mlp", 10.0 ** (seed - 3), F64, eps=0.9)
    given = given._replace(spec=given.spec._replace(clause=(0, 0), offset=torch.full((BATCH, 2), 0.1, dtype=F64)))
    items, generator = Items(given, tr.relaxation("deeppoly")), torch.Generator().manual_seed(seed)
    part = items.roots()
    draw = lambda like: torch.rand(like.shape, generator=generator, dtype=F64)  # noqa: E731
    signs = torch.where(items.neurons.unstable(part.pre), (draw(part.signs) - 0.5).sign(), 0.0)
    part = part._replace(
        signs=signs,
        pre_lower=torch.where(signs > 0, 0.0, part.pre_lower),
        pre_upper=torch.where(signs < 0, 0.0, part.pre_upper),
    )
    assert bool((signs != 0).any())
    variables = Variables(draw(part.slopes), draw(signs), draw(part.weights))
    bound = Lagrangian(items, part)
    claimed = bound(variables)
    lines = {
        node.name: node.op.outward(bound._intervals[node.inputs[0]], bound.lines(variables.slopes)[node.name])
        for node in given.network.nodes
        if isinstance(node.op, ElementwiseOp)
    }
    oracle = exact(module, given.network.input_shape)
    terms = items.neurons.on_nodes(signs * variables.multipliers)
    for i in range(BATCH):
        weights, offset = flat(variables.weights[i]), flat(given.spec.offset[i])
        rows = {oracle.output: weights @ rows_of(given, i)}
        for name, node in zip(given.network.pre_activations, ("0", "2"), strict=True):
            rows[node] = -flat(terms[name][i])
        box = [flat(end[i]) for end in given.box]
        value = rational.certificate(oracle, exact_lines(given, oracle, lines, i), *box, rows) + weights @ offset
        assert Fraction(float(claimed[i])) <= value / sum(weights)
        assert float(value / sum(weights)) - float(claimed[i]) <= 1e-9 * (1 + abs(float(claimed[i])))


# --------------------------------------------------------------------------------------------------- lines


def intervals(dtype: torch.dtype, scale: float) -> Interval:
    """All cases: crossing, barely crossing, on either side, touching 0, single points."""
    draws = torch.randn(2, 200, generator=torch.Generator().manual_seed(0), dtype=F64) * scale
    draws[:, ::5] *= torch.tensor([[1e-9], [1.0]], dtype=F64)
    draws[0, ::7] = draws[1, ::7]
    draws[0, ::11] = 0.0
    lower, upper = draws.sort(0).values.to(dtype)
    return Interval(lower[None], upper[None])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e2])
@pytest.mark.parametrize("op", [Relu(), LeakyRelu(0.1), LeakyRelu(0.7), Tanh(), Sigmoid()], ids=str)
def test_lines_hold_for_all_real_numbers(op: ElementwiseOp, scale: float, dtype: torch.dtype) -> None:
    pre = intervals(dtype, scale)
    share = torch.rand(2, *pre.lower.shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(dtype)
    rules = [_slopes.adaptive, _slopes.soft, _slopes.parallel, _slopes.constant]
    for rule in [*rules, lambda op, pre: op.envelope(pre, Tilt(*share))]:
        lines = op.outward(pre, rule(op, pre))
        zero = torch.zeros_like(lines.lower_slope)
        columns = [flat(zero if part is None else part) for part in lines]
        with mpmath.workdps(60):
            for lower, upper, *line in zip(flat(pre.lower), flat(pre.upper), *columns, strict=True):
                for x in candidates(op, lower, upper, line):
                    value = at(op, x)
                    assert line[0] * x + line[1] <= value <= line[2] * x + line[3]


def at(op: ElementwiseOp, x: Fraction) -> Fraction:
    """f(x), to 60 digits."""
    if isinstance(op, Relu | LeakyRelu):
        return max(x, x * Fraction(op.negative_slope if isinstance(op, LeakyRelu) else 0.0))
    y = mpmath.mpf(x.numerator) / x.denominator
    y = mpmath.tanh(y) if isinstance(op, Tanh) else 1 / (1 + mpmath.exp(-y))
    return as_fraction(y)


def as_fraction(value: mpmath.mpf) -> Fraction:
    sign, mantissa, exponent, _ = value._mpf_
    return (-1) ** sign * Fraction(int(mantissa)) * Fraction(2) ** int(exponent)


def candidates(op: ElementwiseOp, lower: Fraction, upper: Fraction, line: list[Fraction]) -> list[Fraction]:
    """Where f is furthest from a line: the ends, 0, and where its derivative is the slope."""
    points = [lower, upper, Fraction(0)]
    for slope in (line[0], line[2]):
        steep = 4 * slope if isinstance(op, Sigmoid) else slope
        if isinstance(op, Tanh | Sigmoid) and 0 < steep < 1:
            point = mpmath.atanh(mpmath.sqrt(1 - mpmath.mpf(steep.numerator) / steep.denominator))
            found = as_fraction(point) * (2 if isinstance(op, Sigmoid) else 1)
            points += [found, -found]
    return [x for x in points if lower <= x <= upper]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [LeakyRelu(0.1), Tanh(), Sigmoid()], ids=str)
def test_functions_keep_to_their_error(op: ElementwiseOp, dtype: torch.dtype) -> None:
    """In half of what is reckoned with, so that another library has room."""
    x = torch.cat([torch.linspace(-30, 30, 2001, dtype=dtype), torch.logspace(-30, 1, 500, dtype=dtype)])
    share = Fraction(op.roundings / (2 if op.roundings == FUNCTION_ERROR else 1) * roundoff(dtype))
    with mpmath.workdps(60):
        for argument, value in zip(flat(x), flat(op.forward({}, x)), strict=True):
            true = at(op, argument)
            assert abs(value - true) <= share * abs(true)


# --------------------------------------------------------------------------------------------- boxes, limits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", ["0", "1/3", "8/255", "1e-9", "1e-30", "0.1"])
def test_the_inner_box_is_inside_the_exact_one(eps: str, dtype: torch.dtype) -> None:
    x = torch.cat([torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=F64), torch.tensor([0.0, 1.0])])
    x, radius = x.to(dtype), Fraction(eps)
    inner, outer = inner_box(x, eps), tr.linf_box(x, eps)
    for value, low, high in zip(flat(x), flat(inner.lower), flat(inner.upper), strict=True):
        assert max(value - radius, 0) <= low <= value <= high <= min(value + radius, 1)
    assert bool(((inner.lower - outer.lower) <= 3 * torch.finfo(dtype).eps).all())
    assert bool(((outer.upper - inner.upper) <= 3 * torch.finfo(dtype).eps).all())


def test_a_counterexample_is_moved_into_the_exact_box_or_given_up() -> None:
    """The margin is 0.5 - x or so: broken in the last two places of the rounded box only, or in more of it."""
    net, _ = tr.from_module(nn.Linear(1, 1).to(F64), (1,))
    x, spec = torch.tensor([[0.5]], dtype=F64), Spec(torch.ones(1, 1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64), (0,))
    box, inner = tr.linf_box(x, "1/10"), inner_box(x, "1/10")
    for end, expected in ((box.upper, Verdict.UNKNOWN), (x, Verdict.FALSIFIED)):
        params = {"weight": torch.tensor([[-1e9]], dtype=F64), "bias": 1e9 * end[0]}
        given = Problem(net, params, box, spec)
        claimed = Outcome(Verdict.FALSIFIED, -math.inf, 0.0, "claim", counterexample=box.upper[0])
        [outcome] = within(given, inner, [claimed])
        assert outcome.verdict is expected
        if outcome.counterexample is not None:
            assert bool((outcome.counterexample <= inner.upper).all())


def test_overflow_proves_nothing() -> None:
    """Products beyond the largest number, of either sign, in every layer."""
    for scales in ((1e200, 1e200), (-1e200, 1e200), (1e308, 10.0), (1.0, -1e308)):
        _, net, params = build("mlp")
        keys = [key for key in params if key.endswith("weight")]
        big = dict(params) | {keys[0]: params[keys[0]] * scales[0], keys[-1]: params[keys[-1]] * scales[1] * 10}
        spec = tr.margin_spec(torch.tensor([0, 1]), CLASSES, dtype=F64)
        given = Problem(net, big, tr.linf_box(torch.rand(2, 3, dtype=F64), 0.1), spec)
        for name in ("ibp", "hbox", "deepz", "crown_ibp", "deeppoly"):
            found = tr.relaxation(name).bounds(*given, rigorous=True).margins
            assert not bool((found == math.inf).any())


def test_a_sum_too_long_to_be_bounded_has_no_bound() -> None:
    assert gamma(2**19, torch.float32) < 0.07
    assert gamma(2**22, torch.float32) == math.inf
