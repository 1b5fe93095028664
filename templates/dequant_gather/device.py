"""dequant_gather for CuTe DSL: rows of a paged FP8 cache, decoded to bf16, request by request.

One warp owns a tile of ``rows`` consecutive rows and meets no other warp. Lane i looks up the page
of row i; where rows lie side by side in a page, the first of them fetches the whole run with one
bulk copy. Then all lanes decode row after row, 16 elements each, so that both halves of an output
row leave as one contiguous 512-byte store.

Blocks are small, few at a time and mostly have one tile each: memory then sees one narrow front
sweep through input and output, which DRAM serves 3-5 % faster than persistent blocks that drift
apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cutlass
from cutlass import BFloat16, Int32, Int64, Uint8, Uint32, Uint64, cute
from cutlass.cute.runtime import make_ptr

WARP = 32
DIM = 512
"""Elements of a decoded row."""
LANE = 8
"""Elements that a lane decodes of each half row: 16 bytes of output."""


@dataclass(frozen=True)
class Record:
    """Bytes of one cached row. fp8: its leading E4M3 dims, the others are bf16 already.

    pitch: bytes between the data of neighbouring rows of a page. split: the scales of all rows of
    a page follow the data of all rows; otherwise each row's scales follow its own data.
    """

    fp8: int
    group: int
    pitch: int
    split: bool


RECORDS = {
    "v4": Record(fp8=448, group=64, pitch=576, split=True),
    "v41": Record(fp8=512, group=32, pitch=528, split=False),
}
V4_SCALES = 8
"""Bytes of a V4 scale row: seven scales and a pad."""
BLOCK_SHARED = 13 * 1024
"""Bytes a block asks for, needed or not: with the driver's KiB, 16 blocks then share an SM."""

ptx = cute.arch.inline_ptx


# Memory -----------------------------------------------------------------------------------------


def load_index(address: Any, wanted: Any) -> Any:
    """An int32, or 0 where it is not wanted. Volatile: it stays where it is written, ahead."""
    return ptx(
        "{ .reg .pred p; setp.ne.b32 p, {$r1}, 0; mov.b32 {$w0}, 0;"
        " @p ld.volatile.global.b32 {$w0}, [{$r0}]; }",
        write_only_types=[Int32],
        read_only_args=[address, Int32(wanted)],
    )


def load_words(space: str, address: Any) -> Any:
    """Eight bytes as two words, ``space`` being global or shared."""
    return ptx(
        f"ld.{space}.v2.b32 {{ {{$w0}}, {{$w1}} }}, [{{$r0}}];",
        write_only_types=[Uint32, Uint32],
        read_only_args=[address],
    )


def fetch(target: Any, source: Any, size: Any, barrier: Any, once: bool) -> None:
    """Bulk copy of ``size`` bytes to shared memory, counted by the barrier."""
    ptx(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
        + (".L2::cache_hint" if once else "")
        + " [{$r0}], [{$r1}], {$r2}, [{$r3}]"
        + (", {$r4};" if once else ";"),
        read_only_args=[target, source, size, barrier, *([evict_first()] if once else [])],
    )


def store(address: Any, words: tuple[Any, ...], once: bool) -> None:
    """Sixteen bytes."""
    ptx(
        "st.global"
        + (".L2::cache_hint" if once else "")
        + ".v4.b32 [{$r0}], { {$r1}, {$r2}, {$r3}, {$r4} }"
        + (", {$r5};" if once else ";"),
        read_only_args=[address, *words, *([evict_first()] if once else [])],
    )


def evict_first() -> Any:
    """The L2 policy of what is not touched again soon."""
    return ptx("createpolicy.fractional.L2::evict_first.b64 {$w0}, 1.0;", write_only_types=[Uint64])


# Arithmetic -------------------------------------------------------------------------------------


def scale_pair(words: tuple[Any, Any], select: Any) -> Any:
    """One UE8M0 byte of eight as a pair of bf16: its bits are the exponent, so 0 means 0."""
    return (cute.arch.prmt(*words, select) & Uint32(0x00FF00FF)) << 7


