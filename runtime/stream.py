"""Streams as callers give them: handles, torch streams, ``__cuda_stream__``."""

from __future__ import annotations

from typing import Any

from dsv4_aot.runtime.driver import SPECIAL_STREAMS, Driver
from dsv4_aot.runtime.errors import ArgumentError, DriverError

ALLOWED = "None, a handle, a torch.cuda.Stream, or an object with __cuda_stream__"


def handle(stream: Any) -> int:
    """The handle of a stream. Raises ArgumentError for what is none."""
    if type(stream) is int:
        if stream < 0:
            raise ArgumentError(f"stream is {stream}, allowed: {ALLOWED}")
        return stream
    found = getattr(stream, "cuda_stream", None)
    if found is None:
        protocol = getattr(stream, "__cuda_stream__", None)
        if protocol is None or isinstance(stream, bool):
            kind = f"{type(stream).__module__}.{type(stream).__qualname__}"
            raise ArgumentError(f"stream is a {kind}, allowed: {ALLOWED}")
        # cuda.core once had it as a property: (version, handle), not a method.
        _, found = protocol() if callable(protocol) else protocol
    return int(found)


def handle_on(driver: Driver, stream: Any, device: int) -> int:
    """The handle of a stream of this device. Raises ArgumentError when it is of another one."""
    found = handle(stream)
    if found in SPECIAL_STREAMS:
        return found
    owner = getattr(stream, "device_index", None)  # torch's streams know, the others are asked
    if type(owner) is not int:
        try:
            owner = driver.stream_device(found)
        except DriverError as error:
            raise ArgumentError(f"stream {found:#x} is no CUDA stream: {error.message}") from error
    if owner != device:
        where = "another CUDA context" if owner is None else f"device {owner}"
        raise ArgumentError(
            f"stream {found:#x} is of {where}, allowed: a stream of device {device}, "
            "where the tensors are"
        )
    return found
