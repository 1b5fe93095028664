"""combine_topk_swa: what every query attends to, as one row of indices of gathered rows.

A row of ``out`` is [selected compressed rows | rows of the window | -1 ...], and ``lens`` counts
what is not padding. Two conventions say where a request's rows lie and where its queries stand:

* SGLang's, when ``query_pos`` is given: positions and both bases come from tensors, and the window
  may be listed (``swa_indices``, ``swa_lengths``).
* vLLM's otherwise: request b has its compressed rows from m * b and its window from m * b + n on,
  and its queries are the last of its sequence. The window may reach over an image's tokens
  (``left_visible``, ``right_visible``).

Every column of every row is written, and rows past the last request's queries are -1 with length 0.
Lengths are read on the device, so a captured launch follows them. The launch is programmatic.
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
    scalar,
    tensor,
)
from dsv4_aot.runtime.expr import cdiv, maximum, present, size, stride, value
from dsv4_aot.runtime.schema import Argument, TensorArg

INT32 = 2**31 - 1
WARPS = 4
QUADS = 4
"""16-byte stores of a thread, each its part of a piece of 128 columns."""
EXACT_BITS = 62
"""Bits of the fixed-point reciprocal of a row's pieces."""

ROWS = size("out", 0)
WIDTH = size("out", 1)
REQUESTS = size("seq_lens", 0)
ROW_PIECES = WIDTH // 128
IMAGES = present("left_visible")
LISTED = present("swa_indices")
BASES = present("compressed_base") + present("swa_base")


def per_request(name: str, doc: str, *, optional: bool = False) -> TensorArg:
    return tensor(name, "int32", (REQUESTS,), contiguous=True, optional=optional, doc=doc)


def per_row(name: str, doc: str) -> TensorArg:
    return tensor(name, "int32", (ROWS,), contiguous=True, optional=True, doc=doc)


def count(name: str, doc: str, default: int | None = None) -> Argument:
    return scalar(name, "int", minimum=0, maximum=INT32, default=default, doc=doc)


def params(choices: Choices) -> list[Parameter]:
    """Only what the variant reads."""
    tensors = ["out", "lens", "topk_indices", "query_start_loc", "seq_lens", "gather_lens"]
    numbers = [
        number("out_stride", "i64", stride("out", 0)),
        number("topk_stride", "i64", stride("topk_indices", 0)),
        number("row_reciprocal", "i64", cdiv(1 << EXACT_BITS, maximum(ROW_PIECES, 1))),
        number("rows", "i32", ROWS),
        number("row_pieces", "i32", ROW_PIECES),
        number("requests", "i32", REQUESTS),
        number("topk", "i32", value("topk")),
        number("window", "i32", value("window_size")),
        number("ratio", "i32", value("compress_ratio")),
    ]
    if choices["sglang"]:
        tensors += ["query_pos", "compressed_base", "swa_base"]
    else:
        numbers += [number(name, "i32", value(name)) for name in ("m", "n")]
    if choices["images"]:
        tensors += ["left_visible", "right_visible"]
    if choices["explicit"]:
        tensors += ["swa_indices", "swa_lengths"]
        numbers += [
            number("swa_stride", "i64", stride("swa_indices", 0)),
            number("swa_columns", "i32", size("swa_indices", 1)),
        ]
    return [*map(pointer, tensors), *numbers]


