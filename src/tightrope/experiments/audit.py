"""Audits of certificates: a file, a folder of them, or all of a run, with a replay through the original module."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from tightrope.auditor.audit import audit as check
from tightrope.auditor.audit import outputs
from tightrope.auditor.finding import Finding, Verdict
from tightrope.core import registry
from tightrope.core.outcome import Verdict as Sign
from tightrope.data._files import local_root
from tightrope.data._loader import Samples, to_unit
from tightrope.errors import CorruptDataError, InputError, MissingDataError
from tightrope.evaluation.certificates import folder_of, radius_name
from tightrope.experiments.originals import Originals
from tightrope.experiments.source import Source, find_source, is_source
from tightrope.frontend.graph import canonical
from tightrope.records import image
from tightrope.records.certificate import MODEL_FILE, SUFFIX, Array, Certificate, Model, Origin, Part
from tightrope.records.radius import RadiusRecord

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
        part: of which property it is about a box.
    """

    path: Path
    claim: str
    method: str
    finding: Finding
    replayed: bool = False
    part: Part | None = None

    @property
    def confirmed(self) -> bool:
        """Whether it holds."""
        return self.finding.verdict is Verdict.CONFIRMED


def audit(
    path: Path | str,
    *,
    model: Path | str | None = None,
    replay: Replay | None = None,
    net: Path | str | None = None,
    prop: Path | str | None = None,
    data_dir: Path | str | None = None,
    on_certificate: Callable[[Audited], None] | None = None,
) -> list[Audited]:
    """Re-check a certificate, a folder of certificates, or all those of a run.

    Those of a run are also compared with its weights, with its dataset and with its records, of which every verified or
    falsified one must have a certificate; and they are replayed through the module that was trained. Those of a
    verified property have to be there for every box of it.

    Args:
        path: a file, a folder of files, a run folder, or ``zoo/NAME``.
        model: file of the network, where the certificates are not beside it and do not hold it.
        replay: the original network, asked for its outputs at the counterexample or the image.
        net: ONNX file that they must be about; it is asked as well, by onnxruntime.
        prop: VNN-LIB file that they must be about.
        data_dir: where the dataset of a run lies; its images are compared where it is at hand.
        on_certificate: called after each.

    Raises:
        MissingDataError: there is no certificate.
        CorruptDataError: the network's file is damaged, or the run is.
        InputError: other files are given for a run.
        MissingExtraError: ``net`` needs the packages onnx and onnxruntime.

    Cost: for each image the relaxation in plain NumPy, and a back-substitution of one row for each leaf.

    Example:
        >>> all(one.confirmed for one in tr.audit("runs/mnist-0.1-cnn3-ibp"))  # doctest: +SKIP
        True
    """
    path, found = Path(path), []
    originals = None if net is None and prop is None else Originals(net, prop)
    for audited in _all(path, None if model is None else Model.read(Path(model)), replay, originals, data_dir):
        found.append(audited)
        if on_certificate is not None:
            on_certificate(audited)
    if not found:
        raise MissingDataError(f"There are no certificates in {path}. Make some with: tightrope certify RUN --evidence")
    return found


def _all(
    path: Path, model: Model | None, replay: Replay | None, originals: Originals | None, data_dir: Path | str | None
) -> Iterator[Audited]:
    if is_source(path):
        if model is not None or originals is not None:
            raise InputError(
                f"{path} is a run: its certificates are held against the run itself, not against other files. Leave "
                "model, net and property out."
            )
        yield from _of_source(find_source(path), replay, data_dir)
    elif path.is_file():
        yield _audited(path, model or _beside(path.parent), replay, originals=originals)
    elif path.is_dir():
        yield from _of_folder(path, model or _beside(path), replay, originals)
    else:
        raise MissingDataError(f"{path} does not exist.")


def _of_folder(
    folder: Path, model: Model | None, replay: Replay | None, originals: Originals | None
) -> Iterator[Audited]:
    """All that are there, and those that a verified property has not."""
    found = []
    for file in _files(folder):
        found.append(_audited(file, model, replay, originals=originals))
        yield found[-1]
    parts = [one.part for one in found if one.part is not None]
    if all(one.claim == "verified" for one in found):  # one counterexample decides, whatever the others say
        count = max((part.count for part in parts), default=0)
        for number in sorted(set(range(count)) - {part.number for part in parts}):
            reason = "this box of the property has no certificate"
            yield Audited(folder / f"{number}{SUFFIX}", "", "", Finding(Verdict.UNDECIDED, reason))


def _files(folder: Path) -> list[Path]:
    files = [file for file in folder.glob(f"*{SUFFIX}") if file.name != MODEL_FILE]
    return sorted(files, key=lambda file: (len(file.stem), file.stem))  # 2 before 10


