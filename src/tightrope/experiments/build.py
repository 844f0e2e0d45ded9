"""The composition root: from a configuration to objects. Nothing else turns names into things."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from tightrope.core import registry
from tightrope.core.bounds import Params
from tightrope.core.network import Network
from tightrope.core.noise import derived_generator
from tightrope.core.protocols import Attack, Relaxation
from tightrope.core.spec import Spec, margins_of
from tightrope.data._loader import Dataset, Samples, split_validation, subset
from tightrope.errors import ConfigError, InputError, TightropeError
from tightrope.experiments.config import RunConfig
from tightrope.frontend.fx import from_module
from tightrope.frontend.graph import to_json
from tightrope.methods._regularizers import Penalty
from tightrope.models._init import default_init, shi_init
from tightrope.schedules import Constant, Linear, Piecewise, Schedule, Smooth
from tightrope.training.loop import Job

MakeSpec = Callable[[Tensor], Spec]

_NESTED: dict[Any, str] = {Relaxation: "relaxations", Attack: "attacks"}


@dataclass(frozen=True)
class Plugins:
    """The plug-ins that a configuration names."""

    dataset: Dataset
    method: Any
    smoother: Any
    model: type[nn.Module]
    model_options: dict[str, Any]


def build_plugins(config: RunConfig, name: str = "the configuration") -> Plugins:
    """Find and build all plug-ins.

    Raises:
        ConfigError: naming every unknown name and refused option at once.
    """
    problems: list[str] = []
    dataset = _plugin("datasets", config.data.name, {}, "data", problems)
    method = _plugin("methods", config.method.name, config.method.options, "method", problems)
    smoother = _plugin("smoothers", config.smoother.name, config.smoother.options, "smoother", problems)
    model, model_options = _model(config, problems)
    if smoother is not None:
        if smoother.needs_noise and config.smoother.std == 0:
            problems.append(f"smoother.std: {config.smoother.name!r} needs a std > 0.")
        if config.smoother.name == "none" and config.smoother.std > 0:
            problems.append("smoother.std: the smoother 'none' adds no noise; choose another, or leave std out.")
    _device(config.device, problems)
    if problems:
        raise ConfigError(problems, name)
    assert model is not None
    return Plugins(dataset, method, smoother, model, model_options)


def build_named(kind: str, value: Any, where: str) -> Any:
    """One plug-in from a name or a table ``{name = ..., option = ...}``.

    Raises:
        ConfigError: an unknown name or a refused option.
    """
    problems: list[str] = []
    table = {"name": value} if isinstance(value, str) else dict(value)
    built = _plugin(kind, str(table.pop("name", "")), table, where, problems)
    if problems:
        raise ConfigError(problems, where)
    return built


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

    Raises:
        MissingDataError: the data are not there.
        InputError: an empty split, or labels that do not fit the network.
        CheckpointError: a warm start of another network.
    """
    device = _device(config.device, [])
    samples = samples if samples is not None else plugins.dataset.load(data_dir, "train")
    samples = subset(samples, config.data.train) if config.data.train is not None else samples
    training, validation = samples, None
    if config.data.validation > 0:
        training, validation = split_validation(samples, config.data.validation, config.seed)
    shape = tuple(samples.images.shape[1:])
    network, params = from_module(module if module is not None else build_module(config, plugins), shape)
    _check_labels(samples, network, make_spec)
    if warm_start is not None:
        network.check_params(warm_start, reference=params)
        params = dict(warm_start)
    dtype = next(value.dtype for value in params.values() if value.is_floating_point())
    eps = config.eps.value(config.eps.train)
    return Job(
        network=network,
        params={name: value.to(device) for name, value in params.items()},
        method=plugins.method,
        smoother=plugins.smoother,
        penalty=Penalty(config.train.l1, config.train.shi, config.train.shi_tolerance),
        train=_to(training, device),
        validation=None if validation is None else _to(validation, device),
        make_spec=make_spec or classification(network, dtype),
        optimizer=_optimizer(config),
        eps=_ramp(config, eps),
        lr=Piecewise(config.optimizer.lr, config.optimizer.milestones, config.optimizer.factor),
        std=Constant(config.smoother.std),
        eps_test=config.eps.value(config.eps.target),
        eps_ramp_end=eps,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        clip_norm=config.optimizer.clip_norm,
        flip=config.data.flip,
        pad=config.data.pad,
        seed=config.seed,
    )


