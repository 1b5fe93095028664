"""What a cubin may not do: contradict its spec, or take more than its spec allows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from dsv4_aot.generator.expand import Variant
from dsv4_aot.generator.inspect import CubinFacts
from dsv4_aot.runtime.abi import Slot
from dsv4_aot.runtime.schema import Launch, Param
from dsv4_aot.runtime.target import Target

REGISTERS_A_BLOCK = 65536
"""Registers that one block can have, on every target since sm_70."""
_REGISTER_UNIT = 8
_WARP = 32
_QUARTERS = 4


def violations(variant: Variant, facts: CubinFacts, shared: int | None = None) -> list[str]:
    """Why a variant's cubin is refused; empty when it is good.

    shared: dynamic shared memory in bytes as the compiler states it, None when it does not.
    """
    spec, launch = variant.folder.spec, variant.launch
    problems = contradictions(variant.target, variant.params, launch, facts)
    if facts.entry != variant.source.entry:
        problems.append(f"the spec launches {variant.source.entry}, the cubin is {facts.entry}")
    if shared is not None and shared != launch.shared:
        problems.append(
            f"the spec launches with {launch.shared} bytes of dynamic shared memory, "
            f"the kernel uses {shared}"
        )
    used = facts.resources
    if used.registers > spec.max_registers:
        problems.append(
            f"{used.registers} registers a thread, the spec allows {spec.max_registers}"
        )
    if used.spills and spec.spills_allowed is None:
        problems.append(
            f"{used.spills} local loads and stores ({used.stack} bytes of stack), "
            f"and the spec gives no reason in spills_allowed"
        )
    return problems


def contradictions(
    target: Target, params: Sequence[Param], launch: Launch, facts: CubinFacts
) -> list[str]:
    """Where a cubin is not what would be launched on this target with these parameters."""
    problems: list[str] = []
    if facts.sm != target.sm:
        problems.append(f"built for sm_{facts.sm}, not for {target}")
    elif facts.tool_arch is not None and facts.tool_arch != str(target):
        problems.append(f"assembled for {facts.tool_arch}, not for {target}")
    if tuple(Slot(param.offset, param.size) for param in params) != facts.slots:
        declared = (f"{param.name} {_span(param.offset, param.size)}" for param in params)
        taken = (_span(slot.offset, slot.size) for slot in facts.slots)
        problems.append(
            f"the declared parameters are ({', '.join(declared)}), "
            f"the cubin takes ({', '.join(taken)})"
        )
    threads = math.prod(launch.block)
    if facts.block is not None and facts.block != launch.block:
        problems.append(f"launched with block {launch.block}, compiled for {facts.block}")
    elif facts.max_threads is not None and threads > facts.max_threads:
        problems.append(
            f"launched with {threads} threads a block, compiled for at most {facts.max_threads}"
        )
    if facts.cluster is not None and facts.cluster != launch.cluster:
        problems.append(f"launched with cluster {launch.cluster}, compiled for {facts.cluster}")
    registers = _registers_a_block(facts.resources.registers, threads)
    if registers > REGISTERS_A_BLOCK:
        problems.append(
            f"{facts.resources.registers} registers a thread make {registers} a block of "
            f"{threads} threads, a block can have {REGISTERS_A_BLOCK}"
        )
    return problems


def refusal(key: str, problems: Iterable[str]) -> str:
    """The message of the error that refuses a variant."""
    return f"{key}: {'; '.join(problems)}"


def _span(offset: int, size: int) -> str:
    """``[8:12]``: the bytes of a parameter."""
    return f"[{offset}:{offset + size}]"


def _registers_a_block(registers: int, threads: int) -> int:
    """What the launch check counts: units of 8 a thread, equally many warps in every quarter."""
    warps = -(-threads // _WARP)
    return _up(registers, _REGISTER_UNIT) * _WARP * _up(warps, _QUARTERS)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
