"""Certify images: clean prediction, then a verifier, one record an image, resumable at any point.

The images are treated in fixed blocks of ``batch_size`` indices, and a block is written at once. What the verifier of
a block draws depends on the seed and the block alone, so that a run that was interrupted and resumed ends with the
records of one that was not. What the verifier leaves open may go to a second one, which sees the open images of all
blocks, a fixed number at once: branch and bound then shares its batches over many images, and holds few in memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import parse_eps
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.precision import full_precision
from tightrope.core.protocols import Verifier
from tightrope.evaluation._inputs import Draw, Inputs, MakeSpec, is_natural
from tightrope.evaluation._rounds import Effort, Found, Rounds, State
from tightrope.evaluation.certificates import CertificateFolder
from tightrope.evaluation.consistency import check_claims
from tightrope.records import image
from tightrope.records.image import ImageRecord, Summary, summarise
from tightrope.verifiers._problem import INF

TOGETHER = 32
EFFORT = Effort()


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
        open: images without a record that the first verifier left to the second.
    """

    done: int
    total: int
    natural: int
    adversarial: int
    certified: int
    unknown: int
    seconds: float
    open: int = 0


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
    complete: Verifier | None = None,
    together: int = TOGETHER,
    effort: Effort = EFFORT,
    certificates: CertificateFolder | None = None,
) -> Summary:
    """Decide every image and record it; skip those that ``path`` already has.

    An image is natural if the property holds at it by more than the rounding error of its evaluation; only then does
    the verifier see it. It is certified if the verifier proves the property on its whole box, which is rounded
    outwards. A counterexample lies in the exact box.

    The file is in the order in which images are decided until all are; then it is brought into that of the images.

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
        on_batch: called after every block and every group, once it is on the disk.
        complete: decides what the verifier leaves open, after all blocks.
        together: open images that it sees at once, at most.
        effort: processes, memory and shards.
        certificates: where a certificate of every decided image goes, before its record is written.

    Returns:
        The summary of all n images, or of the shard's while other shards are missing.

    Raises:
        InputError: images, labels, eps or specs that do not fit, before any file is touched; or a file of other
            settings in the way, which is left as it is.
        NumericalError: NaN or infinite weights.
        CorruptDataError: a damaged file in the way.
        InvariantError: results that contradict each other, or those of another certification of the same images in the
            same folder, naming the image.
        OSError: the disk is full, say. What was written before stays.

    Cost: two float64 forward passes and the verifiers. KeyboardInterrupt loses the current blocks or groups only.
    """
    inputs = Inputs(network, params, samples_x, labels, make_spec, batch_size, seed).checked(eps_text(eps))
    job = _Job(inputs, eps_text(eps), verifier, complete, certificates)
    facts = inputs.facts() | {"eps": job.eps} | ({"together": together} if complete else {})
    rounds = Rounds(job, ImageRecord, labels.tolist(), inputs.blocks(), path, {**header, "run": facts}, together)

    def report(state: State[ImageRecord]) -> None:
        if on_batch is not None:
            on_batch(_progress(state))

    if certificates is not None:
        certificates.begin()
    finished, records = rounds.run(effort, report)
    check_claims(finished)
    summary = summarise(records)
    image.write_summary(finished.with_suffix(".summary.json"), summary)
    return summary


def eps_text(eps: float | str | Fraction) -> str:
    """The exact radius as text.

    Raises:
        InputError: it is none.
    """
    text = repr(float(eps)) if isinstance(eps, float) else str(eps).strip()  # a NumPy float has another repr
    parse_eps(text)
    return text


def _progress(state: State[ImageRecord]) -> Progress:
    records = state.decided
    return Progress(
        done=len(records),
        total=state.total,
        natural=sum(record.natural for record in records),
        adversarial=sum(record.adversarial for record in records),
        certified=sum(record.certified for record in records),
        unknown=sum(record.verdict == "unknown" for record in records),
        seconds=sum(record.seconds for record in records),
        open=state.open,
    )


# --------------------------------------------------------------------------------------------- deciding


@dataclass(frozen=True)
class _Job:
    inputs: Inputs
    eps: str
    verifier: Verifier
    complete: Verifier | None
    certificates: CertificateFolder | None

    @full_precision()
    def decide(self, task: range | tuple[ImageRecord, ...]) -> Found[ImageRecord]:
        """A block of images, or a group of those that were left open."""
        return self._block(task) if isinstance(task, range) else self._group(task)

    def _block(self, block: range) -> Found[ImageRecord]:
        begin = time.perf_counter()
        outcomes = self.inputs.clean(block)
        natural = [i for i, outcome in enumerate(outcomes) if is_natural(outcome)]
        seconds = [(time.perf_counter() - begin) / len(block)] * len(block)
        if natural:
            begin = time.perf_counter()
            known, images = [outcomes[i] for i in natural], [block[i] for i in natural]
            found = self._verify(self.verifier, images, known, ("certify", block.start))
            share = (time.perf_counter() - begin) / len(natural)
            for i, outcome in zip(natural, found, strict=True):
                outcomes[i], seconds[i] = outcome, seconds[i] + share
        records = [self._record(block[i], i in natural, outcomes[i], seconds[i]) for i in range(len(block))]
        is_open = [self.complete is not None and r.natural and r.verdict == "unknown" for r in records]
        return Found(
            decided=[record for record, left in zip(records, is_open, strict=True) if not left],
            open=[record for record, left in zip(records, is_open, strict=True) if left],
        )

    def _group(self, group: tuple[ImageRecord, ...]) -> Found[ImageRecord]:
        assert self.complete is not None
        images, begin = [record.index for record in group], time.perf_counter()
        known = [_outcome(record) for record in group]
        found = self._verify(self.complete, images, known, ("complete", images[0]))
        share = (time.perf_counter() - begin) / len(group)
        decided = [self._record(r.index, True, o, r.seconds + share) for r, o in zip(group, found, strict=True)]
        return Found(decided, [])

    def _verify(self, verifier: Verifier, images: list[int], known: list[Outcome], draw: Draw) -> list[Outcome]:
        return self.inputs.verify(verifier, images, [parse_eps(self.eps)] * len(images), known, draw)

    def _record(self, index: int, natural: bool, outcome: Outcome, seconds: float) -> ImageRecord:
        label = int(self.inputs.labels[index])
        if self.certificates is not None and outcome.verdict is not Verdict.UNKNOWN:
            problem = self.inputs.problem([index], [parse_eps(self.eps)])
            self.certificates.keep(index, self.eps, self.inputs.x[index], label, problem, outcome)
        return ImageRecord(
            index=index,
            label=label,
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


def _outcome(record: ImageRecord) -> Outcome:
    """What an open image's record knows."""
    lower, upper = record.lower, record.upper
    return Outcome(
        Verdict.UNKNOWN,
        -INF if lower is None else lower,
        INF if upper is None else upper,
        record.method,
        reason=record.reason,
    )
