"""Writing without half-written files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tightrope.errors import CorruptDataError, MissingDataError


def write_atomic(path: Path, content: bytes | str, *, shared: bool = False) -> None:
    """Write a file so that a reader sees the old content or the new one, whatever happens in between.

    Args:
        path: the file; its folder is made.
        content: of it.
        shared: several processes may write it at once; the last one wins.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON, indented, atomically."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        MissingDataError: there is no such file.
        CorruptDataError: it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise MissingDataError(f"{path} does not exist.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{path} is not valid JSON ({error}); it was changed or truncated.") from None
