"""Certificates of the verdict on a property: a file for each of its problems, and the network once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tightrope.core.bounds import Params
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome
from tightrope.errors import InputError
from tightrope.evaluation.certificates import certificate
from tightrope.frontend.graph import canonical
from tightrope.records.certificate import MODEL_FILE, SUFFIX, Array, Model, Part
from tightrope.verifiers._problem import Problem


def new_folder(path: Path | str) -> Path:
    """A folder that is not there yet, or is empty.

    Raises:
        InputError: it holds something.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not empty: name a new folder for the evidence.")
    return folder


def file_of(source: Any) -> tuple[str, str] | None:
    """Name and SHA-256 of a file; None of what is none."""
    if not isinstance(source, str | Path):
        return None
    return Path(source).name, hashlib.sha256(Path(source).read_bytes()).hexdigest()


@dataclass(frozen=True)
class Evidence:
    """Where the certificates of a property go.

    Attributes:
        folder: their folder.
        model: the network.
        prop: name and SHA-256 of the property's file, if it is one.
        count: of its problems.
    """

    folder: Path
    model: Model
    prop: tuple[str, str] | None
    count: int

    @staticmethod
    def begin(folder: Path, source: Any, given: Any, network: Network, params: Params, count: int) -> Evidence:
        """Write the network.

        Args:
            source, given: of network and property, as they were handed in.
        """
        model = canonical(network, params, file_of(source))
        model.write(folder / MODEL_FILE)
        return Evidence(folder, model, file_of(given), count)

    def keep(self, number: int, problem: Problem, outcome: Outcome) -> None:
        """Write the certificate of a problem.

        Args:
            number: of the problem in its property.
            problem: a batch of it alone.
            outcome: verified or falsified.
        """
        name, sha256 = self.prop or (None, None)
        part = Part(number, self.count, name, sha256)
        found = certificate(problem, 0, outcome, self.model.sha256, part=part)
        if found is not None:
            found.write(self.folder / f"{number}{SUFFIX}")


AGREEMENT = 1e-4
"""Difference of outputs, in units of the largest one, above which even a float32 program is another network."""


def close(ours: Array, theirs: Array) -> bool:
    """Whether outputs are those of the same network."""
    if ours.shape != theirs.shape:
        return False
    return bool((np.abs(ours - theirs) <= AGREEMENT * max(1.0, float(np.abs(ours).max()))).all())
