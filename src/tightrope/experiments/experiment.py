"""Experiments: every cell of a suite is trained, certified and recorded, within a budget, and never twice."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tightrope.core import registry
from tightrope.data._loader import Samples, split_validation, subset
from tightrope.errors import InputError
from tightrope.experiments.api import certify, fit
from tightrope.experiments.build import build_plugins
from tightrope.experiments.config import RunConfig
from tightrope.experiments.run import Run
from tightrope.experiments.suite import (
    SCRATCH,
    Cell,
    Overrides,
    Suite,
    cells,
    config_of,
    departures,
    evaluations_of,
    overrides_of,
    settings_digest,
    source_of,
    trials,
)
from tightrope.records.cell import CellRecord
from tightrope.records.run import EpochRecord
from tightrope.smoothers._population import Population
from tightrope.training.events import StepEvent, Watcher

_BUDGET = re.compile(r"([0-9.]+(?:e[0-9]+)?)\s*(s|m|min|h|)")
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """What an experiment may spend: seconds, or losses of a mini-batch.

    Example:
        >>> Budget.parse("90m").seconds, Budget.parse("2e6").evaluations
        (5400.0, 2000000)
    """

    seconds: float = float("inf")
    evaluations: float = float("inf")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From ``30m``, ``2h``, ``45s``, or a number of loss evaluations.

        Raises:
            InputError: anything else.
        """
        match = _BUDGET.fullmatch(text.strip().lower())
        if match is None or not float(match[1]) > 0:
            raise InputError(f"{text!r} is not a budget: give minutes (30m), hours (2h) or loss evaluations (2e6).")
        amount = float(match[1])
        return cls(seconds=amount * _SECONDS[match[2]]) if match[2] else cls(evaluations=int(amount))


class BudgetSpentError(Exception):
    """Nothing more may be started."""


@dataclass
class Experiment:
    """One suite in one folder.

    Args:
        name: of the suite.
        out: the folder; what is finished in it is not done again.
        data_dir: where the dataset lies.
        watch: from a cell's name to what is told of its training.
        todo: the cells to make; None for all of the suite.
    """

    name: str
    suite: Suite
    out: Path
    budget: Budget
    data_dir: Path | str | None
    watch: Callable[[str], Watcher]
    todo: Sequence[Cell] | None = None

    def run(self) -> int:
        """Train, certify and record cell after cell, tuning before the first that needs it.

        Returns:
            The number of final cells that the budget left out.

        Raises:
            InputError: the folder holds cells of other settings.
            KeyboardInterrupt: after Ctrl-C; the same call goes on from there.
        """
        self._deadline = time.monotonic() + self.budget.seconds
        self._evaluations = self.budget.evaluations
        todo = list(cells(self.suite)) if self.todo is None else self.todo
        for done, cell in enumerate(todo):
            try:
                self._final(cell)
            except BudgetSpentError:
                return len(todo) - done
        return 0

    def _final(self, cell: Cell) -> CellRecord:
        return self._finished(cell) or self._cell(cell, self._tuned(cell))

    def _finished(self, cell: Cell) -> CellRecord | None:
        """The record of a cell, if there is one.

        Raises:
            InputError: it was made with other settings.
        """
        path = self.out / cell.folder / "cell.json"
        if not path.is_file():
            return None
        record = CellRecord.read(path)
        if record.settings not in ("", settings_digest(self.suite, cell)):
            raise InputError(
                f"{path.parent} was made with other settings than the suite {self.name} has now. Remove it, or choose "
                "another --out."
            )
        return record

    def _tuned(self, cell: Cell) -> Overrides:
        """The settings with the best certified accuracy on validation images, of those that the budget allows."""
        tried = self._affordable(cell)
        if len(tried) == 1:
            return tried[0]
        assert self.suite.tuning is not None
        scores = []
        for trial, overrides in enumerate(tried):
            each = [cell._replace(start=SCRATCH, seed=seed, trial=trial) for seed in self.suite.tuning.seeds]
            scores.append(sum(self._cell(one, overrides).certified for one in each))
        return tried[max(range(len(scores)), key=scores.__getitem__)]

    def _affordable(self, cell: Cell) -> list[Overrides]:
        tuning, chosen, spent = self.suite.tuning, list[Overrides](), 0
        for overrides in trials(self.suite, cell.smoother):
            cost = evaluations_of(config_of(self.suite, cell._replace(start=SCRATCH), overrides))
            spent += cost * (len(tuning.seeds) if tuning else 1)
            if chosen and tuning is not None and spent > tuning.evaluations:
                break
            chosen.append(overrides)
        return chosen

    def _cell(self, cell: Cell, tuned: Overrides) -> CellRecord:
        """Train and certify one network, unless that is on record."""
        folder = self.out / cell.folder
        if (record := self._finished(cell)) is not None:
            return record
        config = config_of(self.suite, cell, tuned)
        run = self._trained(cell, config, folder)
        record = self._certified(cell, config, run, overrides_of(self.suite, cell, tuned))
        record.write(folder / "cell.json")
        return record

    def _trained(self, cell: Cell, config: RunConfig, folder: Path) -> Run:
        begun = (folder / "record.json").is_file()
        if not begun:
            self._pay(evaluations_of(config))
        source = None if begun else source_of(self.suite, cell)
        if source is not None:
            self._final(source)
        watcher = _Deadline(self.watch(str(cell.folder)), self._deadline)
        try:
            weights = None if source is None else self.out / source.folder
            return fit(config, out=folder, data_dir=self.data_dir, init_from=weights, resume=begun, watcher=watcher)
        except KeyboardInterrupt:
            if watcher.passed:
                raise BudgetSpentError from None
            raise KeyboardInterrupt("Saved. The same command goes on from here.") from None

    def _pay(self, evaluations: int) -> None:
        if evaluations > self._evaluations or time.monotonic() > self._deadline:
            raise BudgetSpentError
        self._evaluations -= evaluations

    def _certified(self, cell: Cell, config: RunConfig, run: Run, overrides: Overrides) -> CellRecord:
        split, count = ("test", self.suite.certify.count) if cell.trial is None else ("validation", None)
        samples = self._samples(cell, config)
        out = run.folder.certification("cell")
        start = time.monotonic()
        timeout = self.suite.certify.timeout
        found = certify(run, samples, count=count, out=out, complete=True, timeout=timeout)
        smoother, source = build_plugins(config).smoother, source_of(self.suite, cell)
        return CellRecord(
            suite=self.name,
            **cell._asdict(),
            source=() if source is None else (source.smoother, source.relaxation),
            overrides=overrides,
            split=split,
            images=found.count,
            eps=found.eps,
            natural=found.natural_accuracy,
            adversarial=found.adversarial_accuracy,
            certified=found.certified_accuracy,
            unknown=found.unknown / found.count,
            weights=run.record.weights,
            weights_sha256=run.record.weights_sha256,
            evaluations=evaluations_of(config),
            differentiated=smoother.needs_gradient,
            train_seconds=run.record.seconds,
            certify_seconds=round(time.monotonic() - start, 3),
            dataset=config.data.name,
            network=config.model.name,
            epochs=config.train.epochs,
            train_images=run.record.samples["train"],
            processor=run.record.environment.processor,
            threads=run.record.environment.threads,
            settings=settings_digest(self.suite, cell),
            departures=departures(self.suite, cell, config),
            note=self.suite.variants[cell.variant].note,
        )

    def _samples(self, cell: Cell, config: RunConfig) -> Samples:
        """Test images for final cells, those held out of the training split for trials: never the test split."""
        dataset = registry.create("datasets", config.data.name)
        if cell.trial is None:
            test: Samples = dataset.load(self.data_dir, "test")
            return test
        assert self.suite.tuning is not None
        samples = dataset.load(self.data_dir, "train")
        samples = samples if config.data.train is None else subset(samples, config.data.train)
        held_out = split_validation(samples, config.data.validation, config.seed)[1]
        return subset(held_out, min(self.suite.tuning.count, held_out.size))


