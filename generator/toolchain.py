"""Which compilers and inspection tools are installed, in which exact versions.

Only package metadata is read: no compiler is imported, so that asking costs milliseconds.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Literal

from dsv4_aot.runtime.errors import ToolchainError

Kind = Literal["cuda", "cute"]

CUTE_CUDA_MAJOR = 13
"""Which of its CUDA builds the CuTe DSL must use; left alone it goes by the machine's driver."""

_PACKAGES: dict[Kind, tuple[str, ...]] = {
    # The compiler, and whose headers it reads.
    "cuda": ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cuda-cccl"),
    "cute": (
        "nvidia-cutlass-dsl",
        "nvidia-cutlass-dsl-libs-base",
        "nvidia-cutlass-dsl-libs-core",
        f"nvidia-cutlass-dsl-libs-cu{CUTE_CUDA_MAJOR}",
    ),
}
_TOOLS = {"cuobjdump": "nvidia-cuda-cuobjdump", "nvdisasm": "nvidia-cuda-nvdisasm"}
_HEADERS = ("nvidia-cuda-runtime", "nvidia-cuda-cccl")


@dataclass(frozen=True)
class Toolchain:
    """What turns a source of this kind into a cubin: package names and exact versions, sorted."""

    kind: Kind
    packages: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return ", ".join(f"{name} {version}" for name, version in self.packages)


def probe(kind: Kind) -> Toolchain:
    """The installed toolchain of this kind. Raises ToolchainError when a package is missing."""
    found = {name: _distribution(name).version for name in _PACKAGES[kind]}
    if kind == "cute":
        # The DSL traces a kernel by rewriting its syntax tree, which is the interpreter's own.
        found["python"] = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Toolchain(kind, tuple(sorted(found.items())))


def tool_path(name: Literal["cuobjdump", "nvdisasm"]) -> Path:
    """The executable in its package. Raises ToolchainError when it is not installed."""
    package = _TOOLS[name]
    for file in _files(package):
        if file.name == name and file.parent.name == "bin":
            return _locate(package, file)
    raise ToolchainError(f"{package} is installed without {name}", tip=_install(package))


@cache
def headers() -> dict[str, Path]:
    """What lies in the include folder: each file or folder of CUDA's and CCCL's, by its name.

    Only what the packages of :func:`probe` hold: a header of another package that happens to lie
    beside them would be an input that no key sees.
    """
    found: dict[str, Path] = {}
    for package in _HEADERS:
        for file in _files(package):
            folder, inside, below = file.as_posix().partition("/include/")
            name = below.partition("/")[0]
            if inside and name not in found:
                found[name] = _locate(package, folder) / "include" / name
    for name, package in (("cuda.h", _HEADERS[0]), ("cccl", _HEADERS[1])):
        if name not in found:
            raise ToolchainError(f"{package} is installed without {name}", tip=_install(package))
    return found


def library_path(package: str, stem: str) -> Path:
    """A shared library in its package: ``library_path("nvidia-cuda-nvrtc", "libnvrtc.so")``."""
    for file in _files(package):
        if file.name.startswith(f"{stem}."):
            return _locate(package, file)
    raise ToolchainError(f"{package} is installed without {stem}", tip=_install(package))


def _files(package: str) -> list[metadata.PackagePath]:
    return _distribution(package).files or []


def _locate(package: str, file: str | PathLike[str]) -> Path:
    return Path(str(_distribution(package).locate_file(file)))


def _distribution(package: str) -> metadata.Distribution:
    try:
        return metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise ToolchainError(f"{package} is not installed", tip=_install(package)) from error


def _install(package: str) -> str:
    return f"pip install 'dsv4-aot[build]', or {package} alone"
