"""Where the files of a dataset are, and whether they are intact."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tightrope.errors import CorruptDataError, MissingDataError

ENVIRONMENT_VARIABLE = "TIGHTROPE_DATA"
_CHUNK = 1 << 18


class Remote(NamedTuple):
    """A file to download.

    Attributes:
        url: its public address.
        md5: digest of the file as it is downloaded.
        path: where it goes below the data root.
    """

    url: str
    md5: str
    path: str


def local_root(root: Path | str | None) -> Path:
    """The folder to read from without a download: the argument, else the environment variable, else the cache."""
    chosen = root or os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("tightrope"))


def data_root(root: Path | str | None, dataset: str, remotes: Sequence[Remote]) -> Path:
    """The folder to read from: the argument, else the environment variable, else the download cache.

    Args:
        root: a folder, or None.
        dataset: name of the dataset, for messages.
        remotes: what is downloaded into the cache if no folder is given.

    Raises:
        MissingDataError: a download failed.
        CorruptDataError: a downloaded file has the wrong digest.
    """
    cache = local_root(root)
    if root or os.environ.get(ENVIRONMENT_VARIABLE):
        return cache
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for remote in remotes:
            _download(remote, cache, dataset, progress)
    return cache


class _Bar:
    """A progress bar with the methods that pooch calls; shown only once bytes arrive."""

    def __init__(self, progress: Progress, label: str) -> None:
        self.total = 0
        self._progress = progress
        self._task = progress.add_task(label, visible=False, total=None)

    def update(self, amount: int) -> None:
        self._progress.update(self._task, advance=amount, total=self.total, visible=True)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop_task(self._task)


def _download(remote: Remote, cache: Path, dataset: str, progress: Progress) -> None:
    target = cache / remote.path
    bar = _Bar(progress, target.name)
    try:
        pooch.retrieve(
            remote.url,
            known_hash=f"md5:{remote.md5}",
            fname=target.name,
            path=target.parent,
            downloader=pooch.HTTPDownloader(progressbar=bar, chunk_size=_CHUNK),
        )
    except OSError as error:
        raise MissingDataError(
            f"{dataset}: no data folder was given, and {remote.url} could not be downloaded to {target} "
            f"({error}). Download it elsewhere, save it as {remote.path} below a folder of your choice, and "
            f"name that folder with --data-dir or in the environment variable {ENVIRONMENT_VARIABLE}."
        ) from error
    except ValueError as error:
        raise CorruptDataError(f"{dataset}: {remote.url} is not the file it should be ({error}).") from error


def missing(dataset: str, root: Path, looked_for: Sequence[str]) -> MissingDataError:
    """The error for data that are not below a data root.

    Args:
        dataset: name of the dataset.
        root: where it was looked for.
        looked_for: paths below the root, any one of which would have done.
    """
    paths = " or ".join(str(root / path) for path in looked_for)
    return MissingDataError(
        f"{dataset}: there is no {paths}. Name the folder that holds {looked_for[0]} with --data-dir or in "
        f"the environment variable {ENVIRONMENT_VARIABLE}, or give neither to download the data."
    )


def checked(data: bytes, md5: str, source: Path | str) -> bytes:
    """The data, if they have the expected digest.

    Args:
        data: content of a file, uncompressed.
        md5: expected digest, hexadecimal.
        source: the file, for the message.

    Raises:
        CorruptDataError: the digests differ.
    """
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise CorruptDataError(
            f"{source}: expected content with the MD5 digest {md5}, found {found}. "
            "The file is damaged or another version: delete it and fetch it again."
        )
    return data
