"""The ELF container of a cubin: sections, symbols, and the attributes in ``.nv.info``.

Attribute numbers and layouts are those that ``cuobjdump -elf`` prints by name.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from dsv4_aot.runtime.errors import BuildError

RESERVED_SHARED = 1024
"""Bytes that sm_90 and later reserve at the start of every block's shared memory."""

PARAM_CBANK = 0x0A
MAX_THREADS = 0x05
REQNTID = 0x10
FRAME_SIZE = 0x11
MIN_STACK_SIZE = 0x12
KPARAM_INFO = 0x17
CBANK_PARAM_SIZE = 0x19
REGCOUNT = 0x2F
CTA_PER_CLUSTER = 0x3D
KPARAM_INFO_V2 = 0x45

_FORMAT_NONE, _FORMAT_BYTE, _FORMAT_HALF, _FORMAT_SIZED = 1, 2, 3, 4
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Attribute:
    """One record of ``.nv.info``: a number and its bytes."""

    number: int
    payload: bytes

    def words(self, count: int) -> tuple[int, ...]:
        """The payload as ``count`` little-endian 32-bit words."""
        if len(self.payload) != 4 * count:
            raise BuildError(
                f"attribute {self.number:#x} has {len(self.payload)} bytes, not {4 * count}"
            )
        return struct.unpack(f"<{count}I", self.payload)


@dataclass(frozen=True)
class Section:
    """A section; ``data`` is empty where the file holds no bytes for it."""

    name: str
    size: int
    data: bytes


@dataclass(frozen=True)
class CudaElf:
    """What a cubin's headers say. ``kernels`` maps each entry symbol to its symbol index."""

    sm: int
    sections: dict[str, Section]
    kernels: dict[str, int]
    tool_arch: str | None

    def size(self, name: str) -> int:
        """Bytes of a section, 0 when there is none."""
        section = self.sections.get(name)
        return 0 if section is None else section.size

    def attributes(self, name: str) -> Iterator[Attribute]:
        """The records of a ``.nv.info`` section, none when there is no such section."""
        section = self.sections.get(name)
        data = b"" if section is None else section.data
        position = 0
        while position < len(data):
            kind, number, value = _unpack("<BBH", data, position)
            position += 4
            if kind == _FORMAT_SIZED:
                payload = data[position : position + value]
                if len(payload) != value:
                    raise BuildError(f"{name} ends in the middle of attribute {number:#x}")
                position += value
            elif kind in (_FORMAT_NONE, _FORMAT_BYTE, _FORMAT_HALF):
                payload = struct.pack("<H", value)
            else:
                raise BuildError(f"{name} has an attribute of unknown format {kind:#x}")
            yield Attribute(number, payload)


def read_elf(data: bytes) -> CudaElf:
    """Raises BuildError unless ``data`` is a whole 64-bit CUDA ELF."""
    from elftools.elf.elffile import ELFFile  # an unchanged build looks into no cubin

    elf = _guarded(lambda: ELFFile(io.BytesIO(data)))
    if elf.elfclass != 64 or not elf.little_endian or elf.header["e_machine"] != "EM_CUDA":
        raise BuildError("the ELF is no 64-bit CUDA binary")
    _guarded(lambda: _check_end(elf, len(data)))
    sections = {section.name: section for section in _guarded(lambda: _sections(elf, data))}
    return CudaElf(
        sm=_sm(elf),
        sections=sections,
        kernels=_guarded(lambda: _kernels(elf)),
        tool_arch=_tool_arch(sections.get(".note.nv.tkinfo")),
    )


def _guarded(parse: Callable[[], _Result]) -> _Result:
    """Damage makes pyelftools raise whatever its parsers happen to raise."""
    try:
        return parse()
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(f"the bytes are no readable ELF: {error!r}") from error


def _unpack(layout: str, data: bytes, position: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data, position)
    except struct.error as error:
        raise BuildError("an attribute section ends in the middle of a record") from error


def _check_end(elf: Any, end: int) -> None:
    """The header tables and the segments must lie in the file."""
    header = elf.header
    tables = (
        header["e_shoff"] + header["e_shnum"] * header["e_shentsize"],
        header["e_phoff"] + header["e_phnum"] * header["e_phentsize"],
    )
    if max(tables) > end:
        raise BuildError("the file ends before its own header tables: it was cut short")
    for segment in elf.iter_segments():
        if segment["p_offset"] + segment["p_filesz"] > end:
            raise BuildError("a segment reaches past the end of the file")


def _sections(elf: Any, data: bytes) -> list[Section]:
    sections = []
    for section in elf.iter_sections():
        header = section.header
        offset, size = header["sh_offset"], header["sh_size"]
        held = header["sh_type"] not in ("SHT_NOBITS", "SHT_NULL")
        if held and offset + size > len(data):
            raise BuildError(f"section {section.name!r} reaches past the end of the file")
        sections.append(Section(section.name, size, data[offset : offset + size] if held else b""))
    return sections


def _sm(elf: Any) -> int:
    """ELF ABI 8 (CUDA 13) keeps the SM number in bits 8-15 of the flags, older ones in bits 0-7."""
    flags: int = elf.header["e_flags"]
    current = elf.header["e_ident"]["EI_ABIVERSION"] >= 8
    return (flags >> 8 if current else flags) & 0xFF


def _kernels(elf: Any) -> dict[str, int]:
    """Global functions that have a ``.nv.info`` section of their own."""
    table = elf.get_section_by_name(".symtab")
    if table is None:
        raise BuildError("the cubin has no symbol table")
    return {
        symbol.name: index
        for index, symbol in enumerate(table.iter_symbols())
        if symbol["st_info"]["type"] == "STT_FUNC"
        and elf.get_section_by_name(f".nv.info.{symbol.name}") is not None
    }


def _tool_arch(note: Section | None) -> str | None:
    """The assembler's ``-arch`` option as the tool note quotes it."""
    words = b"" if note is None else note.data.replace(b"\0", b" ")
    fields = words.split()
    for option, argument in itertools.pairwise(fields):
        if option in (b"-arch", b"--gpu-name"):
            return argument.decode("ascii", "replace")
    return None
