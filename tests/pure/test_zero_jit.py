"""Launching loads no compiler: seen in fresh processes, and audited by ``strict``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dsv4_aot.runtime import Dsv4AotError, JitError, audit, strict
from tests.artifact import gather_cubins, write_artifact

ROOT = Path(__file__).parents[2]
UNWANTED = {"torch", "cutlass", "triton", "jinja2", "click", "rich", "numpy", "cuda.bindings.nvrtc"}

LAUNCH = """
import json, sys
sys.path.insert(0, sys.argv[2])
before = set(sys.modules)
from dsv4_aot import runtime
assert not [name for name in sys.modules if name.startswith("cuda")], "cuda was imported"
from tests.recording import RecordingDriver

class Tensor:
    def __init__(self, dtype, shape, stride):
        self.dtype, self.shape, self.stride = dtype, shape, lambda: stride
    data_ptr = lambda self: 0x1000
    get_device = lambda self: 0
    is_contiguous = lambda self: True

installed = runtime.Library.open(sys.argv[1]).installed
driver = RecordingDriver(installed)
library = runtime.Library(installed, driver)
library.launch(
    "gather", Tensor("bfloat16", (3, 10, 512), (5120, 512, 1)),
    Tensor("uint8", (9, 64, 584), (40000, 584, 1)), Tensor("int32", (3,), (1,)), None,
    Tensor("int32", (3, 7), (7, 1)), 64,
)
import cuda.bindings.driver  # what the real driver imports
runtime.strict()
print(json.dumps({"launches": len(driver.launches), "modules": sorted(sys.modules)}))
"""
IMPORT = """
import builtins, io, logging, os, socket, sys

def refuse(event, args):
    if event in {"socket.connect", "subprocess.Popen", "ctypes.dlopen", "os.mkdir"}:
        raise SystemExit(f"import does {event} {args}")
    if event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so")):
        raise SystemExit(f"import opens {args[0]}")

import ctypes, dataclasses, hashlib, json, msgspec, pathlib, typing  # theirs, not ours
before = set(sys.modules)
sys.addaudithook(refuse)
import dsv4_aot.runtime
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
print(logging.root.handlers, list(logging.root.manager.loggerDict))
"""


def fresh(program: str, *args: str) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        capture_output=True, text=True, env={**environ, "PYTHONWARNINGS": "error"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_launch_loads_no_compiler_and_no_framework(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "sm_90a", list(gather_cubins()))
    # generator.spec is data alone; the artifact was written here, the child only reads it.
    came = json.loads(fresh(LAUNCH, str(folder), str(ROOT)))
    assert came["launches"] == 1
    roots = {name.partition(".")[0] for name in came["modules"]} | set(came["modules"])
    assert roots & UNWANTED == set()


def test_importing_does_no_work() -> None:
    modules, loggers = fresh(IMPORT).splitlines()
    theirs = set(json.loads(modules.replace("'", '"'))) - set(sys.stdlib_module_names)
    assert theirs == {"dsv4_aot"}
    assert loggers == "[] []"


@pytest.mark.parametrize("name", ["cutlass", "triton", "cuda.bindings.nvrtc", "cuda.core._program"])
def test_an_imported_compiler_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with pytest.raises(JitError, match=f"module {name} "):
        strict()
    with pytest.raises(JitError, match=f"module {name} "):
        strict(allow=("torch",))


TORCH_MAPS = [
    "/site/nvidia/cu13/lib/libnvrtc.so.13",
    "/site/nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
    "/site/nvidia/cu13/lib/libnvJitLink.so.13",
]


@pytest.mark.parametrize(
    "path",
    [
        *TORCH_MAPS,
        "/usr/lib/libnvvm.so.4",
        "/usr/lib/libnvidia-ptxjitcompiler.so.580.1",
        "/usr/lib/libnvidia-nvvm.so.4",
        "/x/triton/_C/libtriton.so",
        "/x/_cutlass_ir.cpython-311.so",
    ],
)
def test_a_mapped_compiler_is_found(path: str) -> None:
    (found,) = audit.audit(modules=(), mapped=["/lib/libc.so.6", path, "/x/libnvrtc.txt"])
    assert (found.kind, found.name) == ("library", path)


def test_what_torch_links_can_be_allowed_and_nothing_else() -> None:
    assert audit.audit(("torch",), modules=["torch"], mapped=TORCH_MAPS) == []
    # Torch is allowed, but was never imported: then something else mapped them.
    assert len(audit.audit(("torch",), modules=[], mapped=TORCH_MAPS)) == 3
    ptx = "/usr/lib/libnvidia-ptxjitcompiler.so.580.1"
    assert len(audit.audit(("torch",), modules=["torch"], mapped=[*TORCH_MAPS, ptx])) == 1
    with pytest.raises(Dsv4AotError, match="allow names 'triton', allowed: torch"):
        strict(allow=("triton",))


def test_this_process_maps_files() -> None:
    assert any("python" in path or "libc" in path for path in audit.mapped_files())
