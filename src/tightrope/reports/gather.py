"""What reports are made of: the records of runs and experiments, read from their folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from tightrope.errors import CorruptDataError, InputError, MissingDataError
from tightrope.records import image
from tightrope.records.cell import CellRecord
from tightrope.records.folder import RunFolder
from tightrope.records.image import ImageRecord, Summary, summarise
from tightrope.records.radius import RadiusRecord, RadiusSummary, distribution, read_distribution
from tightrope.records.run import EpochRecord, RunRecord, read_epochs


@dataclass(frozen=True)
class Certification:
    """The records of one certification at one radius.

    Attributes:
        path: its file.
        header: what the records are results of.
        records: of the images that are decided so far.
    """

    path: Path
    header: Mapping[str, Any]
    records: tuple[ImageRecord, ...]

    @property
    def total(self) -> int:
        """Images that it is to decide."""
        return int(self.header["run"]["count"])

    @property
    def finished(self) -> bool:
        """Whether it has."""
        return len(self.records) == self.total

    @property
    def eps(self) -> str:
        """The radius, as exact text."""
        return str(self.header["run"]["eps"])

    @property
    def complete(self) -> bool:
        """Whether branch and bound decides what the relaxations leave open."""
        return "complete" in self.header

    @property
    def data(self) -> str:
        """Dataset and split."""
        return f"{self.header.get('dataset', 'data')} {self.header.get('split', '')}".strip()

    @property
    def images(self) -> tuple[str, ...]:
        """The same for two certifications whose images of the same index are the same ones."""
        named = self.header.get("dataset", "data") != "data"  # the first images of a split are the same ones
        return (self.data,) if named else (self.data, str(self.header["run"].get("samples", self.path)))

    @property
    def what(self) -> str:
        """In words."""
        how = "complete" if self.complete else "incomplete"
        return f"{self.total:,} images of {self.data}, eps {self.eps}, {how} verification"

    @cached_property
    def summary(self) -> Summary:
        """Of a finished one."""
        return summarise(self.records)


@dataclass(frozen=True)
class Radii:
    """The records of certified radii.

    Attributes:
        path: their file.
        header: what they are results of.
        count: images that are done.
        summary: of a finished search; None of another.
    """

    path: Path
    header: Mapping[str, Any]
    count: int
    summary: RadiusSummary | None

    @property
    def total(self) -> int:
        """Images that it is to search."""
        return int(self.header["run"]["count"])


@dataclass(frozen=True)
class TrainedRun:
    """A run folder.

    Attributes:
        label: what it is called here; no two are called the same.
        certifications, radii: in the order of their files.
    """

    label: str
    folder: RunFolder
    record: RunRecord
    epochs: tuple[EpochRecord, ...]
    certifications: tuple[Certification, ...] = ()
    radii: tuple[Radii, ...] = ()

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings."""
        return self.record.config

    @property
    def seed(self) -> int:
        """Of everything random."""
        return int(self.config.get("seed", 0))

    @property
    def target(self) -> str:
        """The radius that it was trained for."""
        eps = self.config.get("eps", {})
        return str(eps.get("test") or eps.get("train") or "")

    @property
    def main(self) -> Certification | None:
        """The finished certification that says most: of the radius trained for, then complete, then of most images."""
        found = [each for each in self.certifications if each.finished]
        return max(found, key=self._weight, default=None)

    def _weight(self, given: Certification) -> tuple[bool, bool, int]:
        at_target = bool(self.target) and Fraction(given.eps) == Fraction(self.target)
        return at_target, given.complete, given.total


@dataclass(frozen=True)
class TrainedCell:
    """A cell of an experiment.

    Attributes:
        label: what it is called here; no two are called the same.
        path: its folder.
        config: the settings; empty where only the cell's own record was kept.
    """

    label: str
    path: Path
    record: CellRecord
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Gathered:
    """Everything that a report is about.

    Attributes:
        runs: as they were given.
        cells: final cells of the experiments that were given, without their records of images.
        unfinished: folders of cells that are not certified yet.
    """

    runs: tuple[TrainedRun, ...] = ()
    cells: tuple[TrainedCell, ...] = ()
    unfinished: tuple[Path, ...] = ()


def gather(paths: Sequence[Path]) -> Gathered:
    """Read run folders, folders of run folders, and folders of experiments.

    Raises:
        InputError: nothing was given, or a folder twice.
        MissingDataError: a folder is not there, or holds no records.
        CorruptDataError: a record is damaged; the file is named.
    """
    if not paths:
        raise InputError("Say what to report on: run folders, or the folder of an experiment.")
    repeated = [path for path, times in Counter(path.resolve() for path in paths).items() if times > 1]
    if repeated:
        raise InputError(f"{repeated[0]} was given twice.")
    runs, cells, unfinished = list[TrainedRun](), list[TrainedCell](), list[Path]()
    for path in paths:
        folders = _run_folders(path)
        if folders == [path] or not any(map(_is_cell, folders)):
            runs += map(read_run, folders)
            continue
        final = [folder for folder in folders if "tuning" not in folder.relative_to(path).parts]
        cells += [read_cell(folder) for folder in final if _is_cell(folder)]
        unfinished += [folder for folder in final if not _is_cell(folder)]
    return Gathered(tuple(named(runs)), tuple(named_cells(cells)), tuple(unfinished))


