"""The runtime in a process of its own: a launch without torch, and no JIT about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dsv4_aot.runtime import Library

ALONE = """
import ctypes, json, sys
from dsv4_aot import runtime

cuda = ctypes.CDLL("libcuda.so.1")
context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(4000)) == 0

class Out:
    __cuda_array_interface__ = {
        "version": 3, "typestr": "<i4", "shape": (1000,), "data": (pointer.value, False),
    }

library = runtime.Library.open(sys.argv[1])
library.launch("probe", Out())
host = (ctypes.c_int32 * 1000)()
assert cuda.cuMemcpyDtoH_v2(host, pointer, ctypes.c_size_t(4000)) == 0
runtime.strict()
unwanted = {"torch", "cutlass", "triton", "jinja2", "click", "numpy", "cuda.bindings.nvrtc"}
print(json.dumps({"right": list(host) == list(range(6, 1006)),
                  "loaded": sorted(unwanted & set(sys.modules))}))
"""
WITH_TORCH = """
import torch
from dsv4_aot import runtime

torch.zeros(1, device="cuda")
runtime.strict(allow=("torch",))
from cuda.bindings import nvrtc
try:
    runtime.strict(allow=("torch",))
except runtime.JitError as error:
    assert "cuda.bindings.nvrtc" in str(error), error
else:
    raise SystemExit("an imported compiler was not found")
"""


def run_alone(program: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "error"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_launch_without_torch_has_no_compiler_about(folder: Path) -> None:
    assert json.loads(run_alone(ALONE, str(folder))) == {"right": True, "loaded": []}


def test_torch_is_no_compiler_but_nvrtc_is(probe: Library) -> None:
    run_alone(WITH_TORCH)
