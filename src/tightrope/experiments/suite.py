"""A suite: one set of settings, the axes along which they vary, and the cells of their product."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tightrope.errors import ConfigError, MissingDataError, UnknownNameError
from tightrope.experiments.build import build_plugins
from tightrope.experiments.config import RunConfig
from tightrope.experiments.load import flat_values, load_config
from tightrope.experiments.plan import split_sizes
from tightrope.reports.cells import Axis, Literature

Overrides = tuple[str, ...]
"""``section.key=value`` each."""

SCRATCH, PLAIN, LOOSE = "scratch", "none", "ibp"
FIXED: dict[str, Overrides] = {"": ()}
"""An axis along which nothing varies."""


_RECIPE = ("data", "model", "method", "smoother", "eps", "optimizer", "average", "train")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Certify(_Section):
    """How every network is certified, completely and on the test split.

    Attributes:
        count: the first so many images; None for all.
        timeout: seconds of branch and bound an image.
    """

    count: Annotated[int, Field(ge=1)] | None = None
    timeout: Annotated[float, Field(gt=0)] = 10.0


class Tuning(_Section):
    """What is tried, on seeds of its own and on the validation images, before the final cells.

    Attributes:
        evaluations: budget of each smoother and relaxation, in losses of a mini-batch; settings are tried in order as
            long as it lasts.
        seeds: none of them is a final one.
        count: validation images that are certified.
        grids: for each smoother the settings to try.
    """

    evaluations: Annotated[int, Field(ge=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    count: Annotated[int, Field(ge=1)] = 100
    grids: dict[str, tuple[Overrides, ...]]


class Variant(_Section):
    """One value of an axis of the suite's own: a training method, a size, a setting.

    Attributes:
        extends: preset that its cells take their settings from; those of the suite's ``run`` win.
        set: what it changes.
        epochs: length of its runs, see the suite's.
        smoothers: those that it is run with; none for all.
        published: preset that is the literature's recipe for it; its records name every setting that departs from it.
        note: what a reader of the table has to know.
    """

    extends: str | None = None
    set: Overrides = ()
    epochs: Annotated[int, Field(ge=1)] | None = None
    smoothers: tuple[str, ...] = ()
    published: str | None = None
    note: str = ""


class Start(_Section):
    """What cells start from: the weights of other cells of their seed, which start from scratch.

    Attributes:
        smoother, relaxation: that those are trained with; an empty relaxation is the one of the cell itself.
        set: what the start changes.
        smoothers: those that it is run with; none for all.
    """

    smoother: str = PLAIN
    relaxation: str = ""
    set: Overrides = ()
    smoothers: tuple[str, ...] = ()


def _start(value: Any) -> Any:
    """Overrides alone are a start from the plain network of the loose relaxation."""
    return value if isinstance(value, Mapping | Start) else {"relaxation": LOOSE, "set": value}


class Suite(_Section):
    """An experiment.

    Attributes:
        seeds: of the final cells: initial weights, order of the images and noise are the same in all cells of a seed.
        run: settings of every cell, as of a training run.
        smoothers, relaxations, starts: the axes: by name what each changes. A start other than ``scratch`` that says no
            more takes the weights of the plain IBP cell of its seed; its control of equal cost is itself with IBP.
        variants: one more axis, of whatever the suite compares.
        baseline: the variant that others are compared with.
        first: relaxations whose cells come before all others.
        last: variants whose cells come after all others.
        epochs: length of every run; the schedules go with it in proportion: ramp, milestones, averaging.
        literature: the scale that tables compare theirs with.
    """

    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    run: dict[str, Any]
    smoothers: dict[str, Overrides] = FIXED
    relaxations: dict[str, Overrides] = FIXED
    starts: dict[str, Annotated[Start, BeforeValidator(_start)]] = {SCRATCH: Start()}
    variants: dict[str, Variant] = {"": Variant()}
    baseline: str = ""
    first: tuple[str, ...] = (LOOSE, "deeppoly")
    last: tuple[str, ...] = ()
    epochs: Annotated[int, Field(ge=1)] | None = None
    certify: Certify = Certify()
    tuning: Tuning | None = None
    literature: Literature | None = None

    @model_validator(mode="after")
    def _whole(self) -> Suite:
        for axis, name in (("smoothers", PLAIN), ("relaxations", LOOSE), ("starts", SCRATCH)):
            if name not in getattr(self, axis) and (getattr(self, axis) != FIXED or self.starts.keys() - {SCRATCH}):
                raise ValueError(f"{axis} must have {name!r}, which others are compared with")
        for name, variant in self.variants.items():
            if unknown := sorted(set(variant.smoothers) - set(self.smoothers)):
                raise ValueError(f"variants.{name} names {unknown[0]!r}, which is no smoother of the suite")
        for name, start in self.starts.items():
            if unknown := sorted({start.smoother, *start.smoothers} - set(self.smoothers) - {PLAIN}):
                raise ValueError(f"starts.{name} names {unknown[0]!r}, which is no smoother of the suite")
            if start.relaxation and start.relaxation not in {LOOSE, *self.relaxations}:
                raise ValueError(f"starts.{name} names {start.relaxation!r}, which is no relaxation of the suite")
        for key, names in (("baseline", (self.baseline,)), ("last", self.last)):
            if unknown := sorted(set(names) - set(self.variants)):
                raise ValueError(f"{key} names {unknown[0]!r}, which is no variant of the suite")
        if self.tuning and set(self.tuning.seeds) & set(self.seeds):
            raise ValueError("a seed is for tuning or final, not both")
        if self.tuning and (unknown := sorted(set(self.tuning.grids) - set(self.smoothers))):
            raise ValueError(f"tuning.grids names {unknown[0]!r}, which is no smoother of the suite")
        return self


class Cell(NamedTuple):
    """One network to train and certify."""

    start: str
    smoother: str
    relaxation: str
    seed: int
    trial: int | None = None
    variant: str = ""

    @property
    def folder(self) -> Path:
        """Where its files lie, below that of the experiment."""
        way = "-".join(name for name in (self.smoother, self.relaxation, self.variant) if name)
        seed = f"seed-{self.seed}"
        return Path(self.start, way, seed) if self.trial is None else Path("tuning", way, f"trial-{self.trial}", seed)


def suites() -> list[str]:
    """Names of all suites, such as ``paradox/digits``."""
    return sorted(_walk(_root(), ""))


def load_suite(name: str) -> Suite:
    """A validated suite by name, or from a TOML file; the settings of all its cells are checked.

    Raises:
        UnknownNameError: no such suite; the closest is offered.
        MissingDataError: no such file.
        ConfigError: what is wrong with it.
    """
    return _checked(_parse(_read(name), name)) if name.endswith(".toml") else _packaged(name)


@cache
def _packaged(name: str) -> Suite:
    return _checked(_parse(_read(name), name))


def _checked(suite: Suite) -> Suite:
    for cell in cells(suite.model_copy(update={"seeds": suite.seeds[:1]})):
        config_of(suite, cell, trials(suite, cell.smoother)[0])
    return suite


def cells(suite: Suite) -> Iterator[Cell]:
    """All final cells, those that decide most first: the seeds of one pair of relaxations, then the next; the seeds of
    most variants, then those of the last."""
    first = [name for name in suite.relaxations if name in suite.first]
    later = [(name,) for name in suite.relaxations if name not in suite.first]
    most = [name for name in suite.variants if name not in suite.last]
    groups = product(suite.starts, (most, *([name] for name in suite.last)), (first, *later), suite.seeds)
    for start, variants, relaxations, seed in groups:
        for variant, smoother, relaxation in product(variants, suite.smoothers, relaxations):
            limits = (suite.variants[variant].smoothers, suite.starts[start].smoothers)
            if all(smoother in (limit or suite.smoothers) for limit in limits):
                yield Cell(start, smoother, relaxation, seed, variant=variant)


def source_of(suite: Suite, cell: Cell) -> Cell | None:
    """The cell that a cell takes its weights from; None if it starts from scratch."""
    if cell.start == SCRATCH:
        return None
    start = suite.starts[cell.start]
    return cell._replace(start=SCRATCH, smoother=start.smoother, relaxation=start.relaxation or cell.relaxation)


def narrowed(suite: Suite, only: Mapping[Axis, Sequence[str]]) -> Suite:
    """The suite with some values of its axes alone.

    Args:
        only: of an axis the values to keep, or patterns of them (``sigma=*``).
    """
    kept: dict[str, Any] = {}
    for axis, patterns in only.items():
        values = getattr(suite, f"{axis}s")
        kept[f"{axis}s"] = {name: v for name, v in values.items() if any(fnmatchcase(name, p) for p in patterns)}
    last = tuple(name for name in suite.last if name in kept.get("variants", suite.variants))
    return suite.model_copy(update={**kept, "last": last})


def trials(suite: Suite, smoother: str) -> tuple[Overrides, ...]:
    """The settings to try for a smoother; a single empty one without tuning."""
    return (suite.tuning.grids.get(smoother) if suite.tuning else None) or ((),)


def overrides_of(suite: Suite, cell: Cell, tuned: Overrides) -> Overrides:
    """What a cell changes in the settings of the suite; later ones win."""
    axes = (*suite.relaxations[cell.relaxation], *suite.smoothers[cell.smoother], *suite.variants[cell.variant].set)
    return (*axes, *tuned, *suite.starts[cell.start].set, f"seed={cell.seed}")


def config_of(suite: Suite, cell: Cell, tuned: Overrides) -> RunConfig:
    """The settings of a cell.

    Raises:
        ConfigError: they are wrong.
    """
    variant = suite.variants[cell.variant]
    source = suite.run if variant.extends is None else {**suite.run, "extends": variant.extends}
    config = load_config(source, overrides_of(suite, cell, tuned))[1]
    epochs = variant.epochs or suite.epochs
    return config if epochs is None else shortened(config, epochs)


def settings_digest(suite: Suite, cell: Cell) -> str:
    """A fingerprint of what a suite says about a cell, tuning left out: records of other settings are not its own."""
    variant = suite.variants[cell.variant]
    facts: list[Any] = [suite.run, overrides_of(suite, cell, ()), variant.extends, variant.epochs or suite.epochs]
    source = source_of(suite, cell)
    if source and (source.smoother, source.relaxation) != (PLAIN, LOOSE):  # as in records of when there was no other
        facts.append([source.smoother, source.relaxation])
    text = json.dumps([*facts, suite.certify.model_dump()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shortened(config: RunConfig, epochs: int) -> RunConfig:
    """The settings for another number of epochs, with schedules in proportion.

    Example:
        >>> config = shortened(load_config("mnist-0.1/cnn3-mtl_ibp")[1], 35)
        >>> config.eps.finish, config.optimizer.milestones, config.average.begin
        (10.0, (25.0, 30.0), 32.5)
    """

    def scaled(epoch: float) -> float:
        return round(epoch * epochs / config.train.epochs, 6)

    milestones = tuple(scaled(epoch) for epoch in config.optimizer.milestones)
    changed: dict[str, dict[str, Any]] = {
        "train": {"epochs": epochs},
        "smoother": {} if config.smoother.epochs is None else {"epochs": scaled(config.smoother.epochs)},
        "eps": {"begin": scaled(config.eps.begin), "finish": scaled(config.eps.finish)},
        "optimizer": {"milestones": milestones},
        "average": {"begin": scaled(config.average.begin)},
    }
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in changed.items()}
    )


def departures(suite: Suite, cell: Cell, config: RunConfig) -> tuple[str, ...]:
    """Every setting of a cell that is not as in the literature's recipe for its variant; none without a recipe."""
    published = suite.variants[cell.variant].published
    if published is None:
        return ()
    ours, theirs = (flat_values(each) for each in (config, load_config(published)[1]))
    keys = [key for key in ours | theirs if key.partition(".")[0] in _RECIPE]
    return tuple(
        f"{key} = {ours.get(key, 'not set')} (published: {theirs.get(key, 'not set')})"
        for key in keys
        if ours.get(key) != theirs.get(key)
    )


