"""Properties of relaxations: what is measured is what is there, on functions and networks where that is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import tightrope as tr
from helpers import F64, case, margins64, relaxation
from reference.exact import exact_min
from reference.rational import chebyshev, rational_degree
from tightrope.cli.main import app
from tightrope.core.bounds import Metrics, Params
from tightrope.core.network import Network
from tightrope.core.spec import Spec, margin_spec
from tightrope.errors import CorruptDataError, InputError, MissingDataError, NumericalError
from tightrope.evaluation._degree import FORMULAS, degree_bound
from tightrope.evaluation._halving import halve
from tightrope.evaluation._worst_margins import worst_margins
from tightrope.evaluation.properties import (
    Neighbourhood,
    Probe,
    continuity,
    convexity_deviation,
    gradient,
    smoothness,
    smoothness_order,
    tightness,
)
from tightrope.experiments import properties as experiment
from tightrope.records.properties import PropertiesRecord, Settings, Smoothness
from tightrope.relaxations.ibp import Ibp
from tightrope.reports.properties import PUBLISHED, beside_published, measured, smoothed
from tightrope.verifiers.bab import Bab

SETTINGS = Settings(
    data="data",
    split="test",
    images=1,
    images_sha256="",
    eps="1/10",
    segments=2,
    steps=32,
    std=(0.5, 1.0),
    std_unit="absolute",
    draws=200,
    jump=1e-3,
    tolerance=1e-3,
    timeout=10.0,
    seed=0,
)
WEIGHTS = torch.tensor([[1.0, -2.0], [0.5, 0.25]], dtype=F64)
SLOPE = torch.tensor([[0.6, -0.3], [0.2, 0.1]], dtype=F64)


# -------------------------------------------------------------------------------------------------- jumps


def search(function: Callable[[Tensor], Tensor], smallest: float = 1e-3, points: int = 33) -> object:
    grid = torch.linspace(-1, 1, points, dtype=F64)
    return halve(function, grid, function(grid), smallest=smallest)


def test_planted_jumps_are_found_with_their_sizes_and_places() -> None:
    planted = [(-0.713, 0.3), (-0.1234, -0.002), (-0.1111, 0.05), (0.6, -1.0)]

    def function(t: Tensor) -> Tensor:
        smooth = 5 * torch.sin(7 * t) + (t - 0.2).abs() + torch.exp(t)
        return smooth + sum(size * (t > at).to(t) for at, size in planted)

    found = search(function)
    assert [jump.at for jump in found.jumps] == pytest.approx([at for at, _ in planted], abs=1e-6)
    assert [jump.size for jump in found.jumps] == pytest.approx([size for _, size in planted], abs=1e-5)
    assert found.complete
    assert found.changes[-1].largest == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "function",
    [torch.sin, lambda t: (t - 0.3).abs(), lambda t: torch.tanh(300 * t), lambda t: 9 * t],
    ids=["smooth", "kink", "steep", "linear"],
)
def test_continuous_functions_have_no_jumps_and_changes_that_shrink_with_the_step(
    function: Callable[[Tensor], Tensor],
) -> None:
    found = search(function)
    assert found.jumps == []
    (wide, _), (narrow, last), before = found.changes[-8], found.changes[-1], found.changes[-8].largest
    assert last / narrow == pytest.approx(before / wide, rel=0.05)


def test_a_crowd_of_jumps_is_not_called_complete() -> None:
    grid = torch.linspace(-1, 1, 33, dtype=F64)

    def stairs(t: Tensor) -> Tensor:
        return (100 * t).floor() / 100

    assert not halve(stairs, grid, stairs(grid), smallest=1e-3, limit=16).complete
    found = halve(stairs, grid, stairs(grid), smallest=1e-3)
    assert found.complete
    assert len(found.jumps) == 200


def one_neuron() -> tuple[Network, dict[str, Tensor]]:
    """Outputs relu(z) - relu(x) and 0, with z = x - 0.5 + b."""
    net, params = tr.from_module(nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double(), (1,))
    first, bias, last, end = params
    params[first], params[bias] = torch.ones(2, 1, dtype=F64), torch.tensor([-0.5, 0.0], dtype=F64)
    params[last], params[end] = torch.tensor([[1.0, -1.0], [0.0, 0.0]], dtype=F64), torch.zeros(2, dtype=F64)
    return net, params


@pytest.mark.parametrize(
    ("name", "sign", "where", "size"),
    [("deeppoly", 1.0, 0.0, 0.1), ("crown_ibp", 1.0, 0.0, 0.1), ("hbox", -1.0, 0.1, 0.2)],
)
def test_relaxations_jump_where_theory_says(name: str, sign: float, where: float, size: float) -> None:
    """Over x = 0.5 +- 0.1 a neuron z = x - 0.5 + b has l = b - 0.1, u = b + 0.1.

    CROWN's and DeepPoly's lower line turns from 0 to z at u = -l: the bound of relu(z) falls by 0.1, or relative to
    that, of relu(z) - x by as much more as the correlation with x gives back. hBox forgets at l = 0 that relu(z) and x
    rise together: x - relu(z), which is constant for l >= 0, loses 0.2.
    """
    net, params = one_neuron()
    spec = Spec(torch.tensor([[[sign, 0.0]]], dtype=F64), torch.zeros(1, 1, dtype=F64), (0,))
    box = tr.linf_box(torch.full((1, 1), 0.5, dtype=F64), "1/10")
    chosen, key = relaxation(name), list(params)[1]

    def bound(positions: Tensor) -> Tensor:
        each = [{**params, key: params[key] + torch.stack([b, b * 0])} for b in positions]
        return torch.stack([chosen.bounds(net, p, box, spec).margins[0, 0] for p in each])

    [jump] = search(bound, points=9).jumps
    assert jump.at == pytest.approx(where, abs=1e-6)
    assert abs(jump.size) == pytest.approx(size, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "jumps"), [("ibp", False), ("deepz", False), ("hbox", True), ("crown_ibp", True), ("deeppoly", True)]
)
def test_the_certified_loss_of_a_network_jumps_where_the_relaxation_is_not_continuous(name: str, jumps: bool) -> None:
    place = neighbourhood_of("mlp")
    probe = Probe(place, relaxation(name), chunk=16)
    assert probe.relaxation.continuous != jumps
    found = continuity(probe, [probe.along(segment)(place.grid) for segment in range(1)])
    assert bool(found.jumps) == jumps
    assert found.rate == len(found.jumps) / 2
    shrinks = found.changes[-1].largest < 1e-4 * found.changes[2].largest
    assert shrinks != jumps


# ------------------------------------------------------------------------------------------ worst margins


def neighbourhood_of(name: str) -> Neighbourhood:
    given = case(name)
    x, settings = (
        given.inputs(2),
        SETTINGS.model_copy(update={"images": 2, "steps": 8, "std": (0.1, 0.3), "draws": 3, "segments": 1}),
    )
    noise = dict.fromkeys(given.net.trainable, 1.0)
    return Neighbourhood(given.net, given.params, x, margins64(2), noise, settings)


@pytest.mark.parametrize(("timeout", "width"), [(60.0, 1.1e-3), (0.0, math.inf)])
def test_worst_margins_are_those_of_enumeration(timeout: float, width: float) -> None:
    given, place = case("mlp"), neighbourhood_of("mlp")
    found = worst_margins(
        place.network,
        place.params,
        place.box,
        place.spec,
        attack=Bab().attack,
        verifier=Bab(timeout=timeout),
        tolerance=1e-3,
        generator=torch.Generator().manual_seed(0),
    )
    lower, upper = place.box.lower.flatten(1).numpy(), place.box.upper.flatten(1).numpy()
    for i in range(2):
        exact = min(exact_min(given.oracle, lower[i], upper[i], row.numpy()) for row in place.spec.matrix[i])
        assert float(found.lower[i]) <= exact + 1e-9
        assert float(found.upper[i]) >= exact - 1e-9
        assert float(found.upper[i] - found.lower[i]) <= width


def test_gaps_are_those_to_the_brackets_and_never_negative() -> None:
    place = neighbourhood_of("mlp")
    worst = experiment.find_worst(place, Bab().attack, Bab())
    for name in ("ibp", "deeppoly"):
        found = tightness(Probe(place, relaxation(name)), worst)
        assert found.gap == pytest.approx(sum(each.upper for each in worst) / 2 - found.margin, abs=1e-9)
        assert -1e-9 <= found.proved <= found.gap <= found.proved + 1.1e-3


# ------------------------------------------------------------------------------------------------- degree


@pytest.mark.parametrize("name", ["ibp", "hbox", "crown_ibp", "deepz", "deeppoly"])
@pytest.mark.parametrize("neurons", [2, 3])
def test_the_degree_of_one_layer_is_the_counted_one(name: str, neurons: int) -> None:
    """All neurons cross, no sign changes, and the worst corner is no neuron's own: the count is the degree."""
    degree, bound = fitted(name, neurons, -1.0)
    assert degree == bound == 2 + neurons * FORMULAS[name].rational


