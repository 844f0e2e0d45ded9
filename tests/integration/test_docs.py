"""The documentation: everything on its pages runs, and what it shows is what comes out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tightrope as tr
from documentation import ROOT, blocks, follow, missing
from tightrope.cli import _console

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
    for name, file in zip(
        ("net.onnx", "property.vnnlib"), tr.export(trained, tmp_path / "export", vnnlib=1), strict=False
    ):
        file.rename(tmp_path / name)
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
