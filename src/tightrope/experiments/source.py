"""Where a network comes from: a run, or another library."""

from __future__ import annotations

from pathlib import Path

from tightrope.experiments.imported import Imported, load_imported
from tightrope.experiments.model_zoo import is_zoo_name
from tightrope.experiments.run import Run, load
from tightrope.records.folder import RunFolder

Source = Run | Imported
"""Both have a folder, a name, a network and its weights, and the dataset and the radius that it is for."""


def is_source(path: Path) -> bool:
    """Whether a folder holds one, or it is a name of the zoo."""
    folder = RunFolder(path)
    return is_zoo_name(path) or folder.record.is_file() or folder.imported.is_file()


def find_source(source: Source | Path | str) -> Source:
    """A run or an imported network, or the one in a folder or in the zoo.

    Raises:
        MissingDataError: the folder holds neither, or a run that is not finished.
        CorruptDataError: a file in it is damaged.
    """
    if isinstance(source, Run | Imported):
        return source
    return load_imported(source) if RunFolder(Path(source)).imported.is_file() else load(source)
