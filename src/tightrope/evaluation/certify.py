"""Certify images: clean prediction, then a verifier, one record an image, resumable at any point.

The images are treated in fixed blocks of ``batch_size`` indices, and a block is written at once. What the verifier of
a block draws depends on the seed and the block alone, so that a run that was interrupted and resumed ends with the
records of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import Box, inner_box, linf_box, parse_eps
from tightrope.core.digest import tensor_digest
from tightrope.core.network import Network
from tightrope.core.noise import derived_generator
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.precision import full_precision
from tightrope.core.protocols import Verifier
from tightrope.core.spec import Spec, check_spec
from tightrope.errors import CorruptDataError, InputError
from tightrope.records import image
from tightrope.records.image import NATURAL, ImageRecord, Summary, summarise
from tightrope.verifiers._merge import merge, numbered, within
from tightrope.verifiers._problem import INF, NEAR_TIE, Margin, Problem, margin_bounds, undecided

DTYPES = (torch.float32, torch.float64)
MakeSpec = Callable[[Tensor], Spec]


class Progress(NamedTuple):
    """How far a certification is, images of earlier sittings included.

    Attributes:
        done: images with a record.
        total: images in all.
        natural: of the done ones, those whose clean input has the property.
        adversarial: those of them without a known counterexample.
        certified: those of them with a proof over the full box.
        unknown: neither verified nor falsified.
        seconds: summed over the done ones.
    """

    done: int
    total: int
    natural: int
    adversarial: int
    certified: int
    unknown: int
    seconds: float


def certify(
    network: Network,
    params: Params,
    samples_x: Tensor,
    labels: Tensor,
    *,
    eps: float | str | Fraction,
    verifier: Verifier,
    path: Path,
    make_spec: MakeSpec,
    batch_size: int,
    seed: int,
    header: Mapping[str, object],
    on_batch: Callable[[Progress], None] | None = None,
) -> Summary:
    """Decide every image and record it; skip those that ``path`` already has.

    An image is natural if the property holds at it by more than the rounding error of its evaluation; only then does
    the verifier see it. It is certified if the verifier proves the property on its whole box, which is rounded
    outwards. A counterexample lies in the exact box.

    Args:
        network: the graph.
        params: weights by name, of the dtype of the images or a narrower one.
        samples_x: images in [0, 1], (n, *input shape), float64 or float32: the arithmetic of the bounds.
        labels: integers, (n,).
        eps: l-infinity radius in input units. A float means its decimal text: 0.1 is exactly 1/10.
        verifier: decides the natural images.
        path: ``*.jsonl``; a header line, then a line an image. The summary goes beside it, ``*.summary.json``.
        make_spec: from labels (batch,) to the property of each image.
        batch_size: images a block.
        seed: of everything the verifier draws.
        header: what else the results depend on (data set, split, verifier); JSON values. The key ``"run"`` is
            added: count, eps, dtype, batch size, seed and the SHA-256 of weights and samples.
        on_batch: called after every block, once it is on the disk.

    Returns:
        The summary of all n images.

    Raises:
        InputError: images, labels, eps or specs that do not fit, before any file is touched; or a file of other
            settings in the way, which is left as it is.
        NumericalError: NaN or infinite weights.
        CorruptDataError: a damaged file in the way.
        InvariantError: results that contradict each other, naming the image.

    Cost: two float64 forward passes and the verifier. KeyboardInterrupt loses the current block only.
    """
    job = _Job(network, params, samples_x, labels, _text(eps), verifier, make_spec, batch_size, seed).checked()
    if path.suffix != ".jsonl":
        raise InputError(f"The records of a certification are JSON lines: {path} must end in .jsonl.")
    records = _resume(path, image.as_json({**header, "run": job.facts()}), job)
    for index in job.blocks(len(records)):
        with full_precision():
            found = job.decide(index)
        image.append(path, found)
        records += found
        if on_batch is not None:
            on_batch(_progress(records, job.size))
    summary = summarise(records)
    image.write_summary(path.with_suffix(".summary.json"), summary)
    return summary


def _text(eps: float | str | Fraction) -> str:
    """The exact radius as text; refuses what is none."""
    text = repr(float(eps)) if isinstance(eps, float) else str(eps).strip()  # a NumPy float has another repr
    parse_eps(text)
    return text


def _progress(records: Sequence[ImageRecord], total: int) -> Progress:
    return Progress(
        done=len(records),
        total=total,
        natural=sum(record.natural for record in records),
        adversarial=sum(record.adversarial for record in records),
        certified=sum(record.certified for record in records),
        unknown=sum(record.verdict == "unknown" for record in records),
        seconds=sum(record.seconds for record in records),
    )


# --------------------------------------------------------------------------------------------- deciding


@dataclass(frozen=True)
class _Job:
    network: Network
    params: Params
    x: Tensor
    labels: Tensor
    eps: str
    verifier: Verifier
    make_spec: MakeSpec
    batch_size: int
    seed: int

    @property
    def size(self) -> int:
        return self.x.shape[0]

    def checked(self) -> _Job:
        """The job with its weights in the dtype of the images; all that can be wrong about the input is found here."""
        shape = tuple(self.x.shape)
        if self.x.dtype not in DTYPES or shape[1:] != self.network.input_shape:
            raise InputError(
                f"The images must be float64 or float32 of shape (n, *{self.network.input_shape}), got {self.x.dtype} "
                f"{shape}."
            )
        if self.size == 0:
            raise InputError("There are no images to certify.")
        if tuple(self.labels.shape) != (self.size,) or self.labels.is_floating_point():
            raise InputError(f"The labels must be {self.size} integers, got {self.labels.dtype} {self.labels.shape}.")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}.")
        self.network.check_params(self.params)
        params = {name: _exactly(v, self.x.dtype, f"The weights {name}") for name, v in self.params.items()}
        job = replace(self, params=params)
        for index in job.blocks(0):
            job.problem(index)
        return job

    def blocks(self, done: int) -> Iterator[range]:
        """The blocks of indices after the first ``done`` images."""
        for start in range(done, self.size, self.batch_size):
            yield range(start, min(start + self.batch_size, self.size))

    def problem(self, index: range) -> Problem:
        """Boxes and properties of a block."""
        part = slice(index.start, index.stop)
        box: Box = linf_box(self.x[part], parse_eps(self.eps))
        spec = check_spec(self.make_spec(self.labels[part]), len(index), self.network.num_outputs)
        matrix, offset = (_exactly(t, self.x.dtype, "The specs") for t in (spec.matrix, spec.offset))
        return Problem(self.network, self.params, box, Spec(matrix, offset, spec.clause))

    def facts(self) -> dict[str, Any]:
        """What the records depend on, as far as the arguments tell."""
        return {
            "count": self.size,
            "eps": self.eps,
            "dtype": str(self.x.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "weights": tensor_digest(self.params),
            "samples": tensor_digest({"x": self.x, "labels": self.labels}),
        }

    def decide(self, index: range) -> list[ImageRecord]:
        """The records of a block."""
        problem, begin = self.problem(index), time.perf_counter()
        x = self.x[index.start : index.stop]
        margins = margin_bounds(problem, x)
        outcomes = [_at_clean(margin, point) for margin, point in zip(margins, x, strict=True)]
        natural = [i for i, margin in enumerate(margins) if margin.lower > 0]  # NaN is not
        seconds = [(time.perf_counter() - begin) / len(index)] * len(index)
        if natural:
            begin = time.perf_counter()
            found = self._verify(problem.rows(natural), [outcomes[i] for i in natural], [index[i] for i in natural])
            share = (time.perf_counter() - begin) / len(natural)
            for i, outcome in zip(natural, found, strict=True):
                outcomes[i], seconds[i] = outcome, seconds[i] + share
        return [self._record(index[i], i in natural, outcomes[i], seconds[i]) for i in range(len(index))]

    def _verify(self, problem: Problem, clean: list[Outcome], images: list[int]) -> list[Outcome]:
        network, params, box, spec = problem
        block = images[0] // self.batch_size * self.batch_size
        generator = derived_generator(self.x.device, self.seed, "certify", block)
        with numbered(images):
            found = merge(problem, clean, self.verifier.verify(network, params, box, spec, generator=generator))
        return within(problem, inner_box(self.x[images], parse_eps(self.eps)), found)

    def _record(self, index: int, natural: bool, outcome: Outcome, seconds: float) -> ImageRecord:
        return ImageRecord(
            index=index,
            label=int(self.labels[index]),
            natural=natural,
            adversarial=natural and outcome.verdict is not Verdict.FALSIFIED,
            certified=natural and outcome.verdict is Verdict.VERIFIED,
            verdict=outcome.verdict.value,
            method=outcome.method,
            eps=self.eps,
            lower=outcome.lower if math.isfinite(outcome.lower) else None,
            upper=outcome.upper if math.isfinite(outcome.upper) else None,
            seconds=seconds,
            reason=outcome.reason,
        )


def _at_clean(margin: Margin, x: Tensor) -> Outcome:
    """Falsified by the clean image itself, or undecided; overflow and near-ties there are unknown and not natural."""
    lower, upper = margin
    if not math.isfinite(upper):
        return undecided(NATURAL, "NaN or infinite output at the clean image")
    if upper <= 0:
        return Outcome(Verdict.FALSIFIED, -INF, upper, NATURAL, counterexample=x)
    return undecided(NATURAL, "" if lower > 0 else f"{NEAR_TIE}, at the clean image", upper=upper)


def _exactly(value: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """The same numbers in another dtype: rounded ones would be about another network."""
    if not value.is_floating_point() or value.dtype == dtype:
        return value
    cast = value.to(dtype)
    if not torch.equal(cast.double(), value.double()):
        raise InputError(f"{what} are {value.dtype} and would be rounded to {dtype}: give the images in {value.dtype}.")
    return cast


# --------------------------------------------------------------------------------------------- resuming


def _resume(path: Path, header: dict[str, Any], job: _Job) -> list[ImageRecord]:
    """The records of the blocks that are complete; afterwards the file holds exactly those."""
    if not path.exists() or path.stat().st_size == 0:
        image.create(path, header)
        return []
    _check_same(path, image.read_header(path), header)
    records = image.read(path)
    _check_order(path, records, job)
    whole = len(records) if len(records) == job.size else len(records) // job.batch_size * job.batch_size
    if not image.is_exactly(path, header, records[:whole]):
        image.create(path, header, records[:whole])
    return records[:whole]


def _check_order(path: Path, records: Sequence[ImageRecord], job: _Job) -> None:
    labels = job.labels.tolist()
    for position, record in enumerate(records):
        if record.index != position or position >= job.size or record.label != labels[position]:
            raise CorruptDataError(
                f"{path}: record {position + 1} is of image {record.index} with label {record.label}, which does not "
                "follow from its header. The file was changed; remove it to certify again."
            )


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, after = _flat(old), _flat(new)
    absent = "nothing"
    differences = [
        f"{key}: {before.get(key, absent)!r} there, {after.get(key, absent)!r} now"
        for key in dict.fromkeys([*after, *before])
        if before.get(key, absent) != after.get(key, absent)
    ]
    if differences:
        raise InputError(
            f"{path} holds results of other settings ({'; '.join(differences)}). Choose another output file, or delete "
            "this one to start anew; nothing was changed."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