def _run_folders(path: Path) -> list[Path]:
    """The folder itself if it is a run, else all runs and cells below it."""
    if not path.is_dir():
        raise MissingDataError(f"{path} does not exist." if not path.exists() else f"{path} is not a folder.")
    if (path / "record.json").is_file():
        return [path]
    found = {file.parent for name in ("record.json", "cell.json") for file in path.rglob(name)}
    if not found:
        raise MissingDataError(
            f"There is no record.json in {path} or below it: it is neither a run folder, as tightrope train makes it, "
            "nor that of an experiment."
        )
    return sorted(found)


def _is_cell(folder: Path) -> bool:
    return (folder / "cell.json").is_file()


def read_run(path: Path) -> TrainedRun:
    """A run with all its records.

    Raises:
        MissingDataError: there is no run.
        CorruptDataError: a record is damaged; the file is named.
    """
    folder = RunFolder(path)
    record = RunRecord.read(folder.record)
    files = [file for file in sorted(path.glob("certify-*.jsonl")) if _is_whole(file)]
    headers = [(file, _header(file)) for file in files]
    return TrainedRun(
        label=record.name,
        folder=folder,
        record=record,
        epochs=tuple(read_epochs(folder.metrics)),
        certifications=tuple(
            Certification(file, header, tuple(image.read(file))) for file, header in headers if not _of_radii(header)
        ),
        radii=tuple(_radii(file, header) for file, header in headers if _of_radii(header)),
    )


def read_cell(path: Path) -> TrainedCell:
    """A cell of an experiment: its result and how it was trained, without its images.

    Raises:
        MissingDataError: there is no record of the cell.
        CorruptDataError: a record is damaged; the file is named.
    """
    cell, run = CellRecord.read(path / "cell.json"), RunFolder(path).record
    config = RunRecord.read(run).config if run.is_file() else {}
    return TrainedCell(condition_name(cell.condition), path, cell, config)


def condition_name(condition: tuple[str, ...]) -> str:
    """What a cell is trained with.

    Example:
        >>> condition_name(("scratch", "rgs", "deeppoly")), condition_name(("warm", "none", "ibp"))
        ('deeppoly, rgs', 'ibp, none, warm')
        >>> condition_name(("scratch", "", "", "sabr"))
        'sabr'
    """
    start, smoother, relaxation, *variant = condition
    return ", ".join(name for name in (*variant, relaxation, smoother, start) if name and name != "scratch")


def named(runs: Iterable[TrainedRun]) -> list[TrainedRun]:
    """The same runs, told apart: by their seeds where those differ, else by their folders."""
    runs = list(runs)
    labels = _told_apart([(run.label, run.seed, run.folder.path) for run in runs])
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def named_cells(cells: Iterable[TrainedCell]) -> list[TrainedCell]:
    """The same for cells."""
    cells = list(cells)
    labels = _told_apart([(cell.label, cell.record.seed, cell.path) for cell in cells])
    return [replace(cell, label=label) for cell, label in zip(cells, labels, strict=True)]


def _told_apart(given: Sequence[tuple[str, int, Path]]) -> Iterator[str]:
    names, seeds = Counter(label for label, _, _ in given), Counter((label, seed) for label, seed, _ in given)
    for label, seed, path in given:
        if names[label] == 1:
            yield label
        else:
            yield f"{label}, seed {seed}" if seeds[label, seed] == 1 else f"{label} ({path})"


def _is_whole(file: Path) -> bool:
    """Not what is kept aside while a certification runs, nor the part of a shard."""
    return not file.name.endswith(".open.jsonl") and "-shard-" not in file.name


def _header(file: Path) -> dict[str, Any]:
    header = image.read_header(file)
    run = header.get("run")
    if not isinstance(run, dict) or (not {"count", "eps"} <= run.keys() and not {"count", "tolerance"} <= run.keys()):
        raise CorruptDataError(f"{file}:1 does not say what its records are results of; certify again.")
    return header


def _of_radii(header: Mapping[str, Any]) -> bool:
    return "tolerance" in header["run"]


def _radii(file: Path, header: dict[str, Any]) -> Radii:
    summary = file.with_suffix(".summary.json")
    if summary.is_file():
        found = read_distribution(summary)
        return Radii(file, header, found.count, found if found.count == header["run"]["count"] else None)
    records = image.read_all(file, RadiusRecord)
    whole = len(records) == header["run"]["count"]
    return Radii(file, header, len(records), distribution(records) if whole else None)
