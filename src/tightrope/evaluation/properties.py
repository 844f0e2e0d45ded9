"""Properties of a relaxation on one network: tightness, continuity, sensitivity, and smoothness after smoothing.

All but the first are those of the certified loss of a few images, which is what training descends. See
``docs/explanation/paradox-properties.md``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.box import Box, ball, linf_box, parse_eps, round_up
from tightrope.core.network import Network
from tightrope.core.noise import derive_seed, derived_generator, weight_noise
from tightrope.core.op import ElementwiseOp
from tightrope.core.protocols import Attack, LossFn, Relaxation, Verifier
from tightrope.core.spec import Spec, worst_margin
from tightrope.errors import NumericalError
from tightrope.evaluation._degree import FORMULAS, degree_bound
from tightrope.evaluation._halving import EVERYWHERE, HALVINGS, Function, halve
from tightrope.evaluation._worst_margins import worst_margins
from tightrope.evaluation.landscape import Scene, batch_loss, losses_at
from tightrope.records import properties as records
from tightrope.runtime.timing import median_seconds
from tightrope.smoothers._population import shifted

_RADII = 10  # halvings of the range of radii
_CHUNKS = (4, 16)  # weight vectors evaluated at once, besides one
_WORTH = 0.8  # of the time: more at once take more memory
_GRADIENT = 3  # evaluations that a backward pass takes, the forward one included


@dataclass(frozen=True)
class Neighbourhood:
    """A network and images, and random segments through its weights.

    Attributes:
        params: float64, which halving steps needs.
        x: images, (images, *input shape).
        spec: the property of each.
        noise: std of the weight noise by name, for a std of 1.
        settings: everything else.
    """

    network: Network
    params: Params
    x: Tensor
    spec: Spec
    noise: Mapping[str, float]
    settings: records.Settings

    @cached_property
    def box(self) -> Box:
        """Around the images."""
        return linf_box(self.x, self.settings.eps)

    @cached_property
    def grid(self) -> Tensor:
        """Positions on a segment."""
        return torch.linspace(-1, 1, self.settings.steps + 1, dtype=torch.float64, device=self.x.device)

    def draw(self, std: float, kind: str, index: int) -> dict[str, Tensor]:
        """Noise of all weights; whoever asks for the same kind and index gets the same, in units of the std."""
        scale = {name: std * unit for name, unit in self.noise.items()}
        return weight_noise(self.params, scale, derive_seed(self.settings.seed, kind), index)

    def scene(self, segment: int) -> Scene:
        """The segment from -1 to 1, one draw of the largest noise away from the weights."""
        direction = self.draw(self.settings.std[-1], "segment", segment)
        axes = {name: part[None] for name, part in direction.items()}
        return Scene(self.params, axes, self.grid[:, None], self.noise, self.settings.seed)

    def length(self, segment: int) -> float:
        """Of half a segment, in standard deviations of the largest noise: about the root of the number of weights."""
        direction = self.draw(1.0, "segment", segment)
        return math.sqrt(sum(float((part / self.noise[name]).square().sum()) for name, part in direction.items()))


def _no_report(evaluations: int) -> None:
    """Nobody wants to know."""


@dataclass
class Probe:
    """The certified loss of one relaxation in a neighbourhood.

    Attributes:
        chunk: weight vectors evaluated at once.
        report: is told of evaluations of the loss, in the units of one weight vector.
    """

    place: Neighbourhood
    relaxation: Relaxation
    chunk: int = 1
    report: Callable[[int], None] = _no_report
    evaluations: int = 0

    @cached_property
    def loss(self) -> LossFn:
        """Mean over the images."""
        return batch_loss(self.place.network, self.relaxation, self.place.x, self.place.box, self.place.spec)

    def worst_bounds(self, params: Params, box: Box) -> Tensor:
        """Bounds of the worst margin of every image in its box, (images,)."""
        self.count(1)
        rows = self.relaxation.bounds(self.place.network, params, box, self.place.spec).margins
        return worst_margin(rows, self.place.spec.clause)

    def mean_bound(self, params: Params) -> tuple[Tensor, Metrics]:
        """Of the worst margins, as a loss."""
        return self.worst_bounds(params, self.place.box).mean(), {}

    def along(self, segment: int, shift: Params | None = None) -> Function:
        """The loss as a function of the position on a segment, all weights moved by ``shift``.

        Raises:
            NumericalError: from the function, where the loss is not finite.
        """
        scene = self.place.scene(segment)

        def values(points: Tensor) -> Tensor:
            found = losses_at(self.loss, scene, points[:, None], self.chunk, shift)
            self.count(len(points))
            if not bool(torch.isfinite(found).all()):
                raise NumericalError("The certified loss near these weights is not finite: use a smaller std.")
            return found

        return values

    def calibrate(self) -> float:
        """Choose how many weight vectors to evaluate at once; seconds of one."""
        best, points = math.inf, self.place.grid
        for chunk in (1, *(each for each in _CHUNKS if each <= len(points))):
            seconds = median_seconds(partial(self._timed, chunk), points.device, (2, 3)) / chunk
            if seconds > _WORTH * best:
                break
            best, self.chunk = seconds, chunk
        return best

    def _timed(self, chunk: int) -> None:
        losses_at(self.loss, self.place.scene(0), self.place.grid[:chunk, None], chunk)

    def count(self, evaluations: int) -> None:
        """Add to the evaluations."""
        self.evaluations += evaluations
        self.report(evaluations)


def planned_evaluations(settings: records.Settings) -> int:
    """Of the loss for one relaxation, without what follows jumps: about 40 for each that is found."""
    grid = settings.segments * (settings.steps + 1)
    search = (4 * HALVINGS + (1 << EVERYWHERE) * settings.steps) * settings.segments
    return grid * (1 + len(settings.std) * settings.draws) + search + 2 * _GRADIENT * settings.draws + _RADII


def measure(name: str, probe: Probe, worst: Sequence[records.WorstMargin]) -> records.RelaxationProperties:
    """All properties of one relaxation.

    Args:
        name: of the relaxation, with its options after a colon.
        probe: of it.
        worst: of every image, from :func:`find_worst`.

    Raises:
        NumericalError: the loss is not finite near the weights.
    """
    start, place = time.perf_counter(), probe.place
    plain = [probe.along(segment)(place.grid) for segment in range(place.settings.segments)]
    return records.RelaxationProperties(
        name=name,
        continuous=probe.relaxation.continuous,
        tightness=tightness(probe, worst),
        continuity=continuity(probe, plain),
        sensitivity=sensitivity(probe, name.partition(":")[0]),
        smoothness=(smoothness(place, 0.0, [part[None] for part in plain]), *_smoothed(probe)),
        evaluations=probe.evaluations,
        seconds=time.perf_counter() - start,
    )


# --------------------------------------------------------------------------------------------- tightness


def find_worst(place: Neighbourhood, attack: Attack, verifier: Verifier) -> tuple[records.WorstMargin, ...]:
    """The bracket of the worst margin of every image, see :func:`worst_margins`.

    Raises:
        NumericalError: a bound is not finite.
    """
    found = worst_margins(
        place.network,
        place.params,
        place.box,
        place.spec,
        attack=attack,
        verifier=verifier,
        tolerance=place.settings.tolerance,
        generator=derived_generator(place.x.device, place.settings.seed, "attack"),
    )
    if not bool(torch.isfinite(found.lower + found.upper).all()):
        raise NumericalError("The bounds of this network are not finite: its weights are too large for float64.")
    ends = zip(found.lower.tolist(), found.upper.tolist(), strict=True)
    return tuple(records.WorstMargin(index=i, lower=low, upper=high) for i, (low, high) in enumerate(ends))


@torch.no_grad()
def tightness(probe: Probe, worst: Sequence[records.WorstMargin]) -> records.Tightness:
    """The gaps to the worst margins, and the mean certified radius."""
    bounds = probe.worst_bounds(probe.place.params, probe.place.box)
    found = bounds.tolist()
    return records.Tightness(
        margin=fmean(found),
        gap=fmean(each.upper - bound for each, bound in zip(worst, found, strict=True)),
        proved=fmean(each.lower - bound for each, bound in zip(worst, found, strict=True)),
        radius=float(certified_radii(probe).mean()),
        loss=float(probe.loss(probe.place.params)[0]),
        certified=float((bounds > 0).double().mean()),
    )


@torch.no_grad()
def certified_radii(probe: Probe) -> Tensor:
    """By bisection up to 4 eps, (images,); without bounds of rounding errors."""
    x, eps = probe.place.x, round_up(parse_eps(probe.place.settings.eps))
    low = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    high = torch.full_like(low, min(1.0, 4 * eps))
    for _ in range(_RADII):
        radius = (low + high) / 2
        holds = probe.worst_bounds(probe.place.params, ball(x, radius.reshape(-1, *[1] * (x.ndim - 1)))) > 0
        low, high = torch.where(holds, radius, low), torch.where(holds, high, radius)
    return low


# -------------------------------------------------------------------------------------------- continuity


def continuity(probe: Probe, plain: Sequence[Tensor]) -> records.Continuity:
    """Jumps along the segments, from the values on their points."""
    settings, grid = probe.place.settings, probe.place.grid
    smallest = settings.jump * float(plain[0][settings.steps // 2])
    searches = [halve(probe.along(segment), grid, found, smallest=smallest) for segment, found in enumerate(plain)]
    jumps = tuple(
        records.Jump(segment=segment, at=at, size=size)
        for segment, search in enumerate(searches)
        for at, size in search.jumps
    )
    sizes = [abs(jump.size) for jump in jumps]
    steps = zip(*(search.changes for search in searches), strict=True)
    total = sum(float(part.diff().abs().sum()) for part in plain)
    return records.Continuity(
        jumps=jumps,
        rate=len(jumps) / (2 * settings.segments),
        largest=max(sizes, default=0.0),
        share=sum(sizes) / total if total > 0 else 0.0,
        changes=tuple(records.Change(step=same[0].step, largest=max(each.largest for each in same)) for same in steps),
        complete=all(search.complete for search in searches),
    )


# ------------------------------------------------------------------------------------------- sensitivity


def sensitivity(probe: Probe, relaxation: str) -> records.Sensitivity:
    """Gradients of the loss and of the bound, and the degree of the latter."""
    settings = probe.place.settings
    draws = [probe.place.draw(settings.std[-1], "draw", index) for index in range(settings.draws)]
    bounds = [gradient(probe, probe.mean_bound, noise) for noise in draws]
    losses = [gradient(probe, probe.loss, noise) for noise in draws]
    here = gradient(probe, probe.loss, {})
    crossing, count = _crossing(probe)
    formula = FORMULAS.get(relaxation)
    return records.Sensitivity(
        bound_gradient=fmean(float(each.norm()) for each in bounds),
        loss_gradient=fmean(float(each.norm()) for each in losses),
        agreement=fmean(float(torch.cosine_similarity(each, here, dim=0)) for each in losses),
        degree=None if formula is None else degree_bound(probe.place.network, crossing, formula),
        crossing=count,
    )


def gradient(probe: Probe, loss: LossFn, noise: Params) -> Tensor:
    """Of a loss at the weights moved by the noise, as one vector; its norm is the local Lipschitz constant."""
    place, moved = probe.place, shifted(probe.place.params, noise)
    leaves = {name: moved[name].detach().clone().requires_grad_() for name in place.network.trainable}
    value = loss({**moved, **leaves})[0]
    grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    probe.count(_GRADIENT)
    return torch.cat([grad.flatten() for grad in grads])


@torch.no_grad()
def _crossing(probe: Probe) -> tuple[dict[str, int], float]:
    """Neurons that cross a breakpoint, by pre-activation of the image that has most, and their mean over the images."""
    place, most, total = probe.place, dict[str, int](), 0.0
    pre = probe.relaxation.bounds(place.network, place.params, place.box, place.spec).pre
    for node in place.network.nodes:
        if isinstance(node.op, ElementwiseOp):
            counts = (~node.op.stable(pre[node.inputs[0]])).flatten(1).sum(1)
            most[node.inputs[0]] = max(most.get(node.inputs[0], 0), int(counts.max()))
            total += float(counts.double().mean())
    return most, total


# -------------------------------------------------------------------------------------------- smoothness


def _smoothed(probe: Probe) -> list[records.Smoothness]:
    """After smoothing with every std."""
    place, found = probe.place, []
    for std in place.settings.std:
        noise = [place.draw(std, "draw", index) for index in range(place.settings.draws)]
        segments = range(place.settings.segments)
        values = [torch.stack([probe.along(segment, z)(place.grid) for z in noise]) for segment in segments]
        found.append(smoothness(place, std, values))
    return found


def smoothness(place: Neighbourhood, std: float, values: Sequence[Tensor]) -> records.Smoothness:
    """From the losses of shifted segments, (draws, points) each."""
    settings = place.settings
    means = torch.stack([part.mean(0) for part in values])
    lengths = means.new_tensor([2 / settings.steps * place.length(s) for s in range(len(values))])[:, None]
    middle = values[0][:, settings.steps // 2]
    spread = max(float(part.std(0).max()) for part in values) if std > 0 else 0.0
    unit = settings.std[-1] / std if std > 0 else 0.0
    return records.Smoothness(
        std=std,
        loss=float(middle.mean()),
        error=float(middle.std()) / math.sqrt(len(middle)) if std > 0 else 0.0,
        slope=float((means.diff().abs() / lengths).max()),
        slope_bound=spread * unit if std > 0 else None,
        curvature=float((means.diff(n=2).abs() / lengths**2).max()),
        curvature_bound=math.sqrt(2) * spread * unit**2 if std > 0 else None,
        order=smoothness_order(means),
        deviation=float(convexity_deviation(means).max()),
        deviation_drawn=max(float(convexity_deviation(part).max()) for part in values),
        curve=tuple(means[0].tolist()),
    )


def smoothness_order(found: Tensor) -> float | None:
    """log2 of how much the root mean square of second differences shrinks with half the step.

    Where a function f is smooth they are h^2 f'' + O(h^4): 2. A few kinks on a line count h in 1 / h steps: 1.5. A few
    jumps, 0.5. None for a straight line.

    Args:
        found: values on evenly spaced points, (..., points).
    """
    fine = found.diff(n=2).square().mean().sqrt()
    coarse = (found[..., 4:] - 2 * found[..., 2:-2] + found[..., :-4]).square().mean().sqrt()
    order = torch.log2(coarse / fine)
    return float(order) if bool(torch.isfinite(order)) else None


def convexity_deviation(found: Tensor) -> Tensor:
    """How far a function rises above its chords: max over i < k < j of f(k) - chord from f(i) to f(j) at k, or 0.

    It is a supremum of linear functions of f, so that a mean of functions never has more than the largest of its terms:
    smoothing does not increase it.

    Args:
        found: values on evenly spaced points, (..., points).

    Returns:
        (...,); 0 for convex functions.

    Example:
        >>> t = torch.linspace(-1, 1, 5)
        >>> convexity_deviation(torch.stack([t**2, -t.abs()]))
        tensor([0., 1.])
    """
    count, highest = found.shape[-1], torch.zeros_like(found[..., 0])
    place = torch.arange(count, dtype=found.dtype, device=found.device)
    for k in range(1, count - 1):
        left, right = (k - place[:k])[:, None], (place[k + 1 :] - k)[None]
        chords = (found[..., :k, None] * right + found[..., None, k + 1 :] * left) / (left + right)
        highest = torch.maximum(highest, found[..., k] - chords.flatten(-2).amin(-1))
    return highest
