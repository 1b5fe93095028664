"""The runtime's wheel, and an artifact wheel beside it in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
import zlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dsv4_aot.generator.wheel import write_wheel

if TYPE_CHECKING:
    from tests.conftest import Sample

ROOT = Path(__file__).parents[2]
FOLDERS = ("generator", "integrations", "runtime", "templates")
DEPENDENCIES = ("cuda-bindings", "cuda-pathfinder", "msgspec")
MOST_BYTES = 12_000_000


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    return subprocess.run(
        command, cwd=cwd, env=os.environ | env, check=True, capture_output=True, text=True
    ).stdout


def shipped() -> set[str]:
    """What the folders hold for the wheel: Python, kernel templates, headers, the type marker."""
    return {
        f"dsv4_aot/{path.relative_to(ROOT)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and (
            path.suffix == ".py"
            or path.name == "py.typed"
            or (folder == "templates" and path.suffix in {".j2", ".cuh"})
        )
    }


@pytest.fixture(scope="module")
def runtime_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a release is: source archive first, wheel from it. The checkout stays clean."""
    work = tmp_path_factory.mktemp("runtime")
    tree = work / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in (*FOLDERS, "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; print(build_meta.build_{}('{}'))"
    run(sys.executable, "-c", build.format("sdist", work), cwd=tree)
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(work, filter="data")
    unpacked = work / archive.name.removesuffix(".tar.gz")
    run(sys.executable, "-c", build.format("wheel", work), cwd=unpacked)
    (wheel,) = work.glob("*.whl")
    return wheel


def test_runtime_wheel_holds_the_four_packages_and_nothing_else(runtime_wheel: Path) -> None:
    names = set(zipfile.ZipFile(runtime_wheel).namelist())
    info = f"dsv4_aot-{metadata.version('dsv4-aot')}.dist-info"
    assert {name for name in names if not name.startswith(info)} == shipped()
    assert {name.removeprefix(f"{info}/") for name in names if name.startswith(info)} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    }


def deflated(distribution: str) -> int:
    """About the bytes of a distribution's wheel: its files, deflated one by one."""
    files = metadata.files(distribution) or []
    bodies = (Path(str(file.locate())).read_bytes() for file in files if file.suffix != ".pyc")
    return sum(len(zlib.compress(body, 6)) for body in bodies)


def requirements(distribution: str) -> set[str]:
    """Names that a distribution needs without extras, and those that they need."""
    found: set[str] = set()
    for requirement in metadata.requires(distribution) or []:
        if "extra ==" not in requirement:
            name = requirement.split(">")[0].split("=")[0].split("<")[0].strip()
            found |= {name} | requirements(name)
    return found


def test_a_deployment_stays_small(runtime_wheel: Path) -> None:
    assert requirements("dsv4-aot") == set(DEPENDENCIES)
    size = runtime_wheel.stat().st_size + sum(map(deflated, DEPENDENCIES))
    assert size < MOST_BYTES, f"{size} bytes"


@pytest.fixture(scope="module")
def deployment(
    runtime_wheel: Path, sample: Sample, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The Python of an environment with both wheels, installed by pip, and the dependencies."""
    root = tmp_path_factory.mktemp("deployment")
    venv.create(root / "venv", with_pip=True, symlinks=True)
    python = root / "venv" / "bin" / "python"
    site = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=root
        ).strip()
    )
    for distribution in DEPENDENCIES:  # as pip left them here; the test needs no network
        for file in metadata.files(distribution) or []:
            if ".." not in file.parts and file.suffix != ".pyc":
                place = site / file
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), place)
    wheel = write_wheel(sample.folder, root)
    run(
        python, "-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check",
        runtime_wheel, wheel, cwd=root,
    )  # fmt: skip
    return python


def test_both_wheels_install_and_the_runtime_lists_the_artifacts(
    deployment: Path, sample: Sample, tmp_path: Path
) -> None:
    """Pip resolves `Requires-Dist` here: an unmet one would have failed the installation."""
    script = """
import json, sys
from dsv4_aot import runtime
listed = [(l.kernel, l.target, l.choices, l.sha256, l.origin) for l in runtime.catalog()]
compilers = {"torch", "cutlass", "jinja2", "click", "cuda.core", "cuda.bindings.nvrtc"}
print(json.dumps([listed, sorted(compilers & sys.modules.keys()), runtime.__file__]))
"""
    answer = run(deployment, "-I", "-c", script, cwd=tmp_path, DSV4_AOT_ARTIFACTS="")
    listed, compilers, file = json.loads(answer)
    origin = f"dsv4-aot-sm90a {sample.manifest.version}"
    assert listed == [
        ["scale", "sm_90a", dict(entry.choices), entry.sha256, origin]
        for entry in sample.manifest.kernels[0].entries
    ]
    assert compilers == []
    assert Path(file).is_relative_to(deployment.parents[1])


def test_what_was_installed_is_whole(deployment: Path, sample: Sample) -> None:
    (folder,) = deployment.parents[1].glob("lib/python*/site-packages/dsv4_aot/artifacts/sm_90a")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in sample.folder.iterdir()
    }
