"""CuTe DSL -> cubin. The working directory is the scratch folder of one source.

The modules are imported anew for every source, from the scratch folder, so no source sees what
another left in a module, and compiled Python from an earlier state of a file is never met.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import cutlass.cute
from cutlass.base_dsl.version_info import CUDA_VERSION

from dsv4_aot.generator.compile import Compiled
from dsv4_aot.generator.render import Source
from dsv4_aot.generator.toolchain import CUTE_CUDA_MAJOR
from dsv4_aot.runtime.errors import CompileError, ToolchainError
from dsv4_aot.runtime.target import Target

_PACKAGE = "dsv4_aot_device_code"
_KEEP = "--keep-cubin --keep-ptx --dump-dir ."
"""The DSL hands its cubin over by way of a file, else in the directory it was imported in."""
_CONFIG = re.compile(r"!llvm\.struct<\(array<3 x i32>, array<3 x i32>, i64, ptr, ptr, i32\)>")
"""``cudaLaunchConfig_t``: grid, block, dynamic shared memory, stream, attributes, their number."""
_SHARED_FIELD = "array<i32: 0, 2>"


def compile_here(source: Source, target: Target) -> Compiled:
    """Raises CompileError and ToolchainError."""
    _check_flavour()
    with _imported(source) as module:
        build = getattr(module, source.function, None)
        if build is None:
            raise CompileError(f"{source.files[0][0]} has no function {source.function}(choices)")
        host, arguments = build(dict(source.choices))
        compiled = cutlass.cute.compile(host, *arguments, options=f"--gpu-arch {target} {_KEEP}")
        cubin = compiled.__cubin__
        # Where it finds no dump, the DSL gives the path in its place.
        if not isinstance(cubin, bytes):
            raise CompileError(f"{source.entry}: the CuTe DSL gave no cubin for {target}: {cubin}")
        return Compiled(cubin, "", _shared(source, compiled.ir_module), compiled.__ptx__)


def _check_flavour() -> None:
    if CUDA_VERSION.major != CUTE_CUDA_MAJOR:
        raise ToolchainError(
            f"the CuTe DSL chose its CUDA {CUDA_VERSION.major} compiler by this machine's driver, "
            f"and builds go by CUDA {CUTE_CUDA_MAJOR}",
            tip="build on a machine without a driver, or with a newer one",
        )


@contextlib.contextmanager
def _imported(source: Source) -> Iterator[ModuleType]:
    package = ModuleType(_PACKAGE)
    package.__path__ = [str(Path.cwd())]
    sys.modules[_PACKAGE] = package
    main = PurePosixPath(source.files[0][0]).with_suffix("")
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    importlib.invalidate_caches()
    try:
        yield importlib.import_module(".".join((_PACKAGE, *main.parts)))
    finally:
        sys.dont_write_bytecode = writes
        for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
            del sys.modules[name]


# Dynamic shared memory --------------------------------------------------------------------------
#
# The DSL adds up what a kernel allocates only while it lowers the launch, so the one place that
# states the sum is the host code that it would launch with: the store into the configuration.


def _shared(source: Source, module: Any) -> int:
    with module.context:
        sizes = [_constant(value) for value in _stored_shared(module.operation)]
    if len(sizes) != 1:
        raise CompileError(
            f"{source.entry}: the host function launches {len(sizes)} kernels, it must launch one"
        )
    if sizes[0] is None:
        raise CompileError(
            f"{source.entry}: the launch's shared memory depends on arguments",
            tip="leave smem out of the launch, or give it a Python integer",
        )
    return sizes[0]


def _stored_shared(root: Any) -> Iterator[Any]:
    for operation in _walk(root):
        if operation.name == "llvm.store":
            place = _owner(operation.operands[1])
            if (
                place is not None
                and place.name == "llvm.getelementptr"
                and str(place.attributes["rawConstantIndices"]) == _SHARED_FIELD
                and _CONFIG.fullmatch(str(place.attributes["elem_type"]))
            ):
                yield operation.operands[0]


def _walk(operation: Any) -> Iterator[Any]:
    yield operation
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield from _walk(inner.operation)


def _owner(value: Any) -> Any:
    """The operation that gives a value, None for a block argument."""
    return getattr(value.owner, "operation", None)


def _constant(value: Any) -> int | None:
    owner = _owner(value)
    if owner is None or owner.name != "llvm.mlir.constant":
        return None
    return int(owner.attributes["value"].value)
