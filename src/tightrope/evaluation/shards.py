"""A certification in several parts, by processes that know nothing of each other, and how they become one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tightrope.errors import InputError, InvariantError, MissingDataError
from tightrope.evaluation._ledger import check_same
from tightrope.records import image
from tightrope.records.image import R

_NAME = re.compile(r"-shard-(\d+)-of-(\d+)\.jsonl$")


@dataclass(frozen=True, order=True)
class Shard:
    """One part of several: every ``count``-th block of images, from block number ``number`` on.

    Attributes:
        number: 1 .. count.
        count: of shards.

    Example:
        >>> Shard.parse("2/3").part(["a", "b", "c", "d", "e"])
        ['b', 'e']
    """

    number: int
    count: int

    @staticmethod
    def parse(text: str) -> Shard:
        """From ``"i/n"``.

        Raises:
            InputError: it is not that, or not 1 <= i <= n.
        """
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        shard = Shard(int(found[1]), int(found[2])) if found else Shard(0, 0)
        if not 1 <= shard.number <= shard.count:
            raise InputError(f"A shard is i/n with 1 <= i <= n, such as 1/4 .. 4/4; got {text!r}.")
        return shard

    @staticmethod
    def of_rank(environment: Mapping[str, str]) -> Shard | None:
        """That of a process which ``torchrun`` started beside others, by its ``RANK`` and ``WORLD_SIZE``."""
        rank, count = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
        if not (rank.isdigit() and count.isdigit() and int(count) > 1):
            return None
        return Shard(int(rank) + 1, int(count))

    def part(self, blocks: Sequence[Any]) -> list[Any]:
        """The shard's blocks.

        Raises:
            InputError: there are fewer blocks than shards.
        """
        if len(blocks) < self.count:
            raise InputError(
                f"{len(blocks)} blocks of images cannot be shared by {self.count} shards: use fewer shards or a "
                "smaller batch size."
            )
        return list(blocks[self.number - 1 :: self.count])

    def path(self, whole: Path) -> Path:
        """The shard's own file, beside that of the whole."""
        return whole.with_name(f"{whole.stem}-shard-{self.number}-of-{self.count}.jsonl")

    def header(self, whole: Mapping[str, Any]) -> dict[str, Any]:
        """The header of its file."""
        return {**whole, "shard": f"{self.number}/{self.count}"}


def shards_of(whole: Path) -> list[Shard]:
    """The shards that have a file beside that of the whole, in their order."""
    found = (_NAME.search(path.name) for path in whole.parent.glob(f"{whole.stem}-shard-*.jsonl"))
    return sorted(Shard(int(match[1]), int(match[2])) for match in found if match)


def merged(whole: Path, header: Mapping[str, Any], kind: type[R]) -> list[R]:
    """The records of all shards in the order of the images, written as the file of the whole.

    Args:
        whole: the file to write, ``*.jsonl``; the shards' files lie beside it, and stay.
        header: of the whole.
        kind: of the records.

    Raises:
        MissingDataError: shards or images are missing; the message names them.
        InputError: shards of different settings, weights or images.
        InvariantError: two shards contradict each other about an image, which is named.
    """
    shards = shards_of(whole)
    counts = {shard.count for shard in shards}
    if len(counts) != 1:
        there = ", ".join(f"{shard.number}/{shard.count}" for shard in shards) or "none"
        raise MissingDataError(f"To make {whole} all shards of one division are needed; there are: {there}.")
    every = [Shard(number + 1, counts.copy().pop()) for number in range(max(counts))]
    if missing := [f"{shard.number}/{shard.count}" for shard in every if shard not in shards]:
        raise MissingDataError(f"To make {whole} the shards {', '.join(missing)} are missing: certify them first.")
    known: dict[int, R] = {}
    for shard in every:
        _gather(known, whole, shard, header, kind)
    if absent := sorted(set(range(header["run"]["count"])) - known.keys()):
        raise MissingDataError(
            f"To make {whole}, {len(absent)} images are missing in the shards, the first is image {absent[0]}: finish "
            "them by the commands that began them."
        )
    records = [known[index] for index in sorted(known)]
    _publish(whole, header, records)
    return records


def merged_if_finished(whole: Path, header: Mapping[str, Any], kind: type[R]) -> list[R] | None:
    """:func:`merged`, or None while shards or images are missing."""
    try:
        return merged(whole, header, kind)
    except MissingDataError:
        return None


def _gather(known: dict[int, R], whole: Path, shard: Shard, header: Mapping[str, Any], kind: type[R]) -> None:
    path = shard.path(whole)
    check_same(path, image.read_header(path), shard.header(header))
    for record in image.read_all(path, kind):
        before = known.setdefault(record.index, record)
        if differences := image.contradiction(before, record):
            raise InvariantError(
                f"Two shards contradict each other: image {record.index} has {differences} ({path}). One of the two is "
                "wrong. This is a bug in Tightrope or in a plug-in: please report it."
            )


def _publish(whole: Path, header: Mapping[str, Any], records: Sequence[R]) -> None:
    """Write the whole, which several processes may do at once: all of them write the same."""
    if whole.exists():
        check_same(whole, image.read_header(whole), header)
        if image.is_exactly(whole, header, records):
            return
    image.create(whole, header, records)