class _Deadline:
    """Passes on what it is told, and interrupts the run when the time is up, as Ctrl-C would."""

    def __init__(self, watcher: Watcher, deadline: float) -> None:
        self._watcher, self._deadline, self.passed = watcher, deadline, False

    def on_step(self, event: StepEvent) -> None:
        self._watcher.on_step(event)
        if time.monotonic() > self._deadline and event.step < event.steps and not self.passed:
            self.passed = True
            signal.raise_signal(signal.SIGINT)

    def on_epoch(self, record: EpochRecord) -> None:
        self._watcher.on_epoch(record)


def default_folder(suite_name: str, *, smoke: bool) -> Path:
    """Where the cells of a suite go: those at reduced settings are never taken for those of the suite.

    Example:
        >>> default_folder("paradox/digits", smoke=False).as_posix()
        'experiments/paradox-digits'
    """
    return Path("experiments") / (suite_name.removesuffix(".toml").replace("/", "-") + "-smoke" * smoke)


def smaller(suite: Suite, epochs: int, count: int) -> Suite:
    """The suite at reduced settings, to see that it works: so many epochs and test images, one seed, two pairs, and the
    relaxations that come first; of the variants all but the last."""
    first = {name: overrides for name, overrides in suite.relaxations.items() if name in suite.first}
    relaxations = first or suite.relaxations
    few = ("smoother.pairs=2", "smoother.chunk=2")
    smoothers = {name: (*each, *(few if _has_pairs(suite, name) else ())) for name, each in suite.smoothers.items()}
    most = {name: variant for name, variant in suite.variants.items() if name not in suite.last}
    variants = {name: variant.model_copy(update={"epochs": None}) for name, variant in most.items()}
    certified = suite.certify.model_copy(update={"count": count})
    limits = {"certify": certified, "seeds": suite.seeds[:1], "tuning": None, "epochs": epochs, "last": ()}
    return suite.model_copy(update={"relaxations": relaxations, "smoothers": smoothers, "variants": variants, **limits})


def _has_pairs(suite: Suite, smoother: str) -> bool:
    cell = next(cell for cell in cells(suite) if cell.smoother == smoother)
    return isinstance(build_plugins(config_of(suite, cell, ())).smoother, Population)