@pytest.mark.parametrize("name", ["crown_ibp", "deeppoly"])
def test_lower_lines_of_fixed_slope_add_nothing_to_the_degree(name: str) -> None:
    degree, bound = fitted(name, 2, 1.0)
    assert degree == 2 < bound


def fitted(name: str, neurons: int, sign: float) -> tuple[int | None, int | None]:
    """The degree of a bound of sign times the sum of the neurons on a line of weights: fitted, and counted."""
    net, params = tr.from_module(nn.Sequential(nn.Linear(3, neurons), nn.ReLU(), nn.Linear(neurons, 2)).double(), (3,))
    first, bias, last, _ = params
    rows = torch.tensor([[1.0, 2.0, -0.7], [1.2, -0.6, 2.5], [-0.8, 1.0, 1.1]], dtype=F64)[:neurons]
    turn = torch.tensor([[0.4, 0.9, -0.3], [-0.5, 0.25, -1.0], [-0.7, 0.9, 0.6]], dtype=F64)[:neurons]
    still = {bias: -rows.sum(1) / 2 + 0.4, last: torch.tensor([[sign], [0.0]], dtype=F64).expand(2, neurons)}
    box = tr.linf_box(torch.full((1, 3), 0.5, dtype=F64), "2/5")
    spec = Spec(torch.tensor([[[1.0, 0.0]]], dtype=F64), torch.zeros(1, 1, dtype=F64), (0,))

    def value(t: float) -> float:
        moved = {**params, **still, first: rows + t * turn, last: (1 + t) * still[last]}
        return float(relaxation(name).bounds(net, moved, box, spec).margins)

    points = chebyshev(40, 0.4)
    degree = rational_degree(points, np.array([value(float(t)) for t in points]))
    return degree, degree_bound(net, {net.pre_activations[0]: neurons}, FORMULAS[name])


