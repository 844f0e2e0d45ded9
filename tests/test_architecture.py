"""The rules of the house, read from the source: who imports whom, who prints, what a plug-in file looks like."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
from importlinter.cli import lint_imports
from torch import nn

import tightrope
from tightrope.core import registry
from tightrope.core.op import AffineOp, ElementwiseOp

ROOT = Path(__file__).parents[1]
SOURCE = Path(tightrope.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
PLUGINS = [(kind, name) for kind in registry.KINDS if (SOURCE / kind).is_dir() for name in registry.names(kind)]
ROLES = {"ops", "relaxations", "smoothers", "methods", "attacks"}

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
each_plugin = pytest.mark.parametrize(("kind", "name"), PLUGINS)


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def package(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0]


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a name or an attribute, "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(node: ast.AST) -> Iterator[tuple[str, int]]:
    for found in ast.walk(node):
        if isinstance(found, ast.Call):
            yield dotted(found.func), found.lineno


def imported(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Modules named by import statements anywhere below ``node``."""
    for found in ast.walk(node):
        if isinstance(found, ast.Import):
            yield from ((alias.name, found.lineno) for alias in found.names)
        elif isinstance(found, ast.ImportFrom):
            yield "." * found.level + (found.module or ""), found.lineno


def at_import_time(module: ast.Module) -> Iterator[ast.AST]:
    """Everything that runs when a module is imported: no function bodies, no annotations."""
    waiting: list[ast.AST] = list(module.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d)]
        elif isinstance(node, ast.AnnAssign):
            waiting += [node.value] if node.value else []
        elif not isinstance(node, ast.Lambda):
            waiting += ast.iter_child_nodes(node)


# ------------------------------------------------------------------------------------------------- imports


def test_import_contracts() -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True) == 0


def test_every_package_has_a_layer() -> None:
    """A package that no layer names would be free of the rules."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract for contract in config["contracts"] if contract["type"] == "layers")["layers"]
    named = {part.strip(" ()").removeprefix("tightrope.") for layer in layers for part in layer.split("|")}
    present = {package(file).removesuffix(".py") for file in FILES} - {"__init__", "_version", "__main__"}
    assert present <= named


@each_file
def test_own_package_is_imported_at_the_top_only(file: Path) -> None:
    """Imports inside functions hide cycles. Optional third-party packages are exempt."""
    inside = [
        f"{file.name}:{line} {name}"
        for function in ast.walk(tree(file))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for name, line in imported(function)
        if name.startswith((".", "tightrope"))
    ]
    assert not inside


@each_file
def test_imports_are_absolute(file: Path) -> None:
    assert not [name for name, _ in imported(tree(file)) if name.startswith(".")]


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


@pytest.mark.parametrize("module", ["tightrope", "tightrope.errors", "tightrope.core.registry", "tightrope.records"])
def test_importing_it_does_not_import_torch(module: str) -> None:
    assert run_python(f"import sys, {module}; print('torch' in sys.modules)") == "False"


def test_verify_starts_without_what_it_does_not_need() -> None:
    """Its time limit counts from the start of the program, and each of these costs a tenth of a second or more."""
    heavy = {"matplotlib", "scipy", "sklearn", "pooch", "pandas", "onnx", "onnxruntime", "torch._dynamo"}
    code = "import sys, tightrope.cli.main, tightrope.cli.verify, tightrope; tightrope.verify; print(*sys.modules)"
    assert not heavy.intersection(run_python(code).split())


def test_public_names_are_there_and_typed() -> None:
    """Every name is imported on first use, listed by ``dir``, and imported for type checkers as well."""
    for name in tightrope.__all__:
        assert getattr(tightrope, name) is not None
        assert name in dir(tightrope)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        tightrope.nothing_like_this  # noqa: B018
    block = next(n for n in tree(SOURCE / "__init__.py").body if isinstance(n, ast.If))
    typed = {alias.asname or alias.name for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert typed == set(tightrope.__all__) - {"__version__"}
    assert (SOURCE / "py.typed").is_file()


def test_relaxations_know_layers_by_their_facts_only() -> None:
    """Relaxations know layers by their facts: they neither import ops nor name one."""
    ops = {registry.find("ops", name).__name__ for name in registry.names("ops")}
    for file in (SOURCE / "relaxations").glob("*.py"):
        module = tree(file)
        assert not [name for name, _ in imported(module) if name.startswith("tightrope.ops")], file
        names = {node.id for node in ast.walk(module) if isinstance(node, ast.Name)}
        assert not names & ops, file


@pytest.mark.parametrize("kind", ["relaxations", "smoothers", "methods", "attacks", "verifiers", "core"])
def test_no_type_tests_on_concrete_ops(kind: str) -> None:
    """isinstance is for the families of facts (AffineOp, ElementwiseOp ...), never for one layer."""
    concrete = {registry.find("ops", name).__name__ for name in registry.names("ops")}
    for file in (SOURCE / kind).glob("*.py"):
        for call in ast.walk(tree(file)):
            if isinstance(call, ast.Call) and dotted(call.func) == "isinstance":
                tested = {n.id for n in ast.walk(call.args[1]) if isinstance(n, ast.Name)}
                assert not tested & concrete, f"{file.name}:{call.lineno}"


# ------------------------------------------------------------------------------------------------ behaviour


@each_file
def test_only_the_command_line_prints_or_exits(file: Path) -> None:
    if package(file) != "cli":
        forbidden = {"print", "exit", "quit", "sys.exit", "os._exit", "breakpoint"}
        assert not [found for found in calls(tree(file)) if found[0] in forbidden]


STATE = {
    "torch.manual_seed",
    "torch.set_default_dtype",
    "torch.set_default_device",
    "torch.set_num_threads",
    "torch.set_default_tensor_type",
    "torch.use_deterministic_algorithms",
    "torch.device",
    "torch.tensor",
    "torch.zeros",
    "torch.ones",
    "torch.Generator",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
}


@each_file
def test_no_device_dtype_or_seed_at_import_time(file: Path) -> None:
    """Importing a module creates no tensor and changes no global setting; the global seed is never set at all."""
    executed = {dotted(n.func) for n in at_import_time(tree(file)) if isinstance(n, ast.Call)}
    assert not executed & STATE
    seeding = {"torch.manual_seed", "torch.set_default_dtype", "torch.set_default_device"}
    anywhere = {name for name, _ in calls(tree(file))}
    assert not anywhere & (seeding | {"np.random.seed", "numpy.random.seed", "random.seed"})


HIDDEN_RANDOMNESS = {"rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "randperm", "bernoulli"}


@each_file
def test_randomness_comes_from_a_generator(file: Path) -> None:
    """No call of torch.rand and its like without ``generator``: a draw from global state depends on who drew before."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call) and dotted(node.func) in {f"torch.{name}" for name in HIDDEN_RANDOMNESS}:
            assert "generator" in {keyword.arg for keyword in node.keywords}, f"{file.name}:{node.lineno}"


