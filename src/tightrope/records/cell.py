"""The record of one cell of an experiment: one network, trained in one way with one seed, and certified."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tightrope.errors import CorruptDataError
from tightrope.records.files import first_problem, read_json, write_json


class CellRecord(BaseModel):
    """One cell.

    Attributes:
        start: where its weights came from, by the suite's name for it: ``scratch``, or ``warm`` from the IBP network.
        source: smoother and relaxation of the cell whose weights it started from; empty from scratch, and in older
            records, which know no other than plain IBP.
        relaxation: of the training loss, its slope rule included in the name; empty where the variant says it.
        variant: value of the suite's own axis, such as a training method; empty without one.
        trial: number of the setting that was tried for tuning; None for a final cell.
        overrides: what the cell changes in the suite's settings, the tuned values included.
        split, images: what was certified.
        natural, adversarial, certified, unknown: shares of the images; certified by complete verification, so that
            unknown are only those whose time was up.
        evaluations: losses of a mini-batch evaluated in training, each differentiated if ``differentiated``.
        train_seconds, certify_seconds: what it took; like ``evaluations`` without the cell that it started from.
        dataset, network, epochs, train_images, processor, threads: what was trained, how long, on what.
        settings: fingerprint of what the suite said about the cell.
        departures: settings that are not those of the literature's recipe for the variant.
        note: of the suite on the variant.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    suite: str
    start: str
    smoother: str
    relaxation: str
    seed: int
    trial: int | None = None
    variant: str = ""
    source: tuple[str, ...] = ()
    overrides: tuple[str, ...]
    split: str
    images: int
    eps: str
    natural: float
    adversarial: float
    certified: float
    unknown: float
    weights: int
    weights_sha256: str
    evaluations: int
    differentiated: bool
    train_seconds: float
    certify_seconds: float
    dataset: str = ""
    network: str = ""
    epochs: int = 0
    train_images: int = 0
    processor: str = ""
    threads: int = 0
    settings: str = ""
    departures: tuple[str, ...] = ()
    note: str = ""

    @property
    def condition(self) -> tuple[str, ...]:
        """What it shares with the cells of other seeds: start, smoother, relaxation, and the variant if any."""
        return (self.start, self.smoother, self.relaxation, *((self.variant,) if self.variant else ()))

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> CellRecord:
        """Read from JSON.

        Raises:
            MissingDataError: there is no such file.
            CorruptDataError: it is not the record of a cell.
        """
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise CorruptDataError(f"{path} is not the record of a cell: {first_problem(error)}.") from None


def read_cells(folder: Path) -> list[CellRecord]:
    """All final cells below a folder, in the order of their paths.

    Raises:
        CorruptDataError: one of the files is not a record.
    """
    found = [CellRecord.read(path) for path in sorted(folder.rglob("cell.json"))]
    return [record for record in found if record.trial is None]
