"""Search of settings: ranges marked in a configuration, tried one after another, judged on held-out images."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from tightrope.core import registry
from tightrope.data._loader import Samples, split_validation, subset
from tightrope.errors import ConfigError, InputError
from tightrope.experiments.api import certify, fit
from tightrope.experiments.config import RunConfig, parse_config
from tightrope.records.files import write_atomic
from tightrope.records.image import Summary
from tightrope.records.run import EpochRecord
from tightrope.training.events import StepEvent, Watcher

_RANGE = {"low", "high", "log"}
_CHOICES = {"choices"}


@dataclass(frozen=True)
class Tried:
    """One trial.

    Attributes:
        values: what it took from the ranges, by dotted key.
        natural, certified: on the validation images; None where it was pruned or failed.
        best: whether no other trial is better in one and as good in the other.
    """

    number: int
    state: str
    values: dict[str, Any]
    natural: float | None
    certified: float | None
    best: bool


class PrunedError(Exception):
    """A trial is not worth its remaining epochs."""


def tune(
    name: str,
    values: Mapping[str, Any],
    *,
    trials: int,
    out: Path,
    data_dir: Path | str | None = None,
    count: int = 200,
    timeout: float = 5.0,
    seed: int = 0,
    watch: Callable[[str], Watcher],
) -> list[Tried]:
    """Try settings until the study has so many trials; the same call goes on with a study that was stopped.

    Trained on the training split less its validation images, judged by complete verification of these, pruned by the
    validation accuracy of the training surrogate at the test radius (median of earlier trials). The test split is
    never read. The settings of the trial with the best certified accuracy are in ``best.toml``.

    Args:
        name: of the study.
        values: nested settings, in which a table ``{low, high, log}`` or ``{choices}`` stands for what is searched.
        trials: in all, those of earlier calls included.
        out: folder of the study and of the runs.
        data_dir: where the dataset lies.
        count: validation images that are certified.
        timeout: seconds of branch and bound an image.
        seed: of the search.
        watch: from a trial's name to what is told of its training.

    Raises:
        ConfigError: no ranges, no validation images, or settings that are wrong.
        InputError: Optuna is not installed.
    """
    ranges = dict(_ranges(values, ""))
    if not ranges:
        raise ConfigError(["nothing is marked: write a setting as { low = 1e-4, high = 1e-2, log = true }"], name)
    _configured(values, {key: _first(each) for key, each in ranges.items()}, name)
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    out.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.log"))
    study = optuna.create_study(
        study_name=name,
        storage=optuna.storages.JournalStorage(backend),
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
    )

    def objective(trial: Any) -> float:
        config = _configured(values, {key: _suggest(trial, key, each) for key, each in ranges.items()}, name)
        found = _judge(config, trial, out / f"trial-{trial.number}", data_dir, count, timeout, watch)
        trial.set_user_attr("natural", found.natural_accuracy)
        return found.certified_accuracy

    done = sum(trial.state.is_finished() for trial in study.trials)
    study.optimize(objective, n_trials=max(0, trials - done))
    tried = _table(study.trials)
    _write_best(values, tried, out / "best.toml", name)
    return tried


def _judge(
    config: RunConfig,
    trial: Any,
    folder: Path,
    data_dir: Path | str | None,
    count: int,
    timeout: float,
    watch: Callable[[str], Watcher],
) -> Summary:
    pruned = importlib.import_module("optuna").TrialPruned
    try:
        run = fit(config, out=folder, data_dir=data_dir, watcher=_Pruner(watch(folder.name), trial))
    except PrunedError:
        raise pruned from None
    samples: Samples = registry.create("datasets", config.data.name).load(data_dir, "train")
    samples = samples if config.data.train is None else subset(samples, config.data.train)
    held_out = split_validation(samples, config.data.validation, config.seed)[1]
    chosen = subset(held_out, min(count, held_out.size))
    return certify(run, chosen, out=folder / "validation.jsonl", complete=True, timeout=timeout)


class _Pruner:
    """Reports every epoch to the study, and ends a run that it gives up."""

    def __init__(self, watcher: Watcher, trial: Any) -> None:
        self._watcher, self._trial = watcher, trial

    def on_step(self, event: StepEvent) -> None:
        self._watcher.on_step(event)

    def on_epoch(self, record: EpochRecord) -> None:
        self._watcher.on_epoch(record)
        score = record.validation.get("surrogate_accuracy", record.validation.get("natural_accuracy", 0.0))
        self._trial.report(score, record.epoch)
        if self._trial.should_prune():
            raise PrunedError(f"pruned after epoch {record.epoch}")


def _optuna() -> Any:
    try:
        return importlib.import_module("optuna")
    except ImportError:
        raise InputError("The search of settings needs Optuna: pip install 'tightrope[tune]'.") from None


def _ranges(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            marked = {"low", "high"} <= value.keys() <= _RANGE or value.keys() == _CHOICES
            yield from [(prefix + key, value)] if marked else _ranges(value, f"{prefix}{key}.")


def _first(each: Mapping[str, Any]) -> Any:
    return each["choices"][0] if "choices" in each else each["low"]


def _suggest(trial: Any, key: str, each: Mapping[str, Any]) -> Any:
    if "choices" in each:
        return trial.suggest_categorical(key, list(each["choices"]))
    whole = isinstance(each["low"], int) and isinstance(each["high"], int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(key, each["low"], each["high"], log=each.get("log", False))


def _filled(values: Mapping[str, Any], chosen: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        key: chosen[prefix + key]
        if prefix + key in chosen
        else _filled(value, chosen, f"{prefix}{key}.")
        if isinstance(value, Mapping)
        else value
        for key, value in values.items()
    }


def _configured(values: Mapping[str, Any], chosen: Mapping[str, Any], name: str) -> RunConfig:
    config = parse_config(_filled(values, chosen), name)
    if config.data.validation == 0:
        raise ConfigError(["data.validation: is what the search is judged by; hold some images out"], name)
    return config


def _table(trials: Iterable[Any]) -> list[Tried]:
    found = [(t, t.user_attrs.get("natural"), t.value) for t in trials if t.state.is_finished()]
    scores = [(natural, certified) for _, natural, certified in found if natural is not None]
    return [
        Tried(t.number, t.state.name.lower(), dict(t.params), natural, certified, _best((natural, certified), scores))
        for t, natural, certified in found
    ]


def _best(one: tuple[Any, Any], scores: Iterable[tuple[float, float]]) -> bool:
    """Whether it is on the Pareto front."""
    if one[0] is None:
        return False
    return not any(a >= one[0] and b >= one[1] and (a, b) != one for a, b in scores)


def _write_best(values: Mapping[str, Any], tried: Iterable[Tried], path: Path, name: str) -> None:
    complete = [each for each in tried if each.certified is not None and each.natural is not None]
    if complete:
        best = max(complete, key=lambda each: (each.certified, each.natural))
        write_atomic(path, tomli_w.dumps(_filled(values, best.values)))
