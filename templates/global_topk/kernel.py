"""global_topk: a request's selected rows as rows of the whole paged cache.

    v = topk_indices[t, k];  q = token_to_req[t]
    out[t, k] = block_table[q, v / block_size] * block_size + v % block_size,   -1 where v < 0
    lens[t] = number of v >= 0,   0 where is_valid_token[t] is false

Holes stay where they are. An index that no entry of the table serves counts as a hole, so that
nothing outside of the table is read. ``out`` may be ``topk_indices`` itself. The launch is
programmatic.
"""

from __future__ import annotations

from dsv4_aot.generator.spec import (
    CudaSource,
    KernelSpec,
    bound,
    check,
    dtype_of,
    launch,
    number,
    pointer,
    rule,
    scalar,
    tensor,
    tuned,
)
from dsv4_aot.runtime.abi import Dtype
from dsv4_aot.runtime.expr import cdiv, maximum, present, size, stride, value

INT32 = 2**31 - 1
EXACT_BITS = 62
"""Bits of the fixed-point reciprocal of the page size."""
OUTPUTS: tuple[Dtype, ...] = ("int32", "int64")

ROWS = size("out", 0)
WIDTH = size("out", 1)

KERNEL = KernelSpec(
    name="global_topk",
    summary="Map each token's selected rows to rows of the paged cache, and count them.",
    arguments=[
        tensor(
            "out",
            OUTPUTS,
            (None, None),
            strides=(None, 1),
            access="write",
            doc="[tokens, k]; int64 where the cache has 2^31 rows or more",
        ),
        tensor("lens", "int32", (ROWS,), contiguous=True, access="write", doc="[tokens]"),
        tensor(
            "topk_indices",
            "int32",
            (ROWS, WIDTH),
            strides=(None, 1),
            doc="[tokens, k]: rows of the token's request, -1 for none",
        ),
        tensor("token_to_req", "int32", (None,), contiguous=True, doc="[>= tokens]"),
        tensor(
            "block_table",
            "int32",
            (None, None),
            strides=(None, 1),
            doc="[requests, entries]: page of each block_size rows",
        ),
        scalar("block_size", "int", minimum=1, maximum=INT32, doc="rows of a page"),
        tensor(
            "is_valid_token",
            "bool",
            (None,),
            contiguous=True,
            optional=True,
            doc="[>= tokens]: tokens that are not padding; all when absent",
        ),
    ],
    checks=[
        check(size("token_to_req", 0) >= ROWS, "token_to_req has an element for every token"),
        check(
            present("is_valid_token").eq(0) | (size("is_valid_token", 0) >= ROWS),
            "is_valid_token has an element for every token",
        ),
        check(WIDTH < 2**31 - 2**14, "out.shape[1] is below 2^31 - 2^14"),
    ],
    axes=[
        bound("output", OUTPUTS, by=dtype_of("out")),
        tuned("threads", (128, 1024)),
        tuned("blocks", (1, 2, 16)),
    ],
    rules=[
        rule(when=(WIDTH <= 1024) & (ROWS <= 4096), threads=128, blocks=1),
        rule(when=WIDTH <= 1024, threads=128, blocks=16),
        rule(threads=1024, blocks=2),
    ],
    params=[
        pointer("out"),
        pointer("lens"),
        pointer("topk_indices"),
        pointer("token_to_req"),
        pointer("block_table"),
        pointer("is_valid_token"),
        number("out_stride", "i64", stride("out", 0)),
        number("topk_stride", "i64", stride("topk_indices", 0)),
        number("table_stride", "i64", stride("block_table", 0)),
        number("block_reciprocal", "i64", cdiv(1 << EXACT_BITS, maximum(value("block_size"), 1))),
        number("width", "i32", WIDTH),
        number("requests", "i32", size("block_table", 0)),
        number("entries", "i32", size("block_table", 1)),
        number("block_size", "i32", value("block_size")),
    ],
    launch=lambda choices: launch([ROWS], choices["threads"], programmatic=True),
    source=CudaSource(entry="global_topk"),
    max_registers=56,
)
