"""turboquant_dequant: whole keys and values out of TurboQuant's paged cache.

Attention wants them in the later chunks of a prefill.

For every request b and every token t < seq_lens[b], with page = block_table[b, t / P]:

    key_out[starts[b] + t, h], value_out[starts[b] + t, h] = decode(kv_cache[page, t % P, h])

Other rows are not touched, so a server may leave room for a chunk behind each request. Outputs are
``[rows, heads, head_dim]`` with free strides: one request's ``[heads, tokens, head_dim]`` is such a
tensor, transposed. Lengths and pages are read on the device. What they ask for beyond ``key_out``,
the table or the cache is not written.

Keys leave the cache rotated. ``rotate`` turns them back, in float32 and before the one rounding to
the result's type; vLLM rounds to fp16, multiplies with an fp16 matrix, and rounds again. Without
``rotate`` they stay as they are, which suits queries that are rotated too. FP8 keys never are.
"""

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
    rule,
    scalar,
    tensor,
    tuned,
)
from dsv4_aot.runtime.expr import cdiv, minimum, size, stride, value
from dsv4_aot.runtime.schema import Argument, Launch
from dsv4_aot.templates.turboquant_store.kernel import (
    DTYPES,
    INT_MAX,
    MAX_PAIRS,
    PRESET,
    cache,
    cache_axes,
    cache_checks,
    domain,
    heads,
    heads_factor,
    page_factor,
    page_size,
    page_stride,
    pages,
    step_checks,
)

WARPS = 2
"""Of a block, with 8 or 16 heads of tokens each."""

rows = size("key_out", 0)
head_dim = size("key_out", 2)
requests = size("seq_lens", 0)
pairs = rows * heads


def output(name: str) -> Argument:
    return tensor(
        name,
        DTYPES,
        (rows, heads, head_dim),
        strides=(None, None, 1),
        align=16,
        access="write",
        doc="[rows, heads, head_dim]; the other strides are free multiples of 8",
    )


def geometry(choices: Choices) -> Launch:
    """Without requests there is nothing to do, and no start to read."""
    blocks = cdiv(pairs, choices["pairs"] * WARPS) * minimum(requests, 1)
    return launch([blocks], 32 * WARPS, programmatic=True)


KERNEL = KernelSpec(
    name="turboquant_dequant",
    summary="Decode keys and values out of TurboQuant's paged cache.",
    arguments=[
        output("key_out"),
        output("value_out"),
        cache("read"),
        tensor(
            "block_table",
            "int32",
            (requests, None),
            strides=(None, 1),
            doc="[requests, pages of the longest]; stride(0) is free",
        ),
        tensor(
            "seq_lens", "int32", (None,), contiguous=True, doc="[requests]: tokens in the cache"
        ),
        tensor(
            "starts",
            "int32",
            (requests,),
            contiguous=True,
            doc="[requests], ascending: the row of each one's first token. Where requests would "
            "overlap, a row belongs to the last one that starts at or before it",
        ),
        *PRESET,
        scalar("rotate", "bool", default=True, doc="keys are turned back into the model's basis"),
    ],
    checks=[
        *cache_checks(head_dim),
        *step_checks("key_out"),
        *step_checks("value_out"),
        check(pairs <= MAX_PAIRS, "key_out has at most 2^30 / heads rows"),
        check(requests <= MAX_PAIRS, f"there are at most {MAX_PAIRS} requests"),
        check(pages * page_size <= INT_MAX, f"kv_cache has room for at most {INT_MAX} tokens"),
    ],
    axes=[
        *cache_axes(head_dim),
        bound("dtype", DTYPES, by=dtype_of("key_out")),
        bound("value_dtype", DTYPES, by=dtype_of("value_out")),
        tuned("pairs", (8, 16)),
    ],
    domain=domain(("dtype", "value_dtype")),
    rules=[
        # Less to do for a pair: the narrower the front that sweeps through memory, the better.
        rule(where={"key_bits": (8,)}, pairs=8),
        rule(when=(pairs <= 1 << 16) | value("rotate").eq(0), pairs=8),
        # What a warp finds out about its rows serves more pairs.
        rule(pairs=16),
    ],
    params=[
        pointer("key_out"),
        pointer("value_out"),
        pointer("kv_cache"),
        pointer("block_table"),
        pointer("seq_lens"),
        pointer("starts"),
        number("key_row_stride", "i64", 2 * stride("key_out", 0)),
        number("key_head_stride", "i64", 2 * stride("key_out", 1)),
        number("value_row_stride", "i64", 2 * stride("value_out", 0)),
        number("value_head_stride", "i64", 2 * stride("value_out", 1)),
        number("page_stride", "i64", page_stride),
        number("table_stride", "i64", stride("block_table", 0)),
        number("page_factor", "u64", page_factor),
        number("heads_factor", "u64", heads_factor),
        number("page_size", "u32", page_size),
        number("pages", "u32", pages),
        number("table_pages", "i32", minimum(size("block_table", 1), INT_MAX)),
        number("requests", "i32", requests),
        number("heads", "i32", heads),
        number("pairs", "i32", pairs),
        number("rotate", "i32", value("rotate")),
    ],
    launch=geometry,
    source=CudaSource(entry="turboquant_dequant", variables={"warps": WARPS}),
    max_registers=128,
)
