"""Source -> cubin bytes, in a scratch folder that holds the source's own files and nothing else.

A compiler works on process-wide state: the working directory, the environment, the output
streams. So a process compiles one source at a time, and builds do it in worker processes.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from dsv4_aot.generator.render import Source
from dsv4_aot.runtime.errors import BuildError, CompileError, Dsv4AotError
from dsv4_aot.runtime.target import Target

_STEERING = (
    "CUDA_", "CUTE_", "CUTLASS_", "LLVM_", "MLIR_", "NVCC_", "NVRTC_", "NVVM_", "PTXAS_",
)  # fmt: skip
"""Prefixes of variables that steer the compilers; a compile sees none of them."""
_FIXED = {
    "CUDA_VISIBLE_DEVICES": "",
    "CUTE_DSL_DISABLE_FILE_CACHING": "1",
}
_DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_COMPILERS = {"cuda": "nvrtc", "cute": "cute"}
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Compiled:
    """log: what the compiler said. shared: dynamic shared memory in bytes as the compiler states
    it, None when it does not. ptx: None when the compiler gives none.
    """

    cubin: bytes
    log: str
    shared: int | None
    ptx: str | None


class Compiler(Protocol):
    """A module of this package. It runs in the scratch folder and writes nowhere else."""

    def compile_here(self, source: Source, target: Target) -> Compiled:
        """``log`` may be left empty for what went to the output streams.

        Raises CompileError when the source is at fault, ToolchainError when a compiler is.
        """
        ...


def compile_source(source: Source, target: Target, scratch: Path | None = None) -> Compiled:
    """The cubin of a source, without GPU or driver. Two calls give the same bytes anywhere.

    scratch: folder for temporary files, the system's when left out.
    Raises CompileError with the compiler's log, ToolchainError, and OSError when the scratch
    folder cannot be written.
    """
    with (
        _one_at_a_time,
        tempfile.TemporaryDirectory(prefix="dsv4-aot-", dir=scratch) as name,
    ):
        folder = Path(name).resolve()
        files = folder / "files"
        _lay_out(source, files)
        with (folder / "log").open("w+", encoding="utf-8", errors="replace") as log:
            try:
                with _environment(), _output_to(log), contextlib.chdir(files):
                    compiled = _compiler(source).compile_here(source, target)
            except CompileError as error:
                said = _without(folder, _contents(log) + error.log)
                raise CompileError(
                    _without(folder, error.message), log=said, tip=error.tip
                ) from error
            except Dsv4AotError:
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _DISK_TROUBLE:
                    raise
                raise CompileError(
                    f"{source.entry} failed to compile for {target}: "
                    f"{type(error).__name__}: {_without(folder, str(error))}",
                    log=_without(folder, _contents(log) + _raised(error, folder)),
                ) from error
            said = _without(folder, _contents(log) + compiled.log)
    return Compiled(compiled.cubin, said, compiled.shared, compiled.ptx)


def _compiler(source: Source) -> Compiler:
    # Imported only now, since the conductor of a build must not load a compiler.
    return importlib.import_module(f"{__name__}.{_COMPILERS[source.kind]}")


def _lay_out(source: Source, files: Path) -> None:
    """Writes the bytes that were hashed, whatever the templates hold by now."""
    files.mkdir()
    for (name, _), body in zip(source.files, source.bodies, strict=True):
        path = files / name
        if not path.resolve().is_relative_to(files):
            raise BuildError(f"the source names a file outside its folder: {name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    hidden = {name: value for name, value in os.environ.items() if name.startswith(_STEERING)}
    for name in hidden:
        del os.environ[name]
    os.environ.update(_FIXED)
    try:
        yield
    finally:
        for name in _FIXED:
            os.environ.pop(name, None)
        os.environ.update(hidden)


@contextlib.contextmanager
def _output_to(log: TextIO) -> Iterator[None]:
    """Sends both output streams to the log, also what is written below Python."""
    saved = {}
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        for descriptor in (1, 2):
            saved[descriptor] = os.dup(descriptor)
            os.dup2(log.fileno(), descriptor)
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
    finally:
        log.flush()
        for descriptor, copy in saved.items():
            os.dup2(copy, descriptor)
            os.close(copy)


def _contents(log: TextIO) -> str:
    log.seek(0)
    return log.read()


def _raised(error: Exception, folder: Path) -> str:
    """Where in the source's own files an error came from; a compiler's insides help nobody."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(str(folder))]
    return "".join([*traceback.format_list(own), *traceback.format_exception_only(error)])


def _without(folder: Path, text: str) -> str:
    """Paths in the scratch folder as paths under ``templates/``."""
    return text.replace(f"{folder}/files/", "").replace(str(folder), "")
