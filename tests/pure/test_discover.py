"""Kernel folders: found by name, read as they are now, refused when they contradict themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv4_aot.generator.discover import ROOT, discover
from dsv4_aot.generator.expand import expand
from dsv4_aot.runtime.errors import SpecError
from dsv4_aot.runtime.target import Target

SPEC = """
from dsv4_aot.generator.spec import (
    CudaSource, KernelSpec, bound, launch, pointer, rule, tensor, tuned,
)
from dsv4_aot.runtime.expr import numel, size

KERNEL = KernelSpec(
    name="copy",
    summary="copies",
    arguments=[tensor("x", "uint8", [None])],
    axes=[bound("wide", [1, 2], numel("x")), tuned("threads", [128])],
    rules=[rule(threads=128)],
    params=[pointer("x")],
    launch=lambda choices: launch([1], choices["threads"]),
    source=CudaSource(entry="copy"),
)
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a kernel folder and gives the folder of templates it is in."""

    def folder(spec: str = SPEC, name: str = "copy") -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "kernel.py").write_text(spec)
        return tmp_path

    return folder


def test_own_templates_are_consistent() -> None:
    kernels = discover()
    assert list(kernels) == sorted(kernels)
    for name, folder in kernels.items():
        assert folder.path == ROOT / name
        for target in ("sm_90a", "sm_100a"):
            assert expand(folder, Target.parse(target))


def test_only_folders_of_kernels_count(write: Write) -> None:
    root = write()
    (root / "_shared").mkdir()
    (root / ".git").mkdir()
    (root / "removed" / "__pycache__").mkdir(parents=True)
    (root / "__init__.py").touch()
    assert list(discover(root)) == ["copy"]


def test_folder_is_read_as_it_is_now(write: Write) -> None:
    assert discover(write())["copy"].spec.summary == "copies"
    root = write(SPEC.replace('"copies"', '"copies a good deal"'))
    assert discover(root)["copy"].spec.summary == "copies a good deal"


def test_two_roots_do_not_mix(write: Write, tmp_path: Path) -> None:
    first = discover(write())["copy"]
    other = Path(shutil.copytree(tmp_path / "copy", tmp_path / "other" / "copy")).parent
    (other / "copy" / "cases.py").write_text("def cases():\n    return ['other']\n")
    (tmp_path / "copy" / "cases.py").write_text("def cases():\n    return ['first']\n")
    second = discover(other)["copy"]
    assert (first.cases(), second.cases()) == (["first"], ["other"])


def test_modules_beside_the_spec_load_on_demand(write: Write) -> None:
    root = write()
    folder = discover(root)["copy"]
    assert folder.peers() == {}
    with pytest.raises(SpecError, match=r"copy has no reference\.py"):
        folder.reference()
    (root / "copy" / "reference.py").write_text("def reference(x):\n    return x + 1\n")
    assert folder.reference()(1) == 2


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name="copy"', 'name="paste"', "the spec is named 'paste', its folder 'copy'"),
        ("KERNEL =", "KERNELS =", r"declares no KERNEL = KernelSpec\(\.\.\.\)"),
        ("import numel, size", "import nonesuch", "does not import: ImportError"),
        ('numel("x"))', 'size("y", 0))', "no tensor argument 'y'"),
        ('tensor("x"', 'tensor("stream"', "no argument may be named 'stream'"),
        ('tensor("x"', 'tensor("X"', "does not fit the manifest's schema"),
        ("[1, 2]", '["a,b"]', "write 'a,b' with letters"),
        ("rules=[rule(threads=128)]", "rules=[rule(warps=4)]", r"a rule chooses \['warps'\]"),
        ("rule(threads=128)", "rule(threads=64)", r"threads=\[64\] is not among the values"),
    ],
)
def test_contradictions_are_refused(write: Write, old: str, new: str, problem: str) -> None:
    assert old in SPEC
    with pytest.raises(SpecError, match=f"^copy: .*{problem}"):
        discover(write(SPEC.replace(old, new)))


def test_folder_without_spec_is_refused(write: Write) -> None:
    root = write()
    (root / "draft").mkdir()
    (root / "draft" / "device.py").touch()
    with pytest.raises(SpecError, match=r"draft has no kernel\.py"):
        discover(root)


def test_root_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no templates folder"):
        discover(tmp_path / "nowhere")


def test_installed_templates_are_found(tmp_path: Path, write: Write) -> None:
    """As a wheel lays them out: no checkout, no editable finder, only folders on the path."""
    installed = tmp_path / "site" / "dsv4_aot"
    for part in ("runtime", "generator"):
        shutil.copytree(ROOT.parent / part, installed / part)
    shutil.copytree(write() / "copy", installed / "templates" / "copy")
    shutil.copy(ROOT / "__init__.py", installed / "templates")
    program = (
        "from dsv4_aot.generator.discover import discover\n"
        "print(*[folder.path for folder in discover().values()])"
    )
    packages = [str(installed.parent), sysconfig.get_paths()["purelib"]]
    run = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path += {packages}\n{program}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={},
    )
    assert run.stdout.strip() == str(installed / "templates" / "copy")
