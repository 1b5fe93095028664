"""How many blocks of a kernel one multiprocessor holds, and what limits them.

The arithmetic and the block limits are those of ``cuda_occupancy.h`` (nvidia-cuda-runtime 13.5);
warps and bytes a multiprocessor are from the compute-capability table of NVIDIA's CUDA
Programming Guide. It is the upper bound for a device that gives shared memory all it can.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_aot.runtime.schema import Entry
from dsv4_aot.runtime.target import Capability

_WARP = 32
_REGISTERS = 65536
_SUB_PARTITIONS = 4
_REGISTER_UNIT = 256
"""Registers are given to a warp in multiples of this."""
_SHARED_UNIT = 128
_SHARED_RESERVED = 1024
"""Bytes that the system takes from every block's share."""


@dataclass(frozen=True)
class _Limits:
    """Of one multiprocessor; ``shared`` in bytes."""

    warps: int
    blocks: int
    shared: int


_LIMITS = {
    Capability(9, 0): _Limits(warps=64, blocks=32, shared=228 << 10),
    Capability(10, 0): _Limits(warps=64, blocks=32, shared=228 << 10),
    Capability(10, 3): _Limits(warps=64, blocks=32, shared=228 << 10),
    Capability(12, 0): _Limits(warps=48, blocks=24, shared=100 << 10),
}


@dataclass(frozen=True)
class Occupancy:
    """blocks and warps a multiprocessor, the share of its warps, and which resource ends first."""

    blocks: int
    warps: int
    share: float
    limit: str

    def __str__(self) -> str:
        return f"{self.blocks} blocks, {self.warps} warps ({self.share:.0%}), limit: {self.limit}"


def occupancy(entry: Entry, capability: Capability) -> Occupancy | None:
    """None where this module has no limits for ``capability``."""
    limits = _LIMITS.get(capability)
    if limits is None:
        return None
    x, y, z = entry.launch.block
    warps = -(-x * y * z // _WARP)
    per_warp = _round_up(entry.resources.registers * _WARP, _REGISTER_UNIT)
    shared = _round_up(
        entry.resources.shared + entry.launch.shared + _SHARED_RESERVED, _SHARED_UNIT
    )
    blocks_by = {
        "blocks": limits.blocks,
        "warps": limits.warps // warps,
        "shared memory": limits.shared // shared,
    }
    if per_warp:
        # Each quarter of the multiprocessor has its own registers, so whole warps a quarter count.
        # The launch check supposes that a block takes equally many warps in every quarter.
        resident = _REGISTERS // _SUB_PARTITIONS // per_warp * _SUB_PARTITIONS
        fits = _round_up(warps, _SUB_PARTITIONS) * per_warp <= _REGISTERS
        blocks_by["registers"] = resident // warps if fits else 0
    limit = min(blocks_by, key=lambda name: blocks_by[name])
    blocks = blocks_by[limit]
    return Occupancy(blocks, blocks * warps, blocks * warps / limits.warps, limit)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
