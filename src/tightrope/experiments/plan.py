"""What a configuration will take on this machine, before it is trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from tightrope.core.noise import derived_generator
from tightrope.data._files import local_root
from tightrope.data._loader import Dataset, Samples
from tightrope.errors import MissingDataError, OutOfMemoryError
from tightrope.experiments.build import build_job, build_plugins
from tightrope.experiments.config import RunConfig, find_device
from tightrope.experiments.load import ConfigSource, load_config
from tightrope.records.run import Plan
from tightrope.runtime.memory import GIB, free_memory, keep_freed_memory
from tightrope.training import calibration
from tightrope.training.job import Job

SAFE_SHARE = 0.8  # of the free memory: gaps between tensors, and what else the machine does, need the rest


def plan(source: ConfigSource, *, overrides: Iterable[str] = (), data_dir: Path | str | None = None) -> Plan:
    """Predict memory and time of a training run from a few steps on this machine, and choose its chunk.

    Nothing is downloaded: without the dataset the steps are measured on random images, and the time of an epoch is
    known only if the settings say how many images it has.

    Args:
        source: a preset's name, a TOML file, or nested settings.
        overrides: ``section.key=value`` each.
        data_dir: where the dataset lies; by default ``TIGHTROPE_DATA``.

    Raises:
        ConfigError: everything that is wrong with the settings at once.
        InputError: the memory budget is not known.

    Example:
        >>> plan = tr.plan("digits/mlp-deeppoly-pgpe", overrides=["smoother.chunk=auto"])  # doctest: +SKIP
        >>> plan.chunk, plan.seconds_per_epoch, plan.peak_memory  # doctest: +SKIP
    """
    _, config = load_config(source, overrides)
    plugins = build_plugins(config)
    keep_freed_memory()
    threads = torch.get_num_threads()
    try:
        try:
            job = build_job(config, plugins, data_dir=local_root(data_dir))
            set_threads(config, job)
            return plan_of(config, job)
        except MissingDataError:
            samples = _random_images(plugins.dataset, config.train.batch_size)
        images, held_out = split_sizes(config)
        some = config.model_copy(update={"data": config.data.model_copy(update={"train": None, "validation": 0.0})})
        job = build_job(some, plugins, data_dir=None, samples=samples)
        set_threads(config, job)
        return calibration.plan(job, _budget(config), images=images, validation=held_out)
    finally:
        torch.set_num_threads(threads)


def plan_of(config: RunConfig, job: Job) -> Plan:
    """The plan of a job that has its data; see :func:`plan`."""
    held_out = job.validation.size if job.validation else 0
    return calibration.plan(job, _budget(config), images=job.train.size, validation=held_out)


def set_threads(config: RunConfig, job: Job, recorded: int | None = None) -> int:
    """Take as many of torch's threads as the settings say, measured where they leave it to us.

    Args:
        recorded: of the run that is resumed: sums depend on it, so that it is kept.

    Returns:
        The number, for the record.
    """
    wanted = recorded or config.threads
    threads = calibration.fastest_threads(job) if wanted == "auto" else wanted or torch.get_num_threads()
    torch.set_num_threads(threads)
    return threads


def check_fits(plan: Plan) -> None:
    """Refuse a plan that needs more than its budget.

    Raises:
        OutOfMemoryError: it does; the message says what to do.
    """
    if not plan.fits:
        chunk = "" if plan.chunk is None else f", {plan.chunk} pair{'s' if plan.chunk > 1 else ''} at a time"
        raise OutOfMemoryError(
            f"A step of {plan.batch_size} images needs about {plan.peak_memory / GIB:.3g} GiB{chunk}, and "
            f"{plan.memory_budget / GIB:.3g} GiB may be used. Take a smaller train.batch_size, a smaller network or a "
            "looser relaxation, or raise memory_gib."
        )


def _budget(config: RunConfig) -> int:
    if config.memory_gib is not None:
        return int(config.memory_gib * GIB)
    return int(SAFE_SHARE * free_memory(find_device(config.device)))


def _random_images(dataset: Dataset, count: int) -> Samples:
    generator = derived_generator("cpu", 0, "plan")
    images = torch.randint(256, (count, *dataset.input_shape), generator=generator, dtype=torch.uint8)
    return Samples(images, torch.randint(dataset.num_classes, (count,), generator=generator))


def split_sizes(config: RunConfig) -> tuple[int | None, int]:
    """How many images are trained on and how many are held out, as far as the settings say."""
    if config.data.train is None:
        return None, 0
    size = config.data.validation
    held_out = round(size * config.data.train) if size < 1 else int(size)
    return config.data.train - held_out, held_out