def decode(words: tuple[Any, Any], scale: Any) -> tuple[Any, ...]:
    """Eight E4M3 codes times a scale -> eight bf16 in four words. Every step but the last is exact,
    and the last rounds only what bf16 cannot hold.
    """
    result: list[Any] = []
    for word in words:
        result += ptx(
            """{
            .reg .b16 c<2>, h<4>;
            .reg .b32 p<2>;
            .reg .f32 x<4>;
            mov.b32 {c0, c1}, {$r0};
            cvt.rn.f16x2.e4m3x2 p0, c0;
            cvt.rn.f16x2.e4m3x2 p1, c1;
            mov.b32 {h0, h1}, p0;
            mov.b32 {h2, h3}, p1;
            cvt.f32.f16 x0, h0;
            cvt.f32.f16 x1, h1;
            cvt.f32.f16 x2, h2;
            cvt.f32.f16 x3, h3;
            cvt.rn.bf16x2.f32 p0, x1, x0;
            cvt.rn.bf16x2.f32 p1, x3, x2;
            mul.rn.bf16x2 {$w0}, p0, {$r1};
            mul.rn.bf16x2 {$w1}, p1, {$r1};
            }""",
            write_only_types=[Uint32, Uint32],
            read_only_args=[word, scale],
        )
    return tuple(result)


# The kernel -------------------------------------------------------------------------------------


