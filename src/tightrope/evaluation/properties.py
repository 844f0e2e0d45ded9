"""Properties of a relaxation on one network: tightness, continuity, sensitivity, and smoothness after smoothing.

Everything is measured on the certified loss of a few images, which is what training descends, and on the bound of their
worst margins. See ``docs/explanation/paradox-properties.md``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from statistics import fmean

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.box import Box, ball, linf_box, round_up
from tightrope.core.network import Network
from tightrope.core.noise import derive_seed, derived_generator, weight_noise
from tightrope.core.op import ElementwiseOp
from tightrope.core.protocols import Attack, LossFn, Relaxation, Verifier
from tightrope.core.spec import Spec, margin_spec, worst_margin
from tightrope.errors import NumericalError
from tightrope.evaluation._degree import FORMULAS, Formula, degree_bound
from tightrope.evaluation._jumps import HALVINGS, Values, find_jumps
from tightrope.evaluation._worst_margins import worst_margins
from tightrope.methods.certified import certified_loss
from tightrope.records import properties as records
from tightrope.smoothers._population import evaluate_members

_RADII = 10  # halvings of the range of radii
_CHUNKS = (1, 8, 32)  # weight vectors evaluated at once, the fastest of which is taken


@dataclass(frozen=True)
class Subject:
    """A network, images, and the segments of weight space around it.

    Args:
        params: float64, which halving steps needs.
        x, labels: the images, (images, *input shape), and (images,).
        eps: radius.
        settings: everything else.
    """

    network: Network
    params: Params
    x: Tensor
    labels: Tensor
    eps: Fraction
    settings: records.Settings

    @cached_property
    def box(self) -> Box:
        """Around the images."""
        return linf_box(self.x, self.eps)

    @cached_property
    def spec(self) -> Spec:
        """The classification margins."""
        return margin_spec(self.labels, self.network.num_outputs, dtype=self.x.dtype)

    @cached_property
    def grid(self) -> Tensor:
        """Positions on a segment."""
        return torch.linspace(-1, 1, self.settings.steps + 1, dtype=torch.float64, device=self.x.device)

    def noise(self, std: float, kind: str, index: int) -> dict[str, Tensor]:
        """Normal noise of all trainable weights, common to all that asks for the same."""
        each = dict.fromkeys(self.network.trainable, std)
        return weight_noise(self.params, each, derive_seed(self.settings.seed, kind), index)

    @cached_property
    def directions(self) -> list[dict[str, Tensor]]:
        """From the weights to the end of every segment."""
        return [self.noise(self.settings.std[-1], "segment", index) for index in range(self.settings.segments)]

    def length(self, segment: int) -> float:
        """Of half a segment, as a weight vector."""
        return math.sqrt(sum(float(part.square().sum()) for part in self.directions[segment].values()))


@dataclass
class Probe:
    """The certified loss of one relaxation near the weights of the subject.

    Attributes:
        chunk: weight vectors evaluated at once.
        evaluations: of the loss so far.
    """

    subject: Subject
    relaxation: Relaxation
    chunk: int = 1
    evaluations: int = 0

    @cached_property
    def loss(self) -> LossFn:
        """Mean over the images."""
        return certified_loss(self.subject.network, self.relaxation, self.subject.box, self.subject.labels)

    def bound(self, params: Params) -> tuple[Tensor, Metrics]:
        """Mean over the images of the bound of the worst margin, as a loss."""
        rows = self.relaxation.bounds(self.subject.network, params, self.subject.box, self.subject.spec).margins
        return worst_margin(rows, self.subject.spec.clause).mean(), {}

    def along(self, segment: int, offset: Params | None = None) -> Values:
        """The loss as a function of the position on a segment, all weights moved by ``offset``.

        Raises:
            NumericalError: from the function, where the loss is not finite.
        """
        params, direction = self.subject.params, self.subject.directions[segment]
        start = params if offset is None else {name: value + offset.get(name, 0) for name, value in params.items()}

        def values(points: Tensor) -> Tensor:
            self.evaluations += len(points)
            return torch.cat([self._members(start, direction, t) for t in points.split(self.chunk)])

        return values

    def _members(self, start: Params, direction: Params, points: Tensor) -> Tensor:
        noise = {name: points.reshape(-1, *[1] * part.ndim) * part for name, part in direction.items()}
        with torch.no_grad():
            found = evaluate_members(self.loss, start, noise)[0].double()
        if not bool(torch.isfinite(found).all()):
            raise NumericalError("The certified loss near these weights is not finite. Use a smaller std.")
        return found

    def seconds(self) -> float:
        """Of one evaluation; sets the fastest chunk."""
        best = math.inf
        for chunk in _CHUNKS:
            self.chunk = chunk
            values, points = self.along(0), self.subject.grid[:1].expand(chunk)
            values(points)  # once without the clock
            start = time.perf_counter()
            values(points)
            taken = (time.perf_counter() - start) / chunk
            if taken > 0.9 * best:
                self.chunk = fastest
                break
            best, fastest = taken, chunk
        return best


def planned_evaluations(settings: records.Settings) -> int:
    """Of the loss for one relaxation, without what follows jumps: about 40 for each that is found."""
    grid = settings.segments * (settings.steps + 1)
    search = 4 * HALVINGS * settings.segments
    return grid * (1 + len(settings.std) * settings.draws) + search + 6 * settings.draws + _RADII


def measure(
    name: str, relaxation: Relaxation, subject: Subject, worst: Sequence[records.WorstMargin]
) -> records.RelaxationProperties:
    """All properties of one relaxation.

    Args:
        name: of the relaxation, for the record.
        worst: of every image, from :func:`find_worst`.

    Raises:
        NumericalError: the loss is not finite near the weights.
    """
    start, probe = time.perf_counter(), Probe(subject, relaxation)
    probe.seconds()
    plain = [probe.along(segment)(subject.grid) for segment in range(subject.settings.segments)]
    return records.RelaxationProperties(
        name=name,
        continuous=relaxation.continuous,
        tightness=tightness(probe, worst),
        continuity=continuity(probe, plain),
        sensitivity=sensitivity(probe, FORMULAS.get(name.partition("-")[0])),
        smoothness=(_smoothness(subject, 0.0, [part[None] for part in plain]), *_smoothed(probe)),
        evaluations=probe.evaluations,
        seconds=time.perf_counter() - start,
    )


# --------------------------------------------------------------------------------------------- tightness


def find_worst(subject: Subject, attack: Attack, verifier: Verifier) -> tuple[records.WorstMargin, ...]:
    """The bracket of the worst margin of every image."""
    generator = derived_generator(subject.x.device, subject.settings.seed, "attack")
    found = worst_margins(
        subject.network,
        subject.params,
        subject.box,
        subject.spec,
        attack=attack,
        verifier=verifier,
        tolerance=subject.settings.tolerance,
        generator=generator,
    )
    ends = zip(found.lower.tolist(), found.upper.tolist(), strict=True)
    return tuple(records.WorstMargin(index=i, lower=low, upper=high) for i, (low, high) in enumerate(ends))


def tightness(probe: Probe, worst: Sequence[records.WorstMargin]) -> records.Tightness:
    """The gaps to the worst margins, and the mean certified radius."""
    subject = probe.subject
    with torch.no_grad():
        bounds = _worst_bound(probe, subject.box)
        loss = probe.loss(subject.params)[0]
    found = bounds.tolist()
    return records.Tightness(
        margin=fmean(found),
        gap=fmean(each.upper - bound for each, bound in zip(worst, found, strict=True)),
        proved=fmean(each.lower - bound for each, bound in zip(worst, found, strict=True)),
        radius=float(mean_radius(probe)),
        loss=float(loss),
        certified=float((bounds > 0).double().mean()),
    )


def mean_radius(probe: Probe) -> Tensor:
    """Of the certified radii up to 4 eps, by bisection; without bounds of rounding errors."""
    low = torch.zeros(len(probe.subject.x), dtype=torch.float64, device=probe.subject.x.device)
    high = torch.full_like(low, min(1.0, 4 * round_up(probe.subject.eps)))
    for _ in range(_RADII):
        radius = (low + high) / 2
        box = ball(probe.subject.x, radius.reshape(-1, *[1] * (probe.subject.x.ndim - 1)))
        with torch.no_grad():
            holds = _worst_bound(probe, box) > 0
        low, high = torch.where(holds, radius, low), torch.where(holds, high, radius)
    return low.mean()


def _worst_bound(probe: Probe, box: Box) -> Tensor:
    subject = probe.subject
    probe.evaluations += 1
    rows = probe.relaxation.bounds(subject.network, subject.params, box, subject.spec).margins
    return worst_margin(rows, subject.spec.clause)


# -------------------------------------------------------------------------------------------- continuity


def continuity(probe: Probe, plain: Sequence[Tensor]) -> records.Continuity:
    """Jumps along the segments, from the values on their points."""
    settings, grid = probe.subject.settings, probe.subject.grid
    smallest = settings.jump * float(plain[0][settings.steps // 2])
    searches = [find_jumps(probe.along(segment), grid, found, smallest=smallest) for segment, found in enumerate(plain)]
    jumps = tuple(
        records.Jump(segment=segment, at=at, size=size)
        for segment, search in enumerate(searches)
        for at, size in search.jumps
    )
    sizes = [abs(jump.size) for jump in jumps]
    steps = zip(*(search.changes for search in searches), strict=True)
    total = sum(search.total for search in searches)
    return records.Continuity(
        jumps=jumps,
        rate=len(jumps) / (2 * settings.segments),
        largest=max(sizes, default=0.0),
        share=sum(sizes) / total if total > 0 else 0.0,
        changes=tuple(records.Change(step=same[0].step, largest=max(each.largest for each in same)) for same in steps),
        complete=all(search.complete for search in searches),
    )


# ------------------------------------------------------------------------------------------- sensitivity


def sensitivity(probe: Probe, formula: Formula | None) -> records.Sensitivity:
    """Gradients of the loss and of the bound, and the degree of the latter.

    Args:
        formula: of the relaxation; None if it is not known.
    """
    subject = probe.subject
    draws = [subject.noise(subject.settings.std[-1], "draw", index) for index in range(subject.settings.draws)]
    bounds = [gradient(probe, probe.bound, noise) for noise in draws]
    losses = [gradient(probe, probe.loss, noise) for noise in draws]
    here = gradient(probe, probe.loss, {})
    crossing, count = _crossing(probe)
    return records.Sensitivity(
        bound_gradient=fmean(float(each.norm()) for each in bounds),
        loss_gradient=fmean(float(each.norm()) for each in losses),
        agreement=fmean(float(torch.cosine_similarity(each, here, dim=0)) for each in losses),
        degree=None if formula is None else degree_bound(subject.network, crossing, formula),
        crossing=count,
    )


def gradient(probe: Probe, loss: LossFn, noise: Params) -> Tensor:
    """Of a loss at the weights moved by the noise, all tensors as one vector; its norm is a local Lipschitz constant."""
    params = probe.subject.params
    leaves = {name: (params[name] + noise.get(name, 0)).requires_grad_() for name in probe.subject.network.trainable}
    probe.evaluations += 3  # with the backward pass
    value = loss({**params, **leaves})[0]
    grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


def _crossing(probe: Probe) -> tuple[dict[str, int], float]:
    """Neurons that cross a breakpoint, by pre-activation of the image that has most, and their mean over the images."""
    subject, most, total = probe.subject, dict[str, int](), 0.0
    with torch.no_grad():
        pre = probe.relaxation.bounds(subject.network, subject.params, subject.box, subject.spec).pre
    for node in subject.network.nodes:
        if isinstance(node.op, ElementwiseOp):
            counts = (~node.op.stable(pre[node.inputs[0]])).flatten(1).sum(1)
            most[node.inputs[0]] = max(most.get(node.inputs[0], 0), int(counts.max()))
            total += float(counts.double().mean())
    return most, total


# -------------------------------------------------------------------------------------------- smoothness


def _smoothed(probe: Probe) -> list[records.Smoothness]:
    """After smoothing with every std."""
    subject = probe.subject
    found = []
    for std in subject.settings.std:
        noise = [subject.noise(std, "draw", index) for index in range(subject.settings.draws)]
        segments = range(subject.settings.segments)
        values = [torch.stack([probe.along(s, offset=z)(subject.grid) for z in noise]) for s in segments]
        found.append(_smoothness(subject, std, values))
    return found


def _smoothness(subject: Subject, std: float, values: Sequence[Tensor]) -> records.Smoothness:
    """From the losses of shifted segments, (draws, points) each."""
    step = 2 / subject.settings.steps
    means = [part.mean(0) for part in values]
    lengths = [step * subject.length(segment) for segment in range(len(values))]
    slopes = [float(mean.diff().abs().max()) / length for mean, length in zip(means, lengths, strict=True)]
    bends = [float(mean.diff(n=2).abs().max()) / length**2 for mean, length in zip(means, lengths, strict=True)]
    middle = values[0][:, subject.settings.steps // 2]
    spread = max(float(part.std(0).max()) for part in values) if std > 0 else None
    return records.Smoothness(
        std=std,
        loss=float(middle.mean()),
        error=float(middle.std()) / math.sqrt(len(middle)) if len(middle) > 1 else 0.0,
        slope=max(slopes),
        slope_bound=None if spread is None else spread / std,
        curvature=max(bends),
        curvature_bound=None if spread is None else math.sqrt(2) * spread / std**2,
        order=smoothness_order(torch.stack(means)),
        deviation=float(convexity_deviation(torch.stack(means)).max()),
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
