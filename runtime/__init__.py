"""Launches precompiled kernels. Importing it does no work: no driver call, no file, no log."""

from dsv4_aot.runtime.audit import strict
from dsv4_aot.runtime.errors import (
    ArgumentError,
    CaptureError,
    ConflictError,
    CorruptArtifactError,
    DriverError,
    Dsv4AotError,
    JitError,
    ManifestError,
    NoArtifactError,
    UnknownKernelError,
)
from dsv4_aot.runtime.kernel import Kernel
from dsv4_aot.runtime.library import (
    Library,
    Listed,
    Preloaded,
    catalog,
    launch,
    op,
    preload,
)
from dsv4_aot.runtime.target import Target

__all__ = [
    "ArgumentError",
    "CaptureError",
    "ConflictError",
    "CorruptArtifactError",
    "DriverError",
    "Dsv4AotError",
    "JitError",
    "Kernel",
    "Library",
    "Listed",
    "ManifestError",
    "NoArtifactError",
    "Preloaded",
    "Target",
    "UnknownKernelError",
    "catalog",
    "launch",
    "op",
    "preload",
    "strict",
]
