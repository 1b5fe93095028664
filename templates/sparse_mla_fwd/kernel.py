"""sparse_mla_fwd: attention of every query over its own rows of one key-value head, for prefill.

The value of a row is its first 512 columns. An index outside of [0, s_kv) names no row: nothing is
read for it, and it has no part in the result. The same holds for columns of ``indices`` from the
query's ``topk_length`` on.

    x_j        = sm_scale * q . kv_j                       over the rows that count
    max_logits = max x_j                                    -inf where none counts
    lse        = log(sum exp x_j)                           +inf where none counts
    out        = sum exp(x_j) v_j / (sum exp x_j + exp(attn_sink))    0 where none counts

Results do not depend on the order of execution, so equal calls give equal bits. The launch is
programmatic.

There are three bodies: ``mma`` for every target, and for sm_90a ``wgmma`` and, for calls with up to
16 heads, ``narrow``, whose products need not have 64 of them.
"""

from __future__ import annotations

from dsv4_aot.generator.spec import (
    Choices,
    CudaSource,
    KernelSpec,
    bound,
    check,
    launch,
    number,
    only,
    pointer,
    rule,
    scalar,
    tensor,
    tuned,
)
from dsv4_aot.runtime.expr import Apply, minimum, multiprocessors, size, stride, value
from dsv4_aot.runtime.schema import Launch

INT32 = 2**31 - 1
VALUE_DIM = 512
HEADS = 64  # most of a query that one block treats together
MOST_STRIDE = 2**30 - 8  # elements; twice as much is still an int32 of bytes

S_Q, H_Q, DIM = size("q", 0), size("q", 1), size("q", 2)
WIDE = H_Q > HEADS


def steps(arg: str, *dims: int) -> Apply:
    """Strides that rows of 16-byte pieces can have; without a second row they do not matter."""
    whole = size(arg, 0) >= 0
    for dim in dims:
        step = stride(arg, dim)
        fits = (step % 8).eq(0) & (step >= 0) & (step <= MOST_STRIDE)
        whole = whole & ((size(arg, dim) <= 1) | fits)
    return whole


def span(arg: str, dim: int) -> Apply:
    """A stride in bytes, which is arbitrary where there is no second row."""
    return minimum(stride(arg, dim), MOST_STRIDE) * 2


# The body for sm_90a ------------------------------------------------------------------------------

THREADS = 512
TILE = 64 * 128  # bytes of 64 rows by 64 columns
SLOTS = {512: 3, 576: 2}  # of the ring
HELD = 6  # tiles of the query in registers


def wgmma_shared(dim: int) -> int:
    """Bytes: slots of the ring, the query's other tiles, two P, barriers, statistics, sinks."""
    tiles, slots = dim // 64, SLOTS[dim]
    return (slots * tiles + tiles - HELD + 2) * TILE + slots * 24 + 72 + 10 * 4 * HEADS


# The body for few heads, for sm_90a ---------------------------------------------------------------


def narrow_shared(dim: int, heads: int) -> int:
    """Bytes: slots of the ring, the query, two P, barriers, statistics, factors and sinks."""
    tiles, slots = dim // 64, SLOTS[dim]
    return slots * tiles * TILE + (tiles + 2) * heads * 128 + slots * 24 + 48 + 23 * 4 * heads


# The body for every target ------------------------------------------------------------------------

ROWS, STAGES = 16, 4  # of a step; steps whose rows are in shared memory


