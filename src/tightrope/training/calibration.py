"""The plan of a job: a few real training steps of other sizes, and what they say about the full one.

Trials train copies of the weights with a learning rate of 0, and draw nothing from anybody's generator: a run is the
same with and without them.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from tightrope.core.ranks import ALONE
from tightrope.data._loader import Samples, subset
from tightrope.records.run import Plan, Trial
from tightrope.runtime.memory import peak_memory, return_freed_memory
from tightrope.runtime.planner import Forecast, forecast, powers_of_two
from tightrope.runtime.timing import median_seconds
from tightrope.schedules import Constant
from tightrope.smoothers._population import Population, resized
from tightrope.smoothers.none import Unsmoothed
from tightrope.training.job import Job
from tightrope.training.loop import evaluate, train_step

REPEATS = (3, 50)  # fewest and most timed steps of a trial
FEW_PAIRS = 2
PEAK_STEPS = 2  # since a step may leave gaps that the next one cannot use
NEVER_FITS = 2**62  # bytes


def plan(job: Job, budget: int, *, images: int | None, validation: int) -> Plan:
    """Predict memory and time of a job on its device, and choose the chunk where the smoother leaves it to us.

    Measured is the first step, penalties of the ramp included, and a step that is not smoothed, if there are such.

    Args:
        job: what to train; as many images as a batch has suffice.
        budget: bytes that a step may need beyond weights and data.
        images: of the training split, or None if that is not known; one pass over them is an epoch.
        validation: images that are evaluated after every epoch.

    Returns:
        The plan. Where nothing fits the budget it is that of the smallest chunk, and says so.

    Raises:
        NumericalError: the first step has no finite gradient.
    """
    population = job.smoother if isinstance(job.smoother, Population) else None
    pairs = population.pairs if population else 1
    batch = min(job.batch_size, job.train.size)
    chunks = _chunks(population)
    wake(job, min(2, chunks[-1]))
    found = forecast(lambda *size: measured(job, *size), batch=batch, pairs=pairs, chunks=chunks, budget=budget)
    smoothed = min(1.0, job.smoothed_epochs / job.epochs)
    plain = found if smoothed == 1 else _unsmoothed(job, batch, budget)
    steps = None if images is None else math.ceil(images / job.batch_size)
    largest = max(trial.batch for trial in found.trials)
    check = _seconds_per_image(job, subset(job.train, largest)) * validation
    return_freed_memory()
    epoch = None if steps is None else steps * found.seconds + check
    step = smoothed * found.seconds + (1 - smoothed) * plain.seconds
    return Plan(
        device=_device(job).type,
        memory_budget=budget,
        weights=sum(job.params[name].numel() for name in job.network.trainable),
        batch_size=batch,
        pairs=pairs if population else None,
        chunk=found.chunk if population else None,
        seconds_per_step=found.seconds,
        peak_memory=max(found.peak_memory, plain.peak_memory),
        images=images,
        steps_per_epoch=steps,
        seconds_per_epoch=epoch,
        epochs=job.epochs,
        seconds=None if steps is None else job.epochs * (steps * step + check),
        trials=found.trials,
        threads=torch.get_num_threads(),
    )


def _unsmoothed(job: Job, batch: int, budget: int) -> Forecast:
    plain = replace(job, smoother=Unsmoothed())
    return forecast(lambda *size: measured(plain, *size), batch=batch, pairs=1, chunks=(1,), budget=budget)


def fastest_threads(job: Job) -> int:
    """The number of torch's threads at which a step takes least time, of powers of two up to those that are set now.

    Measured are full batches, of a population as few members as say how long one takes.

    Raises:
        NumericalError: the first step has no finite gradient.
    """
    most = torch.get_num_threads()
    pairs = min(FEW_PAIRS, job.smoother.pairs) if isinstance(job.smoother, Population) else 1

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        wake(job, 1)
        return measured(job, min(job.batch_size, job.train.size), pairs, 1).seconds

    try:
        return min(powers_of_two(most), key=seconds)
    finally:
        torch.set_num_threads(most)


def wake(job: Job, chunk: int) -> None:
    """Load and start all that a step uses for the first time, so that it counts for no trial."""
    measured(job, min(2, job.train.size), chunk, chunk)


def rehearsed(job: Job, batch: int, pairs: int, chunk: int) -> Job:
    """The job with another batch and population, and a learning rate of 0; eager, as every size would compile anew."""
    smoother = resized(job.smoother, pairs, chunk) if isinstance(job.smoother, Population) else job.smoother
    still = replace(job, batch_size=batch, smoother=smoother, lr=Constant(0.0), backend=None)
    return replace(still, parts=min(job.parts, pairs), diagnose_every=0, ranks=ALONE)


def measured(job: Job, batch: int, pairs: int, chunk: int) -> Trial:
    """Time and memory of the first step of a job with another batch and population; the job stays as it is."""
    small, device = rehearsed(job, batch, pairs, chunk), _device(job)
    state = small.new_state()

    def step() -> None:
        state.step = 0
        train_step(small, state)

    def steps() -> None:
        for _ in range(PEAK_STEPS):
            step()

    planned, peak = state.chunk, peak_memory(steps, device)
    seconds = median_seconds(step, device, REPEATS)
    if state.chunk != planned:  # the steps themselves had to back off
        peak = NEVER_FITS
    return Trial(batch=batch, pairs=pairs, chunk=chunk, seconds=seconds, peak_memory=peak)


def _chunks(population: Population | None) -> tuple[int, ...]:
    if population is None:
        return (1,)
    return powers_of_two(population.pairs) if population.chunk == "auto" else (min(population.pairs, population.chunk),)


def _seconds_per_image(job: Job, samples: Samples) -> float:
    """Of the validation."""

    def work() -> None:
        evaluate(job, job.params, samples, samples.size)

    return median_seconds(work, _device(job), REPEATS) / samples.size


def _device(job: Job) -> torch.device:
    return next(iter(job.params.values())).device
