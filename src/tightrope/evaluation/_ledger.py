"""The files of a certification while it runs: what is decided, and what is left open until later.

``NAME.jsonl`` gets a line for every image as it is decided. Images that the first round leaves open are kept in
``NAME.open.jsonl`` meanwhile, with what is known about them. Whenever the process is killed, the two together say which
blocks the first round is done with, and which images the second round shares a batch over: both are functions of the
images alone, so that a resumed run does what an uninterrupted one would have done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

from tightrope.errors import CorruptDataError, InputError, InvariantError
from tightrope.records import image
from tightrope.records.image import R


class Ledger(Generic[R]):
    """Records on the disk, and what they are still without.

    Args:
        path: ``*.jsonl``; made if it is not there.
        header: what the records are results of.
        kind: of the records.
        labels: of all images, by index.

    Attributes:
        decided: by index.
        open: by index; also those that were decided since.

    Raises:
        InputError: a file of other settings in the way, which is left as it is.
        CorruptDataError: a damaged one.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], kind: type[R], labels: Sequence[int]) -> None:
        self._path, self._header, self._kind, self._labels = path, header, kind, labels
        self._aside = path.with_suffix(".open.jsonl")
        self.decided = self._read(path)
        self.open = self._read(self._aside) if self._aside.exists() else {}
        if not self.decided and (not path.exists() or path.stat().st_size == 0):
            image.create(path, header)

    def unseen(self, blocks: Iterable[range]) -> list[range]:
        """Blocks that the first round is not done with."""
        seen = self.decided.keys() | self.open.keys()
        return [block for block in blocks if not seen.issuperset(block)]

    def undecided(self, size: int) -> list[tuple[R, ...]]:
        """The open images in groups of at most ``size``, each of which has some that are not decided."""
        return [group for group in _groups(self.open, size) if any(r.index not in self.decided for r in group)]

    def add(self, found: Iterable[R], *, is_open: bool = False) -> None:
        """Write what is not there yet, and wait until it is on the disk.

        Raises:
            InvariantError: it contradicts what is there, naming the image.
        """
        known = self.open if is_open else self.decided
        new = [record for record in found if not self._is_known(known, record)]
        if not new:
            return
        if is_open and not self._aside.exists():
            image.create(self._aside, self._header)
        image.append(self._aside if is_open else self._path, new)
        known.update((record.index, record) for record in new)

    def finish(self) -> list[R]:
        """All records in the order of the images; the file is brought into it, and nothing else is left."""
        records = [self.decided[index] for index in sorted(self.decided)]
        if not image.is_exactly(self._path, self._header, records):
            image.create(self._path, self._header, records)
        self._aside.unlink(missing_ok=True)
        return records

    def _is_known(self, known: Mapping[int, R], record: R) -> bool:
        before = known.get(record.index)
        if before is not None and (differences := image.contradiction(before, record)):
            raise InvariantError(f"Image {record.index} was decided twice, with {differences} ({self._path}).")
        return before is not None

    def _read(self, path: Path) -> dict[int, R]:
        if not path.exists() or path.stat().st_size == 0:
            return {}
        check_same(path, image.read_header(path), self._header)
        records = image.read_all(path, self._kind)
        for record in records:
            if record.index >= len(self._labels) or record.label != self._labels[record.index]:
                raise CorruptDataError(
                    f"{path}: the record of image {record.index} with label {record.label} does not follow from its "
                    "header. The file was changed; remove it to certify again."
                )
        return {record.index: record for record in records}


def _groups(records: Mapping[int, R], size: int) -> Iterator[tuple[R, ...]]:
    """In the order of the images, as few as possible, of nearly the same size."""
    ordered = [records[index] for index in sorted(records)]
    count = -(-len(ordered) // size)
    for number in range(count):
        yield tuple(ordered[number * len(ordered) // count : (number + 1) * len(ordered) // count])


def check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to mix results of different settings.

    Raises:
        InputError: the headers differ; every difference is named.
    """
    if differences := different(old, new):
        told = "; ".join(f"{key}: {one!r} there, {other!r} now" for key, (one, other) in differences.items())
        raise InputError(
            f"{path} holds results of other settings ({told}). Choose another output file (out), or delete this one to "
            "start anew; nothing was changed."
        )


def different(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings by dotted name that are not the same in both."""
    before, after, absent = _flat(old), _flat(new), "nothing"
    names = dict.fromkeys([*after, *before])
    values = {name: (before.get(name, absent), after.get(name, absent)) for name in names}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
