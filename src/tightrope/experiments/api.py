"""The functions that ``import tightrope as tr`` offers for whole tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tightrope.core import registry
from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.noise import derived_generator
from tightrope.core.protocols import Attack, Relaxation, Smoother, TrainingMethod, Verifier
from tightrope.core.spec import Spec, check_spec, margin_spec
from tightrope.data._loader import Samples, from_tensors, subset, to_unit
from tightrope.errors import InputError
from tightrope.evaluation.certify import Progress
from tightrope.evaluation.certify import certify as certify_images
from tightrope.experiments.build import MakeSpec, build_job, build_plugins, check_labels, classification
from tightrope.experiments.config import find_device, parse_config
from tightrope.experiments.load import ConfigSource, load_config
from tightrope.experiments.plan import plan
from tightrope.experiments.plugins import build_named, build_plugin
from tightrope.experiments.run import Run, execute, load, read_started
from tightrope.frontend.fx import from_module
from tightrope.records.image import Summary
from tightrope.runtime.distributed import joined
from tightrope.training.events import Silent, Watcher
from tightrope.verifiers.alpha_crown import AlphaCrown
from tightrope.verifiers.attack import AttackVerifier
from tightrope.verifiers.bab import Bab
from tightrope.verifiers.cascade import Cascade
from tightrope.verifiers.one_shot import OneShot

__all__ = ["attack", "certify", "fit", "load", "method", "plan", "relaxation", "smoother"]

RELAXATIONS = ("ibp", "crown_ibp", "deeppoly")
DEFAULT_ATTACK: Mapping[str, Any] = {"name": "pgd", "steps": 40, "restarts": 2, "loss": "margin"}
Dataset = str | Samples | tuple[Tensor, Tensor]


def relaxation(name: str, **options: Any) -> Relaxation:
    """A relaxation by name: ``ibp``, ``hbox``, ``deepz``, ``crown_ibp``, ``deeppoly``.

    Raises:
        UnknownNameError: no such relaxation or option.

    Example:
        >>> relaxation("deeppoly", slope="zero")
        Deeppoly(slope='zero')
    """
    return cast(Relaxation, registry.create("relaxations", name, **options))


def smoother(name: str, **options: Any) -> Smoother:
    """A smoother by name: ``none``, ``rgs``, ``pgpe``, ``hybrid``.

    Raises:
        UnknownNameError: no such smoother or option.

    Example:
        >>> smoother("rgs", pairs=64)
        Rgs(pairs=64, chunk=1, antithetic=True, orthogonal=1)
    """
    return cast(Smoother, registry.create("smoothers", name, **options))


def method(name: str, **options: Any) -> TrainingMethod:
    """A training method by name; relaxations and attacks among its options may be names or tables.

    Raises:
        ConfigError: no such method, or an option that was refused.

    Example:
        >>> method("certified", relaxation="ibp", robust_weight=0.7)
        Certified(relaxation=Ibp(), robust_weight=0.7, fused=False)
    """
    return cast(TrainingMethod, build_plugin("methods", name, options))


def fit(
    source: nn.Module | ConfigSource | None = None,
    *,
    config: ConfigSource | None = None,
    dataset: Dataset | None = None,
    out: Path | str | None = None,
    data_dir: Path | str | None = None,
    overrides: Iterable[str] = (),
    init_from: Run | Path | str | None = None,
    spec: MakeSpec | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> Run:
    """Train a network into a run folder.

    Started by ``torchrun``, all its processes train together, and the first one writes.

    Args:
        source: a preset's name, a TOML file, nested settings, or a module to train with the settings of ``config``.
            None when resuming: the settings are those of the run.
        config: the settings, when ``source`` is a module.
        dataset: instead of the configured one: a name, or images in [0, 1] (n, *shape) with labels (n,).
        out: the run folder; by default ``runs/`` and the name of the settings.
        data_dir: where the dataset lies; by default ``TIGHTROPE_DATA``, else it is downloaded.
        overrides: ``section.key=value`` each.
        init_from: a run to take the initial weights from.
        spec: from labels (batch,) to the property of each sample; the classification margin by default.
        resume: continue the run in ``out`` bit for bit. A module or dataset handed in must be handed in again.
        watcher: is told of progress.

    Raises:
        ConfigError: everything that is wrong with the settings at once.
        MissingDataError: the data, the file or the run are not there.
        InputError: ``out`` holds another run.
        RankLostError: another process ended; the run can be resumed with any number of them.
        KeyboardInterrupt: after Ctrl-C, with a checkpoint to resume from.

    Example:
        >>> run = tr.fit("digits/mlp-ibp", overrides=["train.epochs=2"])  # doctest: +SKIP
    """
    module, config = (source, config) if isinstance(source, nn.Module) else (None, source or config)
    own = {"module": module, "dataset": None if isinstance(dataset, str) else dataset, "spec": spec}
    handed_in = tuple(name for name, value in own.items() if value is not None)
    if resume and config is None:
        if out is None:
            raise InputError("Say which run to resume: fit(resume=True, out=...).")
        started = read_started(out)
        if missing := [part for part in started.handed_in if part not in handed_in and started.status != "finished"]:
            raise InputError(
                f"The run in {out} was started with a {missing[0]} of your own: hand it in again to resume."
            )
        name, settings = started.name, parse_config(started.config, str(out))
    elif config is None:
        raise InputError(
            "fit needs settings: a preset's name, a TOML file or nested values (see tightrope list presets)."
        )
    else:
        if isinstance(dataset, str):
            overrides = [*overrides, f'data.name="{dataset}"']
        name, settings = load_config(config, overrides)
    plugins = build_plugins(settings)
    folder = Path(out) if out is not None else Path("runs") / name.replace("/", "-")
    with joined(find_device(settings.device)) as ranks:
        job = build_job(
            settings,
            plugins,
            data_dir=data_dir,
            module=module,
            samples=None if dataset is None or isinstance(dataset, str) else _samples(dataset, data_dir),
            make_spec=spec,
            warm_start=None if init_from is None else _run(init_from).params,
            ranks=ranks,
        )
        return execute(name, settings, job, folder, resume=resume, watcher=watcher or Silent(), handed_in=handed_in)


def certify(
    source: nn.Module | Run | Path | str,
    dataset: Dataset | None = None,
    eps: float | str | Fraction | None = None,
    *,
    split: str = "test",
    count: int | None = None,
    out: Path | str | None = None,
    data_dir: Path | str | None = None,
    relaxations: Iterable[str] = RELAXATIONS,
    attack: Attack | Mapping[str, Any] | str = DEFAULT_ATTACK,
    complete: bool = False,
    timeout: float = 60.0,
    spec: MakeSpec | None = None,
    batch_size: int = 100,
    float32: bool = False,
    device: str = "cpu",
    seed: int = 0,
    on_batch: Callable[[Progress], None] | None = None,
) -> Summary:
    """Natural, adversarial and certified accuracy, one record an image; resumes where it was interrupted.

    Each image goes through: clean prediction, attack, then the relaxations in turn, until one decides; if ``complete``,
    then through optimised bounds and branch and bound, which leave an image undecided only when its time is up or its
    margin is 0 up to rounding. A certificate is for the full box, in real arithmetic on the stored weights.

    Args:
        source: a run, its folder, or a module.
        dataset: a name, or images in [0, 1] with labels; by default that of the run.
        eps: radius in input units; by default the run's test radius.
        split: of a named dataset.
        count: only the first so many images.
        out: file of the records (``.jsonl``); by default in the run's folder. Needed for a module.
        data_dir: where the dataset lies.
        relaxations: names, from cheap to tight.
        attack: an attack, its name, or a table of name and options.
        complete: decide what the relaxations leave undecided; all such images of a batch are decided together.
        timeout: seconds of branch and bound an image, if ``complete``; those of a batch share their time.
        spec: from labels to the property of each sample.
        batch_size: images bounded together.
        float32: faster; rounding errors, which are bounded in any case, are 5e8 times larger: more stays unknown.
        device: where to compute.
        seed: of the attack's starts.
        on_batch: called with a :class:`tightrope.evaluation.certify.Progress` after every batch.

    Raises:
        InputError: what cannot be certified, before any work; or records of other settings in ``out``.
        InvariantError: results that contradict each other.
    """
    run = None if isinstance(source, nn.Module) else _run(source)
    if run is not None and dataset is None and "dataset" in run.record.handed_in:
        raise InputError(f"The run in {run.path} was trained on data handed in: say on what to certify it (dataset).")
    dataset = dataset if dataset is not None else (run.config.data.name if run else None)
    eps = eps if eps is not None else (run.config.eps.target if run else None)
    if dataset is None or eps is None:
        raise InputError("To certify a module, give the dataset and eps.")
    samples = _samples(dataset, data_dir, split)
    samples = samples if count is None else subset(samples, count)
    network, params = _network(source, run, samples)
    dtype = torch.float32 if float32 else torch.float64
    names = list(relaxations)
    chosen = _attack(attack)
    stages: list[Verifier] = [AttackVerifier(chosen), *(OneShot(relaxation(name), name) for name in names)]
    stages += [AlphaCrown(), Bab(timeout=timeout)] if complete else []
    data_name = dataset if isinstance(dataset, str) else "data"
    check_labels(samples, network, spec)
    where = find_device(device)
    params = {name: value.to(where) for name, value in params.items()}
    return certify_images(
        network,
        params,
        to_unit(samples, dtype).to(where),
        samples.labels.to(where),
        eps=eps,
        verifier=Cascade(tuple(stages)),
        path=_records_path(run, out, f"{data_name}-{split}", eps, dtype, complete),
        make_spec=spec or classification(network, dtype),
        batch_size=batch_size,
        seed=seed,
        header={
            "dataset": data_name,
            "split": split,
            "attack": repr(chosen),
            "relaxations": names,
            **({"complete": {"timeout": timeout}} if complete else {}),
        },
        on_batch=on_batch,
    )


def attack(
    network: Network,
    params: Params,
    box: Box,
    target: Tensor | Spec,
    *,
    method: Attack | Mapping[str, Any] | str = "pgd",
    seed: int = 0,
) -> Tensor:
    """Inputs in the box that come closest to breaking the property, or break it.

    Args:
        network: the graph.
        params: weights by name.
        box: input bounds, (batch, *input shape).
        target: labels, int64 (batch,), or a :class:`Spec`.
        method: an attack, its name, or a table of name and options.
        seed: of its starts.

    Returns:
        (batch, *input shape).

    Raises:
        InputError: labels or a spec that do not fit.
        ConfigError: no such attack or option.
    """
    if isinstance(target, Tensor):
        target = margin_spec(target, network.num_outputs, dtype=box.lower.dtype)
    spec = check_spec(target, box.lower.shape[0], network.num_outputs)
    chosen = _attack(method)
    noise = chosen.noise(box, derived_generator(box.lower.device, seed, "attack"))
    return chosen.perturb(network, params, box, spec, noise)


def _attack(value: Attack | Mapping[str, Any] | str) -> Attack:
    return cast(Attack, build_named("attacks", value)) if isinstance(value, str | Mapping) else value


def _run(source: Run | Path | str) -> Run:
    return source if isinstance(source, Run) else load(source)


def _network(source: Any, run: Run | None, samples: Samples) -> tuple[Network, Params]:
    shape = tuple(samples.images.shape[1:])
    if run is None:
        return from_module(source, shape)
    if run.network.input_shape != shape:
        raise InputError(f"The network takes inputs of shape {run.network.input_shape}, the images are {shape}.")
    return run.network, run.params


def _samples(dataset: Dataset, data_dir: Path | str | None, split: str = "train") -> Samples:
    if isinstance(dataset, Samples):
        return dataset
    if isinstance(dataset, str):
        return cast(Samples, registry.create("datasets", dataset).load(data_dir, split))
    return from_tensors(*dataset)


def _records_path(
    run: Run | None, out: Path | str | None, data: str, eps: object, dtype: torch.dtype, complete: bool
) -> Path:
    if out is not None:
        return Path(out)
    if run is None:
        raise InputError("Say where to write the records of a module: out=....jsonl.")
    parts = [data, str(eps).replace("/", "_"), str(dtype).removeprefix("torch."), *["complete"] * complete]
    return run.folder.certification("-".join(parts))
