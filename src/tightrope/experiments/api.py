"""The functions that ``import tightrope as tr`` offers for whole tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from tightrope.core import registry
from tightrope.core.bounds import Params
from tightrope.core.box import Box, parse_eps
from tightrope.core.network import Network
from tightrope.core.noise import derived_generator
from tightrope.core.protocols import Attack, Relaxation, Smoother, TrainingMethod
from tightrope.core.spec import Spec, check_spec, margin_spec
from tightrope.errors import InputError
from tightrope.evaluation._inputs import Inputs
from tightrope.evaluation.certify import Progress
from tightrope.evaluation.certify import certify as certify_images
from tightrope.evaluation.radius import Grid, RadiusProgress, certify_radii
from tightrope.experiments.build import MakeSpec, build_job, build_plugins
from tightrope.experiments.certification import (
    Dataset,
    find_attack,
    find_certificates,
    find_effort,
    find_samples,
    find_stages,
    find_subject,
)
from tightrope.experiments.config import find_device, parse_config
from tightrope.experiments.load import ConfigSource, load_config
from tightrope.experiments.plan import plan
from tightrope.experiments.plugins import build_plugin
from tightrope.experiments.run import Run, execute, load, read_started
from tightrope.experiments.source import Source, find_source
from tightrope.records.folder import RunFolder
from tightrope.records.image import Summary
from tightrope.records.radius import RadiusSummary
from tightrope.reports.figures import radius_curve
from tightrope.runtime.distributed import joined
from tightrope.training.events import Silent, Watcher
from tightrope.training.tensorboard import logged

__all__ = ["attack", "certified_radii", "certify", "fit", "load", "method", "plan", "relaxation", "smoother"]

RELAXATIONS = ("ibp", "crown_ibp", "deeppoly")
DEFAULT_ATTACK: Mapping[str, Any] = {"name": "pgd", "steps": 40, "restarts": 2, "loss": "margin"}
LAST_ATTACK: Mapping[str, Any] = {"name": "apgd", "steps": 20, "restarts": 4, "loss": "dlr_targeted"}


def relaxation(name: str, **options: Any) -> Relaxation:
    """A relaxation by name: ``ibp``, ``hbox``, ``deepz``, ``crown_ibp``, ``deeppoly``.

    Raises:
        UnknownNameError: no such relaxation or option.

    Example:
        >>> relaxation("deeppoly", slope="zero")
        Deeppoly(slope='zero', sparse=False)
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
        Certified(relaxation=Ibp(), robust_weight=0.7, fused=False, towards_ibp=False)
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
    init_from: Source | Path | str | None = None,
    spec: MakeSpec | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
    tensorboard: bool = False,
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
        init_from: a run or an imported network to take the initial weights from.
        spec: from labels (batch,) to the property of each sample; the classification margin by default.
        resume: continue the run in ``out`` bit for bit. A module or dataset handed in must be handed in again.
        watcher: is told of progress.
        tensorboard: also write TensorBoard logs, into ``tensorboard/`` of the run folder; a resumed run continues them.

    Raises:
        MissingExtraError: TensorBoard is to be written to and is not installed.
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
    board = RunFolder(folder).tensorboard if tensorboard else None
    with logged(watcher or Silent(), board) as told, joined(find_device(settings.device)) as ranks:
        job = build_job(
            settings,
            plugins,
            data_dir=data_dir,
            module=module,
            samples=None if dataset is None or isinstance(dataset, str) else find_samples(dataset, data_dir),
            make_spec=spec,
            warm_start=None if init_from is None else find_source(init_from).params,
            ranks=ranks,
        )
        return execute(name, settings, job, folder, resume=resume, watcher=told, handed_in=handed_in)


