"""The documentation: everything on its pages runs, and what it shows is what comes out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from docs.generate import commands, configuration, layers, notebooks, plugins, results
from torch import nn

import tightrope as tr
from documentation import ROOT, blocks, follow, missing
from tightrope.cli import _console
from tightrope.core import registry
from tightrope.core.bounds import Bounds
from tightrope.records.image import read_summary
from tightrope.relaxations.ibp import Ibp

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if not path.name.startswith("add-a-"))
FRESH = ("tutorial.md",)
"""Pages that begin with nothing. On the others a run of the digits is there already."""

pytest.importorskip("onnx", reason="the extra [onnx] is not installed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "runs/digits-mlp-ibp"
    tr.fit("digits/mlp-ibp", out=folder, overrides=["train.epochs=5", "eps.finish=2"])
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a run in it, and a network with a property."""
    shutil.copytree(trained, tmp_path / "runs/digits-mlp-ibp")
    network, unsafe, *_ = tr.export(trained, tmp_path / "export", vnnlib=1)
    network.rename(tmp_path / "net.onnx")
    unsafe.rename(tmp_path / "property.vnnlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_console.out, "_width", 120)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT / "docs").with_suffix("").as_posix())
def test_following_a_page_works_and_shows_what_it_says(page: Path, here: Path) -> None:
    if page.name in FRESH:
        shutil.rmtree(here / "runs")
    for shown, printed in follow(page.read_text()):
        assert missing(shown, printed) == [], printed


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        found = list(blocks(page.read_text()))
        assert len(found) == len(re.findall(r"^ *```\w+$", page.read_text(), re.MULTILINE)), page
        assert {block.language for block in found} <= {"python", "bash", "toml", "text"}, page
        assert all(len(block.reason) > 10 for block in found if block.reason), page


def test_output_is_compared_by_words_and_percentages() -> None:
    printed = "natural 93.6 %\ncertified 78.0 %\n"
    assert missing("certified 76.0 %\n", printed) == []
    assert missing("certified 60.0 %\n", printed) == ["certified 60.0 %"]
    assert missing("proved 78.0 %\n", printed) == ["proved 78.0 %"]
    assert missing("certified 78.0 %\nnatural 93.6 %\n", printed) == ["natural 93.6 %"]


def test_a_page_that_is_wrong_fails() -> None:
    command = "```bash\ntightrope certify nowhere {}\n```\n"
    with pytest.raises(AssertionError, match="nowhere"):
        follow(command.format(""))
    assert follow("<!-- not run: there is no such run -->\n" + command.format("")) == []
    with pytest.raises(Exception, match="--wrong"):
        follow("<!-- not run: there is no such run -->\n" + command.format("--wrong"))
    with pytest.raises(AssertionError, match="unknown-program"):
        follow("```bash\nunknown-program\n```\n")


# ------------------------------------------------------------------------------------------- what code writes


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs/notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_and_keep_their_outputs(notebook: Path) -> None:
    kept = json.loads(notebook.read_text())["cells"]
    assert any(cell.get("outputs") for cell in kept)
    notebooks.executed(notebook)


def test_matrix_of_layers_can_say_no(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def bounds(self, *given: object, **options: object) -> Bounds:
            found = Ibp().bounds(*given, **options)
            return found._replace(margins=found.margins + 1.0)

    module, shape = nn.Linear(3, 2), (3,)
    assert layers.holds("ibp", module, shape)
    monkeypatch.setattr(layers.tr, "relaxation", lambda name: Wrong())
    assert not layers.holds("ibp", module, shape)


def test_settings_without_a_default_are_needed() -> None:
    text = configuration.pages()["reference/configuration.md"]
    assert "| `epochs` | whole number ≥ 1 | needed |" in text
    assert '| `std_mode` | `"absolute"` or `"weight"` or `"fan_in"` | `"absolute"` |' in text
    assert "number > 0, ≤ 1" in text


def test_every_command_and_plugin_is_in_the_reference() -> None:
    commanded, plugged = commands.pages()["reference/commands.md"], plugins.pages()["reference/plugins.md"]
    assert all(f"## tightrope {name}\n" in commanded for name in ("train", "certify", "audit", "verify", "list"))
    assert all(f"`{name}` {{ #{kind}-{name} }}" in plugged for kind in plugins.KINDS for name in registry.names(kind))


def test_records_of_unknown_kinds_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / "results/something-new"
    folder.mkdir(parents=True)
    (folder / "found.json").write_text('{"seconds": 1.5, "rows": [{"name": "a", "value": 0.25, "more": {}}]}')
    (folder / "notes.md").write_text("# What it is\n")
    (folder / "picture.png").write_bytes(b"png")
    found = results.pages(tmp_path)
    page = found["results/03-something-new.md"]
    assert page.startswith("# Something new\n")
    assert "| seconds | 1.5 |" in page
    assert "| a | 0.25 |" in page
    assert "\n## What it is\n" in page
    assert found["results/something-new-picture.png"] == b"png"
    assert "[Something new](03-something-new.md)" in found["results/index.md"]


def test_figures_of_runs_are_those_of_the_records() -> None:
    page = results.pages(ROOT)["results/01-runs.md"]
    summary = read_summary(next((ROOT / "results/mnist-0.1-cnn3-ibp").glob("*-complete.summary.json")))
    assert f"| {100 * summary.certified_accuracy:.2f} (" in page
