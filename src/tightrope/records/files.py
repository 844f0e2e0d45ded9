"""Files that are whole or not there: writing without halves, reading with errors that say what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tightrope.errors import CorruptDataError, MissingDataError

M = TypeVar("M", bound=BaseModel)


def write_atomic(path: Path, content: bytes | str, *, shared: bool = False) -> None:
    """Write a file so that a reader sees the old content or the new one, whatever happens in between.

    A symbolic link stays one. What is there and is no regular file, such as ``/dev/null`` or a pipe, is written to and
    never replaced.

    Args:
        path: the file; its folder is made.
        content: of it.
        shared: several processes may write it at once; the last one wins.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
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


def write_json(path: Path, value: Mapping[str, Any], *, shared: bool = False) -> None:
    """Write JSON, indented, atomically; ``shared`` as of :func:`write_atomic`."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n", shared=shared)


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


def read_model(path: Path, kind: type[M], what: str) -> M:
    """Read a JSON file of one record.

    Args:
        path: the file.
        kind: of the record.
        what: it is, for the message.

    Raises:
        MissingDataError: there is no such file.
        CorruptDataError: it is something else.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise MissingDataError(f"{path} does not exist.") from None
    except ValidationError as error:
        raise CorruptDataError(f"{path} is not {what}: {first_problem(error)}.") from None


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    place = ".".join(map(str, found[0]["loc"]))
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{place}{': ' if place else ''}{found[0]['msg']}{more}"
