"""Run folders made of records alone, for the tests of reports: nothing is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tightrope.records import image
from tightrope.records.cell import CellRecord
from tightrope.records.certificate import Certificate, Origin
from tightrope.records.folder import RunFolder
from tightrope.records.image import ImageRecord, summarise, write_summary
from tightrope.records.radius import RadiusRecord, distribution, write_distribution
from tightrope.records.run import Environment, EpochRecord, RunRecord, write_epochs
from tightrope.records.surface import Axis, Curve, Jump, Surface

ENVIRONMENT = Environment(
    tightrope="0.1", torch="2.11", python="3.11", platform="Linux", processor="a processor", device="cpu", threads=1
)
ATTACK = "Pgd(steps=40, restarts=2, step_size=0.25, decay=(), loss='margin')"


def epoch(number: int, **changes: Any) -> EpochRecord:
    share = 1 - 1 / (number + 1)
    metrics = {"loss": 2.0 / number, "natural_accuracy": share, "surrogate_accuracy": share / 2}
    facts = {
        "step": 10 * number,
        "seconds": 1.5 * number,
        "lr": 5e-4,
        "eps": 0.1,
        "std": 0.0,
        "evaluations": 20 * number,
    }
    return EpochRecord(epoch=number, **{**facts, "train": metrics, "validation": metrics, **changes})


def config(**changes: Any) -> dict[str, Any]:
    found = {
        "seed": 0,
        "data": {"name": "digits", "validation": 0.1},
        "model": {"name": "mlp", "width": [8]},
        "method": {"name": "certified", "relaxation": "ibp"},
        "smoother": {"name": "none", "std": 0.0},
        "eps": {"train": "0.1", "ramp": "smooth", "finish": 1.0},
        "optimizer": {"name": "adam", "lr": 0.01},
        "train": {"epochs": 3, "batch_size": 32},
    }
    return found | changes


def record(name: str = "digits/mlp-ibp", **changes: Any) -> RunRecord:
    """Of a run that is trained to the end."""
    facts: dict[str, Any] = {
        "name": name,
        "status": "finished",
        "config": config(),
        "environment": ENVIRONMENT,
        "weights": 1234,
        "samples": {"train": 90, "validation": 10},
        "steps": 30,
        "seconds": 4.5,
        "weights_sha256": "ab" * 32,
        "final": epoch(3),
    }
    return RunRecord(**facts | changes)


def make_run(folder: Path, name: str = "digits/mlp-ibp", *, epochs: int = 3, **changes: Any) -> Path:
    """The folder of a trained run; ``changes`` are of its record."""
    records = [epoch(number) for number in range(1, epochs + 1)]
    record(name, final=records[-1] if records else None, **changes).write(folder / "record.json")
    write_epochs(folder / "metrics.jsonl", records)
    return folder


def outcome(index: int, verdict: str, eps: str = "0.1", **changes: Any) -> ImageRecord:
    """``verified``, ``falsified``, ``unknown``, or ``wrong`` when clean."""
    natural, falsified = verdict != "wrong", verdict in ("wrong", "falsified")
    facts: dict[str, Any] = {
        "label": index % 10,
        "natural": natural,
        "adversarial": natural and not falsified,
        "certified": verdict == "verified",
        "verdict": "falsified" if falsified else verdict,
        "method": {"verified": "ibp", "falsified": "pgd", "unknown": "bab", "wrong": "natural"}[verdict],
        "lower": 0.5 if verdict == "verified" else None,
        "upper": -1.0 - index if falsified else 1.0,
        "seconds": 0.001 * (index + 1),
    }
    return ImageRecord(index=index, eps=eps, **facts | changes)


def header(count: int, eps: str = "0.1", *, complete: bool = True, **changes: Any) -> dict[str, Any]:
    run = {"count": count, "dtype": "float64", "batch_size": 100, "seed": 0, "weights": "w", "samples": "s", "eps": eps}
    found: dict[str, Any] = {"dataset": "digits", "split": "test", "attack": ATTACK, "relaxations": ["ibp"], "run": run}
    return {**found, **({"complete": {"timeout": 60.0}} if complete else {}), **changes}


def certify(
    folder: Path,
    verdicts: Sequence[str],
    eps: str = "0.1",
    *,
    count: int | None = None,
    name: str = "it",
    **changes: Any,
) -> list[ImageRecord]:
    """Image records of a certification with these verdicts; unfinished if ``count`` is larger."""
    records = [outcome(index, verdict, eps) for index, verdict in enumerate(verdicts)]
    path = RunFolder(folder).certification(name)
    image.create(path, header(count or len(records), eps, **changes), records)
    if count is None:
        write_summary(path.with_suffix(".summary.json"), summarise(records))
    return records


def search_radii(folder: Path, radii: Iterable[str | None], *, count: int | None = None) -> None:
    """Records of certified radii."""
    facts: dict[str, Any] = {"label": 1, "falsified": None, "limit": "1/5", "tolerance": "1/20", "method": "ibp"}
    records = [
        RadiusRecord(index=index, natural=radius is not None, verified=radius, tries=2, seconds=0.1, **facts)
        for index, radius in enumerate(radii)
    ]
    path = RunFolder(folder).certification("radius")
    run = {"count": count or len(records), "dtype": "float64", "limit": "1/5", "tolerance": "1/20"}
    image.create(
        path, {"dataset": "digits", "split": "test", "attack": ATTACK, "relaxations": ["ibp"], "run": run}, records
    )
    if count is None:
        write_distribution(path, distribution(records))


def keep_counterexample(
    folder: Path, record: ImageRecord, shape: tuple[int, ...] = (1, 4, 4), name: str = "it"
) -> None:
    """A certificate of a falsified image, with made up pixels."""
    generator = np.random.default_rng(record.index)
    pixels = generator.random(shape)
    found = np.clip(pixels + 0.1 * np.sign(generator.random(shape) - 0.5), 0, 1)
    eps = float(Fraction(record.eps))
    Certificate(
        model_sha256="none",
        verdict="falsified",
        method=record.method,
        lower=np.clip(pixels - eps, 0, 1),
        upper=np.clip(pixels + eps, 0, 1),
        matrix=np.eye(2),
        offset=np.zeros(2),
        clause=(0, 1),
        origin=Origin(pixels, record.eps, ("0", "1"), record.label, record.index),
        counterexample=found,
    ).write(folder / "certificates" / "certify-it" / f"{record.index}.safetensors")


def look_around(folder: Path, *, plane: bool = False, pairs: int = 2, rows: int = 2) -> Path:
    """A loss surface of two relaxations, plain and smoothed; unfinished with fewer rows of samples than pairs."""
    axis = Axis(name="random", unit="the norm", positions=(-1.0, 0.0, 1.0), length=2.0, sha256="ef" * 32)
    points = 9 if plane else 3
    samples = [tuple(float(row + place) for place in range(points)) for row in range(2)]
    jumps = None if plane else (Jump(position=0.5, before=1.0, after=3.0),)
    surface = Surface(
        tightrope="0.1",
        name="digits/mlp-ibp",
        trained=True,
        weights_sha256="ab" * 32,
        dataset="digits",
        split="train",
        images=8,
        images_sha256="ab" * 32,
        eps="0.1",
        dtype="float64",
        seed=0,
        pairs=pairs,
        std_unit="absolute",
        axes=(axis, axis) if plane else (axis,),
        curves=tuple(
            curve
            for name in ("ibp", "deeppoly")
            for curve in (
                Curve(relaxation=name, std=0.0, samples=tuple(samples[:1]), jumps=jumps),
                Curve(relaxation=name, std=0.1, samples=tuple(samples[:rows])),
            )
        ),
    )
    path = folder / ("surface-plane" if plane else "surface-line") / "surface.json"
    surface.write(path)
    return path


def make_cell(folder: Path, smoother: str, relaxation: str, seed: int, certified: float, **changes: Any) -> Path:
    """A cell of an experiment, in the place that an experiment gives it."""
    place = folder / "scratch" / f"{smoother}-{relaxation}" / f"seed-{seed}"
    method = {"name": "certified", "relaxation": relaxation}
    make_run(place, "config", config=config(seed=seed, method=method, smoother={"name": smoother}))
    facts: dict[str, Any] = {
        "suite": "paradox/digits",
        "start": "scratch",
        "smoother": smoother,
        "relaxation": relaxation,
        "seed": seed,
        "overrides": (),
        "split": "test",
        "images": 20,
        "eps": "0.1",
        "natural": 0.9,
        "adversarial": certified,
        "certified": certified,
        "unknown": 0.0,
        "weights": 1234,
        "weights_sha256": "cd" * 32,
        "evaluations": 100,
        "differentiated": True,
        "train_seconds": 2.0,
        "certify_seconds": 1.0,
    }
    CellRecord(**facts | changes).write(place / "cell.json")
    return place
