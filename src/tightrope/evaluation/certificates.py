"""Certificates of verdicts, and their files beside the records of a certification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tightrope.core.outcome import Outcome, Verdict
from tightrope.records.certificate import MODEL_FILE, SUFFIX, Array, Certificate, Model, Origin, Part
from tightrope.verifiers._problem import Problem

DATA_RANGE = ("0", "1")
"""Of images in a certification."""


def certificate(
    problem: Problem,
    position: int,
    outcome: Outcome,
    model_sha256: str,
    origin: Origin | None = None,
    part: Part | None = None,
) -> Certificate | None:
    """What can be handed on of an outcome; None where there is nothing to check.

    That is so for unknown ones, and for proofs by a verifier that was not asked to keep its evidence.

    Args:
        problem: what the outcome is about.
        position: of the sample in the problem.
        outcome: of that sample.
        model_sha256: of the problem's network, see :func:`tightrope.frontend.graph.canonical`.
        origin: the image that box and property were made from; a counterexample must lie in its exact box, see
            :func:`tightrope.core.box.inner_box`.
        part: of which property the problem is.
    """
    if outcome.evidence is None and outcome.counterexample is None:
        return None
    return Certificate(
        model_sha256=model_sha256,
        verdict="verified" if outcome.verdict is Verdict.VERIFIED else "falsified",
        method=outcome.method,
        lower=_array(problem.box.lower[position]),
        upper=_array(problem.box.upper[position]),
        matrix=_array(problem.spec.matrix[position]),
        offset=_array(problem.spec.offset[position]),
        clause=problem.spec.clause,
        origin=origin,
        part=part,
        leaves=outcome.evidence,
        counterexample=None if outcome.counterexample is None else _array(outcome.counterexample),
    )


def _array(value: Tensor) -> Array:
    return value.detach().numpy(force=True)


@dataclass(frozen=True)
class CertificateFolder:
    """Where the certificates of a certification are kept: a file an image and radius, and the network once.

    Attributes:
        path: the folder.
        model: the network.
        by_label: whether the property is that the label's output is the largest.
    """

    path: Path
    model: Model
    by_label: bool

    def begin(self) -> None:
        """Write the network."""
        self.model.write(self.path / MODEL_FILE)

    def keep(
        self, index: int, eps: str, image: Tensor, label: int, problem: Problem, outcome: Outcome, name: str = ""
    ) -> None:
        """Write the certificate of an image, if there is one.

        Args:
            index: of the image in its dataset.
            eps: exact radius as text.
            image: (*input shape).
            label: its class.
            problem: of this image alone.
            outcome: of the image.
            name: of the file, by default the index.
        """
        origin = Origin(_array(image), eps, DATA_RANGE, label if self.by_label else None, index)
        found = certificate(problem, 0, outcome, self.model.sha256, origin)
        if found is not None:
            found.write(self.path / f"{name or index}{SUFFIX}")


def radius_name(index: int, verdict: Verdict) -> str:
    """The file of a search for radii that has the proof, or the counterexample, of an image.

    Example:
        >>> radius_name(7, Verdict.VERIFIED), radius_name(7, Verdict.FALSIFIED)
        ('7', '7-falsified')
    """
    return f"{index}-falsified" if verdict is Verdict.FALSIFIED else str(index)


def folder_of(records: Path) -> Path:
    """Where the certificates of a file of records are."""
    return records.parent / "certificates" / records.stem