def test_degrees_multiply_with_depth_under_back_substitution_only() -> None:
    net = case("mlp").net
    crossing = dict(zip(net.pre_activations, (3, 2, 4), strict=True))
    assert degree_bound(net, crossing, FORMULAS["hbox"]) == 4
    assert degree_bound(net, crossing, FORMULAS["crown_ibp"]) == 4 + 3 * 1 + 2 * 2 + 4 * 3
    after = 3 + 2 * (2 + 3)
    assert degree_bound(net, crossing, FORMULAS["deeppoly"]) == 4 + after + 4 * (3 + after)
    assert degree_bound(case("tanh").net, {}, FORMULAS["deepz"]) is None


# --------------------------------------------------- theorems of smoothing, on losses with closed forms


def probe_of(loss: Callable[[Tensor], Tensor]) -> Probe:
    """A probe of a function of (SLOPE . weights), which is the first weight of the segments' space."""
    net, params = tr.from_module(nn.Linear(2, 2, bias=False).double(), (2,))
    [key] = params
    spec = margin_spec(torch.tensor([0]), 2, dtype=F64)
    place = Neighbourhood(net, {key: WEIGHTS}, torch.full((1, 2), 0.5, dtype=F64), spec, {key: 1.0}, SETTINGS)
    probe = Probe(place, Ibp(), chunk=33)

    def of_params(params: Params) -> tuple[Tensor, Metrics]:
        return loss((SLOPE * (params[key] - WEIGHTS)).sum()), {}

    probe.loss = of_params
    return probe


def smoothing(loss: Callable[[Tensor], Tensor], std: float) -> tuple[Smoothness, list[Tensor]]:
    probe = probe_of(loss)
    noise = [probe.place.draw(std, "draw", index) for index in range(SETTINGS.draws)]
    values = [torch.stack([probe.along(s, z)(probe.place.grid) for z in noise]) for s in range(SETTINGS.segments)]
    return smoothness(probe.place, std, values), values


