"""What networks reached and what that took, alone and over seeds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

from tightrope.records.image import CONFIDENCE
from tightrope.records.intervals import wilson
from tightrope.reports.gather import Gathered, TrainedCell, TrainedRun, condition_name
from tightrope.reports.units import printed, radius, rank

Kind = Literal["natural", "adversarial", "certified"]
KINDS: tuple[Kind, ...] = ("natural", "adversarial", "certified")


class Subject(NamedTuple):
    """What was certified. Accuracies are comparable where it is the same.

    Attributes:
        data: dataset and split.
        eps: radius in input units, as exact text.
        images: the first so many.
        complete: whether by complete verification; certified accuracy without is only a lower bound.
    """

    data: str
    eps: str
    images: int
    complete: bool

    def __str__(self) -> str:
        how = "complete" if self.complete else "incomplete"
        return f"{self.data}, eps {self.eps}, {self.images:,} images, {how} verification"


class Share(NamedTuple):
    """A share of images with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, total: int) -> Share:
        """With Wilson's interval."""
        return cls(count / total, *wilson(count, total, CONFIDENCE))


@dataclass(frozen=True)
class Result:
    """One network: trained in one way with one seed, and certified.

    Attributes:
        label: what it is called.
        way: equal for networks that differ in nothing but the seed.
        relaxation, smoother: trained with; the relaxation is the method's name where it has none.
        unknown: share of the images that are neither verified nor falsified.
        seconds: of training.
        evaluations: losses of a mini-batch evaluated in training; None where the record is too old to say.
    """

    label: str
    way: str
    seed: int
    subject: Subject
    relaxation: str
    smoother: str
    model: str
    weights: int
    natural: Share
    adversarial: Share
    certified: Share
    unknown: float
    seconds: float
    evaluations: int | None

    def share(self, kind: Kind) -> Share:
        """By its name."""
        found: Share = getattr(self, kind)
        return found


@dataclass(frozen=True)
class Group:
    """The same training with different seeds."""

    label: str
    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """One of them, for what they share."""
        return self.results[0]

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.results)

    @property
    def seconds(self) -> float:
        """Of training, on average."""
        return fmean(result.seconds for result in self.results)

    def mean(self, kind: Kind) -> float:
        """Of a share, over the seeds."""
        return fmean(result.share(kind).value for result in self.results)

    def spread(self, kind: Kind) -> float | None:
        """Standard deviation over the seeds; None for a single one."""
        return stdev(result.share(kind).value for result in self.results) if self.seeds > 1 else None

    def ends(self, kind: Kind) -> tuple[float, float]:
        """The interval of the images for one seed; the mean plus and minus a standard deviation for several."""
        spread, mean = self.spread(kind), self.mean(kind)
        if spread is None:
            return self.first.share(kind)[1:]
        return mean - spread, mean + spread


def results(gathered: Gathered) -> list[Result]:
    """Of every run that is certified, in the order given, and of every cell, from loose to tight."""
    runs = [result for run in gathered.runs if (result := _of_run(run))]
    return runs + [_of_cell(cell) for cell in sorted(gathered.cells, key=_place)]


def _place(cell: TrainedCell) -> tuple[str, int, int, str, int]:
    found = cell.record
    return found.start, rank(found.relaxation), rank(found.smoother), found.variant, found.seed


def groups(found: Iterable[Result]) -> list[Group]:
    """Results of the same way and subject together, each seed once, in the order of their first."""
    members: dict[tuple[Hashable, ...], list[Result]] = {}
    times = Counter[tuple[Hashable, ...]]()
    for result in found:
        again = result.way, result.subject, result.seed
        members.setdefault((result.way, result.subject, times[again]), []).append(result)
        times[again] += 1
    labels = Counter(_common_label(each) for each in members.values())
    return [Group(_told_apart(each, labels), tuple(each)) for each in members.values()]


def by_subject(found: Iterable[Group]) -> dict[Subject, list[Group]]:
    """Groups that can be compared, together."""
    tables: dict[Subject, list[Group]] = {}
    for group in found:
        tables.setdefault(group.first.subject, []).append(group)
    return tables


