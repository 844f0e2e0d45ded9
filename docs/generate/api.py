"""The Python reference: a page for what ``import tightrope as tr`` offers, and one for each package."""

from __future__ import annotations

from pathlib import Path

from docs.generate.markdown import page

import tightrope as tr

PACKAGES = {
    "core": "Graph, weights, boxes, properties, noise",
    "ops": "Layers",
    "relaxations": "Relaxations",
    "smoothers": "Smoothers",
    "methods": "Training methods",
    "schedules": "Schedules",
    "models": "Architectures",
    "data": "Datasets",
    "attacks": "Attacks",
    "verifiers": "Verifiers",
    "verifiers.branching": "Branching",
    "auditor": "The auditor",
    "frontend": "Modules, ONNX, VNN-LIB",
    "training": "The training loop",
    "runtime": "Processes, memory, plans",
    "evaluation": "Certification",
    "experiments": "Settings, runs, experiments",
    "reports": "Tables and figures",
    "records": "Records",
    "errors": "Errors",
}
"""In the order of the reference. A package that is not here is a problem of the build."""


def pages(root: Path) -> dict[str, str]:
    """``reference/api/*.md``."""
    source = root / "src/tightrope"
    _check(source)
    found = {"reference/api/index.md": _public()}
    for number, (name, title) in enumerate(PACKAGES.items(), 1):
        found[f"reference/api/{number:02}-{name.replace('.', '-')}.md"] = _package(source, name, title)
    return found


def _check(source: Path) -> None:
    there = {path.parent.name for path in source.glob("*/__init__.py")} - {"cli"}
    if missing := there - set(PACKAGES):
        raise LookupError(f"docs/generate/api.py does not know the packages {', '.join(sorted(missing))}")


def _public() -> str:
    parts = [
        "Everything that a user needs, imported on first use. What of it is promised to stay: "
        "[stability](../stability.md)."
    ]
    for name in tr.__all__:
        if name != "__version__":
            value = getattr(tr, name)
            parts.append(_object(f"{value.__module__}.{value.__qualname__}", f"tr.{name}"))
    return page("import tightrope as tr", *parts)


def _package(source: Path, name: str, title: str) -> str:
    path = source / name.replace(".", "/")
    modules = [name] if path.with_suffix(".py").is_file() else [f"{name}.{stem}" for stem in _stems(path)]
    return page(f"{title} (`{name}`)", *(f"::: tightrope.{module}" for module in modules))


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def _object(identifier: str, heading: str) -> str:
    return f"::: {identifier}\n    options: {{heading: {heading}, toc_label: {heading}, skip_local_inventory: true}}"
