"""What the repository says of itself, compared with itself: pins, packages, docs, tooling."""

from __future__ import annotations

import inspect
import itertools
import re
import tomllib
from pathlib import Path

import click
import msgspec
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dsv4_aot.generator.cli.app import COMMANDS, app
from dsv4_aot.runtime import expr, schema

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
MAKEFILE = (ROOT / "Makefile").read_text()
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


# Pins -------------------------------------------------------------------------------------------


def test_constraints_are_exact_sorted_and_canonical() -> None:
    names = list(pins())
    assert names == sorted(names)
    assert names == [canonicalize_name(name) for name in names]
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins().values())


def test_constraints_pin_what_the_project_asks_for() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    asked += [text for texts in extras.values() for text in texts]
    for requirement in map(Requirement, asked):
        pinned = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement}, pinned {pinned}"


def test_runtime_dependencies_are_two() -> None:
    names = {Requirement(text).name for text in PROJECT["project"]["dependencies"]}
    assert names == {"cuda-bindings", "msgspec"}


# Packages ---------------------------------------------------------------------------------------


def test_packages_are_the_folders() -> None:
    """Written out in pyproject.toml, since folders map to a namespace package."""
    declared = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {"generator", "integrations", "runtime", "templates"}
    found = {
        "dsv4_aot." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in folders
        for path in (ROOT / folder).rglob("__init__.py")
    }
    kernels = {name for name in found if name.startswith("dsv4_aot.templates.")}
    assert found - kernels == declared
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {f"dsv4_aot.{f}": f for f in folders}


def test_type_checker_sees_the_folders() -> None:
    links = {link.name: link for link in (ROOT / ".typing/dsv4_aot").iterdir()}
    assert links.keys() == {"generator", "integrations", "runtime", "templates"}
    for name, link in links.items():
        assert link.is_symlink() and link.resolve() == ROOT / name


def test_no_module_is_two() -> None:
    for folder in ("generator", "integrations", "runtime", "templates", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = len(path.read_text().splitlines())
            assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines"


def test_every_ignored_lint_rule_has_a_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start, end = lines.index("ignore = ["), lines.index("]", lines.index("ignore = ["))
    block = lines[start + 1 : end]
    assert block[0].lstrip().startswith("#")
    for above, line in itertools.pairwise(block):
        if not line.lstrip().startswith("#"):
            assert above.lstrip().startswith("#"), f"no reason above {line.strip()}"


# Docs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_in_the_docs_exist(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"(?:^    |`)make (?:[A-Z]+=\S+ )*([a-z-]+)", text, re.MULTILINE):
        assert target in MAKE_TARGETS, f"make {target}"
    for line in re.findall(r"(?:^    |`)dsv4-aot ([^`\n]+)", text, re.MULTILINE):
        name, *words = line.split()
        assert name in COMMANDS, f"dsv4-aot {name}"
        command = app.get_command(click.Context(app), name)
        assert command is not None
        known = {flag for param in command.params for flag in param.opts}
        for flag in (word for word in words if word.startswith("--")):
            assert name == "bench" or flag in known, f"dsv4-aot {name} {flag}"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_in_the_docs_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if not link.startswith("https://"):
            assert (path.parent / link).exists(), link


def test_architecture_lists_every_command() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    assert set(re.findall(r"^\| `dsv4-aot ([a-z]+)`", text, re.MULTILINE)) == set(COMMANDS)


def test_architecture_has_the_order_of_imports() -> None:
    """Every module stands in the page's order, and nothing else does."""
    text = (ROOT / "docs/architecture.md").read_text()
    order = re.search(r"^    runtime  .*?\n\n", text, re.MULTILINE | re.DOTALL)
    assert order is not None
    stages = re.sub(r" {2,}[a-z][A-Za-z ,]*$", "", order[0], flags=re.MULTILINE)
    named = set(re.findall(r"[a-z_]+", stages)) - {"runtime", "generator", "integrations"}
    found = {
        path.stem if path.is_file() else path.name
        for folder in ("runtime", "generator", "integrations")
        for path in (ROOT / folder).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert named == found - {"__init__"} | {"templates"}


def test_manifest_page_has_every_field() -> None:
    text = (ROOT / "docs/manifest.md").read_text()
    structs = [
        value
        for module in (schema, expr)
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, msgspec.Struct)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    assert schema.Manifest in structs and expr.Apply in structs
    for struct in structs:
        for name in struct.__struct_fields__:
            assert re.search(rf'`[^`\n]*\b{name}\b[^`\n]*`|"{name}"', text), (
                f"{struct.__name__}.{name}"
            )
        tag = struct.__struct_config__.tag
        assert tag is None or re.search(rf'[`" ]{tag}[`",]', text), f"{struct.__name__}: {tag}"


def test_help_of_make_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    documented = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    assert phony is not None and documented == set(phony[1].split()) == MAKE_TARGETS


def test_ci_runs_what_a_newcomer_runs() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert {"lint", "build", "test"} <= set(re.findall(r"^make ([a-z-]+)", script, re.MULTILINE))
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
