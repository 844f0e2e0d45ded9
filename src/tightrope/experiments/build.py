"""The composition root: from a configuration to objects. Nothing else turns names into things."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.core.bounds import Params
from tightrope.core.compiled import INDUCTOR, check_compiler
from tightrope.core.digest import tensor_digest
from tightrope.core.network import Network
from tightrope.core.noise import derived_generator
from tightrope.core.protocols import Batch, TrainingMethod
from tightrope.core.ranks import ALONE, Ranks
from tightrope.core.spec import Spec, check_spec, margins_of
from tightrope.data._loader import Dataset, Samples, split_validation, subset
from tightrope.errors import InputError
from tightrope.experiments.config import RunConfig, find_device
from tightrope.experiments.plugins import build_plugin, model_class
from tightrope.frontend.fx import from_module
from tightrope.frontend.graph import to_json
from tightrope.methods._regularizers import Penalty
from tightrope.models._init import default_init, shi_init
from tightrope.schedules import Constant, Cosine, Linear, Piecewise, Proportional, Schedule, Smooth
from tightrope.training.averaging import Averaging
from tightrope.training.clipup import ClipUp
from tightrope.training.job import Job
from tightrope.training.loop import check_smoother
from tightrope.training.noise_policy import NoisePolicy

MakeSpec = Callable[[Tensor], Spec]


@dataclass(frozen=True)
class Plugins:
    """The plug-ins that a configuration names."""

    dataset: Dataset
    method: Any
    smoother: Any
    model: type[nn.Module]
    model_options: dict[str, Any]


def build_plugins(config: RunConfig) -> Plugins:
    """All plug-ins that a validated configuration names."""
    model, options = model_class(config.model.name, config.model.options)
    return Plugins(
        dataset=build_plugin("datasets", config.data.name, {}),
        method=build_plugin("methods", config.method.name, config.method.options),
        smoother=build_plugin("smoothers", config.smoother.name, config.smoother.options),
        model=model,
        model_options=options,
    )


def build_module(config: RunConfig, plugins: Plugins) -> nn.Module:
    """The untrained architecture with its initial weights, a function of the seed alone."""
    dataset = plugins.dataset
    statistics = {"mean": dataset.mean, "std": dataset.std} if config.data.normalize else {}
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights that are replaced below
        module = plugins.model(dataset.input_shape, dataset.num_classes, **statistics, **plugins.model_options)
    generator = derived_generator("cpu", config.seed, "init")
    default_init(module, generator)
    if config.model.init == "shi":
        shi_init(module, generator)
    return module


def build_job(
    config: RunConfig,
    plugins: Plugins,
    *,
    data_dir: Path | str | None,
    module: nn.Module | None = None,
    samples: Samples | None = None,
    make_spec: MakeSpec | None = None,
    warm_start: Params | None = None,
    ranks: Ranks = ALONE,
) -> Job:
    """Load the data and put a run together.

    Args:
        config: validated.
        plugins: built from it.
        data_dir: where the dataset lies, see :meth:`tightrope.data._loader.Dataset.load`.
        module: trained instead of the configured model.
        samples: trained on instead of the configured dataset.
        make_spec: from labels to properties; the classification margin by default.
        warm_start: initial weights of the same network.
        ranks: the processes that train together.

    Raises:
        MissingDataError: the data are not there.
        InputError: nothing can be compiled here though ``train.compile`` is set, an empty split, labels or a method
            that do not fit the network, a smoother that differentiates a loss without gradient, or fewer pairs than
            processes.
        CheckpointError: a warm start of another network.
    """
    device = find_device(config.device)
    if config.train.compile:
        check_compiler(device)
    samples = samples if samples is not None else plugins.dataset.load(data_dir, "train")
    samples = subset(samples, config.data.train) if config.data.train is not None else samples
    training, validation = samples, None
    if config.data.validation > 0:
        training, validation = split_validation(samples, config.data.validation, config.seed)
    shape = tuple(samples.images.shape[1:])
    network, params = from_module(module if module is not None else build_module(config, plugins), shape)
    check_labels(samples, network, make_spec)
    if warm_start is not None:
        network.check_params(warm_start, reference=params)
        params = dict(warm_start)
    dtype = next(value.dtype for value in params.values() if value.is_floating_point())
    eps = config.eps.value(config.eps.train)
    make_spec = make_spec or classification(network, dtype)
    _check_method(plugins.method, network, make_spec, training, dtype)
    ramp, lr = _ramp(config, eps), Piecewise(config.optimizer.lr, config.optimizer.milestones, config.optimizer.factor)
    job = Job(
        network=network,
        params={name: value.to(device) for name, value in params.items()},
        method=plugins.method,
        smoother=plugins.smoother,
        penalty=Penalty(config.train.l1, config.train.shi, config.train.shi_tolerance),
        train=_to(training, device),
        validation=None if validation is None else _to(validation, device),
        make_spec=make_spec,
        optimizer=_optimizer(config),
        eps=ramp,
        lr=lr,
        std=_std(config, ramp, lr),
        smoothed_epochs=config.smoothed_epochs,
        eps_test=config.eps.value(config.eps.target),
        eps_ramp_end=eps,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        clip_norm=config.optimizer.clip_norm,
        flip=config.data.flip,
        pad=config.data.pad,
        seed=config.seed,
        accumulate=config.train.accumulate,
        averaging=_averaging(config),
        exact_statistics=config.train.precise_bn,
        select=config.train.select == "best",
        label_smoothing=config.train.label_smoothing,
        backend=INDUCTOR if config.train.compile else None,
        precision=config.train.matmul_precision,
        noise=NoisePolicy(config.smoother.std_mode, config.smoother.biases, config.smoother.normalisation),
        parts=config.smoother.parts,
        max_dropped=config.smoother.max_dropped,
        diagnose_every=config.train.diagnose_every,
        ranks=ranks,
    )
    check_smoother(job)
    return job


def _check_method(
    method: TrainingMethod, network: Network, make_spec: MakeSpec, samples: Samples, dtype: torch.dtype
) -> None:
    """Refuse a method that does not fit the network, such as a split where there is none, before any work.

    Raises:
        InputError: its draws for one image fail.
    """
    batch = Batch(torch.zeros((1, *network.input_shape), dtype=dtype), make_spec(samples.labels[:1]))
    method.draws(network, batch, torch.zeros((), dtype=torch.float64), torch.Generator())


def classification(network: Network, dtype: torch.dtype) -> MakeSpec:
    """From labels to the classification margin of a network."""
    return partial(margins_of, num_classes=network.num_outputs, dtype=dtype)


def fingerprint(config: RunConfig, job: Job) -> str:
    """Identifies what a checkpoint may be resumed with: settings, graph, types of the weights, and training data.

    What is kept on the way changes nothing of it.
    """
    dtypes = {name: str(value.dtype) for name, value in job.params.items()}
    data = tensor_digest({"images": job.train.images, "labels": job.train.labels})
    facts = [config.model_dump(mode="json", exclude={"train": {"keep_every"}}), to_json(job.network), dtypes, data]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _optimizer(config: RunConfig) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    settings = config.optimizer

    def build(weights: list[Tensor]) -> torch.optim.Optimizer:
        lr, decay = settings.lr, settings.weight_decay
        if settings.name == "adam":
            return torch.optim.Adam(weights, lr=lr, weight_decay=decay)
        if settings.name == "clipup":
            return ClipUp(weights, lr=lr, momentum=0.9 if settings.momentum is None else settings.momentum)
        return torch.optim.SGD(weights, lr=lr, momentum=settings.momentum or 0.0, weight_decay=decay)

    return build


def _std(config: RunConfig, eps: Schedule, lr: Schedule) -> Schedule:
    """The std by epoch while the run is smoothed, in units of ``std_mode``."""
    settings = config.smoother
    if settings.std_schedule == "lr":
        return Proportional(settings.std, lr, config.optimizer.lr, settings.std_floor)
    if settings.std_schedule == "eps" and (radius := config.eps.value(config.eps.train)) > 0:
        return Proportional(settings.std, eps, radius, settings.std_floor)
    if settings.std_schedule == "cosine":
        return Cosine(settings.std, settings.std * settings.std_floor, 0.0, config.smoothed_epochs)
    return Constant(settings.std)


def _averaging(config: RunConfig) -> Averaging | None:
    settings = config.average
    if settings.kind == "none":
        return None
    return Averaging(settings.kind, settings.begin, settings.every, settings.decay)


def _ramp(config: RunConfig, eps: float) -> Schedule:
    if config.eps.ramp == "none" or config.eps.finish == 0:
        return Constant(eps)
    kind = Smooth if config.eps.ramp == "smooth" else Linear
    return kind(0.0, eps, config.eps.begin, config.eps.finish)


def check_labels(samples: Samples, network: Network, make_spec: MakeSpec | None) -> None:
    """Refuse labels or properties that do not fit the network.

    Raises:
        InputError: no samples, labels out of range, or a spec of the wrong shape.
    """
    if samples.size == 0:
        raise InputError("There are no images.")
    if make_spec is not None:
        some = samples.labels[:8]
        check_spec(make_spec(some), some.shape[0], network.num_outputs)
        return
    if network.num_outputs < 2:
        raise InputError("Classification needs a network with at least 2 outputs.")
    lowest, highest = int(samples.labels.min()), int(samples.labels.max())
    if not 0 <= lowest <= highest < network.num_outputs:
        raise InputError(
            f"Labels go from {lowest} to {highest}, but the network has {network.num_outputs} outputs (classes 0 .. "
            f"{network.num_outputs - 1})."
        )


def _to(samples: Samples, device: torch.device) -> Samples:
    return samples._replace(images=samples.images.to(device), labels=samples.labels.to(device))
