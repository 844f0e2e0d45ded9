"""From what a user names to properties of relaxations in a folder: record, table and picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import nn

from tightrope.core.digest import tensor_digest
from tightrope.core.protocols import Relaxation
from tightrope.errors import InputError
from tightrope.evaluation._ledger import check_same
from tightrope.evaluation.certify import eps_text
from tightrope.evaluation.properties import Neighbourhood, Probe, find_worst, measure, planned_evaluations
from tightrope.experiments.api import DEFAULT_ATTACK
from tightrope.experiments.certification import Dataset, Subject, find_attack
from tightrope.experiments.lab import lab_subject, noise_policy, relaxation_of
from tightrope.experiments.load import ConfigSource
from tightrope.experiments.model_zoo import results_folder
from tightrope.experiments.run import Run
from tightrope.records.files import write_atomic
from tightrope.records.properties import PropertiesRecord, Settings, WorstMargin
from tightrope.reports.properties import draw
from tightrope.runtime.memory import keep_freed_memory
from tightrope.smoothers._population import check_counts, check_std
from tightrope.training.noise_policy import NoisePolicy
from tightrope.verifiers.bab import Bab

RELAXATIONS = ("ibp", "hbox", "crown_ibp", "deepz", "deeppoly")
STD = (0.005, 0.01, 0.02)


class Cost(NamedTuple):
    """What one relaxation will take, apart from following jumps.

    Attributes:
        evaluations: of the loss.
        seconds: for all of them, from a few.
    """

    relaxation: str
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Planned:
    """What measuring will take, before it starts.

    Attributes:
        record: with what is there already.
        costs: of the relaxations that are left.
        verifier_seconds: at most for a question about the worst margins, of which there are a few; 0 if they are known.
        folder: of the results.
    """

    record: PropertiesRecord
    costs: tuple[Cost, ...]
    verifier_seconds: float
    folder: Path


def properties(
    source: nn.Module | Run | ConfigSource,
    *,
    relaxations: Iterable[str] = RELAXATIONS,
    std: Iterable[float] = STD,
    segments: int = 4,
    steps: int = 16,
    draws: int = 16,
    images: int = 8,
    eps: float | str | Fraction | None = None,
    jump: float = 1e-3,
    tolerance: float = 0.01,
    timeout: float = 10.0,
    seed: int = 0,
    dataset: Dataset | None = None,
    split: str = "test",
    overrides: Iterable[str] = (),
    out: Path | str | None = None,
    data_dir: Path | str | None = None,
    device: str = "cpu",
    on_plan: Callable[[Planned], None] | None = None,
    on_part: Callable[[str, int], None] | None = None,
) -> PropertiesRecord:
    """Tightness, continuity, sensitivity and smoothness of relaxations on one network; resumes where interrupted.

    Tightness is the gap between a bound of the worst margin and the worst margin itself, which an attack and branch and
    bound bracket as far as the latter gets in its time. The rest is about the certified loss as a function of the
    weights, on random segments through them: which of its changes are jumps, found by halving the step; gradient norms
    and degrees; and slope, curvature and deviation from convexity after Gaussian smoothing with common draws. In
    float64.

    Args:
        source: a run or its folder; a preset, TOML file or settings, whose untrained network is measured; or a module.
        relaxations: names; with options as ``"deeppoly:slope=zero"``.
        std: of the weight noise, in units of the run's ``smoother.std_mode``; segments end a draw of the largest away.
        segments: how many.
        steps: of each, even, at least 8.
        draws: of noise, at least 2.
        images: the first so many of the split.
        eps: radius in input units; by default the run's test radius.
        jump: the smallest jump that is looked for, as a share of the loss at the weights.
        tolerance: width to which worst margins are bracketed.
        timeout: seconds of branch and bound for one question about one image, of which there are a few.
        seed: of segments, noise and the attack.
        dataset: a name, or images in [0, 1] with labels; by default that of the run.
        split: of a named dataset.
        overrides: ``section.key=value`` each, of settings.
        out: folder of the results; by default in the run's folder, or ``properties/NAME``. Needed for a module.
        data_dir: where the dataset lies.
        device: where to compute.
        on_plan: called before the work.
        on_part: called with what is being measured and the evaluations of the loss just made.

    Returns:
        The record. It is in ``out`` as ``properties.json``, with ``properties.csv``, ``.png`` and ``.svg``; what is
        there of the same settings is kept, so that more relaxations may be asked for later.

    Raises:
        InputError, ConfigError, MissingDataError: what cannot be measured, before any work; results of other settings
            in ``out``.
        NumericalError: a loss near the weights is not finite.

    Example:
        >>> found = tr.properties("runs/digits-mlp-ibp", relaxations=["ibp", "deeppoly"])  # doctest: +SKIP
        >>> [len(each.continuity.jumps) for each in found.relaxations]  # doctest: +SKIP
        [0, 12]
    """
    chosen = {name: relaxation_of(name) for name in relaxations}
    if not chosen:
        raise InputError("Name at least one relaxation.")
    levels = _levels(tuple(std), segments, steps, draws)
    _check_search(jump, tolerance, timeout)
    found, name, config = lab_subject(
        source, overrides, dataset, eps, split=split, count=images, data_dir=data_dir, float32=False, device=device
    )
    policy = noise_policy(config)
    settings = Settings(
        data=found.data,
        split=split,
        images=len(found.labels),
        images_sha256=tensor_digest({"x": found.x, "labels": found.labels}),
        eps=eps_text(found.eps),
        segments=segments,
        steps=steps,
        std=levels,
        std_unit=policy.unit,
        draws=draws,
        jump=jump,
        tolerance=tolerance,
        timeout=timeout,
        seed=seed,
    )
    place = _neighbourhood(found, policy, settings)
    folder = _folder(found, name, out)
    record = _continued(
        PropertiesRecord(
            network=name,
            trained=found.source is not None,
            weights=sum(place.params[key].numel() for key in place.network.trainable),
            weights_sha256=tensor_digest(found.params),
            settings=settings,
        ),
        folder / "properties.json",
    )
    return _Work(place, chosen, folder, on_part or _silent).run(record, on_plan)


@dataclass(frozen=True)
class _Work:
    """Relaxation by relaxation into a folder.

    Attributes:
        report: is told what is measured, and of evaluations.
    """

    place: Neighbourhood
    relaxations: Mapping[str, Relaxation]
    folder: Path
    report: Callable[[str, int], None]

    def run(self, record: PropertiesRecord, on_plan: Callable[[Planned], None] | None) -> PropertiesRecord:
        """What the record is still without."""
        keep_freed_memory()
        done = {each.name for each in record.relaxations}
        probes = {
            name: Probe(self.place, relaxation, report=partial(self.report, name))
            for name, relaxation in self.relaxations.items()
            if name not in done
        }
        if on_plan is not None:
            settings, count = record.settings, planned_evaluations(record.settings)
            costs = tuple(Cost(name, count, count * probe.calibrate()) for name, probe in probes.items())
            on_plan(Planned(record, costs, 0.0 if record.worst else settings.images * settings.timeout, self.folder))
        if not record.worst:
            self.report("worst margins", 0)
            record = self._written(record.model_copy(update={"worst": self._worst()}))
        for name, probe in probes.items():
            measured = measure(name, probe, record.worst)
            record = self._written(record.model_copy(update={"relaxations": (*record.relaxations, measured)}))
        write_atomic(self.folder / "properties.csv", record.csv())
        draw(record, self.folder / "properties.png", self.folder / "properties.svg")
        return record

    def _worst(self) -> tuple[WorstMargin, ...]:
        return find_worst(self.place, find_attack(DEFAULT_ATTACK), Bab(timeout=self.place.settings.timeout))

    def _written(self, record: PropertiesRecord) -> PropertiesRecord:
        record.write(self.folder / "properties.json")
        return record


def _silent(part: str, evaluations: int) -> None:
    """Nobody watches."""


def _levels(std: tuple[float, ...], segments: int, steps: int, draws: int) -> tuple[float, ...]:
    """The std, ascending.

    Raises:
        InputError: anything that cannot be measured.
    """
    if not std or any(not (math.isfinite(each) and each > 0) for each in std):
        raise InputError(f"std = {', '.join(map(str, std)) or 'nothing'}: give finite numbers > 0.")
    check_counts(segments=segments)
    if steps < 8 or steps % 2:
        raise InputError(f"steps = {steps}: a segment needs an even number of them, at least 8.")
    if draws < 2:
        raise InputError(f"draws = {draws}: a mean with an error needs at least 2.")
    return tuple(sorted(set(std)))


def _check_search(jump: float, tolerance: float, timeout: float) -> None:
    """Refuse what cannot be searched for."""
    if not 0 < jump < 1:
        raise InputError(f"jump = {jump}: give a share of the loss in (0, 1).")
    if not (tolerance > 0 and timeout >= 0 and math.isfinite(tolerance + timeout)):
        raise InputError(f"Worst margins need a tolerance > 0 and a timeout >= 0, got {tolerance} and {timeout}.")


def _neighbourhood(found: Subject, policy: NoisePolicy, settings: Settings) -> Neighbourhood:
    dtype, device = found.x.dtype, found.x.device
    params = {n: v.to(device, dtype if v.is_floating_point() else v.dtype) for n, v in found.params.items()}
    noise = check_std(policy.std(1.0, found.network, params), found.network.trainable, needs_noise=True)
    spec = found.make_spec(found.labels)
    return Neighbourhood(found.network, params, found.x, spec, {n: s for n, s in noise.items() if s > 0}, settings)


def _folder(found: Subject, name: str, out: Path | str | None) -> Path:
    if out is not None:
        return Path(out)
    if found.source is not None:
        return results_folder(found.source.path) / "properties"
    return Path("properties") / name.replace("/", "-")


def _continued(wanted: PropertiesRecord, path: Path) -> PropertiesRecord:
    """What there is already of what is wanted.

    Raises:
        InputError: results of other settings, or of another network.
        CorruptDataError: a damaged file.
    """
    if not path.exists():
        return wanted
    old = PropertiesRecord.read(path)
    check_same(path, *(each.model_dump(mode="json", exclude={"worst", "relaxations"}) for each in (old, wanted)))
    return old
