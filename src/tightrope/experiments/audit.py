"""Audits of certificates: a file, a folder of them, or all of a run, with a replay through the original module."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from tightrope.auditor.audit import Finding, Verdict, outputs
from tightrope.auditor.audit import audit as check
from tightrope.errors import CorruptDataError, MissingDataError
from tightrope.evaluation.certificates import folder_of
from tightrope.experiments.build import build_module, build_plugins
from tightrope.experiments.run import Run, load
from tightrope.frontend.graph import canonical
from tightrope.records import image
from tightrope.records.certificate import MODEL_FILE, SUFFIX, Array, Certificate, Model
from tightrope.records.folder import RunFolder
from tightrope.records.image import ImageRecord

Replay = Callable[[Array], Array]
"""The original network: from one input (*input shape) to its outputs, (outputs,)."""

_AGREEMENT = 1e-5
"""Difference of outputs, in units of the largest one, above which two programs evaluate different networks."""


@dataclass(frozen=True)
class Audited:
    """What became of one certificate.

    Attributes:
        path: its file, whether it is there or not.
        claim: the verdict that it claims; empty if it cannot be read.
        method: what decided.
        finding: of the audit.
        replayed: whether the original network was asked as well.
    """

    path: Path
    claim: str
    method: str
    finding: Finding
    replayed: bool = False

    @property
    def confirmed(self) -> bool:
        """Whether it holds."""
        return self.finding.verdict is Verdict.CONFIRMED


def audit(
    path: Path | str,
    *,
    model: Path | str | None = None,
    replay: Replay | None = None,
    on_certificate: Callable[[Audited], None] | None = None,
) -> list[Audited]:
    """Re-check a certificate, a folder of certificates, or all those of a run.

    Those of a run are also compared with its weights and with its records, of which every verified or falsified one
    must have a certificate, and replayed through the module that was trained.

    Args:
        path: a file, a folder of files, or a run folder.
        model: file of the network, where the certificates are not beside it and do not hold it.
        replay: the original network, asked for its outputs at the counterexample or the image.
        on_certificate: called after each.

    Raises:
        MissingDataError: there is no certificate.
    """
    path, found = Path(path), []
    for audited in _all(path, None if model is None else Model.read(Path(model)), replay):
        found.append(audited)
        if on_certificate is not None:
            on_certificate(audited)
    if not found:
        raise MissingDataError(f"There are no certificates in {path}. Make some with: tightrope certify --evidence")
    return found


def _all(path: Path, model: Model | None, replay: Replay | None) -> Iterator[Audited]:
    if path.is_file():
        yield _one(path, model, replay)
    elif RunFolder(path).record.is_file():
        yield from _of_run(load(path), replay)
    elif path.is_dir():
        for file in _files(path):
            yield _one(file, model, replay)
    else:
        raise MissingDataError(f"{path} does not exist.")


def _files(folder: Path) -> list[Path]:
    files = [file for file in folder.glob(f"*{SUFFIX}") if file.name != MODEL_FILE]
    return sorted(files, key=lambda file: (len(file.stem), file.stem))  # 2 before 10


def _one(path: Path, model: Model | None, replay: Replay | None) -> Audited:
    try:
        given = Certificate.read(path)
        beside = path.with_name(MODEL_FILE)
        if given.model is None and model is None and beside.is_file():
            model = _read_model(beside)
    except (CorruptDataError, MissingDataError) as error:
        return Audited(path, "", "", Finding(Verdict.REJECTED, str(error)))
    finding = check(given, model)
    if finding.verdict is Verdict.CONFIRMED and replay is not None:
        problem = _replayed(given, given.model or model, replay)
        finding = Finding(Verdict.REJECTED, problem, finding.margin) if problem else finding
    return Audited(path, given.verdict, given.method, finding, replay is not None)


@lru_cache(maxsize=4)
def _read_model(path: Path) -> Model:
    return Model.read(path)


# -------------------------------------------------------------------------------------------------- of a run


def _of_run(run: Run, replay: Replay | None) -> Iterator[Audited]:
    replay = replay or original(run)
    for records in sorted(run.path.glob("certify-*.jsonl")):
        folder = folder_of(records)
        if folder.is_dir():
            problem = _other_network(run, folder / MODEL_FILE)
            known = {folder / f"{record.index}{SUFFIX}": record for record in image.read(records)}
            decided = [path for path, record in known.items() if record.verdict != "unknown"]
            for path in dict.fromkeys([*decided, *_files(folder)]):
                audited = _one(path, None, replay)
                wrong = problem or _contradiction(path, known.get(path))
                yield Audited(path, audited.claim, audited.method, _worse(audited.finding, wrong), audited.replayed)


def _worse(finding: Finding, problem: str) -> Finding:
    rejected = finding.verdict is Verdict.REJECTED
    return Finding(Verdict.REJECTED, problem, finding.margin) if problem and not rejected else finding


def _other_network(run: Run, path: Path) -> str:
    """What is wrong with the network of a run's certificates."""
    try:
        model = _read_model(path)
    except (CorruptDataError, MissingDataError) as error:
        return str(error)
    same = canonical(run.network, run.params, source_of(run)).sha256 == model.sha256
    return "" if same else "the network of the certificates is not that of the run"


def source_of(run: Run) -> tuple[str, str]:
    """Name and SHA-256 of the file of a run's weights."""
    return run.folder.weights.name, hashlib.sha256(run.folder.weights.read_bytes()).hexdigest()


def _contradiction(path: Path, record: ImageRecord | None) -> str:
    """What a certificate that can be read has against its record."""
    if record is None:
        return "no record belongs to it"
    try:
        given = Certificate.read(path)
    except (CorruptDataError, MissingDataError):
        return ""  # which the audit has said
    origin = given.origin
    same = origin is not None and (origin.eps, origin.index) == (record.eps, record.index)
    if given.verdict != record.verdict or not same or (origin and origin.label not in (None, record.label)):
        return f"the record of image {record.index} says something else: {record.verdict} for eps = {record.eps}"
    return ""


def original(run: Run) -> Replay | None:
    """The module that a run trained, built from its configuration anew; None where it was handed in."""
    if "module" in run.record.handed_in:
        return None
    module = build_module(run.config, build_plugins(run.config))
    module.load_state_dict(run.params)
    module.double().eval()

    def replay(x: Array) -> Array:
        with torch.no_grad():
            outputs: Array = module(torch.from_numpy(x.astype(np.float64))[None])[0].numpy()
        return outputs

    return replay


def _replayed(given: Certificate, model: Model | None, replay: Replay) -> str:
    """What the original network has against a certificate: other outputs, or a margin of the other sign."""
    assert model is not None  # or it would not be confirmed
    x = given.counterexample
    if x is None:
        x = given.origin.image if given.origin is not None else (given.lower + given.upper) / 2
    lower, upper = outputs(model, x)
    found = replay(x)
    scale = max(1e-30, float(np.abs(found).max()))
    if found.shape != lower.shape or not (np.abs(found - (lower + upper) / 2) <= _AGREEMENT * scale).all():
        return "the original network has other outputs there than the certificate's graph"
    rows, clause = given.matrix @ found + given.offset, np.array(given.clause)
    margin, tie = min(float(rows[clause == c].max()) for c in set(given.clause)), 1e-9 * scale
    if (given.verdict == "verified" and margin <= -tie) or (given.verdict == "falsified" and margin >= tie):
        return f"the original network has the margin {margin:.3g} there"
    return ""
