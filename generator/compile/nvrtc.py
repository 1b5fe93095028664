"""CUDA C++ -> cubin by NVRTC. The working directory is the scratch folder of one source.

NVRTC is called directly, so that a spec's options reach it as written. All paths given to it are
relative: ``__FILE__`` and the like then read the same wherever the scratch folder is.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from cuda.bindings import nvrtc
from cuda.pathfinder import load_nvidia_dynamic_lib

from dsv4_aot.generator.compile import Compiled
from dsv4_aot.generator.render import SHARED, Source
from dsv4_aot.generator.toolchain import headers, library_path
from dsv4_aot.runtime.errors import CompileError, ToolchainError
from dsv4_aot.runtime.target import Target

_TOOLKIT = "toolkit"


def compile_here(source: Source, target: Target) -> Compiled:
    """Raises CompileError with NVRTC's log, and ToolchainError."""
    _check_library()
    _link_headers(Path(_TOOLKIT))
    name = f"{source.entry}.cu"
    program = _call(nvrtc.nvrtcCreateProgram(source.text.encode(), name.encode(), 0, [], []))
    try:
        options = [option.encode() for option in (*source.options, *_build_options(source, target))]
        status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
        log = _log(program)
        if status == nvrtc.nvrtcResult.NVRTC_ERROR_INVALID_OPTION:
            raise CompileError(
                f"NVRTC refuses an option of {list(source.options)} or the target {target}", log=log
            )
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(
                f"{source.entry} does not compile for {target}: {_first_error(log)}", log=log
            )
        # Buffers are bytearrays: NVRTC writes into them, and CPython shares short bytes objects.
        cubin = bytearray(_call(nvrtc.nvrtcGetCUBINSize(program)))
        _call(nvrtc.nvrtcGetCUBIN(program, cubin))
        ptx = bytearray(_call(nvrtc.nvrtcGetPTXSize(program)))
        _call(nvrtc.nvrtcGetPTX(program, ptx))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Compiled(bytes(cubin), log, None, ptx.rstrip(b"\0").decode())


def _build_options(source: Source, target: Target) -> list[str]:
    folders = {name.partition("/")[0] for name, _ in source.files}
    includes = [*sorted(folders - {SHARED}), *sorted(folders & {SHARED})]
    includes += [_TOOLKIT, f"{_TOOLKIT}/cccl"]
    return [f"--gpu-architecture={target}", *(f"--include-path={path}" for path in includes)]


@cache
def _check_library() -> None:
    """The library that gets loaded must be the one whose version the build key holds."""
    wanted = library_path("nvidia-cuda-nvrtc", "libnvrtc.so")
    loaded = load_nvidia_dynamic_lib("nvrtc").abs_path
    if loaded is None or not wanted.samefile(loaded):
        raise ToolchainError(
            f"NVRTC was loaded from {loaded}, and the build goes by the package's {wanted}",
            tip="unset LD_LIBRARY_PATH, or build in an environment of its own",
        )


def _link_headers(folder: Path) -> None:
    folder.mkdir()
    for name, path in headers().items():
        (folder / name).symlink_to(path)


def _log(program: Any) -> str:
    buffer = bytearray(_call(nvrtc.nvrtcGetProgramLogSize(program)))
    _call(nvrtc.nvrtcGetProgramLog(program, buffer))
    return buffer.rstrip(b"\0").decode(errors="replace").strip()


def _first_error(log: str) -> str:
    lines = [line for line in log.splitlines() if "error" in line]
    return lines[0] if lines else "NVRTC gave no reason"


def _call(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise ToolchainError(f"NVRTC failed: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")
    return values[0] if values else None
