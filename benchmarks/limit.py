"""Distance from the machine's limit: what a training step achieves against a measured matrix product and copy.

A group holds one network: matrix products and copies of the machine, then a training step by each relaxation, timed in
turn. The operations and bytes of a step are counted as it runs (:mod:`benchmarks.work`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.case import Case, Prepared, Record
from benchmarks.problem import EPS, problem, training_step, width_of
from benchmarks.protocol import Contender, Group, ours, summary

# Shapes (count, rows, inner, columns) of matrix products. The last three are those of DeepPoly on cnn3, width 16, batch
# 32: rows pulled through the second convolution, then through the first, and their products with a batch's windows.
PRODUCTS = {
    "product, square": (1, 2048, 2048, 2048),
    "product, conv 2": (1, 100_352, 32, 256),
    "product, conv 1": (1, 100_352, 256, 121),
    "product, windows": (1_568, 64, 256, 1),
}
COPY = "copy"
COPY_BYTES = 2**28
QUICK_SHARE = 16  # quick runs take this fraction of rows and bytes

# Network: its batch and the relaxations whose training step takes seconds at most on a CPU.
ALL = ("ibp", "hbox", "deepz", "crown_ibp", "deeppoly")
CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "cnn3": (32, ALL),
    "cnn5": (8, ALL),
    "cnn7": (8, ("ibp", "crown_ibp")),
}


@dataclass(frozen=True)
class Options:
    """Which networks; ``small`` shrinks the products and the copy of the machine."""

    device: str
    threads: int | None = None
    networks: Sequence[str] = tuple(CASES)
    batches: Sequence[int] = ()
    relaxations: Sequence[str] = ()
    width: int | None = None
    small: bool = False


def groups(options: Options) -> list[Group]:
    """One for each network."""
    return [_group(options, network) for network in options.networks]


def prepare(case: Case) -> Prepared:
    """Set a product, a copy or a training step up."""
    setting = case.setting
    if "product" in setting:
        return _product(setting["product"], setting["device"])
    if "bytes" in setting:
        return _copy(setting["bytes"], setting["device"])
    return Prepared(training_step(problem(setting, setting["batch"]), setting["relaxation"]))


def conclude(group: Record) -> Record:
    """The group with achieved rates and their shares of the best product and of the copy, round by round."""
    rows = [row for row in group["contenders"] if row["status"] == "ok"]
    products = [row for row in rows if "product" in row["setting"]]
    copies = [row for row in rows if row["name"] == COPY]
    if not (products and copies):
        for row in rows:
            row |= {"status": "failed", "reason": "neither a product nor a copy ran to compare with"}
        return group
    for row in rows:
        row["gflop_per_second"] = summary(_rates(row, "flop"))
        row["gbyte_per_second"] = summary(_rates(row, "bytes"))
        row["share_of_product"] = _share(row, products, "flop")
        row["share_of_copy"] = _share(row, copies, "bytes")
    return group


def _group(options: Options, network: str) -> Group:
    batch, relaxations = CASES.get(network, (8, ALL))
    width = width_of(network, options.width)
    batch = options.batches[0] if options.batches else batch
    shrink = QUICK_SHARE if options.small else 1
    products = {name: Contender("PyTorch", {"product": _shrunk(shape, shrink)}) for name, shape in PRODUCTS.items()}
    copy = {COPY: Contender("PyTorch", {"bytes": COPY_BYTES // shrink})}
    steps = {name: ours({"relaxation": name}) for name in options.relaxations or relaxations}
    setting: dict[str, Any] = {"network": network, "width": width, "batch": batch, "eps": EPS}
    return Group(
        __name__,
        f"{network}, width {width}, batch {batch}",
        setting | {"device": options.device, "threads": options.threads},
        products | copy | steps,
        1,
        "steps/s",
        counted=True,
    )


def _shrunk(shape: tuple[int, ...], by: int) -> list[int]:
    count, rows, *rest = shape
    return [count // by, rows, *rest] if count > 1 else [count, rows // by, *rest]


def _product(shape: Sequence[int], device: str) -> Prepared:
    count, rows, inner, columns = shape
    a, b = torch.rand(count, rows, inner, device=device), torch.rand(count, inner, columns, device=device)
    if count == 1:
        a, b = a[0], b[0]
    out = a @ b
    return Prepared(lambda: torch.matmul(a, b, out=out))


def _copy(size: int, device: str) -> Prepared:
    source = torch.rand(size // 4, device=device)
    target = torch.empty_like(source)
    return Prepared(lambda: target.copy_(source))


def _rates(row: Record, kind: str) -> list[float]:
    """Billions a second, round by round."""
    return [row["work"][kind] / seconds / 1e9 for seconds in row["seconds_per_step"]["samples"]]


def _share(row: Record, references: Sequence[Record], kind: str) -> Record:
    """Of the best reference in the same round."""
    best = [max(rates) for rates in zip(*(_rates(reference, kind) for reference in references), strict=True)]
    return summary([rate / limit for rate, limit in zip(_rates(row, kind), best, strict=True)])
