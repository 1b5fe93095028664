"""A CUDA driver that launches nothing and writes down everything. Needs no GPU and no libcuda."""

from __future__ import annotations

import ctypes
import hashlib
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv4_aot.runtime import Library
from dsv4_aot.runtime.abi import PARAM_FORMAT
from dsv4_aot.runtime.driver import WRONG_CONTEXT, Device
from dsv4_aot.runtime.errors import DriverError
from dsv4_aot.runtime.packet import ATTRIBUTE_SIZE, CONFIG_FORMAT, CONFIG_SIZE
from dsv4_aot.runtime.resolve import Installed
from dsv4_aot.runtime.schema import Entry, Launch
from dsv4_aot.runtime.target import Capability

H200 = Device(0, "NVIDIA H200", Capability(9, 0), 132, 227 << 10)
B200 = Device(1, "NVIDIA B200", Capability(10, 0), 148, 227 << 10)


@dataclass(frozen=True)
class Recorded:
    """One launch, as the driver would have read it from memory."""

    symbol: str
    sha256: str
    device: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    stream: int
    attributes: dict[int, bytes]
    params: tuple[int | float, ...]


@dataclass(frozen=True)
class _Function:
    symbol: str
    sha256: str
    device: int
    formats: tuple[str, ...]


@dataclass
class RecordingDriver:
    """Knows the parameters of the cubins in ``installed``, which a real driver reads from them.

    statuses: what the next launches return; 0 once it is empty.
    """

    installed: Sequence[Installed] = ()
    devices: Sequence[Device] = (H200,)
    capturing: set[int] = field(default_factory=set)
    stream_devices: dict[int, int | None] = field(default_factory=dict)
    pointer_devices: dict[int, int | None] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    cuda: int = 13000
    current: int = 0
    launches: list[Recorded] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    functions: list[tuple[str, int, Launch]] = field(default_factory=list)
    switched: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def launch(self, config: int, function: _Function, params: int, extra: int) -> tuple[int]:
        assert extra == 0
        if self.statuses and self.statuses[0]:
            return (self.statuses.pop(0),)
        del self.statuses[:1]
        self.threads.add(threading.get_ident())
        fields = struct.unpack(CONFIG_FORMAT, ctypes.string_at(config, CONFIG_SIZE))
        attributes = {}
        for index in range(fields[9]):
            data = ctypes.string_at(fields[8] + index * ATTRIBUTE_SIZE, ATTRIBUTE_SIZE)
            attributes[int.from_bytes(data[:4], "little")] = data[8:]
        values = []
        addresses = (ctypes.c_uint64 * len(function.formats)).from_address(params)
        for address, text in zip(addresses, function.formats, strict=True):
            values += struct.unpack(text, ctypes.string_at(address, struct.calcsize(text)))
        self.launches.append(
            Recorded(
                function.symbol, function.sha256, function.device, fields[0:3], fields[3:6],
                fields[6], fields[7], attributes, tuple(values),
            )
        )  # fmt: skip
        return (0,)

    def config(self, address: int) -> int:
        return address

    def version(self) -> int:
        return self.cuda

    def device_count(self) -> int:
        return len(self.devices)

    def device(self, index: int) -> Device:
        if not 0 <= index < len(self.devices):
            raise DriverError(f"there is no CUDA device {index}, only {len(self.devices)} in all")
        return self.devices[index]

    def current_device(self) -> int:
        return self.current

    def load(self, cubin: bytes) -> str:
        self.loads.append(hashlib.sha256(cubin).hexdigest())
        return self.loads[-1]

    def function(self, library: str, symbol: str, device: Device, launch: Launch) -> Any:
        self.functions.append((symbol, device.index, launch))
        entry = self._entry(library, symbol)
        formats = tuple("=" + PARAM_FORMAT[param.type] for param in entry.params)
        return _Function(symbol, library, device.index, formats)

    def _entry(self, sha256: str, symbol: str) -> Entry:
        for place in self.installed:
            for record in place.manifest.kernels:
                for entry in record.entries:
                    if (entry.sha256, entry.symbol) == (sha256, symbol):
                        return entry
        raise DriverError(f"cuLibraryGetKernel failed: no kernel {symbol}")

    def is_capturing(self, stream: int, device: int) -> bool:
        return stream in self.capturing

    def stream_device(self, stream: int) -> int | None:
        if stream not in self.stream_devices:
            raise DriverError("cuStreamGetCtx failed: CUDA_ERROR_INVALID_HANDLE")
        return self.stream_devices[stream]

    def pointer_device(self, pointer: int) -> int | None:
        return self.pointer_devices.get(pointer)

    def launch_on(self, device: int, config: int, function: _Function, params: int) -> int:
        self.switched.append(device)
        return self.launch(config, function, params, 0)[0]

    def explain(self, status: int) -> str:
        return f"status {status}" + (" (wrong context)" if status in WRONG_CONTEXT else "")


def open_recorded(*folders: Path, **changes: Any) -> tuple[Library, RecordingDriver]:
    """The library of these folders and the driver it records on; ``changes`` are its fields."""
    driver = RecordingDriver(Library.open(*folders).installed, **changes)
    return Library(driver.installed, driver), driver
