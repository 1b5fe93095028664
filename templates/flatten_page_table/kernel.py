"""flatten_page_table: the rows of a compressed cache that a chunk gathers, as one flat list.

In the ragged form, when ``page_table`` is given, request r has seq_lens[r] / compress_ratio rows:

    out[compressed_base[r] + j] = max(page_table[q, j / page_size] * page_size + j % page_size, 0)

with q the request's first query. In the rectangular form, when ``page_indices`` is given, the list
is [requests, columns] with columns = out's length / requests, and q the request's last query,
whose mask alone covers all of them:

    out[r, j] = max(page_indices[q, j], 0)

What is no request's row is 0, and so is what a request without queries or a table without the
entry would give: nothing outside of a table is read. Lengths are read on the device, so a captured
launch follows them. The launch is programmatic.
"""

from __future__ import annotations

from dsv4_aot.generator.spec import (
    Choices,
    CudaSource,
    KernelSpec,
    Parameter,
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
from dsv4_aot.runtime.expr import cdiv, maximum, present, size, stride, value
from dsv4_aot.runtime.schema import Launch

INT32 = 2**31 - 1
THREADS = 128
EXACT_BITS = 62
"""Bits of the fixed-point reciprocal of the page size."""

IDS = size("out", 0)
REQUESTS = size("query_start_loc", 0) - 1
COLUMNS = IDS // maximum(REQUESTS, 1)
RAGGED = {"rectangular": [False]}
RECTANGULAR = {"rectangular": [True]}
RAGGED_PARTS = present("page_table") + present("compressed_base") + present("seq_lens")


def params(choices: Choices) -> list[Parameter]:
    start, ids = pointer("query_start_loc"), number("ids", "i32", IDS)
    requests = number("requests", "i32", REQUESTS)
    if choices["rectangular"]:
        return [
            pointer("out"),
            pointer("page_indices"),
            start,
            number("pitch", "i64", stride("page_indices", 0)),
            number("rows", "i32", size("page_indices", 0)),
            ids,
            requests,
            number("columns", "i32", COLUMNS),
        ]
    return [
        pointer("out"),
        pointer("page_table"),
        start,
        pointer("compressed_base"),
        pointer("seq_lens"),
        number("pitch", "i64", stride("page_table", 0)),
        number("capacity", "i64", size("page_table", 1) * value("page_size")),
        number("page_reciprocal", "i64", cdiv(1 << EXACT_BITS, maximum(value("page_size"), 1))),
        number("rows", "i32", size("page_table", 0)),
        ids,
        requests,
        number("page_size", "i32", value("page_size")),
        number("ratio", "i32", value("compress_ratio")),
    ]


def geometry(choices: Choices) -> Launch:
    return launch([cdiv(IDS, 4 * choices["quads"] * THREADS)], THREADS, programmatic=True)


KERNEL = KernelSpec(
    name="flatten_page_table",
    summary="List the rows of a compressed cache that a chunk gathers.",
    arguments=[
        tensor("out", "int32", (None,), contiguous=True, align=16, access="write", doc="[ids]"),
        tensor(
            "query_start_loc",
            "int32",
            (None,),
            contiguous=True,
            doc="[requests + 1], ascending; its first element is subtracted from all",
        ),
        tensor(
            "page_table",
            "int32",
            (None, None),
            strides=(None, 1),
            optional=True,
            doc="[queries, entries]: page of each page_size rows; selects the ragged form",
        ),
        tensor(
            "compressed_base",
            "int32",
            (REQUESTS,),
            contiguous=True,
            optional=True,
            doc="[requests]: prefix sum of the requests' rows, from 0 on",
        ),
        tensor(
            "seq_lens",
            "int32",
            (REQUESTS,),
            contiguous=True,
            optional=True,
            doc="[requests], in tokens",
        ),
        scalar("page_size", "int", minimum=1, maximum=INT32, default=64, doc="rows of a page"),
        scalar("compress_ratio", "int", minimum=1, maximum=INT32, default=4, doc="tokens of a row"),
        tensor(
            "page_indices",
            "int32",
            (None, None),
            strides=(None, 1),
            optional=True,
            doc="[queries, >= columns]: row of each index, -1 for none; selects the rectangular "
            "form, which page_size and compress_ratio do not matter to",
        ),
    ],
    checks=[
        check(REQUESTS >= 0, "query_start_loc has requests + 1 elements"),
        check(IDS < 2**31 - 2**12, "out has fewer than 2^31 - 2^12 elements"),
        check(
            RAGGED_PARTS.eq(3),
            "page_table, compressed_base and seq_lens are given, or page_indices",
            where=RAGGED,
        ),
        check(
            RAGGED_PARTS.eq(0),
            "page_indices comes without page_table, compressed_base and seq_lens",
            where=RECTANGULAR,
        ),
        check(
            (COLUMNS * REQUESTS).eq(IDS),
            "out has requests * columns elements",
            where=RECTANGULAR,
        ),
        check(
            size("page_indices", 1) >= COLUMNS,
            "page_indices has out.shape[0] / requests columns or more",
            where=RECTANGULAR,
        ),
    ],
    axes=[
        bound("rectangular", (False, True), by=present("page_indices")),
        tuned("quads", (1, 4)),
    ],
    rules=[
        rule(where=RECTANGULAR, quads=1),
        rule(when=IDS <= 1 << 18, quads=1),
        rule(quads=4),
    ],
    params=params,
    launch=geometry,
    source=CudaSource(entry="flatten_page_table", variables={"threads": THREADS}),
    max_registers=40,
)