def _audited(
    path: Path,
    model: Model | None,
    replay: Replay | None,
    objection: Callable[[Certificate], str] = lambda given: "",
    originals: Originals | None = None,
) -> Audited:
    """Check one file.

    Args:
        objection: what else is wrong with a certificate; empty if nothing is.
    """
    try:
        given = Certificate.read(path)
    except (CorruptDataError, MissingDataError) as error:
        return Audited(path, "", "", Finding(Verdict.REJECTED, str(error)))
    if wrong := objection(given) or (originals.objection(given, given.model or model) if originals else ""):
        return Audited(path, given.verdict, given.method, Finding(Verdict.REJECTED, wrong), part=given.part)
    finding = check(given, model)
    asked = replay is not None or (originals is not None and originals.replays)
    if finding.verdict is Verdict.CONFIRMED and asked:
        wrong = _disagreement(given, given.model or model, replay, originals)
        finding = Finding(Verdict.REJECTED, wrong, finding.margin) if wrong else finding
    return Audited(path, given.verdict, given.method, finding, asked, given.part)


def _beside(folder: Path) -> Model | None:
    """The network that the certificates of a folder refer to."""
    path = folder / MODEL_FILE
    return Model.read(path) if path.is_file() else None


# -------------------------------------------------------------------------------------------------- of a run


def _of_source(run: Source, replay: Replay | None, data_dir: Path | str | None) -> Iterator[Audited]:
    replay = replay or original(run)
    own = canonical(run.network, run.params, source_of(run))
    for records in sorted(run.path.glob("certify-*.jsonl")):
        folder = folder_of(records)
        if folder.is_dir():
            header = image.read_header(records)
            known = {folder / f"{name}{SUFFIX}": claim for name, claim in _claims(records, header)}
            decided = [path for path, claim in known.items() if claim.verdict != "unknown"]
            model, samples = _beside(folder) or own, _samples(header, data_dir)
            for path in dict.fromkeys([*decided, *_files(folder)]):
                yield _audited(path, model, replay, partial(_objection, own.sha256, known.get(path), samples))


@dataclass(frozen=True)
class _Claim:
    """What a record says about an image and a radius."""

    index: int
    label: int | None
    verdict: str
    eps: str


def _claims(records: Path, header: Mapping[str, Any]) -> Iterator[tuple[str, _Claim]]:
    """The claims of a file of records, by the names of their certificates; radii have one for each end."""
    if "tolerance" not in header.get("run", {}):
        for one in image.read(records):
            yield str(one.index), _Claim(one.index, one.label, one.verdict, one.eps)
        return
    for found in image.read_all(records, RadiusRecord):
        if found.certified_radius:  # the image itself needs no proof
            yield (
                radius_name(found.index, Sign.VERIFIED),
                _Claim(found.index, found.label, "verified", found.verified or "0"),
            )
        if found.falsified is not None:
            yield (
                radius_name(found.index, Sign.FALSIFIED),
                _Claim(found.index, found.label, "falsified", found.falsified),
            )


def _objection(sha256: str, record: _Claim | None, samples: Samples | None, given: Certificate) -> str:
    """Where a certificate differs from its run: in the weights, the record or the image."""
    if given.model_sha256 != sha256:
        return "its network is not that of the run"
    if record is None or given.origin is None:
        return "no record belongs to it"
    origin = given.origin
    label = record.label if origin.label is not None else None
    if (given.verdict, origin.eps, origin.index, origin.label) != (record.verdict, record.eps, record.index, label):
        return f"the record of image {record.index} says something else: {record.verdict} for eps = {record.eps}"
    if samples is not None and not _same_image(samples, origin, record.index):
        return f"its image or label is not number {record.index} of the dataset"
    return ""


def _samples(header: Mapping[str, Any], data_dir: Path | str | None) -> Samples | None:
    """The images of a certification, where they have a name and are at hand; nothing is downloaded."""
    if header.get("dataset") not in registry.names("datasets"):
        return None
    try:
        return cast(Samples, registry.create("datasets", header["dataset"]).load(local_root(data_dir), header["split"]))
    except MissingDataError:
        return None


def _same_image(samples: Samples, origin: Origin, index: int) -> bool:
    if index >= samples.size:
        return False
    part = samples._replace(images=samples.images[index : index + 1], labels=samples.labels[index : index + 1])
    dtype = torch.float32 if origin.image.dtype == np.float32 else torch.float64
    same = np.array_equal(to_unit(part, dtype)[0].numpy(), origin.image)
    return same and origin.label in (None, int(part.labels[0]))


def source_of(run: Source) -> tuple[str, str]:
    """Name and SHA-256 of the file of a run's weights."""
    return run.folder.weights.name, hashlib.sha256(run.folder.weights.read_bytes()).hexdigest()


def original(source: Source) -> Replay | None:
    """The module that the network was read from, built anew; None where there is none."""
    module = source.original()
    if module is None:
        return None
    module.double().eval()

    def replay(x: Array) -> Array:
        with torch.no_grad():
            outputs: Array = module(torch.from_numpy(x.astype(np.float64))[None])[0].numpy()
        return outputs

    return replay


def _disagreement(given: Certificate, model: Model | None, replay: Replay | None, originals: Originals | None) -> str:
    """What the original network has against a certificate."""
    assert model is not None  # or it would not be confirmed
    against = _contradiction(given, model, replay) if replay is not None else ""
    return against or (originals.disagreement(given, model) if originals is not None and originals.replays else "")


def _contradiction(given: Certificate, model: Model, replay: Replay) -> str:
    """Other outputs, or a margin of the other sign."""
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