def pareto(found: Sequence[Group]) -> list[Group]:
    """Those that no other beats in natural and certified accuracy at once, by rising natural accuracy."""
    front, best = list[Group](), -1.0
    for group in sorted(found, key=lambda each: (each.mean("natural"), each.mean("certified")), reverse=True):
        if group.mean("certified") > best:
            front.append(group)
            best = group.mean("certified")
    return front[::-1]


def _of_run(run: TrainedRun) -> Result | None:
    main, record = run.main, run.record
    if main is None:
        return None
    found, final = main.summary, record.final
    natural, adversarial, certified = (Share.of(getattr(found, kind), found.count) for kind in KINDS)
    return Result(
        label=run.label,
        way=way(run),
        seed=run.seed,
        subject=Subject(main.data, radius(main.eps), found.count, main.complete),
        relaxation=relaxation_of(run.config),
        smoother=smoother_of(run.config),
        model=str(_section(run.config, "model").get("name", "")),
        weights=record.weights,
        natural=natural,
        adversarial=adversarial,
        certified=certified,
        unknown=found.unknown / found.count,
        seconds=record.seconds,
        evaluations=final.evaluations or None if final else None,
    )


def _of_cell(cell: TrainedCell) -> Result:
    found = cell.record
    natural, adversarial, certified = (Share.of(round(getattr(found, k) * found.images), found.images) for k in KINDS)
    data = found.dataset or str(_section(cell.config, "data").get("name", "data"))
    relaxation = printed(found.relaxation) if found.relaxation else relaxation_of(cell.config)
    return Result(
        label=cell.label,
        way=f"{found.suite}: {condition_name(found.condition)}",
        seed=found.seed,
        subject=Subject(f"{data} {found.split}", radius(found.eps), found.images, True),
        relaxation=relaxation + ("" if found.start == "scratch" else f", {found.start}"),
        smoother=printed(found.smoother) if found.smoother else smoother_of(cell.config),
        model=found.network or str(_section(cell.config, "model").get("name", "")),
        weights=found.weights,
        natural=natural,
        adversarial=adversarial,
        certified=certified,
        unknown=found.unknown,
        seconds=found.train_seconds,
        evaluations=found.evaluations,
    )


def relaxation_of(config: Mapping[str, Any]) -> str:
    """What the training loss bounds with, in words; the method's name where it is not a relaxation's plain bound.

    Example:
        >>> relaxation_of({"method": {"name": "certified", "relaxation": {"name": "deeppoly", "slope": "zero"}}})
        'DeepPoly (slope zero)'
        >>> relaxation_of({"method": {"name": "sabr"}})
        'sabr'
    """
    method = _section(config, "method")
    name, relaxation = str(method.get("name", "")), method.get("relaxation")
    if relaxation is None:
        return name
    options = ""
    if isinstance(relaxation, Mapping):
        others = [f"{key} {value}" for key, value in relaxation.items() if key != "name"]
        relaxation, options = relaxation.get("name", ""), f" ({', '.join(others)})" if others else ""
    shown = f"{printed(str(relaxation))}{options}"
    return shown if name == "certified" else f"{name}, {shown}"


def smoother_of(config: Mapping[str, Any]) -> str:
    """What the training loss is smoothed with, in words, and how long if not to the end.

    Example:
        >>> smoother_of({"smoother": {"name": "pgpe", "epochs": 10}})
        'PGPE (10 epochs)'
    """
    smoother = _section(config, "smoother")
    name, epochs = printed(str(smoother.get("name", "none"))), smoother.get("epochs")
    return name if epochs is None else f"{name} ({epochs} epochs)"


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


_MACHINE = ("seed", "device", "threads", "memory_gib")


def way(run: TrainedRun) -> str:
    """Everything that a run is made of but its seed and the machine."""
    settings = {key: value for key, value in run.config.items() if key not in _MACHINE}
    return json.dumps([run.record.name, run.record.weights, settings], sort_keys=True)


def _common_label(members: Sequence[Result]) -> str:
    label = members[0].label
    return label if len(members) == 1 else label.removesuffix(f", seed {members[0].seed}")


def _told_apart(members: Sequence[Result], labels: Counter[str]) -> str:
    label = _common_label(members)
    return label if labels[label] == 1 else f"{label}, seeds {', '.join(str(result.seed) for result in members)}"
