"""Presets and suites, with their files."""

from __future__ import annotations

from pathlib import Path

from docs.generate.markdown import page, table

from tightrope.experiments.load import families, load_config, single_presets
from tightrope.experiments.suite import cells, load_suite, suites

INTRODUCTION = """\
`tightrope train PRESET` trains one, `tightrope list presets` lists them. The recipes for `cnn7` are those that
CTBench published ([arXiv 2406.04848](https://arxiv.org/abs/2406.04848)); those of the smaller networks are the same
with what the files say."""

FAMILIES = """\
A family is `FAMILY/NETWORK-METHOD`, such as `cifar10-2-255/cnn7-sabr`: each of its networks with each of its
methods. Its file has the settings of `all`, then of `networks.NETWORK`, then of `methods.METHOD`, then of
`only.NETWORK-METHOD`."""


def pages(root: Path) -> dict[str, str]:
    """``reference/presets.md``."""
    columns = ["preset", "network", "data", "eps", "method", "smoother", "epochs"]
    single = table(columns, [_row(name) for name in single_presets()])
    found = [part for family in sorted(families()) for part in _family(root, family)]
    kinds = [part for suite in suites() for part in _suite(root, suite)]
    text = "`tightrope experiment NAME --size SIZE` trains, certifies and compares all cells of a suite."
    parts = ["## Single presets", single, "## Families", FAMILIES, *found, "## Suites", text, *kinds]
    return {"reference/presets.md": page("Presets and suites", INTRODUCTION, *parts)}


def _row(name: str) -> list[str]:
    config = load_config(name)[1]
    method = " ".join([config.method.name, *(f"{value}" for value in config.method.options.values())])
    return [
        f"`{name}`",
        config.model.name,
        config.data.name,
        str(config.eps.target),
        method,
        config.smoother.name,
        str(config.train.epochs),
    ]


def _family(root: Path, name: str) -> list[str]:
    networks, methods = families()[name]
    config = load_config(f"{name}/{networks[0]}-{methods[0]}")[1]
    text = f"{config.data.name}, eps {config.eps.target}: networks {_code(networks)}; methods {_code(methods)}."
    return [f"### {name}", text, _file(root / f"src/tightrope/experiments/presets/{name}.toml")]


def _suite(root: Path, name: str) -> list[str]:
    suite = load_suite(name)
    text = f"{len(list(cells(suite)))} networks, seeds {suite.seeds}."
    return [f"### {name}", text, _file(root / f"src/tightrope/experiments/suites/{name}.toml")]


def _file(path: Path) -> str:
    body = "\n".join(f"    {line}" for line in path.read_text(encoding="utf-8").splitlines())
    return f'??? note "{path.name}"\n\n    ```toml\n{body}\n    ```'


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
