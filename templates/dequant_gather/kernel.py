"""dequant_gather: rows of a paged FP8 K cache, decoded to bf16 and gathered request by request.

For every request r, with n = gather_lens[r] (all rows when absent) and start = seq_lens[r] - n:

    out[r, offset + i, :] = decode(row start + i of request r)        for 0 <= i < n

Nothing else in ``out`` is written. Lengths are read on the device, so a captured launch follows
them. The launch is programmatic: it overlaps the end of the kernel before it, and a kernel behind
it that is launched in this way too has to wait for it (``griddepcontrol.wait``), as this one does.
"""

from dsv4_aot.generator.spec import (
    Choices,
    CuteSource,
    KernelSpec,
    bound,
    check,
    launch,
    number,
    pointer,
    rule,
    scalar,
    tensor,
    tuned,
)
from dsv4_aot.runtime.expr import Node, cdiv, maximum, minimum, present, size, stride, value
from dsv4_aot.runtime.schema import Launch

MAX_REQUESTS = 65535
"""Blocks that a grid has in y."""
SHARED_ROWS = 1 << 17
"""Rows of room that several requests get blocks for; a request with more rows goes round again.
A block without work holds up the GPU for 0.6 ns, so that idle requests cost 10 us at most.
"""
UNBOUNDED = 1 << 30


def multiple(arg: str, dim: int, of: int) -> Node:
    """The stride is a multiple, or is not used."""
    return (size(arg, dim) <= 1) | (stride(arg, dim) % of).eq(0)


requests = size("out", 0)
room = size("out", 1) - value("offset")  # rows that a request can have at most
rows_in_all = requests * room


def geometry(choices: Choices) -> Launch:
    rows = choices["rows"] * choices["warps"]
    share = cdiv(SHARED_ROWS // rows, maximum(requests, 1))
    blocks = minimum(cdiv(room, rows), maximum(share, requests.eq(1) * UNBOUNDED))
    return launch([blocks, requests], 32 * choices["warps"], programmatic=True)


KERNEL = KernelSpec(
    name="dequant_gather",
    summary="Decode rows of a paged FP8 K cache to bf16 and gather them request by request.",
    arguments=[
        tensor(
            "out",
            "bfloat16",
            (None, None, 512),
            strides=(None, None, 1),
            align=16,
            access="write",
            doc="[requests, rows, 512]; strides(0) and (1) are free multiples of 8",
        ),
        tensor(
            "k_cache",
            "uint8",
            (None, None, None),
            strides=(None, size("k_cache", 2), 1),
            align=16,
            doc="[pages, block_size, 584 | 528]; stride(0) is the page stride in bytes. A record "
            "of 584 bytes is V4, whose page holds all data rows and then all scale rows; one of "
            "528 is V4.1 FP8, whose rows follow each other",
        ),
        tensor("seq_lens", "int32", (requests,), contiguous=True, doc="[requests], in cached rows"),
        tensor(
            "gather_lens",
            "int32",
            (requests,),
            contiguous=True,
            optional=True,
            doc="[requests]: gather so many of the last rows; all of them when absent",
        ),
        tensor(
            "block_table",
            "int32",
            (requests, None),
            strides=(None, 1),
            doc="[requests, entries]: page of each block_size rows; entries past a request's "
            "length may hold anything",
        ),
        scalar(
            "offset",
            "int",
            minimum=0,
            maximum=2**31 - 1,
            default=0,
            doc="row of out that a request's first gathered row is written to",
        ),
    ],
    checks=[
        check(
            multiple("out", 0, of=8) & multiple("out", 1, of=8),
            "out.stride(0) and out.stride(1) are multiples of 8 elements",
        ),
        check(
            multiple("k_cache", 0, of=16),
            "k_cache.stride(0), the page stride, is a multiple of 16 bytes",
        ),
        check(value("offset") <= size("out", 1), "offset is at most out.shape[1]"),
        check(requests <= MAX_REQUESTS, f"there are at most {MAX_REQUESTS} requests in a call"),
    ],
    axes=[
        bound("record", {"v4": 584, "v41": 528}, by=size("k_cache", 2)),
        bound("block_size", (1, 2, 4, 8, 16, 32, 64, 128, 256), by=size("k_cache", 1)),
        bound("windowed", (False, True), by=present("gather_lens")),
        tuned("rows", (2, 8)),
        tuned("warps", (1, 2, 4)),
        tuned("once", ("nothing", "input", "all")),
    ],
    rules=[
        # Latency counts, and an output this small costs its reader nothing when it leaves L2.
        rule(when=rows_in_all <= 2048, rows=2, warps=4, once="all"),
        # The output fits into L2, where attention reads it next: the input makes room for it.
        rule(when=rows_in_all <= 49152, rows=8, warps=2, once="input"),
        # More than L2 holds: the narrower the front, the better DRAM serves it.
        rule(rows=8, warps=1, once="nothing"),
    ],
    params=[
        pointer("out"),
        pointer("k_cache"),
        pointer("seq_lens"),
        pointer("gather_lens"),
        pointer("block_table"),
        number("out_request_stride", "i64", stride("out", 0)),
        number("out_row_stride", "i64", stride("out", 1)),
        number("page_stride", "i64", stride("k_cache", 0)),
        number("table_stride", "i64", stride("block_table", 0)),
        number("table_width", "i32", size("block_table", 1)),
        number("offset", "i32", value("offset")),
    ],
    launch=geometry,
    source=CuteSource(entry="dequant_gather_0"),
    max_registers=80,
)