KERNEL = KernelSpec(
    name="combine_topk_swa",
    summary="Join each query's selected compressed rows and its window into one row of indices.",
    arguments=[
        tensor(
            "out",
            "int32",
            (None, None),
            strides=(None, 1),
            align=16,
            access="write",
            doc="[queries, width], width a multiple of 128; stride(0) is a free multiple of 4",
        ),
        tensor("lens", "int32", (ROWS,), contiguous=True, access="write", doc="[queries]"),
        tensor(
            "topk_indices",
            "int32",
            (ROWS, None),
            strides=(None, 1),
            optional=True,
            doc="[queries, >= topk]: compressed rows of the query's request, -1 for none; when "
            "absent, column c holds c",
        ),
        tensor(
            "query_start_loc",
            "int32",
            (REQUESTS + 1,),
            contiguous=True,
            doc="[requests + 1], ascending; its first element is subtracted from all",
        ),
        per_request("seq_lens", "[requests], in tokens, this chunk's included"),
        per_request("gather_lens", "[requests]: tokens at the end that the window's rows hold"),
        count("window_size", "tokens that a query sees, itself included", default=128),
        count("compress_ratio", "tokens of a compressed row; 0 for none", default=1),
        count("topk", "compressed rows that a query selects at most", default=0),
        count("m", "vLLM's M: gathered rows of a request", default=0),
        count("n", "vLLM's N: compressed rows before a request's window", default=0),
        per_row("left_visible", "[queries]: tokens on the left in the query's image"),
        per_row("right_visible", "[queries]: tokens on the right in the query's image"),
        count("max_image_tokens", "that images add to a window at most", default=0),
        scalar(
            "v41",
            "bool",
            default=True,
            doc="vLLM's rule for V4.1: an index outside [0, n) gives -1, and a window starts at "
            "the first gathered token. False is the rule for V4, which adds to every index. "
            "SGLang's convention knows one rule, that an index below 0 gives -1",
        ),
        per_row("query_pos", "[queries]: position in its sequence; selects SGLang's convention"),
        per_request("compressed_base", "[requests]: first compressed row", optional=True),
        per_request("swa_base", "[requests]: first row of the window", optional=True),
        tensor(
            "swa_indices",
            "int32",
            (ROWS, None),
            strides=(None, 1),
            optional=True,
            doc="[queries, >= swa_lengths]: the window's rows counted from swa_base, -1 for none",
        ),
        per_row("swa_lengths", "[queries]: entries of swa_indices that count"),
    ],
    checks=[
        check((WIDTH % 128).eq(0), "out.shape[1] is a multiple of 128"),
        check((ROWS <= 1) | (stride("out", 0) % 4).eq(0), "out.stride(0) is a multiple of 4"),
        check(
            value("topk") + value("window_size") + value("max_image_tokens") <= WIDTH,
            "out.shape[1] is at least topk + window_size + max_image_tokens",
        ),
        check(
            present("topk_indices").eq(0) | (size("topk_indices", 1) >= value("topk")),
            "topk_indices has topk columns or more",
        ),
        check(
            ROWS * ROW_PIECES < 2**31 - 2**10,
            "out.shape[0] * out.shape[1] / 128 is below 2^31 - 2^10",
        ),
        check(
            BASES.eq(2 * present("query_pos")), "query_pos, compressed_base, swa_base go together"
        ),
        check(LISTED.eq(present("swa_lengths")), "swa_indices and swa_lengths go together"),
        check(IMAGES.eq(present("right_visible")), "left_visible and right_visible go together"),
        check(
            LISTED.eq(0) | (value("topk") + size("swa_indices", 1) <= WIDTH),
            "out.shape[1] is at least topk + swa_indices.shape[1]",
        ),
    ],
    axes=[
        bound("sglang", (False, True), by=present("query_pos")),
        bound("explicit", (False, True), by=LISTED),
        bound("images", (False, True), by=IMAGES),
        bound("v41", (False, True), by=value("v41")),
    ],
    domain=[
        {"sglang": (True,), "explicit": (False, True), "images": (False,), "v41": (True,)},
        {"sglang": (False,), "explicit": (False,), "images": (False, True), "v41": (False, True)},
    ],
    params=params,
    launch=lambda _: launch(
        [cdiv(ROWS * ROW_PIECES, WARPS * QUADS)], 32 * WARPS, programmatic=True
    ),
    source=CudaSource(entry="combine_topk_swa", variables={"warps": WARPS, "quads": QUADS}),
    max_registers=56,
)
