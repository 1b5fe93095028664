"""What the runtime asks of CUDA, and how ``cuda.bindings`` answers it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from dsv4_aot.runtime.errors import DriverError
from dsv4_aot.runtime.schema import Launch
from dsv4_aot.runtime.target import Capability

MIN_VERSION = 12000
"""First driver with context-independent loading (``cuLibraryLoadData``), as CUDA counts."""

_FUNC_LOAD_VERSION = 12040
_PORTABLE_CLUSTER = 8
SPECIAL_STREAMS = (0, 1, 2)
"""The null, legacy and per-thread streams, which belong to whatever context is current."""


class Device(msgspec.Struct, frozen=True):
    """``shared_memory``: the most dynamic shared memory of a block, in bytes, once opted in."""

    index: int
    name: str
    capability: Capability
    multiprocessors: int
    shared_memory: int

    def __str__(self) -> str:
        return f"device {self.index}, {self.name}"


class Driver(Protocol):
    """All that the runtime needs from CUDA. Every method may raise DriverError."""

    launch: Callable[[Any, Any, int, int], tuple[int]]
    """``cuLaunchKernelEx(config, function, parameter pointers, 0) -> (status,)``; never raises."""

    def config(self, address: int) -> Any:
        """What ``launch`` takes for the ``CUlaunchConfig`` at an address."""
        ...

    def version(self) -> int: ...
    def device_count(self) -> int: ...
    def device(self, index: int) -> Device: ...

    def current_device(self) -> int:
        """Device of the calling thread's context, 0 where it has none."""
        ...

    def load(self, cubin: bytes) -> Any:
        """A library handle that serves every device."""
        ...

    def function(self, library: Any, symbol: str, device: Device, launch: Launch) -> Any:
        """The kernel in the device's primary context, loaded, with its attributes opted in."""
        ...

    def is_capturing(self, stream: int, device: int) -> bool: ...

    def stream_device(self, stream: int) -> int | None:
        """Device whose primary context a stream belongs to; None for another context."""
        ...

    def pointer_device(self, pointer: int) -> int | None:
        """Device that owns the memory at an address; None for memory of no device."""
        ...

    def launch_on(self, device: int, config: Any, function: Any, params: int) -> int:
        """Launches with the device's primary context made current; gives the status."""
        ...

    def explain(self, status: int) -> str:
        """A status as ``CUDA_ERROR_...: description``."""
        ...


WRONG_CONTEXT = (201, 400)
"""INVALID_CONTEXT and INVALID_HANDLE: what a launch gives in a thread with no context, or on the
null stream while another device is current."""


