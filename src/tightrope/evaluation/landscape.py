"""Losses on a line or a plane in weight space, as they are and smoothed by Gaussian noise of the weights.

The smoothed loss at a point is estimated by the mean over pairs of draws, ``(L(w + std z) + L(w - std z)) / 2``. The
draws z of pair i are the same at every point, for every std and relaxation: neighbouring points, and curves, then
differ by what they are and not by their noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.noise import derive_seed, weight_noise
from tightrope.core.protocols import LossFn, Relaxation
from tightrope.core.spec import Spec
from tightrope.evaluation.directions import Direction
from tightrope.evaluation.jumps import RESOLUTION, Resolution, find_jumps
from tightrope.methods.certified import certified_loss
from tightrope.records.run import Trial
from tightrope.records.surface import Cost, Curve, Surface, rows_of
from tightrope.runtime.memory import peak_memory
from tightrope.runtime.planner import forecast
from tightrope.runtime.timing import median_seconds
from tightrope.smoothers._population import evaluate_members, shifted

CHUNKS = {"cpu": (1, 4, 16), "cuda": (1, 8, 64, 512)}
"""Weight vectors evaluated at once, to choose from."""

REPEATS = (1, 3)  # fewest and most timed repetitions of a trial


@dataclass(frozen=True)
class Scene:
    """Where losses are evaluated.

    Attributes:
        params: the weights in the centre.
        axes: what one step along each axis adds to them, (axes, *shape) by name.
        points: coordinates, float64 (points, axes).
        noise: std of the weight noise by name, for a std of 1.
        seed: of the noise.
    """

    params: Params
    axes: Mapping[str, Tensor]
    points: Tensor
    noise: Mapping[str, float]
    seed: int

    @classmethod
    def of(
        cls,
        params: Params,
        directions: Sequence[Direction],
        points: Sequence[Sequence[float]],
        noise: Mapping[str, float],
        seed: int,
    ) -> Scene:
        """From one direction for each axis."""
        names = dict.fromkeys(name for direction in directions for name in direction)
        axes = {n: torch.stack([each.get(n, torch.zeros_like(params[n])) for each in directions]) for n in names}
        device = next(iter(params.values())).device
        return cls(params, axes, torch.tensor(points, dtype=torch.float64, device=device), noise, seed)


def batch_loss(network: Network, relaxation: Relaxation, x: Tensor, box: Box, spec: Spec) -> LossFn:
    """The certified loss of a batch as training sees it: batch statistics are those of the batch at the weights."""
    loss = certified_loss(network, relaxation, box, spec)
    return (lambda params: loss(network.calibrate(params, x))) if network.has_statistics else loss


@torch.no_grad()
def losses_at(loss: LossFn, scene: Scene, points: Tensor, chunk: int, shift: Params | None = None) -> Tensor:
    """The loss at points of the scene.

    Args:
        loss: a function of the params.
        scene: centre and axes.
        points: coordinates, (points, axes).
        chunk: points evaluated at once.
        shift: added to the weights everywhere, by name.

    Returns:
        float64 (points,).
    """
    base = scene.params if shift is None else shifted(scene.params, shift)
    found = []
    for rows in points.split(chunk):
        steps = {n: torch.tensordot(rows.to(each.dtype), each, dims=1) for n, each in scene.axes.items()}
        found.append(evaluate_members(loss, base, steps)[0].double())
    return torch.cat(found)


def smoothed_sample(loss: LossFn, scene: Scene, std: float, pair: int, chunk: int) -> Tensor:
    """One sample of the smoothed loss at every point: the mean over a pair of draws, float64 (points,)."""
    noise = weight_noise(scene.params, scene.noise, derive_seed(scene.seed, "surface"), pair)
    halves = [{name: sign * std * z for name, z in noise.items()} for sign in (1.0, -1.0)]
    one, other = (losses_at(loss, scene, scene.points, chunk, half) for half in halves)
    return (one + other) / 2


def evaluations(surface: Surface, curve: Curve) -> int:
    """Losses that a whole curve takes."""
    search = _search(surface) if _is_searched(surface, curve) else 0
    return rows_of(curve, surface.pairs) * _row(surface, curve) + search


def evaluations_left(surface: Surface, relaxation: str) -> int:
    """Losses that the curves of a relaxation still take."""
    left = 0
    for curve in surface.curves:
        if curve.relaxation == relaxation:
            left += evaluations(surface, curve) - len(curve.samples) * _row(surface, curve)
            left -= 0 if curve.jumps is None else _search(surface)
    return left


def calibrated(
    relaxation: str, loss_of: Callable[[int], LossFn], scene: Scene, images: int, count: int, budget: float
) -> Cost:
    """What evaluations take on this machine, from a few of them, and how many to do at once.

    Args:
        relaxation: the name.
        loss_of: the loss of the first so many images.
        scene: where it is evaluated.
        images: of all evaluations.
        count: of evaluations.
        budget: bytes that a chunk may need.
    """
    device = scene.points.device

    def measure(batch: int, members: int, chunk: int) -> Trial:
        loss = loss_of(batch)
        points = scene.points[torch.arange(members, device=device) % len(scene.points)]

        def work() -> None:
            losses_at(loss, scene, points, chunk)

        peak, seconds = peak_memory(work, device), median_seconds(work, device, REPEATS)
        return Trial(batch=batch, pairs=members, chunk=chunk, seconds=seconds, peak_memory=peak)

    measure(1, 1, 1)  # what is used for the first time counts for no trial
    chunks = [chunk for chunk in CHUNKS["cuda" if device.type == "cuda" else "cpu"] if chunk <= len(scene.points)]
    found = forecast(measure, batch=images, pairs=chunks[-1], chunks=chunks, budget=budget)
    return Cost(
        relaxation=relaxation,
        evaluations=count,
        chunk=found.chunk,
        seconds=found.seconds * count / chunks[-1],  # chunks follow each other
        peak_memory=found.peak_memory,
    )


def complete(
    surface: Surface, scene: Scene, losses: Mapping[str, LossFn], *, on_row: Callable[[Surface, int], None]
) -> Surface:
    """Compute what a surface is still without.

    Args:
        surface: with its costs; whatever samples it has stay.
        scene: of the same weights and points.
        losses: by the name of the relaxation.
        on_row: is given the surface after every row of samples, and the evaluations that it took.
    """
    chunks = {cost.relaxation: cost.chunk for cost in surface.costs}
    for index, curve in enumerate(surface.curves):
        loss, chunk = losses[curve.relaxation], chunks[curve.relaxation]
        while (grown := _grown(surface, curve, loss, scene, chunk)) is not None:
            curve, took = grown
            curves = (*surface.curves[:index], curve, *surface.curves[index + 1 :])
            surface = surface.model_copy(update={"curves": curves})
            on_row(surface, took)
    return surface


def _grown(surface: Surface, curve: Curve, loss: LossFn, scene: Scene, chunk: int) -> tuple[Curve, int] | None:
    """The curve with what comes next, and its evaluations; None if nothing is left."""
    row = len(curve.samples)
    if row < rows_of(curve, surface.pairs):
        if curve.std > 0:
            values = smoothed_sample(loss, scene, curve.std, row, chunk)
        else:
            values = losses_at(loss, scene, scene.points, chunk)
        samples = (*curve.samples, tuple(values.tolist()))
        return curve.model_copy(update={"samples": samples}), _row(surface, curve)
    if curve.jumps is None and _is_searched(surface, curve):
        values, line = scene.points.new_tensor(curve.samples[0]), scene.points[:, 0]
        jumps = find_jumps(lambda t: losses_at(loss, scene, t[:, None], chunk), line, values, _resolution(surface))
        return curve.model_copy(update={"jumps": jumps}), _search(surface)
    return None


def _row(surface: Surface, curve: Curve) -> int:
    """Evaluations that a row of samples takes."""
    return (2 if curve.std > 0 else 1) * len(surface.points)


def _is_searched(surface: Surface, curve: Curve) -> bool:
    """Whether jumps are looked for: on lines, and in the loss itself, as the smoothed one has none."""
    return curve.std == 0 and len(surface.axes) == 1


def _search(surface: Surface) -> int:
    """Evaluations that the search for jumps takes."""
    return _resolution(surface).halvings * (len(surface.points) - 1)


def _resolution(surface: Surface) -> Resolution:
    return RESOLUTION[torch.float32 if surface.dtype == "float32" else torch.float64]
