"""The zoo: small trained networks that come with the package, ``zoo/NAME`` wherever a run is asked for.

Each is a run folder with the summary of its certification and, for the first images, records and certificates. The
file ``SHA256SUMS`` in it, in the format of the program ``sha256sum``, names every other file.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

from tightrope.errors import CheckpointError, InputError, UnknownNameError
from tightrope.records.image import Summary

PREFIX = "zoo"
SUMS = "SHA256SUMS"


def zoo() -> list[str]:
    """Names of all networks, such as ``zoo/mnist-0.1-cnn3-ibp``."""
    return sorted(f"{PREFIX}/{folder.name}" for folder in root().iterdir() if (folder / SUMS).is_file())


def root() -> Path:
    """Where they lie."""
    return Path(str(files("tightrope.experiments"))) / "zoo"


def is_zoo_name(path: Path | str) -> bool:
    """Whether a run is meant that comes with the package.

    Example:
        >>> is_zoo_name("zoo/mnist-0.1-cnn3-ibp"), is_zoo_name("runs/zoo")
        (True, False)
    """
    return Path(path).parts[:1] == (PREFIX,)


def find(name: Path | str) -> Path:
    """The folder of a network, every file of it checked.

    Raises:
        UnknownNameError: there is none of that name; the closest is offered.
        InputError: a folder of that name lies here as well.
        CheckpointError: a file is missing, or is not what was packaged.

    Example:
        >>> find("zoo/mnist-0.1-cnn3-ibp").name
        'mnist-0.1-cnn3-ibp'
    """
    text, known = Path(name).as_posix(), zoo()
    if text not in known:
        raise UnknownNameError("network of the zoo", text, known)
    if Path(name).exists():
        raise InputError(
            f"{text} is a network of the zoo and a folder here; for the folder write {Path(name).resolve()}."
        )
    folder = root() / Path(text).name
    check(folder)
    return folder


def results_folder(run: Path) -> Path:
    """Where what is found about a run is written: its own folder, unless that is part of the package.

    Example:
        >>> results_folder(Path("runs/mine")).as_posix(), results_folder(find("zoo/mnist-0.1-cnn3-ibp")).as_posix()
        ('runs/mine', 'runs/zoo-mnist-0.1-cnn3-ibp')
    """
    return Path("runs") / f"{PREFIX}-{run.name}" if run.parent == root() else run


def check(folder: Path) -> None:
    """Hold every file of a network against its sum.

    Raises:
        CheckpointError: one is missing, or is not what was packaged.
    """
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise CheckpointError(f"{path} is not the file that was packaged: install the package again.")


def summary(name: str) -> Summary:
    """Of the whole certification of a network of the zoo.

    Raises:
        UnknownNameError, CheckpointError: see :func:`find`.
    """
    (path,) = find(name).glob("certify-*-complete.summary.json")
    return Summary.model_validate_json(path.read_bytes())
