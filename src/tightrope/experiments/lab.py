"""What the commands of the lab have in common: the network, images and relaxations that a user names."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn

from tightrope.core.box import parse_eps
from tightrope.core.protocols import Relaxation
from tightrope.errors import ConfigError, InputError, MissingDataError
from tightrope.experiments.build import build_module, build_plugins
from tightrope.experiments.certification import Dataset, Subject, find_subject
from tightrope.experiments.config import RunConfig
from tightrope.experiments.load import ConfigSource, load_config, presets
from tightrope.experiments.model_zoo import is_zoo_name
from tightrope.experiments.plugins import build_plugin
from tightrope.experiments.run import Run
from tightrope.experiments.source import Source, find_source
from tightrope.training.noise_policy import NoisePolicy


def noise_policy(config: RunConfig | None) -> NoisePolicy:
    """Which weights the settings perturb, and in what units; all, in those of the weights, without settings."""
    if config is None:
        return NoisePolicy()
    return NoisePolicy(config.smoother.std_mode, config.smoother.biases, config.smoother.normalisation)


def lab_subject(
    source: nn.Module | Source | ConfigSource,
    overrides: Iterable[str],
    dataset: Dataset | None,
    eps: float | str | Fraction | None,
    *,
    split: str,
    count: int,
    data_dir: Path | str | None,
    float32: bool,
    device: str,
) -> tuple[Subject, str, RunConfig | None]:
    """What is looked at, its name, and the settings that belong to it: of a run, or of its untrained network.

    Args:
        source: a module, a run or imported network or its folder, a preset, or a TOML file.
        overrides: of the settings, ``section.key=value`` each; not of a run.
        dataset: a name, or images with labels; by default that of the source.
        eps: radius in input units; by default that of the source.
        split, count: the first so many images of it.
        data_dir: where the dataset lies.
        float32: instead of float64.
        device: to compute on.

    Raises:
        InputError: no images, no radius, or overrides for a run.
        MissingDataError: there is no such source, or no dataset.
    """
    if count < 1:
        raise InputError(f"A loss needs at least 1 image, got {count}.")
    if eps is not None:
        parse_eps(eps)
    find = partial(find_subject, split=split, count=count, data_dir=data_dir, float32=float32, device=device, spec=None)
    if isinstance(source, nn.Module):
        return find(source, dataset, eps), type(source).__name__, None
    if known := _trained(source, list(overrides)):
        return find(known, dataset, eps), known.name, known.config if isinstance(known, Run) else None
    name, config = load_config(cast(ConfigSource, source), overrides)
    module = build_module(config, build_plugins(config))
    own_eps = config.eps.target if eps is None else eps
    return find(module, config.data.name if dataset is None else dataset, own_eps), name, config


def _trained(source: Source | ConfigSource, overrides: Sequence[str]) -> Source | None:
    """The run or imported network that is meant, None for settings.

    Raises:
        InputError: overrides for a run.
        MissingDataError: neither.
    """
    if isinstance(source, str | Path):
        if str(source).endswith(".toml") or str(source) in presets():
            return None
        if not Path(source).exists() and not is_zoo_name(source):
            raise MissingDataError(
                f"{source} is neither a run folder nor a preset. See tightrope list presets, or name a TOML file."
            )
    elif not isinstance(source, Source):
        return None
    if overrides:
        raise InputError("The settings of a run are what it was trained with: they cannot be overridden.")
    return find_source(source)


def relaxation_of(text: str) -> Relaxation:
    """A relaxation by ``name`` or ``name:option=value,option=value``.

    Raises:
        UnknownNameError: no such relaxation; the closest is offered.
        ConfigError: no such option, or no such form.

    Example:
        >>> relaxation_of("deeppoly:slope=zero").slope
        'zero'
    """
    name, _, options = text.partition(":")
    try:
        values = [
            (key.strip(), _value(value))
            for key, _, value in (each.partition("=") for each in options.split(",") if each)
        ]
    except tomllib.TOMLDecodeError:
        raise ConfigError([f"{text!r} is not of the form name:option=value"], "relaxation") from None
    return cast(Relaxation, build_plugin("relaxations", name, dict(values)))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return tomllib.loads(f'value = "{text.strip()}"')["value"]
