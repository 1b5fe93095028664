"""What a cubin says of itself: parameter table, registers, stack, shared memory, spills, SASS."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dsv4_aot.generator import cuda_elf
from dsv4_aot.generator.cuda_elf import CudaElf, read_elf
from dsv4_aot.generator.toolchain import tool_path
from dsv4_aot.runtime.abi import Slot
from dsv4_aot.runtime.errors import BuildError
from dsv4_aot.runtime.schema import Resources

DISASSEMBLY_SECONDS = 120
_LOCAL_ACCESS = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?(?:LDL|STL)\b", re.MULTILINE)


@dataclass(frozen=True)
class CubinFacts:
    """One kernel of a cubin, read from the cubin alone.

    tool_arch: the target the assembler noted (``sm_90a``), which the ELF header cannot express.
    block: threads a block that the kernel was compiled for, or None where any will do.
    max_threads: most threads a block, or None. cluster: blocks a cluster, or None.
    """

    sm: int
    entry: str
    slots: tuple[Slot, ...]
    resources: Resources
    tool_arch: str | None
    block: tuple[int, int, int] | None = None
    max_threads: int | None = None
    cluster: tuple[int, int, int] | None = None


def inspect_cubin(data: bytes, entry: str) -> CubinFacts:
    """The facts of the kernel with the symbol ``entry``.

    ``resources.shared`` counts static shared memory without what the hardware reserves.
    Raises BuildError when the bytes are no cubin, contradict themselves or lack the kernel, and
    ToolchainError when spills must be counted and nvdisasm is not installed.
    """
    elf = read_elf(data)
    if entry not in elf.kernels:
        raise BuildError(
            f"the cubin has no kernel {entry!r}; it has {sorted(elf.kernels)}",
            tip="the entry of the spec's source must be the symbol that the compiler emits",
        )
    own = {a.number: a for a in elf.attributes(f".nv.info.{entry}")}
    stack = max(_per_kernel(elf, entry, number) for number in _STACK)
    local = elf.size(f".nv.local.{entry}")
    return CubinFacts(
        sm=elf.sm,
        entry=entry,
        slots=_slots(elf, entry),
        resources=Resources(
            registers=_registers(elf, entry),
            stack=stack,
            local=local,
            shared=_static_shared(elf, entry),
            # Local loads and stores address the stack or the local section: without either
            # there is nothing to count, and no need for a disassembler.
            spills=_local_accesses(data, elf.kernels[entry]) if stack or local else 0,
            code=_code(elf, entry),
        ),
        tool_arch=elf.tool_arch,
        block=_extent(own.get(cuda_elf.REQNTID)),
        max_threads=_product(_extent(own.get(cuda_elf.MAX_THREADS))),
        cluster=_extent(own.get(cuda_elf.CTA_PER_CLUSTER)),
    )


def sass(data: bytes) -> str:
    """The disassembled code sections. Raises BuildError or ToolchainError."""
    return _disassemble(data, "-c")


# Parameters -----------------------------------------------------------------------------------


def _slots(elf: CudaElf, entry: str) -> tuple[Slot, ...]:
    """The parameter table, compared with the size that the constant bank gives in total."""
    slots: dict[int, Slot] = {}
    totals: set[int] = set()
    for attribute in elf.attributes(f".nv.info.{entry}"):
        if attribute.number in (cuda_elf.KPARAM_INFO, cuda_elf.KPARAM_INFO_V2):
            _, place, word = attribute.words(3)
            wide = attribute.number == cuda_elf.KPARAM_INFO_V2
            slots[place & 0xFFFF] = Slot(place >> 16, word & 0xFFFF if wide else word >> 18)
        elif attribute.number == cuda_elf.CBANK_PARAM_SIZE:
            totals.add(int.from_bytes(attribute.payload, "little"))
        elif attribute.number == cuda_elf.PARAM_CBANK:
            totals.add(attribute.words(2)[1] >> 16)
    if sorted(slots) != list(range(len(slots))):
        raise BuildError(f"{entry}: the parameter table lists the ordinals {sorted(slots)}")
    table = tuple(slots[ordinal] for ordinal in range(len(slots)))
    end = max((slot.offset + slot.size for slot in table), default=0)
    if totals != ({end} if table else set()):
        raise BuildError(
            f"{entry}: the parameters end at byte {end}, the constant bank says {sorted(totals)}"
        )
    return table


# Resources ------------------------------------------------------------------------------------

_STACK = (cuda_elf.FRAME_SIZE, cuda_elf.MIN_STACK_SIZE)


def _per_kernel(elf: CudaElf, entry: str, number: int) -> int:
    """An attribute of the common ``.nv.info``, which names kernels by symbol index; 0 if absent."""
    found = 0
    for attribute in elf.attributes(".nv.info"):
        if attribute.number == number:
            symbol, value = attribute.words(2)
            if symbol == elf.kernels[entry]:
                found = max(found, value)
    return found


def _registers(elf: CudaElf, entry: str) -> int:
    registers = _per_kernel(elf, entry, cuda_elf.REGCOUNT)
    if not 0 < registers <= 255:
        raise BuildError(f"{entry}: the cubin says {registers} registers a thread")
    return registers


def _static_shared(elf: CudaElf, entry: str) -> int:
    size = elf.size(f".nv.shared.{entry}")
    reserves = ".nv.shared.reserved.0" in elf.sections
    return max(0, size - cuda_elf.RESERVED_SHARED) if reserves else size


def _code(elf: CudaElf, entry: str) -> int:
    size = elf.size(f".text.{entry}")
    if size == 0:
        raise BuildError(f"{entry}: the cubin has no code for it")
    return size


def _extent(attribute: cuda_elf.Attribute | None) -> tuple[int, int, int] | None:
    if attribute is None:
        return None
    x, y, z = attribute.words(3)
    return x, y, z


def _product(extent: tuple[int, int, int] | None) -> int | None:
    return None if extent is None else extent[0] * extent[1] * extent[2]


# Disassembly ----------------------------------------------------------------------------------


def _local_accesses(data: bytes, symbol: int) -> int:
    return len(_LOCAL_ACCESS.findall(_disassemble(data, "-c", "-ndf", "-fun", str(symbol))))


def _disassemble(data: bytes, *options: str) -> str:
    tool = tool_path("nvdisasm")
    with tempfile.TemporaryDirectory(prefix="dsv4-aot-") as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(data)
        try:
            run = subprocess.run(
                [tool, *options, path],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=DISASSEMBLY_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"nvdisasm gave no answer in {DISASSEMBLY_SECONDS} s") from error
    if run.returncode != 0:
        raise BuildError(f"nvdisasm cannot read the cubin: {run.stderr.strip() or run.returncode}")
    return run.stdout
