"""The training loop: the only one."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.network import Network
from tightrope.core.noise import derived_generator
from tightrope.core.precision import float32_products
from tightrope.core.protocols import Batch, GradEstimate, Losses, LossFn, SmootherState, Std
from tightrope.core.ranks import ALONE, Ranks
from tightrope.data._loader import Samples, augment, epoch_order, part_of, take, to_unit
from tightrope.errors import InputError, NumericalError, OutOfMemoryError, RankLostError
from tightrope.records.run import BackOff, EpochRecord
from tightrope.smoothers._population import Population, resized
from tightrope.smoothers.none import Unsmoothed
from tightrope.training import diagnostics
from tightrope.training.accumulation import pieces
from tightrope.training.averaging import exact_statistics, keep
from tightrope.training.events import StepEvent, Watcher
from tightrope.training.interrupt import DeferredInterrupt
from tightrope.training.job import Job
from tightrope.training.noise_policy import noise_norm
from tightrope.training.state import Meter, State

CHECKPOINT_SECONDS = 120.0
EVENT_SECONDS = 0.2


def train(
    job: Job,
    state: State,
    *,
    checkpoint: Callable[[State], None],
    finish_epoch: Callable[[EpochRecord], None],
    back_off: Callable[[BackOff], None],
    watcher: Watcher,
) -> None:
    """Run the job from ``state`` to its end; the state is advanced in place.

    Args:
        job: what to do.
        state: new, or restored from a checkpoint.
        checkpoint: stores the state: now and then, after every epoch, and before an interrupt or an error is raised.
        finish_epoch: stores the record of an epoch, before the checkpoint after it.
        back_off: stores that a step was repeated in smaller chunks, before the checkpoint after it.
        watcher: is told of progress.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the current step.
        NumericalError: NaN or infinity in the gradient; the weights are those before that step.
        OutOfMemoryError: the GPU's memory ran out, one pair at a time; the weights are those before that step.
        RankLostError: another process ended; the weights are those before that step.
    """
    last_event = last_checkpoint = clock = time.monotonic()
    with DeferredInterrupt() as interrupt, float32_products(job.precision):
        while state.step < job.steps:
            chunk = state.chunk
            try:
                train_step(job, state)
                stop_all = job.ranks.size > 1 and _any(job.ranks, interrupt.requested)
            except (NumericalError, OutOfMemoryError, RankLostError):
                checkpoint(state)
                raise
            now = time.monotonic()
            state.seconds, clock = state.seconds + now - clock, now
            if state.step % job.steps_per_epoch == 0:
                record = _close_epoch(job, state)
                finish_epoch(record)
                watcher.on_epoch(record)
                last_checkpoint = -math.inf
            if chunk is not None and state.chunk is not None and state.chunk < chunk:
                back_off(BackOff(step=state.step, before=chunk, after=state.chunk))
                last_checkpoint = -math.inf
            if now - last_event > EVENT_SECONDS or state.step == job.steps:
                watcher.on_step(_event(job, state))
                last_event = now
            stop = stop_all if job.ranks.size > 1 else interrupt.requested
            if stop or now - last_checkpoint > CHECKPOINT_SECONDS:
                checkpoint(state)
                last_checkpoint = time.monotonic()
            if stop and state.step < job.steps:
                raise KeyboardInterrupt


def train_step(job: Job, state: State) -> None:
    """One step: batch, gradient estimate, penalties, update. Everything random is a function of (seed, step).

    Where the GPU's memory runs out in the estimate, which changes nothing, it is repeated, half as many pairs at once.
    """
    while (found := _attempt(job, state)) is None:
        _shrink(job, state)
    _update(job, state, found)


def _any(ranks: Ranks, wanted: bool) -> bool:
    """Whether any process wants something; all of them ask together."""
    return bool(ranks.sum({"wanted": torch.tensor(float(wanted))})["wanted"] > 0)


class _Found(NamedTuple):
    """What a step has computed before it changes anything."""

    batch: Batch
    losses: Losses
    std: Std
    grad: dict[str, Tensor]
    metrics: Metrics
    smoother: SmootherState


def _attempt(job: Job, state: State) -> _Found | None:
    """The gradient of a step, or None if the memory did not suffice; what was held is free again after the return."""
    try:
        return _gradient(job, state)
    except torch.OutOfMemoryError:
        return None


def _shrink(job: Job, state: State) -> None:
    alone = not isinstance(job.smoother_at(state.step), Population)
    if alone or state.chunk is None or state.chunk == 1:
        chunk = "" if alone else ", even one pair at a time"
        raise OutOfMemoryError(
            f"The GPU's memory does not suffice for step {state.step}{chunk}. Start a run with a smaller "
            "train.batch_size, a smaller network or a looser relaxation; tightrope plan says beforehand what fits."
        )
    state.chunk //= 2
    torch.cuda.empty_cache()  # does nothing where there is no GPU


def _gradient(job: Job, state: State) -> _Found:
    device = next(iter(state.params.values())).device
    epoch, index = divmod(state.step, job.steps_per_epoch)
    position = state.step / job.steps_per_epoch
    generator = derived_generator(device, job.seed, "step", state.step)
    batch = _batch(job, epoch, index, device, generator)
    radius = job.eps(position)
    eps = _radius(radius, device)
    std = job.noise.std(job.std_at(state.step), job.network, state.params)
    losses = _losses(job, state.step, batch, radius, generator)
    estimate = _estimate(job, state, losses, batch.x.shape[0], std, generator)
    grad, metrics = dict(estimate.grad), {"loss": estimate.value, **estimate.metrics}
    _add_penalty(job, state, batch, eps, radius, grad, metrics)
    return _Found(batch, losses, std, grad, metrics, estimate.state)


def _losses(job: Job, step: int, batch: Batch, radius: float, generator: torch.Generator) -> Losses:
    """The loss of the images that this process sees, or of each of the parts over which members are spread.

    Parts are equally large: the last few images of a mini-batch that does not divide are left out. Where processes
    share the images, each draws for its own from a generator of its own, so that the common one stays common.
    """
    size = batch.x.shape[0]
    if job.parts > 1:
        length = max(1, size // job.parts)
        ranges = [range(start, start + length) for start in range(0, length * min(job.parts, size), length)]
    else:
        ranges = [_own_images(job, step, size)]
        if len(ranges[0]) < size:
            generator = derived_generator(generator.device, job.seed, "images", step, job.ranks.rank)
    parts = [batch if len(each) == size else _images(batch, each) for each in ranges]
    losses = [_loss(job, part, radius, generator) for part in parts]
    return losses if len(losses) > 1 else losses[0]


def _loss(job: Job, batch: Batch, radius: float, generator: torch.Generator) -> LossFn:
    eps, fading = _radius(radius, batch.x.device), job.fading(radius)
    parts = pieces(batch, job.accumulate)
    draws = tuple(job.method.draws(job.network, part, eps, generator, fading=fading) for part in parts)
    return job.loss_at(batch, eps, draws)


def _own_images(job: Job, step: int, size: int) -> range:
    """All, unless the processes share the images and there are enough of them."""
    shared = not job.smoother_at(step).shares_pairs and size >= job.ranks.size
    return job.ranks.share(size) if shared else range(size)


def _images(batch: Batch, chosen: range) -> Batch:
    own = slice(chosen.start, chosen.stop)
    return Batch(batch.x[own], batch.spec.samples(own))


def _estimate(job: Job, state: State, losses: Losses, size: int, std: Std, generator: torch.Generator) -> GradEstimate:
    """The smoother's estimate over all processes, which get the same."""
    smoother = job.smoother_at(state.step)
    if isinstance(smoother, Population) and state.chunk is not None:
        smoother = resized(smoother, smoother.pairs, state.chunk)
    ranks = job.ranks if smoother.shares_pairs else ALONE
    estimate = smoother.estimate(losses, state.params, state.smoother, std=std, generator=generator, ranks=ranks)
    if job.ranks.size == 1 or smoother.shares_pairs or job.parts > 1:
        return estimate
    share = len(_own_images(job, state.step, size)) / size
    return _averaged(estimate, share if share < 1 else 1.0 / job.ranks.size, job.ranks)


