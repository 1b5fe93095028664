"""swa_token_ids: where the window cache holds the tokens that a chunk's windows reach.

    out[swa_offsets[r] + i] = full_to_swa[req_to_token[req_pool_indices[r], swa_first_pos[r] + i]]

for 0 <= i < swa_offsets[r + 1] - swa_offsets[r].

Elements from swa_offsets[-1] on are 0, the reserved token, and so is one whose row, position or
token lies outside of its table: nothing outside is read. Offsets are read on the device, so a
captured launch follows them. The launch is programmatic.
"""

from __future__ import annotations

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
    tensor,
    tuned,
)
from dsv4_aot.runtime.abi import Dtype
from dsv4_aot.runtime.expr import cdiv, size, stride
from dsv4_aot.runtime.schema import Launch

POOL: tuple[Dtype, ...] = ("int32", "int64")
THREADS = 128

IDS = size("out", 0)
REQUESTS = size("swa_first_pos", 0)


def geometry(choices: Choices) -> Launch:
    return launch([cdiv(IDS, THREADS * choices["ids"])], THREADS, programmatic=True)


KERNEL = KernelSpec(
    name="swa_token_ids",
    summary="List where the window cache holds the tokens that a chunk's windows reach.",
    arguments=[
        tensor(
            "out",
            "int32",
            (None,),
            contiguous=True,
            access="write",
            doc="[ids], swa_offsets[-1] or more",
        ),
        tensor(
            "req_to_token",
            "int32",
            (None, None),
            strides=(None, 1),
            doc="[pool, positions]: token of each position; stride(0) is free",
        ),
        tensor("full_to_swa", "int64", (None,), contiguous=True, doc="[tokens]"),
        tensor(
            "req_pool_indices",
            POOL,
            (REQUESTS,),
            contiguous=True,
            doc="[requests]: row of req_to_token",
        ),
        tensor(
            "swa_first_pos",
            "int32",
            (REQUESTS,),
            contiguous=True,
            doc="[requests]: first position that is gathered",
        ),
        tensor(
            "swa_offsets",
            "int32",
            (REQUESTS + 1,),
            contiguous=True,
            doc="[requests + 1]: prefix sum of the gathered lengths, from 0 on",
        ),
    ],
    checks=[check(IDS < 2**31 - 2**12, "out has fewer than 2^31 - 2^12 elements")],
    axes=[bound("pool", POOL, by=dtype_of("req_pool_indices")), tuned("ids", (1, 4))],
    rules=[rule(when=IDS <= 1 << 17, ids=1), rule(ids=4)],
    params=[
        pointer("out"),
        pointer("req_to_token"),
        pointer("full_to_swa"),
        pointer("req_pool_indices"),
        pointer("swa_first_pos"),
        pointer("swa_offsets"),
        number("pitch", "i64", stride("req_to_token", 0)),
        number("pool", "i64", size("req_to_token", 0)),
        number("tokens", "i64", size("full_to_swa", 0)),
        number("positions", "i32", size("req_to_token", 1)),
        number("ids", "i32", IDS),
        number("requests", "i32", REQUESTS),
    ],
    launch=geometry,
    source=CudaSource(entry="swa_token_ids", variables={"threads": THREADS}),
    max_registers=40,
)
