"""dequant_requant: records of a paged K cache, picked by physical token ids, as plain e4m3 rows.

    out[t, 0, :] = e4m3(decode(row token_ids[t] % page_size of page token_ids[t] // page_size))

for every id, and zero in the rows of ``out`` behind them, which indices without a row can mean.
Ids and scale codes are read as by dequant_paged. Values round to nearest even; what e4m3 has no
number for, infinity too, becomes 448 of its sign, and NaN stays NaN.
"""

from dsv4_aot.generator.spec import (
    Choices,
    CudaSource,
    KernelSpec,
    check,
    launch,
    number,
    rule,
    tensor,
    tuned,
)
from dsv4_aot.runtime.expr import cdiv, size
from dsv4_aot.runtime.schema import Launch
from dsv4_aot.templates.dequant_paged.kernel import (
    AXES,
    DOMAIN,
    FIRST,
    FORMAT,
    checks,
    inputs,
    parameters,
    rows,
)

out_rows = size("out", 0)


def geometry(choices: Choices) -> Launch:
    """One block a tile."""
    blocks = cdiv(out_rows, choices["rows"] * choices["warps"])
    return launch([blocks], 32 * choices["warps"], programmatic=True)


KERNEL = KernelSpec(
    name="dequant_requant",
    summary="Decode records of a paged K cache to e4m3 rows, by physical token ids.",
    arguments=[
        tensor(
            "out",
            "float8_e4m3fn",
            (None, 1, 512),
            strides=(None, None, 1),
            align=16,
            access="write",
            doc="[tokens + extra, 1, 512]; the extra rows become zero; stride(0) is a free "
            "multiple of 16",
        ),
        *inputs(FIRST),
        *FORMAT,
    ],
    checks=[
        check(out_rows >= rows(FIRST), "out has no fewer rows than there are token_ids"),
        *checks(FIRST, unit=16),
    ],
    axes=[
        *AXES,
        tuned("rows", (2, 8)),
        tuned("warps", (1, 2, 4)),
        tuned("once", ("nothing", "input", "all")),
    ],
    domain=DOMAIN,
    rules=[
        # Latency counts;
        rule(when=out_rows <= 4096, rows=2, warps=4, once="all"),
        # records and output fit into L2 together;
        rule(when=out_rows <= 40960, rows=8, warps=2, once="input"),
        # they do not, and the narrower the front, the better memory serves it.
        rule(rows=8, warps=1, once="nothing"),
    ],
    params=[*parameters(FIRST), number("out_rows", "i32", out_rows)],
    launch=geometry,
    source=CudaSource(entry="dequant_requant"),
    max_registers=80,
)