def positions(segment: int) -> Tensor:
    """SLOPE . (weights - WEIGHTS) along a segment."""
    place = probe_of(torch.sin).place
    [direction] = place.draw(1.0, "segment", segment).values()
    return place.grid * (SLOPE * direction).sum()


SCALE = float(SLOPE.norm())


@pytest.mark.parametrize("std", SETTINGS.std)
def test_a_smoothed_step_is_the_normal_distribution_and_lipschitz(std: float) -> None:
    """A step, which has no slope anywhere, becomes Phi, with the slope 1 / sqrt(2 pi) in units of the noise."""
    found, values = smoothing(lambda s: (s > 0).double(), std)
    for segment, part in enumerate(values):
        exact = torch.special.ndtr(positions(segment) / (std * SCALE))
        error = (exact * (1 - exact) / SETTINGS.draws).sqrt()
        assert bool(((part.mean(0) - exact).abs() < 5 * error + 0.01).all())
    assert found.slope_bound == pytest.approx(0.5 / std, rel=0.05)
    along = [float((SLOPE * d).sum()) / float(d.norm()) / SCALE for d in _directions()]
    steepest = max(abs(cosine) for cosine in along) / math.sqrt(2 * math.pi) / std
    assert steepest < found.slope_bound


def _directions() -> list[Tensor]:
    place = probe_of(torch.sin).place
    return [place.draw(1.0, "segment", s)["weight"] for s in range(SETTINGS.segments)]


@pytest.mark.parametrize("std", SETTINGS.std)
def test_a_smoothed_cosine_is_a_smaller_cosine(std: float) -> None:
    """E cos(s + std |a| z) = exp(-(std |a|)^2 / 2) cos s: smooth, within its bounds, less far from convex."""
    found, values = smoothing(lambda s: torch.cos(3 * s), std)
    shrunk = math.exp(-((3 * std * SCALE) ** 2) / 2)
    for segment, part in enumerate(values):
        exact = shrunk * torch.cos(3 * positions(segment))
        assert bool(((part.mean(0) - exact).abs() < 5 / math.sqrt(SETTINGS.draws)).all())
    assert found.slope <= found.slope_bound
    assert found.curvature <= found.curvature_bound
    assert found.order == pytest.approx(2.0, abs=0.1)
    assert found.deviation <= found.deviation_drawn
    plain = max(float(convexity_deviation(torch.cos(3 * positions(s)))) for s in range(SETTINGS.segments))
    assert shrunk * plain <= plain


def test_a_linear_loss_stays_as_it_is() -> None:
    """Its slope is its Lipschitz constant times the cosine with the segment, before and after; it bends nowhere."""
    plain = max(abs(float((SLOPE * d).sum())) / float(d.norm()) for d in _directions())
    found, _ = smoothing(lambda s: s, 1.0)
    assert found.slope == pytest.approx(plain, rel=1e-9)
    assert found.curvature < 1e-9
    assert found.deviation < 1e-12
    probe = probe_of(lambda s: s)
    noise = probe.place.draw(1.0, "draw", 0)
    assert float(gradient(probe, probe.loss, noise).norm()) == pytest.approx(SCALE, rel=1e-12)
    assert found.slope_bound >= found.slope


def test_orders_of_smooth_and_jumping_functions() -> None:
    t = torch.linspace(-1, 1, 65, dtype=F64)
    assert smoothness_order(torch.sin(3 * t)) == pytest.approx(2.0, abs=0.03)
    assert smoothness_order((t > 0.01).double()) == pytest.approx(0.5, abs=0.03)
    assert smoothness_order(torch.zeros(65, dtype=F64)) is None


def test_a_mean_is_never_further_from_convex_than_its_worst_term() -> None:
    values = torch.randn(50, 8, 17, generator=torch.Generator().manual_seed(0), dtype=F64).cumsum(-1)
    assert bool((convexity_deviation(values.mean(1)) <= convexity_deviation(values).amax(1) + 1e-12).all())
    naive = max(
        float(f[k] - (f[i] * (j - k) + f[j] * (k - i)) / (j - i))
        for f in [values[0, 0]]
        for i in range(17)
        for k in range(i + 1, 17)
        for j in range(k + 1, 17)
    )
    assert float(convexity_deviation(values[0, 0])) == pytest.approx(naive)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    probe = probe_of(lambda s: 1 / (s - s))
    with pytest.raises(NumericalError, match="smaller std"):
        probe.along(0)(probe.place.grid)


