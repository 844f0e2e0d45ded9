"""The record of a network that was trained elsewhere: what it was read from, and as what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tightrope.records.files import read_model, write_json

Percent = Annotated[float, Field(ge=0, le=100)]


class Published(BaseModel):
    """What others report about a network, in percent of the test images.

    Attributes:
        natural, adversarial, certified: accuracies; None where nothing is reported.
        source: where that is reported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    natural: Percent | None = None
    adversarial: Percent | None = None
    certified: Percent | None = None
    source: str = ""


class ImportedRecord(BaseModel):
    """A network of another library.

    Attributes:
        name: of the file, without its ending.
        file_sha256: of the file that it was read from.
        model: architecture and options; None where the file has the graph (ONNX).
        mean, std: of the normalisation of its inputs, by channel; empty where the file has the graph.
        dataset: that it is for.
        eps: radius that it is for, exact text.
        unused: tensors and classes in the file that are no part of it.
        published: figures to compare with.
        weights_sha256: of the weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    tightrope: str
    name: str
    file: str
    file_sha256: str
    model: dict[str, Any] | None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dataset: str
    eps: str
    unused: tuple[str, ...] = ()
    published: Published | None = None
    weights_sha256: str

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"), shared=True)

    @classmethod
    def read(cls, path: Path) -> ImportedRecord:
        """Read from JSON.

        Raises:
            MissingDataError: there is no such file.
            CorruptDataError: it is no such record.
        """
        return read_model(path, cls, "the record of an imported network")