@pytest.mark.parametrize("kind", ["core", "ops", "relaxations", "methods", "attacks"])
def test_numerical_code_reads_no_tensor_back(kind: str) -> None:
    """``.item()``, ``.tolist()`` and ``.numpy()`` break graphs and vmap. A fingerprint has to read, and so has what
    chooses the neurons that are worth a proof."""
    readers = {SOURCE / "core" / "digest.py", SOURCE / "relaxations" / "_choice.py"}
    for file in set((SOURCE / kind).glob("*.py")) - readers:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in {"item", "tolist", "numpy"}, f"{file.name}:{node.lineno}"


@each_file
def test_no_hasattr_and_no_bare_except(file: Path) -> None:
    module = tree(file)
    assert not [found for found in calls(module) if found[0] == "hasattr"]
    assert not [n.lineno for n in ast.walk(module) if isinstance(n, ast.ExceptHandler) and n.type is None]


# ------------------------------------------------------------------------------------------------- plug-ins


def public_members(kind: str, name: str) -> dict[str, Any]:
    module = importlib.import_module(f"{registry._package(kind)}.{name}")
    found = inspect.getmembers(module, lambda v: inspect.isclass(v) or inspect.isfunction(v))
    return {key: v for key, v in found if v.__module__ == module.__name__ and not key.startswith("_")}


@each_plugin
def test_a_plugin_file_has_one_public_class(kind: str, name: str) -> None:
    classes = [value for value in public_members(kind, name).values() if inspect.isclass(value)]
    assert classes == [registry.find(kind, name)]


@pytest.mark.parametrize(("kind", "name"), [plugin for plugin in PLUGINS if plugin[0] in ROLES])
def test_a_plugin_is_a_frozen_dataclass(kind: str, name: str) -> None:
    cls = registry.find(kind, name)
    assert is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", registry.names("models"))
def test_a_model_is_a_plain_module(name: str) -> None:
    assert issubclass(registry.find("models", name), nn.Module)


@pytest.mark.parametrize("name", registry.names("ops"))
def test_an_op_belongs_to_one_family_of_facts(name: str) -> None:
    cls = registry.find("ops", name)
    assert issubclass(cls, AffineOp) != issubclass(cls, ElementwiseOp)
    assert cls.kind == ("affine" if issubclass(cls, AffineOp) else "elementwise")


@each_plugin
def test_public_classes_and_functions_are_documented(kind: str, name: str) -> None:
    for key, value in public_members(kind, name).items():
        own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
        assert own, key
        assert not own.startswith(f"{key}("), f"{key} has the docstring that dataclass made up"
    assert importlib.import_module(f"{registry._package(kind)}.{name}").__doc__


@pytest.mark.parametrize(("kind", "name"), [p for p in PLUGINS if p[0] in {"relaxations", "smoothers", "attacks"}])
def test_plugins_name_their_source(kind: str, name: str) -> None:
    """The paper and place that a formula comes from; the plain gradient needs none."""
    if (kind, name) != ("smoothers", "none"):
        assert "Source:" in inspect.getdoc(registry.find(kind, name))  # type: ignore[operator]


@each_plugin
def test_no_inheritance_between_plugins(kind: str, name: str) -> None:
    others = {registry.find(*plugin) for plugin in PLUGINS} - {registry.find(kind, name)}
    assert not others & set(registry.find(kind, name).__mro__)


@each_file
def test_modules_are_documented(file: Path) -> None:
    assert file.name == "_version.py" or ast.get_docstring(tree(file))


@each_file
def test_files_stay_readable(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 500