def certify(
    source: nn.Module | Source | Path | str,
    dataset: Dataset | None = None,
    eps: float | str | Fraction | None = None,
    *,
    split: str = "test",
    count: int | None = None,
    out: Path | str | None = None,
    data_dir: Path | str | None = None,
    relaxations: Iterable[str] = RELAXATIONS,
    attack: Attack | Mapping[str, Any] | str = DEFAULT_ATTACK,
    last_attack: Attack | Mapping[str, Any] | str | None = LAST_ATTACK,
    complete: bool = False,
    timeout: float = 60.0,
    spec: MakeSpec | None = None,
    batch_size: int = 100,
    float32: bool = False,
    device: str = "cpu",
    seed: int = 0,
    on_batch: Callable[[Progress], None] | None = None,
    workers: int = 1,
    memory_gib: float | None = None,
    shard: str | None = None,
    merge: bool = False,
    evidence: bool = False,
) -> Summary:
    """Natural, adversarial and certified accuracy, one record an image; resumes where it was interrupted.

    Each image goes through: clean prediction, attack, the relaxations in turn, and another attack, until one decides;
    if ``complete``, then through optimised bounds and branch and bound, which leave an image undecided only when its
    time is up or its margin is 0 up to rounding. A certificate is for the full box, in real arithmetic on the stored
    weights.

    Args:
        source: a run, an imported network, the folder of either, or a module.
        dataset: a name, or images in [0, 1] with labels; by default that of the run.
        eps: radius in input units; by default the run's test radius.
        split: of a named dataset.
        count: only the first so many images.
        out: file of the records (``.jsonl``); by default in the run's folder. Needed for a module.
        data_dir: where the dataset lies.
        relaxations: names, from cheap to tight.
        attack: an attack, its name, or a table of name and options.
        last_attack: another one, for what the relaxations leave undecided; None for none.
        complete: decide what the relaxations leave undecided; such images of all batches are decided together.
        timeout: seconds of branch and bound an image, if ``complete``; images that are decided together share theirs.
        spec: from labels to the property of each sample.
        batch_size: images bounded together.
        float32: faster; rounding errors, which are bounded in any case, are 5e8 times larger: more stays unknown.
        device: where to compute.
        seed: of the attack's starts.
        on_batch: called with a :class:`tightrope.evaluation.certify.Progress` after every batch.
        workers: processes on the CPU, which share the threads. With more than one, a script needs the usual
            ``if __name__ == "__main__":``.
        memory_gib: of all of them, beyond what they hold at the start (Linux): batches that need more are halved.
        shard: ``"i/n"`` to certify only that part of the images, into a file of its own. When the files of all shards
            are there, they are merged.
        merge: certify nothing, but merge the files of all shards, which are then required.
        evidence: write a certificate of every verified or falsified image, see :func:`tightrope.audit`; beside the
            records, in ``certificates/``.

    Returns:
        The summary of all images; of those of the shard while other shards are missing.

    Raises:
        InputError: what cannot be certified, before any work; or records of other settings in ``out``.
        InvariantError: results that contradict each other, or those of other certifications in the run's folder.
    """
    subject = find_subject(
        source,
        dataset,
        eps,
        split=split,
        count=count,
        data_dir=data_dir,
        float32=float32,
        device=device,
        spec=spec,
    )
    effort = find_effort(subject, workers, memory_gib, shard, merge)
    share = None if memory_gib is None else memory_gib / workers
    stages = find_stages(
        relaxations,
        attack,
        last_attack,
        complete=complete,
        timeout=timeout,
        memory_gib=share,
        evidence=evidence,
    )
    path = subject.records_path(out, ["complete"] * complete)
    return certify_images(
        subject.network,
        subject.params,
        subject.x,
        subject.labels,
        eps=subject.eps,
        verifier=stages.first,
        complete=stages.rest,
        path=path,
        make_spec=subject.make_spec,
        batch_size=batch_size,
        seed=seed,
        header={**subject.facts, **stages.facts},
        on_batch=on_batch,
        effort=effort,
        certificates=find_certificates(subject, path, by_label=spec is None) if evidence else None,
    )


def certified_radii(
    source: nn.Module | Source | Path | str,
    dataset: Dataset | None = None,
    limit: float | str | Fraction | None = None,
    tolerance: float | str | Fraction | None = None,
    *,
    split: str = "test",
    count: int | None = None,
    out: Path | str | None = None,
    data_dir: Path | str | None = None,
    relaxations: Iterable[str] = RELAXATIONS,
    attack: Attack | Mapping[str, Any] | str = DEFAULT_ATTACK,
    last_attack: Attack | Mapping[str, Any] | str | None = LAST_ATTACK,
    complete: bool = False,
    timeout: float = 60.0,
    spec: MakeSpec | None = None,
    batch_size: int = 100,
    float32: bool = False,
    device: str = "cpu",
    seed: int = 0,
    on_batch: Callable[[RadiusProgress], None] | None = None,
    workers: int = 1,
    memory_gib: float | None = None,
    shard: str | None = None,
    merge: bool = False,
    evidence: bool = False,
) -> RadiusSummary:
    """The largest radius with a proof and the smallest one with a counterexample, image by image; resumes like certify.

    Both are found by bisection with the verifiers of :func:`certify`, on the multiples of a tolerance. The records are
    a file ``.jsonl``; beside it are written the distribution (``.summary.json``), accuracy as a function of the radius
    (``.curve.csv``), and its picture (``.png``).

    Args:
        source: a run, an imported network, the folder of either, or a module.
        dataset: a name, or images in [0, 1] with labels; by default that of the run.
        limit: the largest radius that is tried; by default twice the run's test radius.
        tolerance: by default a 64th of the limit.
        timeout: seconds of branch and bound an image and radius, if ``complete``.
        evidence: write certificates of both radii of every image, see :func:`tightrope.audit`.

    The others are those of :func:`certify`.

    Raises:
        InputError: what cannot be certified, before any work; or records of other settings in ``out``.
        InvariantError: a proof and a counterexample that contradict each other, at whatever radii.
    """
    found = None if isinstance(source, nn.Module) else find_source(source)
    if limit is None and found is not None:
        limit = min(2 * parse_eps(found.eps), Fraction(1))
    subject = find_subject(
        source if found is None else found,
        dataset,
        limit,
        split=split,
        count=count,
        data_dir=data_dir,
        float32=float32,
        device=device,
        spec=spec,
    )
    grid, effort = Grid.up_to(subject.eps, tolerance), find_effort(subject, workers, memory_gib, shard, merge)
    share = None if memory_gib is None else memory_gib / workers
    stages = find_stages(
        relaxations,
        attack,
        last_attack,
        complete=complete,
        timeout=timeout,
        memory_gib=share,
        evidence=evidence,
    )
    path = subject.records_path(out, [*["complete"] * complete, "radius"])
    inputs = Inputs(subject.network, subject.params, subject.x, subject.labels, subject.make_spec, batch_size, seed)
    summary = certify_radii(
        inputs,
        grid,
        verifier=stages.first,
        complete=stages.rest,
        path=path,
        header={**subject.facts, **stages.facts},
        on_batch=on_batch,
        effort=effort,
        certificates=find_certificates(subject, path, by_label=spec is None) if evidence else None,
    )
    if summary.count == inputs.size:
        title = subject.data if subject.source is None else f"{subject.source.name}, {subject.data} {split}"
        radius_curve(summary, title, path.with_suffix(".png"))
    return summary


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
    chosen = find_attack(method)
    noise = chosen.noise(box, derived_generator(box.lower.device, seed, "attack"))
    return chosen.perturb(network, params, box, spec, noise)
