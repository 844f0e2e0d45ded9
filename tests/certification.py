"""A small certification with every kind of image, for the tests of certification."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tightrope as tr
from helpers import _BUILD, F64, Case, case, randomise
from tightrope.attacks.pgd import Pgd
from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.spec import Spec
from tightrope.evaluation.certify import Progress, certify
from tightrope.records.image import Summary
from tightrope.verifiers.attack import AttackVerifier
from tightrope.verifiers.cascade import Cascade
from tightrope.verifiers.one_shot import OneShot

CASCADE = Cascade(
    (
        AttackVerifier(Pgd(steps=3, restarts=1, loss="margin")),
        OneShot(tr.relaxation("ibp"), "ibp"),
        OneShot(tr.relaxation("deeppoly"), "deeppoly"),
    )
)
COUNT, BLOCK = 11, 3
FRAGILE = Case(randomise(_BUILD["mlp"][0](), 24), (3,))
"""A network with images close to its decision boundaries, and others far from them."""


@dataclass(frozen=True)
class Task:
    """Everything that ``certify`` takes, with every kind of image."""

    network: Network
    params: Params
    x: Tensor
    labels: Tensor

    def run(self, path: Path, **changes: Any) -> Summary:
        given: dict[str, Any] = {
            "network": self.network,
            "params": self.params,
            "samples_x": self.x,
            "labels": self.labels,
            "eps": "1/8",
            "verifier": CASCADE,
            "path": path,
            "make_spec": partial(tr.margin_spec, num_classes=3, dtype=F64),
            "batch_size": BLOCK,
            "seed": 5,
            "header": {"dataset": "made up", "split": "test"},
        }
        return certify(**(given | changes))


def new_task(given: Case | None = None) -> Task:
    """Images labelled as the network says, but every fourth; by default of a network that is robust."""
    given = given or case("mlp")
    x = given.inputs(COUNT)
    labels = given.net(given.params, x).argmax(1)
    labels = torch.where(torch.arange(COUNT) % 4 == 3, (labels + 1) % 3, labels)
    return Task(given.net, given.params, x, labels)


def timeless(path: Path) -> list[dict[str, Any]]:
    """The lines of a file without what the clock says."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def stop_after(blocks: int) -> Callable[[Progress], None]:
    """Ctrl-C once that many blocks are on the disk."""
    calls: list[Progress] = []

    def on_batch(progress: Progress) -> None:
        calls.append(progress)
        if len(calls) == blocks:
            raise KeyboardInterrupt

    return on_batch


@dataclass(frozen=True)
class Forger:
    """A verifier that claims a bound, and remembers how many samples it was shown."""

    lower: float
    seen: list[int]

    def verify(
        self, network: Network, params: Params, box: Box, spec: Spec, *, generator: torch.Generator
    ) -> list[Outcome]:
        count = box.lower.shape[0]
        self.seen.append(count)
        verdict = Verdict.VERIFIED if self.lower > 0 else Verdict.UNKNOWN
        return [Outcome(verdict, self.lower, math.inf, "forger")] * count
