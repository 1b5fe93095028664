"""turboquant_decode: attention of a few query tokens a request over TurboQuant's paged cache.

Row r = request * queries + i of ``q`` is the query of token ``seq_lens[request] - queries + i``,
which sees the tokens up to itself, and with a window only the last ``window`` of those:

    out[r, h] = softmax(scale * q[r, h] K^T) V

where K and V are what the cache's slots of head h * kv_heads // heads stand for, as
_shared/turboquant.cuh describes them. A preset is two numbers: ``key_bits`` and ``value_bits`` are
8 and 4 for k8v4, 4 and 4 for 4bit_nc, 3 and 4 for k3v4_nc, 3 and 3 for 3bit_nc. A row that sees
nothing becomes zeros.

Lengths and page tables are read on the device, so a captured launch follows them. A length below 0
counts as 0, one beyond the page table's width as that width; a page outside the cache is read as
its first or last one. Those are the caller's mistakes, and nothing outside the tensors is read.

``workspace`` and ``counters`` serve one launch at a time: launches that may overlap, on several
streams, need their own. ``counters`` must be zero before the first launch, and every launch leaves
zeros. Blocks that share a long request wait for each other at their end, for a bounded time: where
other streams' work keeps some of them off the device, the last one does what the others left.

The launch is programmatic: it overlaps the end of the kernel before it, and waits for it
(``griddepcontrol.wait``) before it reads what it calculates with. Before, it only brings into the
L2 cache what lengths and page tables name as they are then.
"""

