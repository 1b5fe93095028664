"""The ELF reader against damage. What it reads of sound cubins is in tests/compile."""

from __future__ import annotations

import struct

import pytest
from cuda.core import Program, ProgramOptions
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsv4_aot.generator.cuda_elf import read_elf
from dsv4_aot.generator.inspect import CubinFacts, inspect_cubin, sass
from dsv4_aot.runtime.abi import Slot
from dsv4_aot.runtime.errors import BuildError

SOURCE = """
extern "C" __global__ void sample(const float* x, int n, long long s, double d) {
  if (n > 0) ((float*)x)[s] = d;
}
"""
FLAGS_AT, ABI_VERSION_AT = 48, 8


@pytest.fixture(scope="module")
def cubin() -> bytes:
    return bytes(Program(SOURCE, "c++", ProgramOptions(arch="sm_90a")).compile("cubin").code)


def test_facts(cubin: bytes) -> None:
    facts = inspect_cubin(cubin, "sample")
    assert (facts.sm, facts.tool_arch) == (90, "sm_90a")
    assert facts.slots == (Slot(0, 8), Slot(8, 4), Slot(16, 8), Slot(24, 8))


def test_older_elf_abi_keeps_the_sm_number_in_the_low_byte(cubin: bytes) -> None:
    old = bytearray(cubin)
    old[ABI_VERSION_AT] = 7
    struct.pack_into("<I", old, FLAGS_AT, 0x5A0D5A)
    assert inspect_cubin(bytes(old), "sample").sm == 90


def test_unknown_kernel_lists_what_there_is(cubin: bytes) -> None:
    with pytest.raises(BuildError, match=r"no kernel 'other'; it has \['sample'\]"):
        inspect_cubin(cubin, "other")


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"no ELF at all" * 20])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BuildError):
        inspect_cubin(data, "sample")


def test_another_machine_is_refused(cubin: bytes) -> None:
    x86 = bytearray(cubin)
    struct.pack_into("<H", x86, 18, 62)
    with pytest.raises(BuildError, match="no 64-bit CUDA binary"):
        inspect_cubin(bytes(x86), "sample")


def test_parameter_table_and_constant_bank_must_agree(cubin: bytes) -> None:
    """Slot sizes lie in bits 18-31 of a record's last word; grow the last parameter's."""
    data = bytearray(cubin)
    record = struct.pack("<BBHIHH", 4, 0x17, 12, 0, 3, 24)
    at = data.index(record) + len(record)
    (word,) = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at, word + (8 << 18))
    with pytest.raises(BuildError, match=r"end at byte 40, the constant bank says \[32\]"):
        inspect_cubin(bytes(data), "sample")


def test_sass_of_damage_is_a_build_error() -> None:
    with pytest.raises(BuildError, match="nvdisasm cannot read"):
        sass(b"\x7fELF" + bytes(100))


def judge(data: bytes) -> CubinFacts | None:
    """Facts or BuildError are the only outcomes; anything else fails the test."""
    try:
        return inspect_cubin(data, "sample")
    except BuildError:
        return None


@settings(max_examples=150, deadline=None)
@given(length=st.integers(min_value=0))
def test_truncation(cubin: bytes, length: int) -> None:
    assert judge(cubin[: length % len(cubin)]) is None


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutation(cubin: bytes, data: st.DataObject) -> None:
    """Damage goes where the reader looks: headers, names, attributes; code it never reads."""
    elf = read_elf(cubin)
    places = [(0, 64), (len(cubin) - 64 * (len(elf.sections) + 3), len(cubin))]
    for section in elf.sections.values():
        if section.data and not section.name.startswith(".text"):
            at = cubin.index(section.data)
            places.append((at, at + len(section.data)))
    mutated = bytearray(cubin)
    for _ in range(data.draw(st.integers(1, 4))):
        first, end = data.draw(st.sampled_from(places))
        at = data.draw(st.integers(first, end - 1))
        change = data.draw(st.sampled_from([b"\0", b"\xff", b"\x7f\xff", b"\xff" * 8]))
        mutated[at : at + len(change)] = change
    judge(bytes(mutated[: len(cubin)]))


@example(b"")
@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_noise(tail: bytes) -> None:
    assert judge(b"\x7fELF\x02\x01\x01\x33" + tail) is None
