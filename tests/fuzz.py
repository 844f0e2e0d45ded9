"""Random verification problems with every trouble there is, and what enumeration and exact arithmetic say of them.

``python tests/fuzz.py FIRST COUNT [VERIFIER ...]`` goes through seeds outside the test suite and prints what is wrong.
The networks are random but their minimum is known: one linear program on every linear piece, and where that is too
close to 0 for its tolerance, the vertex that it names in rational numbers.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import tightrope as tr
from helpers import F64, Branches, Residual, _chain, as_oracle
from reference import network as ref
from reference import vertices
from reference.exact import Piece, linear_pieces
from reference.exact_arithmetic import rational
from tightrope.attacks.apgd import Apgd
from tightrope.attacks.pgd import Pgd
from tightrope.core.box import Box
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.protocols import Verifier
from tightrope.core.spec import Spec, evaluate
from tightrope.verifiers._problem import Problem
from tightrope.verifiers.alpha_crown import AlphaCrown
from tightrope.verifiers.attack import AttackVerifier
from tightrope.verifiers.bab import Bab
from tightrope.verifiers.branching.babsr import Babsr
from tightrope.verifiers.milp import Milp
from tightrope.verifiers.one_shot import OneShot

BATCH, OUTPUTS = 2, 3
TOLERANCE = 1e-7
"""Of the oracle's linear programs, relative to the size of what they add up."""


# ------------------------------------------------------------------------------------------------- networks


def _mlp(inputs: int, outputs: int, widths: Sequence[int], slope: float | None) -> nn.Sequential:
    sizes, layers = [inputs, *widths], []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU() if slope is None else nn.LeakyReLU(slope)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def _conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 2, stride=2, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1, 3)
    )


def _normed() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(),
        nn.Linear(3, 3),
    )  # fmt: skip


def _pooled() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 1, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 3))


def _narrow_spike(generator: torch.Generator, inputs: int) -> nn.Sequential:
    """1 - 2 relu(1 - |x - peak| / width), seen by a gradient within the width of the peak only."""
    module = _mlp(inputs, 1, (2 * inputs, 1), None).to(F64)
    peak = (torch.rand(inputs, generator=generator, dtype=F64) * 64).round() / 64
    slope = 2.0 ** int(torch.randint(2, 17, (), generator=generator))
    first, second, third = module[0], module[2], module[4]
    with torch.no_grad():
        first.weight.copy_(torch.cat([torch.eye(inputs), -torch.eye(inputs)]))
        first.bias.copy_(torch.cat([-peak, peak]))
        second.weight.fill_(-slope)
        second.bias.fill_(1.0)
        third.weight.fill_(-2.0)
        third.bias.fill_(1.0)
    return module


KINDS = ("mlp", "deep", "leaky", "residual", "branches", "conv", "normed", "pooled", "affine", "line", "spike")


def _module(kind: str, generator: torch.Generator) -> tuple[nn.Module, tuple[int, ...]]:
    inputs = int(torch.randint(1, 4, (), generator=generator))
    outputs = int(torch.randint(1, 4, (), generator=generator))
    widths = tuple(torch.randint(1, 6, (3,), generator=generator).tolist())
    if kind == "spike":
        return _narrow_spike(generator, inputs), (inputs,)
    if kind in {"conv", "normed", "pooled"}:
        shape = {"conv": (1, 2, 2), "normed": (1, 2, 2), "pooled": (1, 2, 2)}[kind]
        if kind == "normed":
            return _normed(), shape
        return (_conv() if kind == "conv" else _pooled()), shape
    return {
        "mlp": lambda: (_mlp(inputs, outputs, widths[:1], None), (inputs,)),
        "deep": lambda: (_mlp(inputs, outputs, widths, None), (inputs,)),
        "leaky": lambda: (_mlp(inputs, outputs, widths[:2], 0.25), (inputs,)),
        "residual": lambda: (Residual(inputs, widths[0], outputs), (inputs,)),
        "branches": lambda: (Branches(inputs, widths[0], outputs), (inputs,)),
        "affine": lambda: (_mlp(inputs, outputs, (), None), (inputs,)),
        "line": lambda: (_mlp(1, 1, widths[:2], None), (1,)),
    }[kind]()