class CudaDriver:
    """The installed driver. Creating one initialises CUDA; no context is created by that."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver as cuda  # not at import: only who launches needs it
        except ImportError as error:
            raise DriverError(
                f"cuda.bindings cannot be imported: {error}", tip="pip install cuda-bindings"
            ) from error
        self._cuda: Any = cuda
        self.launch = cuda.cuLaunchKernelEx
        self._contexts: dict[int, Any] = {}
        self._devices: dict[int, Device] = {}
        self._lock = threading.Lock()
        try:
            self._call("cuInit", 0)
            version = self.version()
        except RuntimeError as error:
            if isinstance(error, DriverError):
                raise
            raise DriverError(
                f"the CUDA driver cannot be used: {error}", tip="install an NVIDIA driver"
            ) from error
        if version < MIN_VERSION:
            raise DriverError(
                f"the driver serves CUDA {_dotted(version)}, "
                f"loading artifacts needs CUDA {_dotted(MIN_VERSION)} or later",
                tip="install a newer NVIDIA driver",
            )
        self._version = version

    def _call(self, name: str, *args: Any) -> Any:
        """One driver call: its result, its results as a tuple, or None."""
        status, *results = getattr(self._cuda, name)(*args)
        if status != 0:
            raise DriverError(f"{name} failed: {self.explain(int(status))}")
        return results[0] if len(results) == 1 else tuple(results) or None

    def config(self, address: int) -> Any:
        return self._cuda.CUlaunchConfig(_ptr=address)

    def version(self) -> int:
        return int(self._call("cuDriverGetVersion"))

    def device_count(self) -> int:
        return int(self._call("cuDeviceGetCount"))

    def device(self, index: int) -> Device:
        if index not in self._devices:
            count = self.device_count()
            if not 0 <= index < count:
                raise DriverError(f"there is no CUDA device {index}, only {count} in all")
            handle = self._call("cuDeviceGet", index)
            attribute = self._cuda.CUdevice_attribute

            def read(name: str) -> int:
                number = getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
                return int(self._call("cuDeviceGetAttribute", number, handle))

            name = bytes(self._call("cuDeviceGetName", 256, handle)).split(b"\0")[0].decode()
            self._devices[index] = Device(
                index,
                name,
                Capability(read("COMPUTE_CAPABILITY_MAJOR"), read("COMPUTE_CAPABILITY_MINOR")),
                read("MULTIPROCESSOR_COUNT"),
                read("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
            )
        return self._devices[index]

    def current_device(self) -> int:
        if not int(self._call("cuCtxGetCurrent")):
            return 0
        return int(self._call("cuCtxGetDevice"))

    def load(self, cubin: bytes) -> Any:
        with self._relaxed_capture():
            return self._call("cuLibraryLoadData", cubin, [], [], 0, [], [], 0)

    def function(self, library: Any, symbol: str, device: Device, launch: Launch) -> Any:
        cuda = self._cuda
        attribute = cuda.CUfunction_attribute
        kernel = self._call("cuLibraryGetKernel", library, symbol.encode())
        number = self._call("cuDeviceGet", device.index)
        with self._relaxed_capture(), self._current(device.index):
            wanted = {attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: launch.shared}
            if launch.cluster[0] * launch.cluster[1] * launch.cluster[2] > _PORTABLE_CLUSTER:
                wanted[attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED] = 1
            for name, value in wanted.items():
                # Entries may share a cubin: what one opted in, another does not take back.
                if self._call("cuKernelGetAttribute", name, kernel, number) < value:
                    self._call("cuKernelSetAttribute", name, value, kernel, number)
            # A function of the device's own context: in another context the launch fails
            # instead of running on the wrong device.
            function = self._call("cuKernelGetFunction", kernel)
            if self._version >= _FUNC_LOAD_VERSION:
                self._call("cuFuncLoad", function)  # lazy loading would defer it into a capture
        return function

    def is_capturing(self, stream: int, device: int) -> bool:
        cuda = self._cuda
        with self._current(device):
            status, *results = cuda.cuStreamIsCapturing(stream)
        if status == cuda.CUresult.CUDA_ERROR_STREAM_CAPTURE_IMPLICIT:
            return True  # the null stream while another stream is captured
        if status != 0:
            raise DriverError(f"cuStreamIsCapturing failed: {self.explain(int(status))}")
        return int(results[0]) != 0

    def stream_device(self, stream: int) -> int | None:
        owner = self._call("cuStreamGetCtx", stream)
        for index, context in self._contexts.items():
            if int(context) == int(owner):
                return index
        self._call("cuCtxPushCurrent", owner)
        try:
            index = int(self._call("cuCtxGetDevice"))
        finally:
            self._call("cuCtxPopCurrent")
        return index if int(self._context(index)) == int(owner) else None

    def pointer_device(self, pointer: int) -> int | None:
        cuda = self._cuda
        name = cuda.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        status, *results = cuda.cuPointerGetAttribute(name, pointer)
        return int(results[0]) if status == 0 else None

    def launch_on(self, device: int, config: Any, function: Any, params: int) -> int:
        if not int(self._call("cuCtxGetCurrent")):
            # A thread that never touched CUDA: give it the context, as the CUDA runtime would.
            self._call("cuCtxSetCurrent", self._context(device))
            return int(self.launch(config, function, params, 0)[0])
        with self._current(device):
            return int(self.launch(config, function, params, 0)[0])

    def explain(self, status: int) -> str:
        try:
            name = self._cuda.CUresult(status).name
        except ValueError:
            name = f"CUDA error {status}"
        known, text = self._cuda.cuGetErrorString(self._cuda.CUresult(status))
        return f"{name}: {text.decode()}" if known == 0 and text else name

    def _context(self, device: int) -> Any:
        """The primary context, retained once for the life of the process."""
        with self._lock:
            if device not in self._contexts:
                handle = self._call("cuDeviceGet", device)
                self._contexts[device] = self._call("cuDevicePrimaryCtxRetain", handle)
            return self._contexts[device]

    @contextmanager
    def _current(self, device: int) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context(device))
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    @contextmanager
    def _relaxed_capture(self) -> Iterator[None]:
        """Lets this thread load while another one captures, whose capture that would break."""
        relaxed = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        before = self._call("cuThreadExchangeStreamCaptureMode", relaxed)
        try:
            yield
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", before)


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