def _averaged(estimate: GradEstimate, share: float, ranks: Ranks) -> GradEstimate:
    """The mean over the images of all processes. What is known of its noise is that of the parts, and is left out."""
    kept = {name: value for name, value in estimate.metrics.items() if name not in ("grad_power", "grad_variance")}
    own = {"value": estimate.value, **_prefixed("grad/", estimate.grad), **_prefixed("metric/", kept)}
    sums = ranks.sum({name: value * share for name, value in own.items()})
    grad = {name: sums[f"grad/{name}"] for name in estimate.grad}
    return GradEstimate(sums["value"], grad, {name: sums[f"metric/{name}"] for name in kept}, estimate.state)


def _prefixed(prefix: str, values: Params) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in values.items()}


def _update(job: Job, state: State, found: _Found) -> None:
    before = _copied(state.params) if _diagnosed(job, state) else None
    _update_statistics(job.network, state.params, found.batch)
    norm = _descend(job, state, found, job.lr(state.step / job.steps_per_epoch))
    metrics = {**found.metrics, "grad_norm": norm}
    if before is not None:
        noise = noise_norm(found.std, before, job.network.trainable)
        metrics |= diagnostics.of_step(found.losses, before, state.params, found.grad, noise)
    state.smoother = found.smoother
    state.meter.add(metrics)
    state.step += 1
    if job.averaging is not None:
        job.averaging.take_in(state, job.network.trainable, job.steps_per_epoch)