def build(choices: Mapping[str, Any]) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """The host function and fake arguments of one variant.

    block_size: rows a page, a power of two. record: a name of RECORDS. windowed: gather the last
    ``gather_lens`` rows instead of all. rows: of a tile, 32 at most. warps: of a block.
    once: what passes through L2 and need not stay: "nothing", "input" or "all".
    """
    block_size: int = choices["block_size"]
    record = RECORDS[choices["record"]]
    windowed: bool = choices["windowed"]
    rows: int = choices["rows"]
    warps: int = choices["warps"]
    input_once: bool = choices["once"] != "nothing"
    output_once: bool = choices["once"] == "all"
    assert warps * rows * record.pitch <= BLOCK_SHARED
    page_bits = block_size.bit_length() - 1
    tail_lane = (record.fp8 - DIM // 2) // LANE  # from here on the second half row is bf16

    @cute.kernel
    def kernel(
        out: cute.Pointer,
        k_cache: cute.Pointer,
        seq_lens: cute.Pointer,
        gather_lens: cute.Pointer,
        block_table: cute.Pointer,
        out_request_stride: Int64,
        out_row_stride: Int64,
        page_stride: Int64,
        table_stride: Int64,
        table_width: Int32,
        offset: Int32,
    ):
        thread, _, _ = cute.arch.thread_idx()
        block, request, _ = cute.arch.block_idx()
        blocks, _, _ = cute.arch.grid_dim()
        lane = thread % WARP
        warp = cute.arch.make_warp_uniform(thread // WARP)
        first = (block * warps + warp) * rows
        step = blocks * (warps * rows)
        gTable = block_table + Int64(request) * table_stride

        # Lane l decodes codes 8l.. of each half row: bytes `left` and `right`.
        left = lane * LANE
        right = DIM // 2 + left
        if cutlass.const_expr(record.fp8 < DIM):
            if lane >= tail_lane:
                right = record.fp8 + (lane - tail_lane) * (2 * LANE)
        select = Uint32(left // record.group) * Uint32(0x01010101)
        right_select = select
        if cutlass.const_expr(record.split):
            right_select = select + Uint32(0x04040404)

        sRows = cute.arch.alloc_smem(Uint8, BLOCK_SHARED, alignment=128)
        sRows += warp * (rows * record.pitch)
        sBarrier = cute.arch.alloc_smem(Int64, warps, alignment=8) + warp
        if lane == 0:
            cute.arch.mbarrier_init(sBarrier, 1)
            cute.arch.mbarrier_init_fence()
        cute.arch.sync_warp()
        phase = Int32(0)

        # All above is done while the kernel before this one in the stream still works. Every block
        # waits, idle ones too: what comes next may rely on everything before it being done.
        cute.arch.griddepcontrol_wait()
        cute.arch.griddepcontrol_launch_dependents()

        # Without a window a row's place in the table is known before the length is, so both loads
        # fly together. An entry past the length may be read then, and is never used.
        page = Int32(0)
        if cutlass.const_expr(not windowed):
            entry = (first + lane) >> page_bits
            page = load_index(gTable + entry, entry < table_width)
        count = (seq_lens + request).load()
        start = Int32(0)
        if cutlass.const_expr(windowed):
            start = count
            count = (gather_lens + request).load()
            start -= count

        gOut = out + (Int64(request) * out_request_stride + Int64(offset) * out_row_stride)
        gOut += Int64(first) * out_row_stride + Int64(left)
        if cutlass.const_expr(windowed):
            page = load_index(gTable + ((start + first + lane) >> page_bits), first + lane < count)
        while first < count:
            tile = cutlass.min(rows, count - first)
            if lane == 0:
                cute.arch.mbarrier_arrive_and_expect_tx(sBarrier, tile * record.pitch)
            slot = (start + first + lane) & (block_size - 1)
            gPage = k_cache + Int64(page) * page_stride
            lo = Uint32(0)
            hi = Uint32(0)
            if lane < tile:
                if lane == 0 or slot == 0:
                    run = cutlass.min(tile - lane, block_size - slot)
                    sRun = sRows + lane * record.pitch
                    gRun = gPage + slot * record.pitch
                    fetch(sRun, gRun, run * record.pitch, sBarrier, input_once)
                if cutlass.const_expr(record.split):
                    lo, hi = load_words(
                        "global", gPage + (block_size * record.pitch + slot * V4_SCALES)
                    )
            ahead = first + step + lane  # the next tile's pages come in behind this one's rows
            page = load_index(gTable + ((start + ahead) >> page_bits), ahead < count)
            cute.arch.mbarrier_wait(sBarrier, phase)
            phase ^= 1

            gRow = gOut
            for row in cutlass.range_constexpr(rows):
                sRow = sRows + row * record.pitch
                a = load_words("shared", sRow + left)
                b = load_words("shared", sRow + right)
                if cutlass.const_expr(record.split):
                    scales = 2 * (cute.arch.shuffle_sync(lo, row), cute.arch.shuffle_sync(hi, row))
                else:
                    scales = tuple(load_words("shared", sRow + DIM))
                    scales += tuple(load_words("shared", sRow + DIM + 8))
                left_words = decode(a, scale_pair(scales[:2], select))
                right_words = decode(b, scale_pair(scales[2:], right_select))
                if cutlass.const_expr(record.fp8 < DIM):
                    c = load_words("shared", sRow + right + LANE)
                    if lane >= tail_lane:
                        right_words = (*b, *c)
                if row < tile:  # a short tile decodes what lies there, and keeps it to itself
                    store(gRow, left_words, output_once)
                    store(gRow + DIM // 2, right_words, output_once)
                gRow += out_row_stride
            cute.arch.sync_warp()  # all lanes have read the rows that the next tile overwrites
            first += step
            gOut += Int64(step) * out_row_stride

    kernel.set_name_prefix("dequant_gather", remove_cutlass_symbol=True, keep_mangled_name=False)

    @cute.jit
    def host(
        out: cute.Pointer,
        k_cache: cute.Pointer,
        seq_lens: cute.Pointer,
        gather_lens: cute.Pointer,
        block_table: cute.Pointer,
        out_request_stride: Int64,
        out_row_stride: Int64,
        page_stride: Int64,
        table_stride: Int64,
        table_width: Int32,
        offset: Int32,
    ):
        kernel(
            out, k_cache, seq_lens, gather_lens, block_table,
            out_request_stride, out_row_stride, page_stride, table_stride, table_width, offset,
        ).launch(grid=[1, 1, 1], block=[warps * WARP, 1, 1])  # fmt: skip

    def pointer(dtype: type, alignment: int) -> Any:
        return make_ptr(dtype, 0, cute.AddressSpace.gmem, assumed_align=alignment)

    lists = [pointer(Int32, 4) for _ in range(3)]
    strides = [Int64(0) for _ in range(4)]
    return host, (pointer(BFloat16, 16), pointer(Uint8, 16), *lists, *strides, Int32(0), Int32(0))
