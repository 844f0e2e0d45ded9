"""The guides that add something, followed to the letter: files are put where they say, and everything else is run."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tightrope.core import registry

GUIDES = sorted((Path(__file__).parents[2] / "docs" / "how-to").glob("add-a-*.md"))
HOME = re.compile(r"# src/tightrope/(\w+)/(\w+)\.py\n")


def blocks(guide: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)


@pytest.fixture
def package_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose subfolders count as parts of the package's own; forgotten afterwards."""
    before, threads = set(sys.modules), torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    for kind in ("methods", "relaxations", "smoothers", "ops", "data", "models"):
        package = importlib.import_module(f"tightrope.{kind}")
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / kind)])
    yield tmp_path
    torch.set_num_threads(threads)
    registry.find.cache_clear()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_following_it_works(guide: Path, package_copy: Path) -> None:
    found = blocks(guide)
    assert len(found) >= 2
    for code in found:
        if home := HOME.match(code):
            kind, name = home.groups()
            (package_copy / kind / f"{name}.py").write_text(code)
            importlib.invalidate_caches()
        else:
            exec(compile(code, guide.name, "exec"), {})


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_what_it_adds_is_new_and_the_tests_it_names_exist(guide: Path) -> None:
    (kind, name), *others = [home.groups() for code in blocks(guide) if (home := HOME.match(code))]
    assert not others
    assert name not in registry.names({"data": "datasets"}.get(kind, kind))
    (path,) = re.findall(r"pytest (\S+)", guide.read_text())
    assert (GUIDES[0].parents[2] / path).is_file()
    assert name in guide.read_text().rpartition("-k ")[2]


def test_every_kind_that_users_add_has_one() -> None:
    assert {path.stem for path in GUIDES} >= {
        f"add-a-{kind}" for kind in ("method", "relaxation", "smoother", "layer", "dataset", "model")
    }
