"""turboquant_store: keys and values of new tokens, compressed into TurboQuant's paged cache.

For every token t with 0 <= slot_mapping[t] < pages * page size P, and every head h:

    kv_cache[slot / P, slot % P, h] = encode(key[t, h], value[t, h])

Other tokens are skipped, and nothing else in ``kv_cache`` is written. Two tokens may not have one
slot. A preset is two numbers: ``key_bits`` and ``value_bits`` are 8 and 4 for k8v4, 4 and 4 for
4bit_nc, 3 and 4 for k3v4_nc, 3 and 3 for 3bit_nc. _shared/turboquant.cuh describes the bytes.

The launch is programmatic: it overlaps the end of the kernel before it, and a kernel behind it
that is launched in this way too has to wait for it (``griddepcontrol.wait``), as this one does.
"""

from collections.abc import Sequence
from typing import Any, Literal

from dsv4_aot.generator.spec import (
    Choices,
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
from dsv4_aot.runtime.abi import Dtype
from dsv4_aot.runtime.expr import Node, cdiv, maximum, size, stride, value
from dsv4_aot.runtime.schema import Argument, Axis, Check

DTYPES: tuple[Dtype, ...] = ("bfloat16", "float16")
SLOTS: tuple[Dtype, ...] = ("int32", "int64")
HEAD_DIMS = (64, 128, 256)
PRESETS = ((8, 4), (4, 4), (3, 4), (3, 3))
INT_MAX = 2**31 - 1
MAX_PAIRS = 2**30
EXACT_BITS = 62
"""Bits of the fixed-point reciprocals of the page size and of the number of heads."""
WARPS = 2
"""Of a block."""
WARP_PAIRS = 8
"""Heads of tokens that a warp encodes."""
BLOCKS = {64: 16, 128: 12, 256: 8}
"""Of a multiprocessor, by head_dim: what registers are capped for."""

# The cache, for all kernels on it ----------------------------------------------------------------

pages = size("kv_cache", 0)
page_size = size("kv_cache", 1)
heads = size("kv_cache", 2)
slot_bytes = size("kv_cache", 3)
page_stride = stride("kv_cache", 0)
page_factor = cdiv(1 << EXACT_BITS, maximum(page_size, 1))
heads_factor = cdiv(1 << EXACT_BITS, maximum(heads, 1))
PRESET = (
    scalar("key_bits", "int", doc="8 (E4M3), 4 or 3"),
    scalar("value_bits", "int", doc="4 or 3"),
)


def cache(access: Literal["read", "readwrite"], unit: int = 2, doc: str = "") -> Argument:
    """unit: bytes that pages begin at multiples of."""
    return tensor(
        "kv_cache",
        "uint8",
        (None, None, None, None),
        strides=(None, heads * slot_bytes, slot_bytes, 1),
        align=unit,
        access=access,
        doc=f"[pages, page size, heads, bytes of a slot]{doc}; stride(0), the page stride in "
        f"bytes, is a free multiple of {unit}",
    )


def cache_checks(head_dim: Node, unit: int = 2) -> list[Check]:
    """A slot is codes, the norm of a key that is not FP8, and a value's step and minimum."""
    codes = head_dim * (value("key_bits") + value("value_bits")) // 8
    return [
        check(
            slot_bytes.eq(codes + 4 + 2 * value("key_bits").ne(8)),
            "a slot of kv_cache is head_dim * (key_bits + value_bits) / 8 + 4 bytes, and 2 more "
            "unless key_bits is 8",
        ),
        check(
            (pages <= 1)
            | ((page_stride % unit).eq(0) & (page_stride >= page_size * heads * slot_bytes)),
            f"kv_cache.stride(0), the page stride, is a multiple of {unit} and at least a page",
        ),
    ]


def step_checks(name: str) -> list[Check]:
    """Of rows [rows, heads, head_dim]: every head's begins where 16-byte accesses may."""
    return [
        check(
            (size(name, dim) <= 1) | (stride(name, dim) % 8).eq(0),
            f"{name}.stride({dim}) is a multiple of 8 elements",
        )
        for dim in (0, 1)
    ]


def cache_axes(head_dim: Node) -> list[Axis]:
    return [
        bound("key_bits", (8, 4, 3), by=value("key_bits")),
        bound("value_bits", (4, 3), by=value("value_bits")),
        bound("head_dim", HEAD_DIMS, by=head_dim),
    ]


def domain(dtypes: Sequence[str], **others: Sequence[Any]) -> list[dict[str, Sequence[Any]]]:
    """What is served: one dtype for the axes in ``dtypes``."""
    return [
        {
            "key_bits": (key_bits,),
            "value_bits": (value_bits,),
            "head_dim": HEAD_DIMS,
            **dict.fromkeys(dtypes, (dtype,)),
            **others,
        }
        for key_bits, value_bits in PRESETS
        for dtype in DTYPES
    ]


# Storing -----------------------------------------------------------------------------------------

tokens = size("slot_mapping", 0)
head_dim = size("key", 2)
slots = pages * page_size
pairs = tokens * heads


def rows(name: str) -> Argument:
    return tensor(
        name,
        DTYPES,
        (None, heads, None),
        strides=(None, None, 1),
        align=16,
        doc="[tokens or more, heads, head_dim]; the other strides are free multiples of 8, and "
        "further tokens are not read",
    )


def row_checks(name: str) -> list[Check]:
    return [
        check(size(name, 0) >= tokens, f"{name} has no fewer tokens than slot_mapping"),
        *step_checks(name),
    ]


def source(choices: Choices) -> CudaSource:
    blocks = BLOCKS[choices["head_dim"]]
    return CudaSource(entry="turboquant_store", variables={"warps": WARPS, "blocks": blocks})


KERNEL = KernelSpec(
    name="turboquant_store",
    summary="Compress keys and values of new tokens into TurboQuant's paged cache.",
    arguments=[
        rows("key"),
        rows("value"),
        cache("readwrite"),
        tensor(
            "slot_mapping",
            SLOTS,
            (None,),
            contiguous=True,
            doc="[tokens]: page * page size + token in the page, each at most once; tokens with a "
            "slot below 0 or behind the last page are skipped",
        ),
        *PRESET,
    ],
    checks=[
        check(size("value", 2).eq(head_dim), "value has the head_dim of key"),
        *cache_checks(head_dim),
        *row_checks("key"),
        *row_checks("value"),
        check(pairs <= MAX_PAIRS, "slot_mapping has at most 2^30 / heads tokens"),
        check(slots <= INT_MAX, f"kv_cache has room for at most {INT_MAX} tokens"),
    ],
    axes=[
        *cache_axes(head_dim),
        bound("dtype", DTYPES, by=dtype_of("key")),
        bound("value_dtype", DTYPES, by=dtype_of("value")),
        bound("slot", SLOTS, by=dtype_of("slot_mapping")),
    ],
    domain=domain(("dtype", "value_dtype"), slot=SLOTS),
    params=[
        pointer("key"),
        pointer("value"),
        pointer("kv_cache"),
        pointer("slot_mapping"),
        number("key_token_stride", "i64", 2 * stride("key", 0)),
        number("key_head_stride", "i64", 2 * stride("key", 1)),
        number("value_token_stride", "i64", 2 * stride("value", 0)),
        number("value_head_stride", "i64", 2 * stride("value", 1)),
        number("page_stride", "i64", page_stride),
        number("page_factor", "u64", page_factor),
        number("heads_factor", "u64", heads_factor),
        number("page_size", "u32", page_size),
        number("slots", "u32", slots),
        number("heads", "i32", heads),
        number("pairs", "i32", pairs),
    ],
    launch=lambda _: launch([cdiv(pairs, WARPS * WARP_PAIRS)], 32 * WARPS, programmatic=True),
    source=source,
    max_registers=128,
)
