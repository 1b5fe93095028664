"""quantize_insert: rows of bf16, quantised and written to their slots of a paged K cache.

For every token t with 0 <= slot_mapping[t] < pages * page size P:

    record(page slot / P, row slot % P) = encode(k[t])

Other tokens are skipped, and nothing else in ``k_cache`` is written. Two tokens may not have one
slot. The launch is programmatic: it overlaps the end of the kernel before it, and a kernel behind
it that is launched in this way too has to wait for it (``griddepcontrol.wait``), as this one does.
"""

from dsv4_aot.generator.spec import (
    CudaSource,
    KernelSpec,
    bound,
    check,
    dtype_of,
    launch,
    number,
    pointer,
    scalar,
    tensor,
)
from dsv4_aot.runtime.expr import cdiv, maximum, size, stride, value

RECORDS = {"v4": 584, "v41": 528, "v41_fp4": 288}
INT_MAX = 2**31 - 1
MAX_TOKENS = 2**30
WARPS = 8
"""Of a block, a row each."""
EXACT_BITS = 62
"""Bits of the fixed-point reciprocal of the page size."""

tokens = size("slot_mapping", 0)
page_size = size("k_cache", 1)
record = size("k_cache", 2)
page_stride = stride("k_cache", 0)
slots = size("k_cache", 0) * page_size
is_v4 = record.eq(RECORDS["v4"])
is_fp8 = record.eq(RECORDS["v41"])

scale_bytes = 8 + 8 * is_fp8 + 24 * record.eq(RECORDS["v41_fp4"])
data_bytes = record - scale_bytes
split = maximum(is_v4, value("block_split"))


KERNEL = KernelSpec(
    name="quantize_insert",
    summary="Quantise rows of bf16 and insert them into a paged FP8 or FP4 K cache.",
    arguments=[
        tensor(
            "k",
            "bfloat16",
            (None, 512),
            strides=(None, 1),
            align=16,
            doc="[tokens or more, 512]; stride(0) is a free multiple of 8; further rows are not "
            "read",
        ),
        tensor(
            "k_cache",
            "uint8",
            (None, None, None),
            strides=(None, record, 1),
            align=16,
            access="readwrite",
            doc="[pages, page size, 584 | 528 | 288]; stride(0) is the page stride in bytes. A "
            "record of 584 bytes is V4, one of 528 V4.1 FP8, one of 288 V4.1 FP4",
        ),
        tensor(
            "slot_mapping",
            ("int32", "int64"),
            (None,),
            contiguous=True,
            doc="[tokens]: page * page size + row, each at most once; tokens with a slot below 0 "
            "or behind the last page are skipped",
        ),
        scalar(
            "block_split",
            "bool",
            default=False,
            doc="a page holds all data rows and then all scale rows, instead of each row's scales "
            "behind its data; V4 always does",
        ),
        scalar(
            "sglang",
            "bool",
            default=False,
            doc="as SGLang writes: V4's eighth scale byte is left alone instead of zeroed, and "
            "V4.1 FP8 scales are at least 2^-13 instead of 2^-22",
        ),
    ],
    checks=[
        check(size("k", 0) >= tokens, "k has no fewer rows than slot_mapping"),
        check(tokens <= MAX_TOKENS, f"there are at most {MAX_TOKENS} tokens in a call"),
        check(slots <= INT_MAX, f"k_cache has at most {INT_MAX} slots"),
        check(
            (size("k", 0) <= 1) | (stride("k", 0) % 8).eq(0),
            "k.stride(0) is a multiple of 8 elements",
        ),
        check(
            (size("k_cache", 0) <= 1)
            | ((page_stride % 16).eq(0) & (page_stride >= page_size * record)),
            "k_cache.stride(0), the page stride, is a multiple of 16 bytes and at least a page",
        ),
    ],
    axes=[
        bound("record", RECORDS, by=record),
        bound("slot", ("int32", "int64"), by=dtype_of("slot_mapping")),
    ],
    params=[
        pointer("k"),
        pointer("k_cache"),
        pointer("slot_mapping"),
        number("row_stride", "i64", 2 * stride("k", 0)),
        number("page_stride", "i64", page_stride),
        number("data_stride", "i64", record - split * scale_bytes),
        number("scale_start", "i64", data_bytes * maximum(split * page_size, 1)),
        number("scale_stride", "i64", split * scale_bytes + (1 - split) * record),
        number("page_factor", "u64", cdiv(1 << EXACT_BITS, maximum(page_size, 1))),
        number("page_size", "u32", page_size),
        number("slots", "u32", slots),
        number("tokens", "i32", tokens),
        number("least", "i32", 105 + 9 * is_fp8 * value("sglang")),
        number("scale_bytes", "i32", scale_bytes - is_v4 * value("sglang")),
    ],
    launch=lambda _: launch([cdiv(tokens, WARPS)], 32 * WARPS, programmatic=True),
    source=CudaSource(entry="quantize_insert", variables={"warps": WARPS}),
    max_registers=40,
)
