"""A CuTe DSL kernel gives the same bytes first or last, alone or among others, here or there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dsv4_aot.generator.inspect import inspect_cubin
from dsv4_aot.runtime.errors import CompileError, ToolchainError
from dsv4_aot.runtime.target import Target

if TYPE_CHECKING:
    from conftest import Tiny

PLAIN, STAGED = (f"tiny_cute/sm_90a/staged={staged},threads=128" for staged in ("false", "true"))


@pytest.mark.parametrize("target", ["sm_90a", "sm_100a", "sm_100f", "sm_103a", "sm_120a"])
def test_compiles_for_every_target(tiny: Tiny, target: str) -> None:
    made = tiny.compiled(STAGED.replace("sm_90a", target))
    facts = inspect_cubin(made.cubin, "tiny_cute_0")
    assert facts.sm == Target.parse(target).sm
    assert [(slot.offset, slot.size) for slot in facts.slots] == [(0, 8), (8, 4)]
    assert made.ptx is not None
    assert f".target {target}" in made.ptx


def test_dynamic_shared_memory_is_what_the_launch_would_ask_for(tiny: Tiny) -> None:
    assert tiny.compiled(PLAIN).shared == 0
    assert tiny.compiled(STAGED).shared == 4 * 128


def test_more_shared_memory_than_allocated_may_be_asked_for(tiny: Tiny) -> None:
    tiny.edit("tiny_cute/device.py", "block=[threads, 1, 1]", "block=[threads], smem=4096")
    assert tiny.compiled(STAGED).shared == 4096


PROGRAM = """
import sys, json, hashlib
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from typing import TYPE_CHECKING
from conftest import Tiny
tiny, digests = Tiny(Path(sys.argv[2])), {}
for key in sys.argv[3:]:
    digest = hashlib.sha256(tiny.compiled(key).cubin).hexdigest()
    assert digests.setdefault(key, digest) == digest
print(json.dumps(digests))
"""


def test_bytes_do_not_depend_on_order_folder_user_or_hash_seed(tiny: Tiny, tmp_path: Path) -> None:
    keys = [key.replace("sm_90a", sm) for sm in ("sm_90a", "sm_100a") for key in (PLAIN, STAGED)]
    moved = tiny.root.rename(tmp_path / "somewhere")
    orders = (
        (keys, "1", "ann"),
        (keys[::-1] * 2, "2", "bob"),
        (keys[2:3], "3", "ann"),
    )
    seen: dict[str, str] = {}
    for number, (order, seed, user) in enumerate(orders):
        home = tmp_path / str(number)
        home.mkdir()
        moved = moved.rename(home / "templates")
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, Path(__file__).parent, moved, *order],
            check=True,
            capture_output=True,
            text=True,
            cwd=home,
            env={
                "PYTHONHASHSEED": seed,
                "USER": user,
                "HOME": str(home),
                "TMPDIR": str(home),
                "PATH": os.environ["PATH"],
            },
        )
        for key, digest in json.loads(run.stdout).items():
            assert seen.setdefault(key, digest) == digest
    assert len(seen) == 4
    assert len(set(seen.values())) == 4


def test_edited_module_is_compiled_as_it_is_now(tiny: Tiny) -> None:
    """Same size, same second: compiled Python from before would pass for it."""
    before = tiny.compiled(STAGED).cubin
    tiny.edit("_shared/tiny.py", "1.0", "2.0")
    after = tiny.compiled(STAGED).cubin
    assert after != before
    tiny.edit("_shared/tiny.py", "2.0", "1.0")
    assert tiny.compiled(STAGED).cubin == before
    assert not list(tiny.root.glob("tiny_cute/__pycache__/device*"))


def test_environment_does_not_reach_the_compiler(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny.compiled(STAGED).cubin
    monkeypatch.setenv("CUTE_DSL_LINEINFO", "1")
    monkeypatch.setenv("CUTE_DSL_ARCH", "sm_80")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, Path(__file__).parent, tiny.root, STAGED],
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(run.stdout) == {STAGED: hashlib.sha256(plain).hexdigest()}


def test_nothing_is_left_behind(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before, path = dict(os.environ), list(sys.path)
    tiny.compiled(STAGED)
    assert list(here.iterdir()) == []
    assert Path.cwd() == here
    assert (dict(os.environ), list(sys.path)) == (before, path)
    assert not [name for name in sys.modules if name.startswith("dsv4_aot_device")]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("values[i] + BUMP", "values[i] + missing", "missing"),
        ("def build(", "def make(", r"tiny_cute/device\.py has no function build\(choices\)"),
        ("import cutlass.memory", "import cutlass.nonesuch", "No module named 'cutlass.nonesuch'"),
        ("[threads, 1, 1]", "[threads], smem=n", "shared memory depends on arguments"),
    ],
)
def test_errors_name_the_cause(
    tiny: Tiny, tmp_path: Path, old: str, new: str, problem: str
) -> None:
    tiny.edit("tiny_cute/device.py", old, new)
    with pytest.raises(CompileError, match=problem) as caught:
        tiny.compiled(PLAIN)
    assert str(tmp_path) not in caught.value.message + caught.value.log
    assert "/tmp" not in caught.value.message + caught.value.log


def test_compiler_of_another_cuda_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The DSL goes by the machine's driver, of which no build key knows."""
    monkeypatch.setattr("dsv4_aot.generator.compile.cute.CUTE_CUDA_MAJOR", 12)
    with pytest.raises(ToolchainError, match="chose its CUDA 13 compiler by this machine's driver"):
        tiny.compiled(PLAIN)


def test_host_function_launches_one_kernel(tiny: Tiny) -> None:
    launch = "        kernel(out, n).launch(grid=[1, 1, 1], block=[threads, 1, 1])\n"
    tiny.edit("tiny_cute/device.py", launch, launch * 2)
    with pytest.raises(CompileError, match="launches 2 kernels, it must launch one"):
        tiny.compiled(STAGED)