def mma_groups(heads: int) -> int:
    """Of four warps, with up to 32 heads each."""
    return max(1, heads // 32)


def mma_shared(dim: int, heads: int) -> int:
    """Bytes: stages, with a byte a row; by tiles of 16 heads, partial sums of scores and P of two
    steps; and for two steps a float a head.
    """
    return STAGES * ROWS * (2 * dim + 1) + heads // 16 * (4096 + 1024) + 8 * heads


# All ----------------------------------------------------------------------------------------------


def geometry(choices: Choices) -> Launch:
    """With mma each block has heads of one query; with the others blocks stay, one on a
    multiprocessor.
    """
    dim, heads, items = choices["head_dim"], choices["heads"], S_Q * (1 + WIDE)
    if choices["body"] == "mma":
        grid, threads, memory = items, 128 * mma_groups(heads), mma_shared(dim, heads)
    else:
        grid, threads = minimum(items, multiprocessors()), THREADS
        narrow = choices["body"] == "narrow"
        memory = narrow_shared(dim, heads) if narrow else wgmma_shared(dim)
    return launch(grid=[grid], block=threads, shared=memory, programmatic=True)


def source(choices: Choices) -> CudaSource:
    dim, heads, body = choices["head_dim"], choices["heads"], choices["body"]
    variables = {
        "mma": {"shared": mma_shared(dim, heads)},
        "wgmma": {"slots": SLOTS[dim], "held": HELD, "shared": wgmma_shared(dim)},
        "narrow": {"slots": SLOTS[dim], "shared": narrow_shared(dim, heads)},
    }[body]
    return CudaSource(entry="sparse_mla_fwd", template=f"kernel_{body}.cu.j2", variables=variables)


KERNEL = KernelSpec(
    name="sparse_mla_fwd",
    summary="Sparse attention with one latent key-value head: rows by index, a sink, statistics.",
    arguments=[
        tensor(
            "q",
            "bfloat16",
            (None, None, None),
            strides=(None, None, 1),
            align=16,
            doc="[s_q, h_q, 512 or 576], up to 128 heads",
        ),
        tensor(
            "kv",
            "bfloat16",
            (None, 1, DIM),
            strides=(None, None, 1),
            align=16,
            doc="[s_kv, 1, 512 or 576]: keys, and values in the first 512 columns",
        ),
        tensor(
            "indices",
            "int32",
            (S_Q, 1, None),
            strides=(None, None, 1),
            doc="[s_q, 1, topk]: rows of kv; anything else names no row",
        ),
        tensor(
            "out",
            "bfloat16",
            (S_Q, H_Q, VALUE_DIM),
            strides=(None, None, 1),
            align=16,
            access="write",
            doc="[s_q, h_q, 512]",
        ),
        tensor(
            "max_logits",
            "float32",
            (S_Q, H_Q),
            contiguous=True,
            access="write",
            doc="[s_q, h_q]: the greatest logit, -inf for an empty set",
        ),
        tensor(
            "lse",
            "float32",
            (S_Q, H_Q),
            contiguous=True,
            access="write",
            doc="[s_q, h_q]: logarithm of the sum of exponentials, +inf for an empty set",
        ),
        scalar("sm_scale", "float", minimum=1e-30, doc="what q . k is multiplied by"),
        tensor(
            "attn_sink",
            "float32",
            (H_Q,),
            contiguous=True,
            optional=True,
            doc="[h_q]: one more logit of each head, without a value; in out alone",
        ),
        tensor(
            "topk_length",
            "int32",
            (S_Q,),
            contiguous=True,
            optional=True,
            doc="[s_q]: leading columns of indices that count",
        ),
        scalar(
            "base2",
            "bool",
            default=False,
            doc="max_logits and lse in units of ln 2, as base-2 logarithms",
        ),
    ],
    checks=[
        check((H_Q >= 1) & (H_Q <= 2 * HEADS), "q has 1 to 128 heads"),
        check(
            steps("q", 0, 1), "q.stride(0) and q.stride(1) are multiples of 8 between 0 and 2^30"
        ),
        check(steps("kv", 0), "kv.stride(0) is a multiple of 8 between 0 and 2^30"),
        check(
            steps("out", 0, 1),
            "out.stride(0) and out.stride(1) are multiples of 8 between 0 and 2^30",
        ),
        check(S_Q * (1 + WIDE) <= INT32 - 1024, "q.shape[0], twice past 64 heads, is below 2^31"),
        check(size("kv", 0) <= INT32, "kv.shape[0] is below 2^31"),
        check(
            (size("indices", 2) >= 1) & (size("indices", 2) <= INT32 - 256),
            "indices.shape[2] is at least 1 and below 2^31",
        ),
    ],
    axes=[
        bound("head_dim", (512, 576), by=DIM),
        bound("heads", {16: 0, 32: 1, 64: 2}, by=(H_Q > 16) + (H_Q > 32)),  # of a block, at most
        tuned("body", ("narrow", "wgmma", "mma")),
    ],
    rules=[
        only("sm_90a", rule(where={"heads": [16]}, body="narrow"), rule(body="wgmma")),
        rule(body="mma"),
    ],
    params=[
        *map(pointer, ("q", "kv", "indices", "attn_sink", "topk_length")),
        *map(pointer, ("out", "max_logits", "lse")),
        number("indices_token", "i64", stride("indices", 0)),
        number("s_q", "i32", S_Q),
        number("h_q", "i32", H_Q),
        number("halves", "i32", WIDE),
        number("s_kv", "i32", size("kv", 0)),
        number("topk", "i32", size("indices", 2)),
        number("q_token", "i32", span("q", 0)),
        number("q_head", "i32", span("q", 1)),
        number("kv_row", "i32", span("kv", 0)),
        number("out_token", "i32", span("out", 0)),
        number("out_head", "i32", span("out", 1)),
        number("base2", "i32", value("base2")),
        number("sm_scale", "f32", value("sm_scale")),
    ],
    launch=geometry,
    source=source,
    max_registers=255,
)