def _diagnosed(job: Job, state: State) -> bool:
    return job.diagnose_every > 0 and state.step % job.diagnose_every == 0


def _copied(params: Params) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in params.items()}


def check_smoother(job: Job) -> None:
    """Refuse a smoother that does not fit the job, before any work: one image is bounded.

    Raises:
        InputError: it differentiates and the loss has no gradient, or it has fewer pairs than there are processes.
    """
    if job.smoother.shares_pairs and isinstance(job.smoother, Population) and job.smoother.pairs < job.ranks.size:
        raise InputError(
            f"smoother.pairs = {job.smoother.pairs} cannot be shared by {job.ranks.size} processes; use more pairs, or "
            "fewer processes."
        )
    if not (job.smoother.needs_gradient or job.smoothed_steps < job.steps):
        return
    device = next(iter(job.params.values())).device
    batch, eps = _to_batch(job, part_of(job.train, 0, 1), device), _radius(job.eps_test, device)
    draws = job.method.draws(job.network, batch, eps, derived_generator(device, job.seed, "check"))
    leaves = {name: job.params[name].detach().requires_grad_() for name in job.network.trainable}
    value, _ = job.method.loss(job.network, {**job.params, **leaves}, batch, eps, draws)
    if not value.requires_grad:
        raise InputError(
            "The loss of this method has no gradient with respect to the weights, which the chosen smoother needs, and "
            "so do epochs that are not smoothed. Use smoother.name = 'pgpe', which needs loss values alone, without "
            "smoother.epochs, or another relaxation."
        )


def evaluate(job: Job, params: Params, samples: Samples, batch_size: int) -> dict[str, float]:
    """Means of the method's metrics at the test radius, with the running statistics and without smoothing."""
    device = next(iter(params.values())).device
    eps = _radius(job.eps_test, device)
    sizes: list[int] = []
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, samples.size, batch_size):
        batch = _to_batch(job, part_of(samples, start, start + batch_size), device)
        sizes.append(batch.x.shape[0])
        generator = derived_generator(device, job.seed, "validation", start)
        draws = job.method.draws(job.network, batch, eps, generator)
        with torch.no_grad():
            value, metrics = job.method.loss(job.network, params, batch, eps, draws)
        for name, metric in {"loss": value, **metrics}.items():
            parts.setdefault(name, []).append(metric)
    values = {name: torch.stack(each).tolist() for name, each in parts.items()}  # the only wait for the device
    return {name: sum(map(operator.mul, each, sizes)) / samples.size for name, each in values.items()}


def _radius(value: float, device: torch.device) -> Tensor:
    """A float64 scalar, filled on the device: copying one there would wait for it."""
    return torch.full((), value, dtype=torch.float64, device=device)


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    return epoch_order(count, seed, epoch).to(device)


def _batch(job: Job, epoch: int, index: int, device: torch.device, generator: torch.Generator) -> Batch:
    order = _order(job.train.size, job.seed, epoch, job.train.labels.device)
    chosen = order[index * job.batch_size : (index + 1) * job.batch_size]
    batch = _to_batch(job, take(job.train, chosen), device)._replace(label_smoothing=job.label_smoothing)
    if job.flip or job.pad:
        return batch._replace(x=augment(batch.x, generator, flip=job.flip, pad=job.pad))
    return batch


def _to_batch(job: Job, samples: Samples, device: torch.device) -> Batch:
    dtype = next(v.dtype for v in job.params.values() if v.is_floating_point())
    x = to_unit(samples._replace(images=samples.images.to(device)), dtype)
    return Batch(x, job.make_spec(samples.labels.to(device)))


def _add_penalty(
    job: Job, state: State, batch: Batch, eps: Tensor, radius: float, grad: dict[str, Tensor], metrics: Metrics
) -> None:
    """Add the gradient of the penalties at the weights themselves; those of Shi et al. fade out with the ramp."""
    fading = job.fading(radius)
    if job.penalty.l1 == 0 and job.penalty.shi * fading == 0:
        return
    penalty = job.penalty_at(batch, eps, batch.x.new_full((), fading) if fading > 0 else None)
    estimate = Unsmoothed().estimate(penalty, state.params, state.smoother)
    for name, part in estimate.grad.items():
        grad[name] = grad[name] + part
    metrics.update(estimate.metrics)


