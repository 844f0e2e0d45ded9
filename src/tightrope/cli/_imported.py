"""Networks of other libraries on the command line: what was read, and published figures beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import tightrope as tr
from tightrope.cli._console import out, percent, print_hint, table
from tightrope.errors import InputError
from tightrope.records.image import Summary
from tightrope.records.imported import Published


class Theirs(NamedTuple):
    """What is said about the file of another library."""

    arch: str | None = None
    normalize: str | None = None
    prefix: str = ""


def imported(
    source: Path, dataset: str | None, eps: str | None, theirs: Theirs, published: str | None, folder: Path | None
) -> tr.Imported:
    """The network in a file, and what was made of it."""
    if dataset is None or eps is None:
        raise InputError(f"{source} is a network's file: say what it is for with --data and --eps.")
    if folder is not None and folder.suffix == ".jsonl":
        raise InputError("--out is a folder for a network's file; the records go into it.")
    found = tr.import_network(
        source,
        folder,
        dataset=dataset,
        eps=eps,
        arch=theirs.arch,
        normalize=theirs.normalize,
        prefix=theirs.prefix,
        published=published,
    )
    print_hint(_what_was_read(found))
    return found


def _what_was_read(found: tr.Imported) -> str:
    record = found.record
    model = "the graph" if record.model is None else " ".join(f"{key}={value}" for key, value in record.model.items())
    parts = [f"{record.file}: {model}"]
    if record.std != ():
        parts.append(f"inputs normalised with {_numbers(record.mean)} / {_numbers(record.std)}")
    if record.unused:
        shown = ", ".join(record.unused[:5]) + (" ..." if len(record.unused) > 5 else "")
        parts.append(f"not used: {len(record.unused)} ({shown})")
    return "; ".join(parts) + f". Folder: {found.path}"


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def print_published(summary: Summary, figures: Published) -> None:
    """Ours beside theirs, in percent, and whether it can be the same network."""
    rows, outside = [], []
    for kind in ("natural", "adversarial", "certified"):
        theirs, ours = getattr(figures, kind), getattr(summary, f"{kind}_accuracy")
        if theirs is not None and ours is not None:
            low, high = getattr(summary, f"{kind}_interval")
            rows.append([kind, percent(ours), f"{theirs:.2f} %", f"{100 * ours - theirs:+.2f}"])
            outside += [kind] if not 100 * low <= theirs <= 100 * high else []
    out.print(table(["accuracy", "here", "published", "difference"], rows, figures.source or "published figures"))
    if "natural" in outside:
        print_hint(
            "The published natural accuracy lies outside our 95 % interval: is it the same network, and "
            "were its inputs normalised like this (--normalize)?"
        )