from dsv4_aot.generator.spec import (
    Choices,
    CudaSource,
    KernelSpec,
    Parameter,
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
from dsv4_aot.runtime.expr import (
    Node,
    cdiv,
    maximum,
    minimum,
    multiprocessors,
    numel,
    size,
    stride,
    value,
)
from dsv4_aot.runtime.schema import Launch
from dsv4_aot.templates.turboquant_store.kernel import (
    DTYPES,
    INT_MAX,
    PRESET,
    cache,
    cache_axes,
    cache_checks,
    domain,
    page_size,
    page_stride,
)
from dsv4_aot.templates.turboquant_store.kernel import heads as kv_heads
from dsv4_aot.templates.turboquant_store.kernel import pages as pool

RUN = 16
"""Tokens of a product, and the fewest of a tile."""
BLOCK_HEADS = 8
"""Most heads of the cache that a block reads."""
MOST_QUERIES = 8
MOST_GROUP = 16
MOST_REQUESTS = 1 << 20
NO_WINDOW = 1 << 30
"""A window that is longer than any request."""
SHARED = 227 * 1024
SUPPLIERS = 4
"""Warps that do not calculate, but fetch and look ahead; they give registers to the others."""

queries = value("queries")
requests = size("seq_lens", 0)
heads = size("q", 1)
head_dim = size("q", 2)
group = heads // maximum(kv_heads, 1)
columns = group * queries
max_tokens = size("block_table", 1) * page_size


def warps(choices: Choices) -> int:
    """Those that calculate. 16 hide more of the waiting where codes are looked up and a warp's
    state fits into half as many registers; keys of 8 bits are bound by memory.
    """
    small = choices["columns"] == 8 and choices["head_dim"] <= 128
    return 16 if small and choices["key_bits"] < 8 else 8


def tile(choices: Choices) -> int:
    """Tokens of a stage: fewer where twice as many warps take turns at them."""
    return RUN if warps(choices) == 16 else 2 * RUN


def slices(choices: Choices) -> Node:
    """Blocks that share a request's tokens: by heads of the cache, and by columns of a head."""
    block_heads = maximum(minimum(kv_heads, BLOCK_HEADS), 1)
    parts = cdiv(columns, choices["columns"])
    own = maximum(minimum(parts, warps(choices) // block_heads), 1)
    return kv_heads // block_heads * cdiv(parts, own)


def geometry(choices: Choices) -> Launch:
    """As many blocks of a slice as there are multiprocessors, or tiles for them where requests are
    as long as can be. A request that can have no tile still has a result.
    """
    tiles = requests * maximum(cdiv(max_tokens, tile(choices)), 1)
    return launch(
        [minimum(multiprocessors(), tiles), slices(choices)],
        32 * (warps(choices) + SUPPLIERS),
        shared=SHARED,
        programmatic=True,
    )


def source(choices: Choices) -> CudaSource:
    """The dtype is a parameter: both share a cubin."""
    return CudaSource(
        entry="turboquant_decode",
        variables={"warps": warps(choices), "shared": SHARED, "tile": tile(choices)},
    )


def params(choices: Choices) -> list[Parameter]:
    pointers = ("out", "lse", "q", "kv_cache", "block_table", "seq_lens", "sinks")
    windowed = value("window") >= 1
    window = windowed * minimum(value("window"), NO_WINDOW) + (1 - windowed) * NO_WINDOW
    return [
        *(pointer(name) for name in pointers),
        pointer("workspace"),
        pointer("counters"),
        number("out_row", "i64", 2 * stride("out", 0)),
        number("out_head", "i64", 2 * stride("out", 1)),
        number("q_row", "i64", 2 * stride("q", 0)),
        number("q_head", "i64", 2 * stride("q", 1)),
        number("page_stride", "i64", page_stride),
        number("requests", "i32", requests),
        number("queries", "i32", queries),
        number("heads", "i32", kv_heads),
        number("group", "i32", group),
        number("page_size", "i32", page_size),
        number("pages_stride", "i32", stride("block_table", 0)),
        number("max_tokens", "i32", max_tokens),
        number("last_page", "i32", pool - 1),
        number("window", "i32", window),
        number("bfloat", "i32", int(choices["dtype"] == "bfloat16")),
        number("scale", "f32", value("scale")),
    ]


def wide_steps(name: str) -> Node:
    """Whether rows of 16 bytes stay aligned from row to row and from head to head."""
    rows = (size(name, 0) <= 1) | (stride(name, 0) % 8).eq(0)
    return rows & ((size(name, 1) <= 1) | (stride(name, 1) % 8).eq(0))


KERNEL = KernelSpec(
    name="turboquant_decode",
    summary="Attention of a few query tokens a request over TurboQuant's paged cache.",
    arguments=[
        tensor(
            "out",
            DTYPES,
            (size("q", 0), heads, head_dim),
            strides=(None, None, 1),
            align=16,
            access="write",
            doc="[requests * queries, heads, head_dim], of the dtype of q; the other strides are "
            "free multiples of 8",
        ),
        tensor(
            "q",
            DTYPES,
            (requests * queries, None, None),
            strides=(None, None, 1),
            align=16,
            doc="[requests * queries, heads, head_dim]; the other strides are free multiples of 8",
        ),
        cache("read", unit=16, doc="; pages of 16, 32, 64 or 128 tokens"),
        tensor(
            "block_table",
            "int32",
            (requests, None),
            strides=(None, 1),
            doc="[requests, pages of the longest]; entries behind a request's length are not read",
        ),
        tensor(
            "seq_lens",
            "int32",
            (None,),
            contiguous=True,
            doc="[requests]: tokens in the cache, those of the queries included",
        ),
        tensor(
            "workspace",
            "float32",
            (None,),
            contiguous=True,
            align=16,
            access="scratch",
            doc="scratch, 2 * multiprocessors * rows of q * heads / requests * (head_dim + 4) "
            "elements",
        ),
        tensor(
            "counters",
            "int32",
            (None,),
            contiguous=True,
            access="readwrite",
            doc="4 * multiprocessors elements or more, zero before the first launch; left zero",
        ),
        scalar("scale", "float", doc="what scores are multiplied by, usually head_dim ** -0.5"),
        *PRESET,
        scalar(
            "queries",
            "int",
            minimum=1,
            maximum=MOST_QUERIES,
            default=1,
            doc="query tokens a request, the last ones of its tokens",
        ),
        scalar(
            "window",
            "int",
            minimum=0,
            maximum=INT_MAX,
            default=0,
            doc="tokens that a query sees at most, itself included; 0 for all",
        ),
        tensor(
            "sinks",
            "float32",
            (heads,),
            contiguous=True,
            optional=True,
            doc="[heads]: a score that takes part in the softmax and has no value",
        ),
        tensor(
            "lse",
            "float32",
            (size("q", 0), heads),
            contiguous=True,
            optional=True,
            access="write",
            doc="[requests * queries, heads]: the natural logarithm of the sum of exponentials, "
            "the sink's included; -inf where there is none",
        ),
    ],
    checks=[
        check(
            (kv_heads >= 1) & (heads >= 1) & (heads % maximum(kv_heads, 1)).eq(0),
            "the heads of q are a multiple of the heads of kv_cache",
        ),
        check(group <= MOST_GROUP, f"at most {MOST_GROUP} heads of q share a head of kv_cache"),
        check(
            (kv_heads <= BLOCK_HEADS) | (kv_heads % BLOCK_HEADS).eq(0),
            "kv_cache has at most 8 heads or a multiple of 8",
        ),
        *cache_checks(head_dim, unit=16),
        check(
            page_size.eq(16) | page_size.eq(32) | page_size.eq(64) | page_size.eq(128),
            "a page of kv_cache has 16, 32, 64 or 128 tokens",
        ),
        check(pool <= INT_MAX, "kv_cache has fewer than 2^31 pages"),
        check(requests.eq(0) | (pool >= 1), "kv_cache has a page that a table can mean"),
        check(requests <= MOST_REQUESTS, "there are at most 2^20 requests"),
        check(
            (max_tokens <= 1 << 29) & (requests * max_tokens // RUN <= 1 << 30),
            "block_table has room for at most 2^29 tokens a request and 2^34 in all",
        ),
        check(
            (requests <= 1) | (stride("block_table", 0) <= INT_MAX),
            "block_table.stride(0) is below 2^31",
        ),
        check(wide_steps("q"), "q.stride(0) and q.stride(1) are multiples of 8 elements"),
        check(wide_steps("out"), "out.stride(0) and out.stride(1) are multiples of 8 elements"),
        check(
            numel("workspace") >= 2 * multiprocessors() * queries * heads * (head_dim + 4),
            "workspace has 2 * multiprocessors * queries * heads * (head_dim + 4) elements",
        ),
        check(
            numel("counters") >= 4 * multiprocessors(),
            "counters has 4 * multiprocessors elements",
        ),
    ],
    axes=[
        *cache_axes(head_dim),
        bound("dtype", DTYPES, by=dtype_of("q")),
        bound("out_dtype", DTYPES, by=dtype_of("out")),
        tuned("columns", (8, 16)),
    ],
    domain=domain(("dtype", "out_dtype")),
    rules=[
        rule(where={"head_dim": [256]}, columns=8),
        rule(when=columns <= 8, columns=8),
        rule(columns=16),
    ],
    params=params,
    launch=geometry,
    source=source,
    max_registers=168,  # of a thread at the start; then warps that calculate get up to 240
    spills_allowed="a warp's state, on sm_120a alone, which has too little shared memory to run it",
)