# --------------------------------------------------------------------------------------- the whole of it

QUICK = {"images": 2, "segments": 1, "steps": 8, "draws": 2, "timeout": 0.0, "std": (0.02,)}
TINY = ["model.width=[4]"]


def quick(out: Path, names: list[str], **options: object) -> PropertiesRecord:
    return tr.properties("digits/mlp-ibp", relaxations=names, out=out, overrides=TINY, **{**QUICK, **options})


def test_a_record_is_continued_and_read_back(tmp_path: Path) -> None:
    plans: list[experiment.Planned] = []
    first = quick(tmp_path, ["ibp"], on_plan=plans.append)
    both = quick(tmp_path, ["ibp", "deeppoly:slope=zero"], on_plan=plans.append)
    assert [each.name for each in both.relaxations] == ["ibp", "deeppoly:slope=zero"]
    assert both.relaxations[0] == first.relaxations[0]
    assert both.worst == first.worst
    assert [[cost.relaxation for cost in plan.costs] for plan in plans] == [["ibp"], ["deeppoly:slope=zero"]]
    assert PropertiesRecord.read(tmp_path / "properties.json") == both
    assert both.relaxations[1].sensitivity.degree is not None
    lines = (tmp_path / "properties.csv").read_text().splitlines()
    assert lines[0] == "relaxation,property,quantity,at,value"
    assert f"ibp,tightness,gap,,{first.relaxations[0].tightness.gap}" in lines
    for ending in ("png", "svg"):
        assert (tmp_path / f"properties.{ending}").stat().st_size > 5000
    with pytest.raises(InputError, match=r"other settings.*seed"):
        quick(tmp_path, ["ibp"], seed=1)
    columns, rows = beside_published(both)
    assert [row[0] for row in rows] == ["ibp"]
    assert all(len(row) == len(columns) for row in rows)
    for columns, rows in (measured(both), smoothed(both)):
        assert all(len(row) == len(columns) for row in rows)


def test_the_command_shows_what_is_there_and_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    flags = "--relaxation ibp --set model.width=[4] --images 2 --segments 1 --steps 8 --draws 2 --timeout 0"
    command = ["lab", "properties", "digits/mlp-ibp", *flags.split(), "--out", str(tmp_path), "--std"]
    quick(tmp_path, ["ibp"])
    shown = CliRunner().invoke(app, [*command, "0.02"])
    assert shown.exit_code == 0
    assert "Beside" in shown.output
    assert "Planned" not in shown.output
    refused = CliRunner().invoke(app, [*command, "much"])
    assert refused.exit_code == 2


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"names": []}, InputError, "at least one relaxation"),
        ({"names": ["ipb"]}, Exception, "ibp"),
        ({"std": (0.0,)}, InputError, "std"),
        ({"std": (math.nan,)}, InputError, "std"),
        ({"segments": 0}, InputError, "segments"),
        ({"steps": 9}, InputError, "even"),
        ({"draws": 1}, InputError, "draws"),
        ({"jump": 0.0}, InputError, "jump"),
        ({"tolerance": 0.0}, InputError, "tolerance"),
        ({"images": 0}, InputError, "image"),
        ({"eps": "2"}, InputError, "eps"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    tmp_path: Path, options: dict[str, object], error: type[Exception], told: str
) -> None:
    names = options.pop("names", ["ibp"])
    with pytest.raises(error, match=told):
        quick(tmp_path / "new", names, on_plan=lambda _: pytest.fail("it had begun"), **options)
    assert not (tmp_path / "new").exists()


def test_files_that_are_no_records_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError):
        PropertiesRecord.read(tmp_path / "properties.json")
    (tmp_path / "properties.json").write_text("{}")
    with pytest.raises(CorruptDataError, match=r"properties\.json"):
        PropertiesRecord.read(tmp_path / "properties.json")


def test_published_rows_say_of_continuity_what_our_relaxations_say() -> None:
    assert {name: row.continuous for name, row in PUBLISHED.items()} == {
        name: relaxation(name).continuous for name in PUBLISHED
    }