def _fill(module: nn.Module, generator: torch.Generator, dyadic: bool) -> None:
    """Gaussian weights, in eighths if asked, with dead, duplicate and opposite neurons."""
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=F64)
        if name.endswith("running_var"):
            noise = noise.abs() + 0.25
        value.copy_((noise * 8).round() / 8 if dyadic else noise)
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[0] > 1:
            trouble = int(torch.randint(0, 8, (), generator=generator))
            with torch.no_grad():
                if trouble in (0, 1):  # a duplicate, an opposite
                    sign = 1.0 if trouble == 0 else -1.0
                    layer.weight[1], layer.bias[1] = sign * layer.weight[0], sign * layer.bias[0]
                if trouble == 2:
                    layer.weight[0], layer.bias[0] = 0.0, -1.0
                if trouble == 3:
                    layer.weight[0], layer.bias[0] = 0.0, 0.0


def oracle_of(module: nn.Module, shape: tuple[int, ...]) -> ref.Net:
    """As :func:`helpers.as_oracle`, max-pooling over the whole image at the end included."""
    layers = list(module) if isinstance(module, nn.Sequential) else []
    at = next((i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)), None)
    if at is None:
        return as_oracle(module, shape)
    before = _chain(layers[:at], shape)
    after = tuple(nn.Sequential(*layers[:at])(torch.zeros((1, *shape), dtype=F64)).shape[1:])
    channels, height, width = after
    windows = np.arange(math.prod(after)).reshape(after)[:, : height // 2 * 2, : width // 2 * 2]
    windows = windows.reshape(channels, height // 2, 2, width // 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4)
    nodes = list(ref.sequential(before).nodes)
    source, eye, zero = nodes[-1].name, np.eye(math.prod(after)), np.zeros(len(windows))
    for j in range(4):
        nodes.append(ref.Node(f"tap{j}", ref.Affine(eye[windows[:, j]], zero), (source,)))
    largest = "tap0"
    for j in range(1, 4):  # max(a, b) = a + relu(b - a)
        nodes.append(ref.Node(f"minus{j}", ref.Affine(-np.eye(len(windows)), zero), (largest,)))
        nodes.append(ref.Node(f"less{j}", ref.Add(), (f"tap{j}", f"minus{j}")))
        nodes.append(ref.Node(f"relu{j}", ref.Relu(), (f"less{j}",)))
        nodes.append(ref.Node(f"max{j}", ref.Add(), (largest, f"relu{j}")))
        largest = f"max{j}"
    for i, layer in enumerate(_chain(layers[at + 1 :], (channels, height // 2, width // 2))):
        nodes.append(ref.Node(f"after{i}", layer, (largest if i == 0 else f"after{i - 1}",)))
    return ref.Net(tuple(nodes))


# ------------------------------------------------------------------------------------------------- problems


@dataclass(frozen=True)
class Instance:
    """A problem, and the same in other units with the factors between them, which are powers of two.

    Attributes:
        name: seed and kinds of trouble.
        problem: as enumeration sees it.
        oracle: the network as matrices.
        exact: whether these are the network's to the last bit.
        scaled: as verifiers see it.
        inputs, margins: units of ``scaled``.
        least: the minimum of each sample of ``problem``.
    """

    name: str
    problem: Problem
    oracle: ref.Net
    exact: bool
    scaled: Problem
    inputs: float
    margins: float
    least: tuple[Minimum, ...]


def _box(generator: torch.Generator, shape: tuple[int, ...], kind: str) -> tuple[str, Box]:
    names = ("point", "speck", "small", "wide", "huge", "flat", "corner")
    name = names[int(torch.randint(0, len(names), (), generator=generator))]
    x = (torch.rand((BATCH, *shape), generator=generator, dtype=F64) * 64).round() / 64
    if kind == "spike" or kind in {"pooled", "conv", "normed"}:
        name = name if kind != "spike" else "wide"
    radius = {"point": 0.0, "speck": 2.0**-30, "small": 2.0**-5, "wide": 0.5, "huge": 4.0, "flat": 0.5, "corner": 0.5}
    radii = torch.full_like(x, radius[name])
    if name == "flat":
        radii = radii * (torch.rand(x.shape, generator=generator) < 0.5)
    if kind == "spike":
        return name, Box(torch.zeros_like(x), torch.ones_like(x))
    return name, Box(x - radii, x if name == "corner" else x + radii)


SPECS = ("margin", "random", "or", "duplicate", "contradiction", "tautology", "zero", "dominated", "single")


def _spec(generator: torch.Generator, outputs: int, kind: str) -> tuple[str, Spec]:
    name = SPECS[int(torch.randint(0, len(SPECS), (), generator=generator))]
    if kind == "spike":
        return "spike", Spec(torch.ones(BATCH, 1, 1, dtype=F64), torch.zeros(BATCH, 1, dtype=F64), (0,))
    if name == "margin" and outputs > 1:
        labels = torch.randint(0, outputs, (BATCH,), generator=generator)
        return name, tr.margin_spec(labels, outputs, dtype=F64)
    matrix = (torch.randn(BATCH, 4, outputs, generator=generator, dtype=F64) * 4).round() / 4
    offset = (torch.randn(BATCH, 4, generator=generator, dtype=F64) * 4).round() / 4
    clause: tuple[int, ...] = (0, 1, 2, 3)
    if name == "or":
        clause = (0, 1, 0, 0)
    if name == "duplicate":
        matrix[:, 2:], offset[:, 2:] = matrix[:, :2], offset[:, :2]
        clause = (0, 0, 1, 1)
    if name == "contradiction":  # r > 0 and -r > 0
        matrix[:, 1], offset[:, 1] = -matrix[:, 0], -offset[:, 0]
    if name == "tautology":  # r > 0 or 1 - r > 0
        matrix[:, 1], offset[:, 1] = -matrix[:, 0], 1.0 - offset[:, 0]
        matrix[:, 3], offset[:, 3] = -matrix[:, 2], -offset[:, 2]  # r > 0 or -r > 0: fails where r = 0 only
        clause = (0, 0, 1, 1)
    if name == "zero":
        matrix[:, 0] = 0.0
        clause = (0, 0, 1, 1)
        offset[:, 0] = torch.tensor([-1.0, 0.0], dtype=F64)
    if name == "dominated":
        offset = offset * 2.0**20
        clause = (0, 1, 0, 1)
    if name == "single":
        return name, Spec(matrix[:, :1], offset[:, :1], (0,))
    return name, Spec(matrix, offset, clause)


@cache
def instance(seed: int) -> Instance:
    """A random problem; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    kind = KINDS[seed % len(KINDS)]
    module, shape = _module(kind, generator)
    module = module.to(F64).eval()
    dyadic = bool(torch.rand((), generator=generator) < 0.5)
    if kind != "spike":
        _fill(module, generator, dyadic)
    network, params = tr.from_module(module, shape)
    box_kind, box = _box(generator, shape, kind)
    spec_kind, spec = _spec(generator, network.num_outputs, kind)
    problem = Problem(network, params, box, spec)
    oracle, name = oracle_of(module, shape), f"{seed} {kind} {box_kind} {spec_kind}"
    if spec_kind != "dominated" and bool(torch.rand((), generator=generator) < 0.6):
        problem, shift = _shifted(problem, oracle, generator)
        name += f" {shift}"
    scaled, inputs, margins = _scaled(problem, kind, generator)
    least = tuple(minimum(oracle, problem, i) for i in range(BATCH))
    return Instance(
        f"{name} x{inputs:g} y{margins:g}", problem, oracle, kind != "normed", scaled, inputs, margins, least
    )


def _shifted(problem: Problem, oracle: ref.Net, generator: torch.Generator) -> tuple[Problem, str]:
    """Offsets such that the least margin becomes one close to 0, or 0."""
    gaps = (0.0, 0.0, 1e-12, -1e-12, 1e-9, 1e-5, -1e-5, 1e-2, -1e-2)
    gap = gaps[int(torch.randint(0, len(gaps), (), generator=generator))]
    least = [minimum(oracle, problem, i).value for i in range(BATCH)]
    offset = problem.spec.offset - torch.tensor(least, dtype=F64)[:, None] + gap
    return problem._replace(spec=problem.spec._replace(offset=offset)), f"gap {gap:g}"


def _scaled(problem: Problem, kind: str, generator: torch.Generator) -> tuple[Problem, float, float]:
    network, params, box, spec = problem
    inputs, hidden, margins = (2.0 ** (20 * int(torch.randint(-1, 2, (), generator=generator))) for _ in range(3))
    params = dict(params)
    weights = [name for name in params if name.endswith("weight")]
    params[weights[0]] = params[weights[0]] / inputs
    if kind in {"mlp", "deep", "leaky", "line", "spike"} and len(weights) > 1:
        last, before = weights[-1], weights[-2]
        bias = before.replace("weight", "bias")
        params[before], params[bias] = params[before] * hidden, params[bias] * hidden
        params[last] = params[last] / hidden
    box = Box(box.lower * inputs, box.upper * inputs)
    spec = spec._replace(matrix=spec.matrix * margins, offset=spec.offset * margins)
    return Problem(network, params, box, spec), inputs, margins


# ------------------------------------------------------------------------------------------------ the truth


@dataclass(frozen=True)
class Minimum:
    """The least margin of a sample.

    Attributes:
        value: to the tolerance of linear programs.
        x: where it is attained.
        exact: at a vertex in rational numbers near ``x``, an upper bound of the minimum; None where not asked for.
    """

    value: float
    x: np.ndarray
    exact: Fraction | None = None


def minimum(oracle: ref.Net, problem: Problem, i: int, exact: bool = False) -> Minimum:
    """min over the box of min over clauses of max over rows, by enumeration."""
    lower, upper = (end[i].numpy().ravel() for end in problem.box)
    matrix, offset, clause = problem.spec.matrix[i].numpy(), problem.spec.offset[i].numpy(), problem.spec.clause
    found = []
    for piece in linear_pieces(oracle, lower, upper):
        for c in set(clause):
            rows = [r for r, owner in enumerate(clause) if owner == c]
            result = _least(piece, matrix[rows], offset[rows], lower, upper, exact)
            if result is not None:
                found.append(result)
    best = min(found, key=lambda one: one.value)
    if not exact:
        return best
    near = (one for one in found if one.value <= best.value + 1e-6)
    return replace(best, exact=min(_margin(oracle, problem, i, one) for one in near))


def _margin(oracle: ref.Net, problem: Problem, i: int, point: Minimum) -> Fraction:
    lower, upper = (rational(end[i].numpy().ravel()) for end in problem.box)
    spec = problem.spec
    x = np.minimum(np.maximum(rational(point.x), lower), upper)
    return vertices.margin(oracle, x, spec.matrix[i].numpy(), spec.offset[i].numpy(), spec.clause)


def _least(
    piece: Piece, matrix: np.ndarray, offset: np.ndarray, lower: np.ndarray, upper: np.ndarray, exact: bool
) -> Minimum | None:
    """Minimise t with rows <= t on a piece."""
    rows, constant = matrix @ piece.weight, matrix @ piece.bias + offset
    region, count = piece.region, len(lower)
    above = np.vstack([np.hstack([rows, -np.ones((len(rows), 1))]), np.pad(region.matrix, ((0, 0), (0, 1)))])
    limits = np.concatenate([-constant, region.vector])
    size = max(1.0, float(np.abs(constant).max()))
    cost, bounds = np.append(np.zeros(count), 1.0), [*zip(lower, upper, strict=True), (None, None)]
    above[: len(rows), -1] *= size  # t in units of the offsets
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    result = linprog(cost, above, limits, bounds=bounds, method="highs", options=options)
    if result.status != 0:
        return None
    x = np.clip(result.x[:-1], lower, upper)
    value = float((rows @ x + constant).max())
    if not exact:
        return Minimum(value, x)
    above[: len(rows), -1] /= size
    every = np.vstack([above, np.eye(count, count + 1), -np.eye(count, count + 1)])
    ends = np.concatenate([limits, upper, -lower])
    active = np.flatnonzero(np.abs(every @ np.append(x, value) - ends) <= 1e-7 * (1 + np.abs(ends)))
    best = Minimum(value, x)
    for chosen in list(combinations(active, count + 1))[:50]:
        point = vertices.solve(rational(every[list(chosen)]), rational(ends[list(chosen)]))
        if point is not None and np.allclose([float(v) for v in point[:-1]], x, atol=1e-6):
            return replace(best, x=np.array(point[:-1], dtype=object))
    return best


# ------------------------------------------------------------------------------------------------- verdicts


def verifiers() -> dict[str, Verifier]:
    """Those that are tested when none are named."""
    found: dict[str, Verifier] = {
        name: OneShot(tr.relaxation(name), name) for name in ("ibp", "hbox", "deepz", "crown_ibp", "deeppoly")
    }
    return found | {
        "sparse": OneShot(tr.relaxation("deeppoly", sparse=True), "sparse"),
        "alpha_crown": AlphaCrown(steps=5),
        "pgd": AttackVerifier(Pgd(steps=10, restarts=2, loss="margin")),
        "bab": Bab(timeout=2.0),
        "neurons": Bab(edges=0, timeout=2.0),
        "babsr": Bab(edges=0, branching=Babsr(), timeout=2.0),
        "edges": Bab(edges=100, timeout=1.0),
        "apgd": AttackVerifier(Apgd(steps=10, restarts=2)),
        "milp": Milp(timeout=2.0),
    }


COMPLETE = ("bab", "neurons", "babsr", "milp")


def problems_with(given: Instance, name: str, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What is wrong with the outcomes of a verifier; a message that begins with WRONG is a wrong verdict."""
    for i, outcome in enumerate(outcomes):
        least = given.least[i]
        size = size_of(given, i)
        near = TOLERANCE * size
        if outcome.verdict is Verdict.VERIFIED and least.value <= near:
            exact = minimum(given.oracle, given.problem, i, exact=True).exact if given.exact else None
            if least.value < -near or (exact is not None and exact <= 0):
                yield f"WRONG verified, least {least.value:g}, exact {float(exact or 0):g}, lower {outcome.lower:g}"
        if outcome.lower / given.margins > least.value + near:
            yield f"WRONG lower {outcome.lower / given.margins:g} > {least.value:g}"
        if outcome.upper / given.margins < least.value - near:
            yield f"WRONG upper {outcome.upper / given.margins:g} < {least.value:g}"
        if outcome.counterexample is not None:
            yield from _counterexample(given, i, outcome.counterexample, size)
        if outcome.verdict is Verdict.UNKNOWN and name in COMPLETE:
            kind = "undecided" if abs(least.value) > near else "tie"
            yield f"{kind}, least {least.value:g}, lower {outcome.lower:g}, upper {outcome.upper:g}: {outcome.reason}"


def _counterexample(given: Instance, i: int, found: Tensor, size: float) -> Iterator[str]:
    box, spec = given.problem.box, given.problem.spec
    x = found / given.inputs
    if not bool(((x >= box.lower[i]) & (x <= box.upper[i])).all()):
        yield "WRONG counterexample outside the box"
    at = vertices.margin(
        given.oracle, rational(x.numpy().ravel()), spec.matrix[i].numpy(), spec.offset[i].numpy(), spec.clause
    )
    if float(at) > (0.0 if given.exact else 1e-9 * size):
        yield f"WRONG counterexample with exact margin {float(at):g}"


def size_of(given: Instance, i: int) -> float:
    """The largest number that the margin is added up from, at least 1."""
    problem = given.problem
    ends = torch.stack([problem.box.lower[i], problem.box.upper[i]])
    outputs = problem.network(problem.params, ends)
    spec = Spec(problem.spec.matrix[[i, i]].abs(), problem.spec.offset[[i, i]].abs(), problem.spec.clause)
    return max(1.0, float(evaluate(spec, outputs.abs()).max()))


def one_by_one(given: Instance, verifier: Verifier, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Verdicts of the batch that contradict those of its samples alone."""
    for i, outcome in enumerate(outcomes):
        [alone] = verifier.verify(*given.scaled.rows([i]), generator=torch.Generator().manual_seed(1))
        if {alone.verdict, outcome.verdict} == {Verdict.VERIFIED, Verdict.FALSIFIED}:
            yield f"WRONG {outcome.verdict} in a batch, {alone.verdict} alone"


def main(first: int, count: int, names: Sequence[str]) -> None:
    chosen, totals, begin = verifiers(), Counter[str](), time.perf_counter()
    for seed in range(first, first + count):
        given = instance(seed)
        for name in names or chosen:
            start = time.perf_counter()
            outcomes = chosen[name].verify(*given.scaled, generator=torch.Generator().manual_seed(seed))
            seconds = time.perf_counter() - start
            totals.update(f"{name} {outcome.verdict}" for outcome in outcomes)
            found = [*problems_with(given, name, outcomes), *one_by_one(given, chosen[name], outcomes)]
            totals.update(f"{name} {text.split()[0]}" for text in found)
            for text in found:
                print(f"[{given.name}] {name} ({seconds:.1f} s): {text}", flush=True)
    print(f"{count} problems of {BATCH} in {time.perf_counter() - begin:.0f} s")
    for key, number in sorted(totals.items()):
        print(f"  {key}: {number}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
