"""Every error the project raises on purpose.

An error carries what came and what is allowed in ``message``, and what to do in ``tip``.
Libraries raise; only the command line prints.
"""

from __future__ import annotations


class Dsv4AotError(Exception):
    """Base of all expected failures."""

    def __init__(self, message: str, *, tip: str | None = None) -> None:
        super().__init__(message, tip)
        self.message = message
        self.tip = tip

    def __str__(self) -> str:
        return self.message if self.tip is None else f"{self.message} ({self.tip})"

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes send errors by pickle, which replays positional arguments alone.
        return _rebuild, (type(self), self.message, self.tip)


def _rebuild(kind: type[Dsv4AotError], message: str, tip: str | None) -> Dsv4AotError:
    return kind(message, tip=tip)


# Serve time ---------------------------------------------------------------------------------


class ArgumentError(Dsv4AotError, ValueError):
    """A call that does not satisfy the kernel's argument table. Nothing was launched."""


class UnknownKernelError(Dsv4AotError, LookupError):
    """No installed artifact has a kernel of this name."""


class NoArtifactError(Dsv4AotError, LookupError):
    """No installed target runs on this device, or none is installed at all."""


class ConflictError(Dsv4AotError):
    """Two installed artifacts give different bytes for the same entry."""


class ManifestError(Dsv4AotError):
    """A manifest that breaks the schema or names a file it may not name."""


class CorruptArtifactError(Dsv4AotError):
    """A cubin that is missing, or whose bytes are not those the manifest records."""


class CaptureError(Dsv4AotError):
    """A kernel that would have to be loaded while the stream is being captured."""


class DriverError(Dsv4AotError, RuntimeError):
    """The CUDA driver is missing, too old, or refused a call."""


class JitError(Dsv4AotError, RuntimeError):
    """A compiler is loaded in a process that promised to have none."""


# Build time ---------------------------------------------------------------------------------


class SpecError(Dsv4AotError):
    """A kernel folder that contradicts itself."""


class ToolchainError(Dsv4AotError):
    """A compiler or inspection tool that is not installed."""


class BuildError(Dsv4AotError):
    """A build that did not give what it should."""


class CompileError(BuildError):
    """A variant that does not compile. ``log`` is the compiler's own output."""

    def __init__(self, message: str, *, log: str = "", tip: str | None = None) -> None:
        super().__init__(message, tip=tip)
        self.log = log

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_compile_error, (self.message, self.log, self.tip)


def _rebuild_compile_error(message: str, log: str, tip: str | None) -> CompileError:
    return CompileError(message, log=log, tip=tip)


class LockError(BuildError):
    """A build that differs from its lock file."""