def evaluations_of(config: RunConfig) -> int:
    """Losses of a mini-batch that a run evaluates.

    Raises:
        ConfigError: the number of images is left to the dataset.
    """
    images, _ = split_sizes(config)
    if images is None:
        raise ConfigError(["data.train is required: what a cell costs depends on it"], "run")
    per_epoch = math.ceil(images / config.train.batch_size)
    smoothed = math.ceil(config.smoothed_epochs * per_epoch)
    evaluations: int = build_plugins(config).smoother.evaluations
    return smoothed * evaluations + config.train.epochs * per_epoch - smoothed


def _root() -> Traversable:
    return files("tightrope.experiments") / "suites"


def _walk(folder: Traversable, prefix: str) -> Iterable[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".toml"):
            yield f"{prefix}{entry.name.removesuffix('.toml')}"


def _read(name: str) -> bytes:
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise MissingDataError(f"There is no suite {name}.")
        return Path(name).read_bytes()
    if name not in (known := suites()):
        raise UnknownNameError("suite", name, known)
    return (_root() / f"{name}.toml").read_bytes()


def _parse(data: bytes, name: str) -> Suite:
    try:
        return Suite.model_validate(tomllib.loads(data.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"it is not valid TOML: {error}"], name) from None
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ConfigError(problems, name) from None
