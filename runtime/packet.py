"""The memory of one launch, laid out as the driver reads it.

A packet is one block: the kernel parameters, then ``struct CUlaunchConfig``, which begins with
the grid. So one ``pack_into`` writes all that changes from call to call; the rest is written
once. Packets are taken from a pool for the time of one call: two threads, or a finaliser that
launches in the middle of a launch, never share one.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

from dsv4_aot.runtime.abi import PARAM_FORMAT
from dsv4_aot.runtime.driver import Driver
from dsv4_aot.runtime.expr import Const
from dsv4_aot.runtime.schema import Launch, Param

CONFIG_FORMAT = "7I4x2QI4x"
"""``CUlaunchConfig``: grid, block, dynamic shared bytes, stream, attributes, their number."""
CONFIG_SIZE = 56
_STREAM_OFFSET = 32

ATTRIBUTE_SIZE = 72
"""``CUlaunchAttribute``: an id in 8 bytes, then a value in 64."""
CLUSTER_DIMENSION = 4
PROGRAMMATIC_STREAM_SERIALIZATION = 6

Packet = list[Any]
"""Block, the driver's view of its config, address of the pointer table, the stream that is
written, the pointer table."""


class Layout:
    """Where everything lies in the packets of one entry.

    pack_into: ``pack_into(block, 0, *parameters, *grid)``, of the grid only the first
        ``variable`` dims: those after them are constants.
    write_stream: ``write_stream(block, stream_offset, stream)``
    """

    def __init__(self, launch: Launch, params: Sequence[Param]) -> None:
        dims = [dim for dim, node in enumerate(launch.grid) if not isinstance(node, Const)]
        self.variable = 1 + max(dims, default=-1)
        text, end = "=", 0
        for param in params:
            text += f"{param.offset - end}x{PARAM_FORMAT[param.type]}"
            end = param.offset + param.size
        self._config = -(-end // 8) * 8
        self._packing = struct.Struct(f"{text}{self._config - end}x{self.variable}I")
        self.pack_into = self._packing.pack_into
        self.pack = self._packing.pack
        self.write_stream = struct.Struct("=Q").pack_into
        self.stream_offset = self._config + _STREAM_OFFSET
        self._offsets = tuple(param.offset for param in params)
        # Read by the driver, written by nobody: all packets point to the same attributes.
        values = _attribute_values(launch)
        self._attributes = ctypes.create_string_buffer(b"".join(values), 8 + sum(map(len, values)))
        grid = [node.value if isinstance(node, Const) else 0 for node in launch.grid]
        self._constants = struct.pack(
            f"={CONFIG_FORMAT}", *grid, *launch.block, launch.shared, 0,
            ctypes.addressof(self._attributes) if values else 0, len(values),
        )  # fmt: skip

    def packet(self, driver: Driver) -> Packet:
        """Fresh memory with the constants in it, for the null stream."""
        block = ctypes.create_string_buffer(self._config + CONFIG_SIZE)
        address = ctypes.addressof(block)
        ctypes.memmove(address + self._config, self._constants, CONFIG_SIZE)
        count = max(len(self._offsets), 1)
        pointers = (ctypes.c_void_p * count)(*(address + offset for offset in self._offsets))
        config = driver.config(address + self._config)
        return [block, config, ctypes.addressof(pointers), 0, pointers]


def _attribute_values(launch: Launch) -> list[bytes]:
    values = []
    if launch.cluster != (1, 1, 1):
        values.append(struct.pack("=I4x3I52x", CLUSTER_DIMENSION, *launch.cluster))
    if launch.programmatic:
        values.append(struct.pack("=I4xi60x", PROGRAMMATIC_STREAM_SERIALIZATION, 1))
    return values
