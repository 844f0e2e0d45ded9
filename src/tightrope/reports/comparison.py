"""What an experiment shows: means over seeds, and differences that are claimed only where they are sure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from tightrope.records.cell import CellRecord
from tightrope.records.intervals import paired

Condition = tuple[str, ...]
"""Start, smoother, relaxation, and the variant if there is one."""


@dataclass(frozen=True)
class Row:
    """One way to train, over seeds. Accuracies are shares; spreads are standard deviations over seeds."""

    condition: Condition
    seeds: int
    natural: float
    adversarial: float
    certified: float
    spread: float
    unknown: float
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Certified accuracy of one condition minus that of another, on the seeds that both have.

    Attributes:
        low, high: the paired 95 % interval over seeds.
    """

    question: str
    one: Condition
    other: Condition
    seeds: int
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``above`` or ``below`` only where the interval excludes 0."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "undecided"


def rows(cells: Iterable[CellRecord]) -> list[Row]:
    """One for each condition, in the order of their first cell."""
    return [_row(condition, group) for condition, group in _grouped(cells).items()]


def comparisons(cells: Iterable[CellRecord], baseline: str = "") -> list[Comparison]:
    """The questions of the experiment: tight against loose, DeepPoly's other slope rules against the published one,
    smoothed against plain, warm against its control, a start from smoothed weights against one from plain weights, each
    variant against the baseline, and each smoothed DeepPoly against the best plain network."""
    groups = _grouped(cells)
    found = [_compare(question, one, other, groups) for question, one, other in _questions(groups, baseline)]
    return [each for each in found if each.seeds > 0]


def _questions(groups: dict[Condition, list[CellRecord]], baseline: str) -> Iterable[tuple[str, Condition, Condition]]:
    for here in groups:
        start, smoother, relaxation, *variant = here
        if relaxation != "ibp":
            control = "tight - loose" if start == "scratch" else "warm - control"
            yield control, here, (start, smoother, "ibp", *variant)
        if relaxation.startswith("deeppoly-"):
            yield "slope rule - adaptive", here, (start, smoother, "deeppoly", *variant)
        if smoother != "none":
            yield "smoothed - plain", here, (start, "none", relaxation, *variant)
        if start != "scratch":
            yield "warm - scratch", here, ("scratch", smoother, relaxation, *variant)
            yield from (("smoothed - plain start", here, other) for other in _plain_starts(here, groups))
        if variant and variant != [baseline]:
            yield f"variant - {baseline}", here, (start, smoother, relaxation, baseline)
    plain = [_row(here, cells) for here, cells in groups.items() if not _smoothed(here, cells)]
    if plain:
        best = max(plain, key=lambda row: row.certified).condition
        tight = [here for here, cells in groups.items() if _smoothed(here, cells) and here[2].startswith("deeppoly")]
        yield from (("smoothed DeepPoly - best plain", each, best) for each in tight)


def _smoothed(condition: Condition, cells: Sequence[CellRecord]) -> bool:
    """Whether its training was, or that of the weights it started from."""
    return condition[1] != "none" or cells[0].source[:1] not in ((), ("none",))


def _plain_starts(here: Condition, groups: dict[Condition, list[CellRecord]]) -> Iterator[Condition]:
    """Those that went on in the same way from weights that were trained alike, but without smoothing."""
    smoother, *relaxation = groups[here][0].source or ("none",)
    if smoother != "none":
        twins = (each for each, cells in groups.items() if cells[0].source == ("none", *relaxation))
        yield from (each for each in twins if each[1:] == here[1:])


def difference(one: Iterable[CellRecord], other: Iterable[CellRecord]) -> tuple[int, float, float, float]:
    """Seeds that both have, the mean difference of certified accuracy on them, and its paired 95 % interval; zeros
    without a seed."""
    first, second = ({cell.seed: cell.certified for cell in each} for each in (one, other))
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        return 0, 0.0, 0.0, 0.0
    return len(differences), fmean(differences), *paired(differences)


def _compare(question: str, one: Condition, other: Condition, groups: dict[Condition, list[CellRecord]]) -> Comparison:
    return Comparison(question, one, other, *difference(groups.get(one, []), groups.get(other, [])))


def _grouped(cells: Iterable[CellRecord]) -> dict[Condition, list[CellRecord]]:
    groups: dict[Condition, list[CellRecord]] = defaultdict(list)
    for cell in cells:
        groups[cell.condition].append(cell)
    return dict(groups)


def _row(condition: Condition, cells: Sequence[CellRecord]) -> Row:
    certified = [cell.certified for cell in cells]
    return Row(
        condition=condition,
        seeds=len(cells),
        natural=fmean(cell.natural for cell in cells),
        adversarial=fmean(cell.adversarial for cell in cells),
        certified=fmean(certified),
        spread=stdev(certified) if len(cells) > 1 else 0.0,
        unknown=fmean(cell.unknown for cell in cells),
        evaluations=cells[0].evaluations,
        seconds=fmean(cell.train_seconds for cell in cells),
    )