@torch.no_grad()
def _update_statistics(network: Network, params: dict[str, Tensor], batch: Batch) -> None:
    """Move the running statistics towards those of the batch at the current weights, in place."""
    if not network.has_statistics:
        return
    fresh = network.calibrate(params, batch.x)
    for node in network.nodes:
        if (keys := node.op.statistics) is not None:
            count = batch.x.shape[0] * math.prod(network.shapes[node.name][1:])
            unbiased = fresh[keys.var] * (count / max(1, count - 1))
            params[keys.mean].lerp_(fresh[keys.mean], keys.momentum)
            params[keys.var].lerp_(unbiased, keys.momentum)


def _descend(job: Job, state: State, found: _Found, lr: float) -> Tensor:
    """One optimiser step with the clipped gradient; returns the norm before clipping."""
    weights = [state.params[name] for name in job.network.trainable]
    grads = [found.grad[name] for name in job.network.trainable]
    norm = torch.nn.utils.get_total_norm(grads)
    dropped = found.metrics.get("dropped", torch.zeros_like(norm))
    # the one wait for the device in a step: what is not finite must not reach the weights
    length = float(torch.where(dropped > job.max_dropped, torch.nan, norm))
    if not math.isfinite(length):
        raise NumericalError(_why_not_finite(job, state, float(dropped)))
    factor = min(1.0, job.clip_norm / (length + 1e-6)) if job.clip_norm > 0 else 1.0
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    for weight, part in zip(weights, grads, strict=True):
        weight.grad = part * factor if factor < 1.0 else part
    state.optimizer.step()
    state.optimizer.zero_grad()
    return norm


def _why_not_finite(job: Job, state: State, dropped: float) -> str:
    if dropped > job.max_dropped:
        return (
            f"{dropped:.0%} of the population had a loss or gradient that is NaN or infinite at step {state.step}, "
            f"where smoother.max_dropped allows {job.max_dropped:.0%}; training stopped before that reached the "
            "weights. Use a smaller weight noise, learning rate or eps, or clip_norm."
        )
    return (
        f"The gradient is NaN or infinite at step {state.step}; training stopped before it reached the weights. "
        "Use a smaller learning rate, eps or weight noise, or clip_norm."
    )


def _close_epoch(job: Job, state: State) -> EpochRecord:
    """The record of the epoch that just ended; starts the next meter."""
    position = state.step / job.steps_per_epoch
    last = (state.step - 1) / job.steps_per_epoch
    params = _model(job, state)
    validation = evaluate(job, params, job.validation, job.batch_size) if job.validation is not None else {}
    if job.select or job.averaging is not None or job.exact_statistics:
        loss, arrived = validation.get("loss", math.inf), job.fading(job.eps(position)) == 0
        keep(state, params, loss, select=job.select, arrived=arrived, epoch=round(position))
    record = EpochRecord(
        epoch=round(position),
        step=state.step,
        seconds=round(state.seconds, 3),
        lr=job.lr(last),
        eps=job.eps(last),
        std=job.std_at(state.step - 1),
        train=_with_derived(job, state),
        validation=validation,
        evaluations=job.evaluations(state.step),
    )
    state.meter = Meter()
    return record


def _with_derived(job: Job, state: State) -> dict[str, float]:
    pairs, means = job.smoother.pairs if isinstance(job.smoother, Population) else 1, state.meter.means()
    return means | diagnostics.derived(means, pairs)


def _model(job: Job, state: State) -> dict[str, Tensor]:
    """The weights at the end of an epoch that are evaluated and may be kept: their average, if one is taken."""
    params = {**state.params, **state.average}
    if not (job.network.has_statistics and (job.exact_statistics or state.average)):
        return params
    device = next(iter(params.values())).device
    starts = range(0, job.train.size, job.batch_size)
    batches = (_to_batch(job, part_of(job.train, start, start + job.batch_size), device).x for start in starts)
    return exact_statistics(job.network, params, batches)


def _event(job: Job, state: State) -> StepEvent:
    epoch = min(job.epochs, state.step // job.steps_per_epoch + 1)
    radius = job.eps(state.step / job.steps_per_epoch)
    return StepEvent(state.step, job.steps, epoch, radius, state.meter.means())
