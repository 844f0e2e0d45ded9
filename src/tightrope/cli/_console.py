"""What the user sees: messages, progress, tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tightrope.records.image import Summary
from tightrope.records.run import EpochRecord
from tightrope.training.events import StepEvent

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_error(message: str) -> None:
    """One paragraph on standard error."""
    err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def print_hint(message: str) -> None:
    """What to do next."""
    out.print(Text(message, style="dim"), soft_wrap=True)


def print_note(message: str) -> None:
    """A remark that is no part of the result: on standard error."""
    err.print(Text(message, style="dim"), soft_wrap=True)


def table(
    columns: Iterable[str], rows: Iterable[Iterable[str]], title: str | None = None, *, numbers: bool = True
) -> Table:
    """A plain table: the first column on the left, numbers on the right."""
    built = Table(title=None if title is None else Text(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        built.add_column(column, justify="right" if numbers and index else "left", overflow="fold")
    for row in rows:
        built.add_row(*(Text(cell) for cell in row))
    return built


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "" if value is None else f"{100 * value:.1f} %"


def progress_bar() -> Progress:
    """A bar with counts, elapsed and remaining time and free text; on standard error, as the results go to output."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
        console=err,
        transient=True,
    )


class TrainingProgress:
    """Shows a run: a bar with the current means, and a line per epoch where ``epochs`` is set."""

    def __init__(self, name: str, *, epochs: bool) -> None:
        self._bar = progress_bar()
        self._task = self._bar.add_task(name, total=None, facts="")
        self._epochs = epochs

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def named(self, name: str) -> TrainingProgress:
        """The same bar, started again under another name."""
        self._bar.reset(self._task, description=name, total=None, facts="")
        return self

    def on_step(self, event: StepEvent) -> None:
        """Move the bar; it appears with the first step, so that errors before it stand alone."""
        self._bar.start()
        facts = f"epoch {event.epoch}  eps {event.eps:.4g}  {_facts(event.metrics)}"
        self._bar.update(self._task, completed=event.step, total=event.steps, facts=facts)

    def on_epoch(self, record: EpochRecord) -> None:
        """Print a line."""
        if self._epochs:
            validation = f"   validation: {_facts(record.validation)}" if record.validation else ""
            line = f"epoch {record.epoch:>3}  eps {record.eps:.4g}  {_facts(record.train)}{validation}"
            self._bar.console.print(f"{line}  [{record.seconds:.0f} s]", markup=False, soft_wrap=True)


def summary_table(summary: Summary, title: str) -> Table:
    """The three accuracies with their intervals, and which method decided how many."""
    rows = [
        [name, percent(accuracy), f"{percent(low)} to {percent(high)}", f"{n} / {summary.count}"]
        for name, accuracy, (low, high), n in (
            ("natural accuracy", summary.natural_accuracy, summary.natural_interval, summary.natural),
            ("adversarial accuracy", summary.adversarial_accuracy, summary.adversarial_interval, summary.adversarial),
            ("certified accuracy", summary.certified_accuracy, summary.certified_interval, summary.certified),
        )
    ]
    return table(["", "share", "95 % interval", "images"], rows, title)


def _facts(metrics: Mapping[str, float]) -> str:
    shown = (("loss", "loss", False), ("natural_accuracy", "natural", True), ("surrogate_accuracy", "surrogate", True))
    parts = []
    for key, label, is_share in shown:
        if key in metrics:
            parts.append(f"{label} {percent(metrics[key]) if is_share else f'{metrics[key]:.4f}'}")
    return "  ".join(parts)
