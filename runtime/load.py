"""Cubins on devices: read, hashed, loaded once, and found again without a lock."""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from dsv4_aot.runtime import manifest
from dsv4_aot.runtime.driver import Device, Driver
from dsv4_aot.runtime.errors import CaptureError, DriverError, NoArtifactError
from dsv4_aot.runtime.resolve import Installed
from dsv4_aot.runtime.schema import Entry, entry_key


class Usage(msgspec.Struct, frozen=True):
    """What a loader has loaded so far: cubins, their bytes, and functions on devices."""

    cubins: int
    bytes: int
    functions: int


class Loader:
    """Loads entries. Equal bytes are loaded once, whatever they are called."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._lock = threading.Lock()
        self._libraries: dict[str, Any] = {}
        self._functions: dict[tuple[Any, ...], Any] = {}
        self._bytes = 0

    @property
    def usage(self) -> Usage:
        return Usage(len(self._libraries), self._bytes, len(self._functions))

    def function(
        self, place: Installed, kernel: str, entry: Entry, device: Device, stream: int | None
    ) -> Any:
        """The entry's function on a device. ``stream``: where it will run, None for a preload.

        Raises CorruptArtifactError, DriverError, NoArtifactError (more shared memory than the
        device has), or CaptureError when it would have to load while ``stream`` is captured.
        """
        launch = entry.launch
        key = (entry.sha256, entry.symbol, device.index, launch.shared, launch.cluster)
        function = self._functions.get(key)
        if function is not None:
            return function
        name = entry_key(kernel, str(place.target), entry.choices)
        if stream is not None and self.driver.is_capturing(stream, device.index):
            raise CaptureError(
                f"{name} is not loaded on {device}, and nothing can be loaded while its stream "
                "is being captured",
                tip=f"call preload([{kernel!r}]) before the capture",
            )
        if launch.shared > device.shared_memory:
            raise NoArtifactError(
                f"{name} takes {launch.shared} bytes of shared memory, "
                f"{device} has {device.shared_memory}"
            )
        with self._lock:
            if key not in self._functions:
                self._functions[key] = self._load(place, name, entry, device)
            return self._functions[key]

    def _load(self, place: Installed, name: str, entry: Entry, device: Device) -> Any:
        try:
            if entry.sha256 not in self._libraries:
                # The very bytes that were hashed are loaded.
                cubin = manifest.read_cubin(place.folder, entry)
                self._libraries[entry.sha256] = self.driver.load(cubin)
                self._bytes += len(cubin)
            library = self._libraries[entry.sha256]
            return self.driver.function(library, entry.symbol, device, entry.launch)
        except DriverError as error:
            version = self.driver.version()
            tools = ", ".join(f"{n} {v}" for n, v in sorted(place.manifest.toolchain.items()))
            raise DriverError(
                f"{name} from {place.origin} cannot be loaded on {device}: {error.message} "
                f"(the driver serves CUDA {version // 1000}.{version % 1000 // 10}, "
                f"the cubin was built with {tools or 'an unnamed toolchain'})",
                tip="an older driver than the toolchain needs a newer driver, or an older wheel",
            ) from error
