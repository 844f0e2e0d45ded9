"""What lies in a file of ``torch.save``: named tensors, read without running anything that the file asks for.

PyTorch's own restricted reader (``weights_only=True``) builds tensors and plain containers and refuses all else.
Checkpoints often hold more, such as settings or whole modules. Whatever class or function such a file names, an inert
stand-in is registered in its place: it keeps the state that it is given, and calling it does nothing. No module of the
file's choice is imported and no function of it is called.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tightrope.errors import CorruptDataError, MissingDataError

_DEPTH = 64


class Content(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by dotted name, in the order of the file.
        inert: classes and functions that it names and that were not loaded.
    """

    tensors: dict[str, Tensor]
    inert: tuple[str, ...]


class _Inert:
    """Stands for an object of a class that is not loaded: it keeps its state and does nothing."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_torch_file(path: Path) -> Content:
    """The tensors of a file of ``torch.save``: of a state dict, of dicts around one, or of a whole module.

    Raises:
        MissingDataError: there is no such file, or it is a folder.
        CorruptDataError: it is none, it was truncated, or it asks for what only running its code could give.
    """
    if not path.is_file():
        raise MissingDataError(f"{path} {'is a folder, not a file' if path.is_dir() else 'does not exist'}.")
    try:
        named = _named_globals(path)
        stand_ins: list[Any] = [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in named]
        with torch.serialization.safe_globals(stand_ins):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the reader stumble over
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CorruptDataError(
            f"{path} cannot be read as weights: {reason} It is damaged, no file of torch.save, or holds objects that "
            "only its own library can read. There, save the weights alone: torch.save(model.state_dict(), path)."
        ) from None
    return Content(dict(_leaves(loaded, "", set(), 0)), named)


def _named_globals(path: Path) -> tuple[str, ...]:
    """Names outside the reader's own list; files in the format before PyTorch 1.6 have to do without any."""
    if not zipfile.is_zipfile(path):
        return ()
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("it unpacks to more than its own size, which no file of torch.save does.")
    return tuple(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)))


def _leaves(value: Any, path: str, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors in dicts and in the modules of a module, each container once."""
    if isinstance(value, Tensor):
        yield path, value
        return
    if id(value) in seen or depth > _DEPTH:
        return
    seen.add(id(value))
    for key, part in _parts(value):
        yield from _leaves(part, f"{path}.{key}" if path else str(key), seen, depth + 1)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """The entries of a dict; of a module its parameters, buffers and modules, as its ``state_dict`` orders them."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, _Inert) and isinstance(value.state, Mapping):
        for kind in ("_parameters", "_buffers", "_modules"):
            part = value.state.get(kind)
            if isinstance(part, Mapping):
                yield from part.items()
