"""Proof that a process compiles nothing: no compiler imported, no compiler library mapped.

A mapped library is weaker evidence than an imported module: the CUDA builds of torch link NVRTC
and nvJitLink, so these are mapped from ``import torch`` on, used or not. ``allow=("torch",)``
accepts exactly those. Compiler modules, and what torch does not link (the driver's own PTX
compiler, which it maps to compile PTX; libNVVM; the libraries of other compilers) are never
accepted.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

import msgspec

from dsv4_aot.runtime.errors import Dsv4AotError, JitError

MODULES: dict[str, str] = {
    "cutlass": "the CuTe DSL compiler",
    "triton": "the Triton compiler",
    "tilelang": "the TileLang compiler",
    "tvm": "the TVM compiler",
    "cuda.bindings.nvrtc": "NVRTC",
    "cuda.bindings.nvvm": "libNVVM",
    "cuda.bindings.nvjitlink": "the device linker",
    "cuda.core._program": "cuda.core's compiler",
    "cuda.core._linker": "cuda.core's linker",
    "numba.cuda": "the Numba CUDA compiler",
    "pycuda.compiler": "PyCUDA's compiler",
    "torch._inductor.compile_fx": "the TorchInductor compiler",
    "torch.utils.cpp_extension": "torch's extension compiler",
}
"""Modules whose import means that a compiler is at hand."""

LIBRARIES: dict[str, str] = {
    r"libnvrtc": "NVRTC",
    r"libnvvm": "libNVVM",
    r"libnvidia-nvvm": "libNVVM of the driver",
    r"libnvJitLink": "the device linker",
    r"libnvidia-ptxjitcompiler": "the driver's PTX compiler, at work",
    r"libnvptxcompiler": "the PTX compiler",
    r"libtriton": "the Triton compiler",
    r"_?cutlass_ir": "the CuTe DSL compiler",
    r"libcute_dsl|libCutlass|libcutlass_dsl": "the CuTe DSL compiler",
    r"_?libMLIR|_mlir": "MLIR",
    r"libtvm_compiler|libtvm\.": "the TVM compiler",
}
"""Patterns of file names, the first that fits counts."""

LINKED: dict[str, tuple[str, ...]] = {"torch": ("NVRTC", "the device linker")}
"""Package -> what its own libraries link, and so map without using it."""


class Finding(msgspec.Struct, frozen=True):
    """One trace of a compiler: a module's name, or the path of a mapped library."""

    kind: Literal["module", "library"]
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.what})"


def audit(
    allow: Collection[str] = (),
    modules: Iterable[str] | None = None,
    mapped: Iterable[str] | None = None,
) -> list[Finding]:
    """Traces of compilers in this process. ``allow``: packages whose linked compilers are accepted.

    ``modules`` and ``mapped`` (paths) default to what this process has imported and mapped.
    Raises Dsv4AotError for a package in ``allow`` that links none.
    """
    for package in allow:
        if package not in LINKED:
            raise Dsv4AotError(
                f"allow names {package!r}, allowed: {', '.join(LINKED)}",
                tip="compiler modules cannot be allowed; a process that has them is not zero-JIT",
            )
    names = set(sys.modules if modules is None else modules)
    paths = sorted(set(mapped_files() if mapped is None else mapped))
    found = [Finding("module", name, what) for name, what in MODULES.items() if name in names]
    accepted = {what for package in allow if package in names for what in LINKED[package]}
    for path in paths:
        what = _compiler(path.rpartition("/")[2])
        if what is not None and what not in accepted:
            found.append(Finding("library", path, what))
    return found


def strict(allow: Collection[str] = ()) -> None:
    """Raises JitError, which lists what was found, unless this process has no compiler at all."""
    found = audit(allow)
    if not found:
        return
    linked = "torch" in sys.modules and "torch" not in allow
    raise JitError(
        f"{len(found)} traces of a compiler in this process: {'; '.join(map(str, found))}",
        tip="torch links NVRTC and nvJitLink itself: strict(allow=('torch',)) accepts those"
        if linked
        else "import no compiler where kernels are served",
    )


def mapped_files() -> set[str]:
    """Paths of the files mapped into this process; empty where the system does not say."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return set()
    return {fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6}


def _compiler(file: str) -> str | None:
    if ".so" not in file:
        return None
    return next((what for text, what in LIBRARIES.items() if re.match(text, file)), None)
