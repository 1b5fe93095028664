"""Imports point one way, from the ground up, and each outside package has its place."""

from __future__ import annotations

import ast
import graphlib
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TREES = ("runtime", "generator", "templates", "integrations")

ORDER = """
runtime.errors
runtime.target
runtime.abi
runtime.expr
runtime.schema
runtime.consistency
runtime.manifest
runtime.resolve runtime.driver runtime.audit
runtime.load runtime.packet runtime.stream runtime.tensor
runtime.scope runtime.wording
runtime.conditions runtime.geometry
runtime.bind
runtime.kernel
runtime.library
runtime
generator.spec
templates
generator.discover
generator.expand
generator.toolchain generator.cuda_elf generator.publish
generator.render generator.inspect
generator.key generator.compile generator.policy
generator.store
generator.build
generator.lock generator.records generator.coverage generator.verify generator.gpu generator.trial
generator.pack generator.wheel generator.validate generator.diff
generator.cli
integrations
"""
"""A line may import the lines above it. A folder's name stands for the folder's modules."""

INTEGRATIONS = ("integrations.sparse_prefill",)
"""Integrations that are packages; no integration imports another."""

LAZY = {
    # Importing the runtime does no work; only a launch needs the driver's bindings.
    ("runtime.driver", "cuda.bindings"),
    # Only now can a missing package be told in one line.
    ("generator.cli", "dsv4_aot.generator.cli.app"),
    # A quarter of what a start of the command line would import, and few runs need either.
    ("generator.cli.console", "rich.progress"),
    ("generator.cuda_elf", "elftools"),
    # Validation needs torch, the other commands do not.
    ("generator.cli.hardware", "dsv4_aot.generator.validate"),
    # Importing an integration does nothing; a registration says in one line what is missing.
    ("integrations.torch_ops", "torch"),
}
"""The only imports inside functions, with their reasons."""

PLACES = {
    "cutlass": {"generator.compile.cute"},
    "cuda": {"runtime.driver", "generator.compile.nvrtc"},
    "jinja2": {"generator.render"},
    "elftools": {"generator.cuda_elf"},
    "platformdirs": {"generator.store"},
    "click": {"generator.cli"},
    "rich": {"generator.cli"},
}
"""Where a package may be imported; a folder's name stands for the folder's modules."""

RUNTIME_NEEDS = {"cuda.bindings", "msgspec", "dsv4_aot.runtime"}


@dataclass(frozen=True)
class Import:
    """``module`` imports ``name``, an absolute dotted name, at ``line``."""

    module: str
    name: str
    line: int
    in_function: bool


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its name below ``dsv4_aot``."""
    found = {}
    for tree in TREES:
        for path in sorted((REPOSITORY / tree).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for name, path in modules().items() for found in _imports(name, path))


def _imports(module: str, path: Path) -> Iterator[Import]:
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, functions)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1]
            base = ["dsv4_aot", *up] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [".".join((*base, alias.name)) for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(module, name, node.lineno, id(node) in inside)


def own(name: str) -> str | None:
    """The project's module that an imported name lies in."""
    head, _, rest = name.partition(".")
    if head != "dsv4_aot":
        return None
    while rest and rest not in modules():
        rest = rest.rpartition(".")[0]
    return rest


def within(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


@cache
def rank(module: str) -> int:
    lines = [line.split() for line in ORDER.split("\n") if line]
    fitting = [
        (len(place), number)
        for number, places in enumerate(lines)
        for place in places
        if module == place or (place != "runtime" and within(module, place))
    ]
    assert fitting, f"{module} is a new module: give it its place in ORDER"
    return max(fitting)[1]


def test_imports_point_one_way() -> None:
    wrong = []
    for found in imports():
        target = own(found.name)
        if target is None or _one_place(found.module, target):
            continue
        if rank(target) >= rank(found.module):
            wrong.append(f"{found.module}:{found.line} imports {target}")
    assert not wrong


def _one_place(module: str, target: str) -> bool:
    """Modules of one kernel, and of a package that is one stage, may import each other."""
    return any(
        within(module, place) and within(target, place)
        for place in ("generator.compile", "generator.cli", "templates", *INTEGRATIONS)
    )


def test_integrations_see_the_runtime_alone() -> None:
    """And nothing sees them: serving has no generator, and a launch no framework."""
    pairs = {(found.module, own(found.name)) for found in imports() if own(found.name)}
    seen = {
        target
        for module, target in pairs
        if within(module, "integrations") and not _one_place(module, str(target))
    }
    assert "runtime.library" in seen
    assert not {t for t in seen if not within(str(t), "runtime") and t != "integrations"}
    assert not [
        p
        for p in pairs
        if within(str(p[1]), "integrations")
        and not within(p[0], str(p[1]))
        and not _one_place(p[0], str(p[1]))
    ]


def test_every_module_has_its_place() -> None:
    assert all(rank(module) >= 0 for module in modules() if module != "generator")


def test_no_two_modules_need_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for found in imports():
        target = own(found.name)
        if target not in {None, "", found.module}:
            graph.setdefault(found.module, set()).add(str(target))
    graphlib.TopologicalSorter(graph).prepare()


def test_every_own_import_exists() -> None:
    assert not [found for found in imports() if own(found.name) == ""]


def test_imports_inside_functions_have_their_reasons() -> None:
    lazy = {
        (found.module, found.name)
        for found in imports()
        if found.in_function and not within(found.module, "templates")
    }
    unexplained = {
        (module, name)
        for module, name in lazy
        if not any(module == m and within(name, n) for m, n in LAZY)
    }
    assert not unexplained
    unused = {(m, n) for m, n in LAZY if not any(m == a and within(b, n) for a, b in lazy)}
    assert not unused


def test_runtime_needs_two_packages() -> None:
    outside = {
        (found.module, found.name)
        for found in imports()
        if within(found.module, "runtime")
        and found.name.partition(".")[0] not in sys.stdlib_module_names
        and not any(within(found.name, allowed) for allowed in RUNTIME_NEEDS)
    }
    assert not outside


@pytest.mark.parametrize("package", PLACES)
def test_packages_keep_to_their_places(package: str) -> None:
    users = {
        found.module
        for found in imports()
        if within(found.name, package) and not within(found.module, "templates")
    }
    assert users
    assert not {user for user in users if not any(within(user, place) for place in PLACES[package])}


def test_specs_are_read_without_torch_and_compilers() -> None:
    heavy = {"torch", "cutlass", "cuda", "triton", "numpy"}
    assert not [
        found
        for found in imports()
        if within(found.module, "templates")
        and found.module.endswith(".kernel")
        and found.name.partition(".")[0] in heavy
    ]


def test_packages_are_the_folders() -> None:
    setup = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        ".".join(("dsv4_aot", *path.parent.relative_to(REPOSITORY).parts))
        for tree in TREES
        for path in (REPOSITORY / tree).rglob("__init__.py")
        if "_shared" not in path.parts
    }
    assert sorted(setup["packages"]) == sorted(folders)
    assert setup["package-dir"] == {f"dsv4_aot.{tree}": tree for tree in TREES}
