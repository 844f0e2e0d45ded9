"""Add a finished run to the zoo: ``python -m tools.zoo RUN NAME``, or ``make zoo RUN=... NAME=...``.

The run must have been certified completely on its test split. Weights, settings and the summary of that certification
are copied; the first test images are certified again with evidence, and their records and certificates kept. Commit
the new folder.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

import tightrope as tr
from tightrope.errors import InputError, TightropeError
from tightrope.experiments import model_zoo
from tightrope.records.certificate import MODEL_FILE
from tightrope.records.folder import RunFolder

LIMIT = 2 * 1024**2
"""Bytes of a network of the zoo with all that belongs to it."""


def add(run: tr.Run, folder: Path, count: int, data_dir: Path | None) -> int:
    """Make the folder of a network, and give its size in bytes.

    Raises:
        InputError: it is there already, the run is not certified completely, or the folder would be too large.
    """
    summaries = sorted(run.path.glob("certify-*-complete.summary.json"))
    if len(summaries) != 1:
        raise InputError(f"{run.path} needs one complete certification: tightrope certify {run.path} --complete")
    if folder.exists():
        raise InputError(f"{folder} exists; remove it first, or choose another name.")
    folder.mkdir(parents=True)
    source = run.folder
    for path in (source.config, source.network, source.weights, source.record, summaries[0]):
        shutil.copyfile(path, folder / path.name)
    records = RunFolder(folder).certification("sample")
    tr.certify(tr.load(folder), count=count, out=records, complete=True, evidence=True, data_dir=data_dir)
    (folder / "certificates" / records.stem / MODEL_FILE).unlink()  # made from the weights when it is needed
    write_sums(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        shutil.rmtree(folder)
        raise InputError(f"It would take {size:,} bytes, and {LIMIT:,} are allowed: take fewer images (--count).")
    return size


def write_sums(folder: Path) -> None:
    """Write the checksum of every file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != model_zoo.SUMS)
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder).as_posix()}\n" for p in paths]
    (folder / model_zoo.SUMS).write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Parse the arguments, and say what was done."""
    parser = argparse.ArgumentParser(prog="python -m tools.zoo", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("name", help="in the zoo: SETTING-NETWORK-METHOD")
    parser.add_argument("--count", type=int, default=10, help="test images whose certificates are kept")
    parser.add_argument("--data-dir", type=Path, help="where the dataset lies; by default $TIGHTROPE_DATA")
    given = parser.parse_args()
    try:
        size = add(tr.load(given.run), model_zoo.root() / given.name, given.count, given.data_dir)
    except TightropeError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{model_zoo.PREFIX}/{given.name}: {size:,} bytes. Commit {model_zoo.root() / given.name}.")


if __name__ == "__main__":
    main()
