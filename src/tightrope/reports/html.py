"""A report as one HTML file that needs nothing else: made from records alone, to be read, printed and handed on."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from tightrope._version import __version__
from tightrope.core.extras import require
from tightrope.reports import charts, compare, pictures
from tightrope.reports.charts import Chart, figure_of
from tightrope.reports.comparison import Comparison, comparisons
from tightrope.reports.gather import Certification, Gathered, TrainedCell, TrainedRun, condition_name
from tightrope.reports.pictures import Failure, Picture
from tightrope.reports.reproduce import caveats, commands, settings_toml
from tightrope.reports.results import Group, by_subject, groups, results
from tightrope.reports.surface_charts import looks
from tightrope.reports.tables import Cell, Table, matrix, result_tables, seed_table
from tightrope.reports.training_charts import training_curves
from tightrope.reports.units import duration, number, percent, probability, radius

EXTRA = "report"
_MOST_LISTED = 12  # images without pictures


@dataclass(frozen=True)
class Drawn:
    """A chart with a place on the page."""

    id: str
    chart: Chart
    height: int


@dataclass(frozen=True)
class Part:
    """What stands together in a section, in this order."""

    title: str = ""
    tables: Sequence[Table] = ()
    charts: Sequence[Drawn] = ()
    failures: Sequence[Failure] = ()
    pictures: Sequence[Picture] = ()
    folded: Table | None = None
    notes: Sequence[str] = ()
    heat: bool = False


@dataclass(frozen=True)
class RunCard:
    """What was trained and how, where, and the commands that repeat it."""

    id: str
    title: str
    facts: Sequence[tuple[str, str]]
    commands: Sequence[str]
    caveats: Sequence[str]
    toml: str
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    text: str = ""
    parts: Sequence[Part] = ()
    warnings: Sequence[str] = ()
    runs: Sequence[RunCard] = ()


@dataclass
class _Page:
    """Collects the figures of a page and gives them names."""

    figures: dict[str, Any] = field(default_factory=dict)

    def draw(self, chart: Chart) -> Drawn:
        name = f"chart-{len(self.figures) + 1}"
        self.figures[name] = figure_of(chart)
        return Drawn(name, chart, self.figures[name]["height"])


def render(gathered: Gathered, title: str = "") -> str:
    """The page.

    Args:
        gathered: what to report on.
        title: of the page; by default made of the names.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
        CorruptDataError: a certificate is damaged; the file is named.

    The same records give the same bytes.
    """
    jinja2, plotly = require("jinja2", EXTRA), _script(require("plotly.offline", EXTRA).get_plotlyjs())
    page, found = _Page(), groups(results(gathered))
    sections = [section for section in _sections(page, gathered, found) if section]
    folder = files("tightrope.reports") / "templates"
    own, css = (_script((folder / name).read_text(encoding="utf-8")) for name in ("report.js", "report.css"))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((folder / "report.html").read_text(encoding="utf-8"))
    mark = require("markupsafe", EXTRA).Markup
    text: str = template.render(
        title=title or _title(gathered),
        lead=_lead(gathered, found),
        sections=sections,
        figures=mark(embedded(page.figures)),
        hashes=mark(" ".join(map(_hash, (plotly, own)))),
        css=mark(css),
        plotly=mark(plotly),
        script=mark(own),
        version=__version__,
    )
    return text + "\n"


def embedded(value: Any) -> str:
    """JSON that cannot end the element it stands in.

    Example:
        >>> embedded({"a": "</script>"})
        '{"a": "\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _script(text: str) -> str:
    """With the line ends that a browser sees, which its hash is of."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _title(gathered: Gathered) -> str:
    names = list(dict.fromkeys(run.record.name for run in gathered.runs))
    names += sorted({cell.record.suite for cell in gathered.cells})
    return f"Tightrope: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _lead(gathered: Gathered, found: Sequence[Group]) -> str:
    trained = len(gathered.runs) + len(gathered.cells)
    certified = sum(group.seeds for group in found)
    networks = "1 network" if trained == 1 else f"{trained} networks"
    return f"{networks}, {'certified' if certified == trained else f'{certified} of them certified'}."


# ---------------------------------------------------------------------------------------------------- sections


def _sections(page: _Page, gathered: Gathered, found: Sequence[Group]) -> Iterable[Section | None]:
    yield _results(page, gathered, found)
    yield _matrices(found)
    yield _differences(gathered)
    yield _radii(page, gathered.runs)
    yield _verdicts(page, gathered.runs)
    yield _failures(gathered.runs)
    yield _training(page, gathered.runs)
    yield _surfaces(page, gathered.runs)
    yield _settings(gathered.runs)
    yield _runs(gathered)


def _results(page: _Page, gathered: Gathered, found: Sequence[Group]) -> Section:
    parts = [
        _subject(page, table, each)
        for table, each in zip(result_tables(found), by_subject(found).values(), strict=True)
    ]
    warnings = compare.warnings(gathered.runs)
    if gathered.unfinished:
        warnings.append(f"{len(gathered.unfinished)} cells of the experiment are begun and not certified yet.")
    if len(parts) > 1 and gathered.cells:
        warnings.append("Accuracies of different tables are of different images, radii or kinds of verification.")
    return Section("results", "Results", _finding(found), parts, warnings)


def _finding(found: Sequence[Group]) -> str:
    """The highest certified accuracy of each table, in a sentence."""
    if not found:
        return "Nothing is certified yet: there are no accuracies to show."
    return " ".join(map(_highest, by_subject(found).values()))


def _highest(found: Sequence[Group]) -> str:
    subject, most = found[0].first.subject, max(group.mean("certified") for group in found)
    best = [group for group in found if percent(group.mean("certified")) == percent(most)]
    names = ", ".join(f"{group.label} (natural {percent(group.mean('natural'))} %)" for group in best[:3])
    more = f" and {len(best) - 3} more" if len(best) > 3 else ""
    which = "The" if len(found) == 1 else "The highest"
    return f"{which} certified accuracy on {subject.data} at eps {subject.eps} is {percent(most)} %: {names}{more}."


def _subject(page: _Page, table: Table, found: Sequence[Group]) -> Part:
    drawn = [charts.accuracies(found)]
    if len(found) > 1:
        drawn += [charts.tradeoff(found), charts.cost(found)]
    several = any(group.seeds > 1 for group in found)
    every = seed_table([result for group in found for result in group.results]) if several else None
    return Part(tables=[table], charts=[page.draw(chart) for chart in drawn], folded=every)


def _matrices(found: Sequence[Group]) -> Section | None:
    tables = [table for each in by_subject(found).values() if (table := matrix(each))]
    text = "Does a tighter relaxation train a better network? Down: relaxations. Across: what smooths the loss."
    return Section("matrix", "Relaxation and smoother", text, [Part(tables=tables, heat=True)]) if tables else None


def _differences(gathered: Gathered) -> Section | None:
    pairs = compare.pairings(gathered.runs)
    tables = [_pairing_table(pair) for pair in pairs if pair.differences]
    compared = comparisons(cell.record for cell in gathered.cells)
    tables += [_comparison_table(compared)] if compared else []
    notes = [f"{pair.one_label} and {pair.other_label}: {pair.why_not}" for pair in pairs if pair.why_not]
    if not tables and not notes:
        return None
    text = "In percentage points. An order is claimed only where the interval excludes 0."
    return Section("differences", "Differences", text, [Part(tables=tables, notes=notes)])


def _pairing_table(pair: compare.Pairing) -> Table:
    assert pair.one is not None
    columns = ("accuracy", "difference", "95 % interval", "only it", "only the other", "McNemar p", "so it is")
    rows = tuple(
        (
            Cell(each.kind),
            Cell(f"{100 * each.mean:+.2f}", each.mean),
            Cell(f"{100 * each.low:+.2f} to {100 * each.high:+.2f}", each.low),
            Cell(f"{each.only_one:,}", each.only_one),
            Cell(f"{each.only_other:,}", each.only_other),
            Cell(probability(each.p), each.p),
            Cell(each.verdict),
        )
        for each in pair.differences
    )
    note = f"The same {pair.differences[0].images:,} images of {pair.one.data}, eps {radius(pair.one.eps)}; of these "
    return Table(f"{pair.one_label} minus {pair.other_label}", columns, rows, f"{note}networks, not of other seeds.")


def _comparison_table(found: Sequence[Comparison]) -> Table:
    columns = ("certified accuracy", "minus", "question", "seeds", "difference", "95 % interval", "so it is")
    rows = tuple(
        (
            Cell(condition_name(each.one)),
            Cell(condition_name(each.other)),
            Cell(each.question),
            Cell(str(each.seeds), each.seeds),
            Cell(f"{100 * each.mean:+.1f}", each.mean),
            Cell("" if each.seeds < 2 else f"{100 * each.low:+.1f} to {100 * each.high:+.1f}"),
            Cell(each.verdict),
        )
        for each in found
    )
    return Table("Paired over seeds", columns, rows, "Student's interval over seeds; with one seed nothing is claimed.")


def _radii(page: _Page, runs: Sequence[TrainedRun]) -> Section | None:
    found = [(run.label, each) for run in runs for each in run.radii]
    if not found:
        return None
    whole = [(label, each) for label, each in found if each.summary]
    notes = [
        f"{label}: {each.path.name} is not finished, {each.count:,} of {each.total:,} images are searched."
        for label, each in found
        if not each.summary
    ]
    drawn = [page.draw(charts.radius_curves(whole))] if whole else []
    return Section("radii", "Certified radii", parts=[Part(charts=drawn, notes=notes)])


def _verdicts(page: _Page, runs: Sequence[TrainedRun]) -> Section | None:
    found = [(run.label, each) for run in runs for each in run.certifications if each.records]
    if not found:
        return None
    labels = [
        f"{label}, {'complete' if each.complete else 'incomplete'}, eps {radius(each.eps)}" for label, each in found
    ]
    chart = charts.verdicts_over_time([(label, each) for label, (_, each) in zip(labels, found, strict=True)])
    tables = [charts.verdict_table(label, each) for label, each in found]
    return Section(
        "verdicts", "Verdicts by method and time", parts=[Part(charts=[page.draw(chart)]), Part(tables=tables)]
    )


def _failures(runs: Sequence[TrainedRun]) -> Section | None:
    parts = [_failed(run, main) for run in runs if (main := run.main) and pictures.worst_records(main.records)]
    text = (
        "Images that are right as they are and wrong somewhere within the radius, the smallest margins first. "
        "The auditor shares no code with what found the counterexamples."
    )
    return Section("failures", "Where it fails", text, parts) if parts else None


def _failed(run: TrainedRun, main: Certification) -> Part:
    found, broken = pictures.worst(main), pictures.worst_records(main.records)
    title = f"{run.label}: {len(broken):,} of {main.total:,} images, eps {radius(main.eps)}"
    if found:
        return Part(title, failures=found)
    rows = tuple(
        (
            Cell(str(record.index), record.index),
            Cell("" if record.label is None else str(record.label)),
            Cell(number(record.upper or 0.0), record.upper),
            Cell(record.method),
        )
        for record in broken[:_MOST_LISTED]
    )
    note = "The counterexamples were not kept: certify with --evidence, and they are shown here."
    return Part(title, tables=[Table("Worst images", ("image", "class", "margin", "found by"), rows)], notes=[note])


def _training(page: _Page, runs: Sequence[TrainedRun]) -> Section | None:
    drawn = [page.draw(chart) for chart in training_curves(runs)]
    return Section("training", "Training", parts=[Part(charts=drawn)]) if drawn else None


def _surfaces(page: _Page, runs: Sequence[TrainedRun]) -> Section | None:
    parts = [
        Part(
            title=f"{run.label}: {look.title}",
            charts=[page.draw(chart) for chart in look.charts],
            pictures=[look.picture] if look.picture else [],
            notes=look.notes,
        )
        for run in runs
        for look in looks(run.folder)
    ]
    return Section("surfaces", "Loss surfaces", parts=parts) if parts else None


def _settings(runs: Sequence[TrainedRun]) -> Section | None:
    found = compare.settings(runs)
    if not found:
        return None
    rows = tuple((Cell(key), *map(Cell, values)) for key, values in found)
    table = Table("Settings", ("setting", *(run.label for run in runs)), rows)
    return Section("settings", "Settings that differ", parts=[Part(tables=[table])])


# -------------------------------------------------------------------------------------------------------- runs


def _runs(gathered: Gathered) -> Section | None:
    cards = [_card(f"run-{place}", run) for place, run in enumerate(gathered.runs, start=1)]
    parts = [Part(folded=_cells(gathered.cells))] if gathered.cells else []
    suites = {cell.record.suite for cell in gathered.cells}
    notes = [f"To repeat the experiment: tightrope experiment {suite}" for suite in sorted(suites)]
    parts += [Part(notes=notes)] if notes else []
    return Section("runs", "What was trained, where, and how to repeat it", parts=parts, runs=cards)


def _cells(cells: Sequence[TrainedCell]) -> Table:
    columns = ("cell", "changes in the settings", "not as in the literature", "processor", "training", "certification")
    rows = tuple(
        (
            Cell(cell.label),
            Cell(", ".join(cell.record.overrides)),
            Cell(", ".join(cell.record.departures)),
            Cell(cell.record.processor),
            Cell(duration(cell.record.train_seconds), cell.record.train_seconds),
            Cell(duration(cell.record.certify_seconds), cell.record.certify_seconds),
        )
        for cell in cells
    )
    return Table("Cells of experiments", columns, rows)


def _card(name: str, run: TrainedRun) -> RunCard:
    record, warnings = run.record, list[str]()
    if record.status != "finished":
        warnings.append(f"Not trained to the end: {record.status}{record.message and f', {record.message}'}.")
    for each in run.certifications:
        if not each.finished:
            done = f"{len(each.records):,} of {each.total:,} images"
            warnings.append(
                f"{each.path.name}: {done} are decided; which come first is no chance, so no share is shown."
            )
    if run.main is None and not warnings:
        warnings.append(f"Not certified. Run: tightrope certify {run.folder.path}")
    return RunCard(name, run.label, _facts(run), commands(run), caveats(run), settings_toml(run), warnings)


def _facts(run: TrainedRun) -> list[tuple[str, str]]:
    record, config, place = run.record, run.config, run.record.environment
    data, training = config.get("data", {}), config.get("train", {})
    samples = " and ".join(f"{count:,} for {part}" for part, count in record.samples.items() if count)
    eps = config.get("eps", {})
    found = [
        ("Data", f"{data.get('name', 'handed in')}: {samples}"),
        ("Network", f"{config.get('model', {}).get('name', 'handed in')}, {record.weights:,} weights"),
        ("Method", _options(config.get("method", {}))),
        ("Smoother", _options(config.get("smoother", {}))),
        ("Radius", f"{run.target} at test time, {eps.get('train', '')} in training ({eps.get('ramp', 'no')} ramp)"),
        ("Optimizer", _options(config.get("optimizer", {}))),
        (
            "Length",
            f"{training.get('epochs', '?')} epochs, {record.steps:,} steps of {training.get('batch_size', '?')} images",
        ),
        (
            "Time of training",
            duration(record.seconds) + (f", resumed {record.resumed} times" if record.resumed else ""),
        ),
        ("Seed", str(run.seed)),
        ("Machine", f"{place.processor}, {place.device}, threads: {place.threads}, {place.platform}"),
        ("Software", f"Tightrope {place.tightrope}, PyTorch {place.torch}, Python {place.python}"),
        ("Weights (SHA-256)", record.weights_sha256 or "none yet"),
    ]
    kept = f"of epoch {record.selected}, selected on the validation split"
    return [*found, ("Weights", kept)] if record.selected is not None else found


def _options(section: Any) -> str:
    """A plug-in with its options."""
    values = {key: value for key, value in section.items() if key != "name" and section.get("name") != "none"}
    shown = ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()
    )
    return f"{section.get('name', '')}" + (f" ({shown})" if shown else "")
