"""The memory of one launch, laid out as the driver reads it.

A packet is one block: ``struct CUlaunchConfig``, then the kernel parameters. One ``pack_into``
fills all of it. Packets are taken from a pool for the time of one call, so two threads, or a
finaliser that launches in the middle of a launch, never share one.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

from dsv4_aot.runtime.abi import PARAM_FORMAT
from dsv4_aot.runtime.driver import Driver
from dsv4_aot.runtime.schema import Launch, Param

CONFIG_FORMAT = "7I4x2QI4x"
"""``CUlaunchConfig``: grid, block, dynamic shared bytes, stream, attributes, their number."""
CONFIG_SIZE = 56
STREAM_OFFSET = 32

ATTRIBUTE_SIZE = 72
"""``CUlaunchAttribute``: an id in 8 bytes, then a value in 64."""
CLUSTER_DIMENSION = 4
PROGRAMMATIC_STREAM_SERIALIZATION = 6

Packet = tuple[Any, Any, int, Any]
"""The block, the driver's view of its config, the address of the pointer table, the table."""


class Layout:
    """Where everything lies in the packets of one entry.

    packing: fills a block, given grid (3), block (3), shared, stream, attributes, their number,
        and the parameters.
    constants: block, shared; ``attributes``: their address and number.
    """

    def __init__(self, launch: Launch, params: Sequence[Param]) -> None:
        text, end = f"={CONFIG_FORMAT}", 0
        for param in params:
            text += f"{param.offset - end}x{PARAM_FORMAT[param.type]}"
            end = param.offset + param.size
        self.packing = struct.Struct(text)
        self.offsets = tuple(CONFIG_SIZE + param.offset for param in params)
        self.constants = (*launch.block, launch.shared)
        # Read by the driver, written by nobody: all packets point to the same attributes.
        values = _attribute_values(launch)
        self._memory = ctypes.create_string_buffer(
            b"".join(values), ATTRIBUTE_SIZE * len(values) + 8
        )
        self.attributes = (ctypes.addressof(self._memory) if values else 0, len(values))

    def packet(self, driver: Driver) -> Packet:
        """Fresh memory, still zero."""
        block = ctypes.create_string_buffer(self.packing.size + 8)
        address = ctypes.addressof(block)
        pointers = (ctypes.c_void_p * max(len(self.offsets), 1))(
            *(address + offset for offset in self.offsets)
        )
        return block, driver.config(address), ctypes.addressof(pointers), pointers


def _attribute_values(launch: Launch) -> list[bytes]:
    values = []
    if launch.cluster != (1, 1, 1):
        values.append(struct.pack("=I4x3I52x", CLUSTER_DIMENSION, *launch.cluster))
    if launch.programmatic:
        values.append(struct.pack("=I4xi60x", PROGRAMMATIC_STREAM_SERIALIZATION, 1))
    return values
