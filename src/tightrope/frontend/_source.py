"""Files of others, read whole, with a limit."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from tightrope.errors import CorruptDataError, InputError, MissingDataError


def read_limited(path: Path | str, limit: int) -> bytes:
    """The content of a file, decompressed if its name ends in ``.gz``.

    Args:
        path: of the file.
        limit: bytes, after decompression.

    Raises:
        MissingDataError: there is no such file.
        CorruptDataError: a damaged ``.gz``.
        InputError: larger than the limit; no more than that is read.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data: bytes = file.read(limit + 1)
    except FileNotFoundError:
        raise MissingDataError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise MissingDataError(f"{path} is a folder, not a file.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorruptDataError(f"{path} is no valid .gz file ({error}); it was changed or truncated.") from None
    if len(data) > limit:
        raise InputError(f"{path} has more than {limit / 2**20:,.0f} MiB, the most that is read.")
    return data