def classification(network: Network, dtype: torch.dtype) -> MakeSpec:
    """From labels to the classification margin of a network."""
    return lambda labels: margins_of(labels, network.num_outputs, dtype)


def fingerprint(config: RunConfig, job: Job) -> str:
    """Identifies what a checkpoint may be resumed with: settings, graph and amount of data."""
    held_out = 0 if job.validation is None else job.validation.size
    facts = [config.model_dump(mode="json"), to_json(job.network), job.train.size, held_out]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _plugin(kind: str, name: str, options: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    """The plug-in, or None with the reasons appended to ``problems``."""
    before = len(problems)
    try:
        cls = registry.find(kind, name)
    except TightropeError as error:
        problems.append(f"{where}.name: {error}")
        return None
    hints = get_type_hints(cls)
    values = {key: _option(hints.get(key), value, f"{where}.{key}", problems) for key, value in options.items()}
    if len(problems) > before:
        return None
    try:
        return registry.create(kind, name, **values)
    except TightropeError as error:
        problems.append(f"{where}: {error}")
        return None


def _option(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    if hint in _NESTED:
        table = {"name": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping) or "name" not in table:
            problems.append(f"{where}: give a name, or a table with a name, got {value!r}.")
            return None
        options = {key: option for key, option in table.items() if key != "name"}
        return _plugin(_NESTED[hint], str(table["name"]), options, where, problems)
    if hint is None:  # unknown: reported with the list of known ones when the plug-in is built
        return value
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        problems.append(f"{where}: {error.errors()[0]['msg']} (got {value!r}).")
        return None


def _model(config: RunConfig, problems: list[str]) -> tuple[type[nn.Module] | None, dict[str, Any]]:
    try:
        cls = registry.find("models", config.model.name)
    except TightropeError as error:
        problems.append(f"model.name: {error}")
        return None, {}
    hints = get_type_hints(cls.__init__)
    fixed = ("input_shape", "num_classes", "mean", "std")
    known = [name for name in inspect.signature(cls).parameters if name not in fixed]
    options = {}
    for key, value in config.model.options.items():
        if key not in known:
            problems.append(f"model.{key}: {config.model.name!r} has no such option; it has {', '.join(known)}.")
        else:
            options[key] = _option(hints.get(key), value, f"model.{key}", problems)
    return cls, options


def _device(name: str, problems: list[str]) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        problems.append(f"device: {name!r} cannot be used here ({str(error).splitlines()[0]}); try 'auto' or 'cpu'.")
        return torch.device("cpu")
    return device


def _optimizer(config: RunConfig) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    settings = config.optimizer

    def build(weights: list[Tensor]) -> torch.optim.Optimizer:
        if settings.name == "adam":
            return torch.optim.Adam(weights, lr=settings.lr, weight_decay=settings.weight_decay)
        return torch.optim.SGD(weights, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)

    return build


def _ramp(config: RunConfig, eps: float) -> Schedule:
    if config.eps.ramp == "none" or config.eps.finish == config.eps.begin:
        return Constant(eps)
    kind = Smooth if config.eps.ramp == "smooth" else Linear
    return kind(0.0, eps, config.eps.begin, config.eps.finish)


def _check_labels(samples: Samples, network: Network, make_spec: MakeSpec | None) -> None:
    if samples.size == 0:
        raise InputError("The training set is empty.")
    lowest, highest = int(samples.labels.min()), int(samples.labels.max())
    if make_spec is None and not 0 <= lowest <= highest < network.num_outputs:
        raise InputError(
            f"Labels go from {lowest} to {highest}, but the network has {network.num_outputs} outputs (classes 0 .. "
            f"{network.num_outputs - 1})."
        )
    if make_spec is None and network.num_outputs < 2:
        raise InputError("Classification needs a network with at least 2 outputs.")


def _to(samples: Samples, device: torch.device) -> Samples:
    return samples._replace(images=samples.images.to(device), labels=samples.labels.to(device))
