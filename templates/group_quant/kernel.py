"""Per-token-group quantisation to eight bits, with scales as packed exponents or as floats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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
from dsv4_aot.runtime.abi import Dtype
from dsv4_aot.runtime.expr import cdiv, maximum, minimum, numel, size, stride, value
from dsv4_aot.runtime.schema import Choice, Launch, Rule

GROUP_SIZES = (32, 64, 128, 256)
PACKED_SIZES = (32, 128)
INPUTS: tuple[Dtype, ...] = ("bfloat16", "float16")
OUTPUTS: tuple[Dtype, ...] = ("float8_e4m3fn", "int8")
DTYPES = {"input": INPUTS, "output": OUTPUTS}
GRID_ROWS = 65535  # the most that a grid has in y; kernel.cu.j2 counts on it

K = size("input", -1)
ROWS = numel("input") // maximum(K, 1)
PADDED_ROWS = 4 * cdiv(ROWS, 4)
GROUP = maximum(value("group_size"), 1)
GROUPS = K // GROUP
WORDS = cdiv(GROUPS, 4)

FLOATS = size("output_s", 1).eq(GROUPS)
WORD_COLUMNS = (
    size("output_s", 1).eq(WORDS)
    & ((ROWS <= 1) | stride("output_s", 0).eq(1))
    & ((WORDS <= 1) | stride("output_s", 1).eq(PADDED_ROWS))
)


def rules(group_size: int) -> Iterator[Rule]:
    """By size, as measured on an H200 (NOTES.md): few rows want many small blocks.

    Tiles are 512 elements wide, or 128 where a row would leave most of its last tile empty. Packed
    groups of 128 have no narrow tile, since a word is 512 of them wide.
    """
    group, wide, narrow = (group_size,), 512 // group_size, 128 // group_size
    few = numel("input") <= 1 << 21
    ragged = (K < 1024) & (K % 512).ne(0)
    yield rule(where={"group_size": group}, when=few, kx=wide, ry=4)
    if group_size == 32:
        yield rule(where={"group_size": group}, when=ragged, kx=narrow, ry=16)
    elif narrow:
        where: Mapping[str, Sequence[Choice]] = {"group_size": group, "scales": ("float32",)}
        yield rule(where=where, when=ragged, kx=narrow, ry=16)
    yield rule(where={"group_size": group}, kx=wide, ry=16)


def geometry(choices: Choices) -> Launch:
    """One block a tile. With packed scales the rows that pad are work too."""
    end = PADDED_ROWS if choices["scales"] == "packed" else ROWS
    columns, lines = cdiv(GROUPS, choices["kx"]), cdiv(end, choices["ry"])
    return launch(
        grid=[columns, minimum(lines, GRID_ROWS), cdiv(lines, GRID_ROWS)],
        block=choices["kx"] * choices["group_size"] // 16 * choices["ry"],
        programmatic=True,
    )


def params(choices: Choices) -> list[Parameter]:
    """Packed, all lie in the 64 bytes of constants that the first instructions read anyway."""
    tensors = [pointer("input"), pointer("output_q"), pointer("output_s")]
    shape = [number("mn", "i32", ROWS), number("k", "i32", K)]
    floats = [number(name, "f32", value(name)) for name in ("eps", "min", "max")]
    if choices["scales"] == "packed":
        q_rows = numel("output_q") // maximum(K, 1)
        return [*tensors, *shape, number("q_rows", "i32", minimum(PADDED_ROWS, q_rows)), *floats]
    strides = [
        number("row_stride", "i64", stride("output_s", 0)),
        number("column_stride", "i64", stride("output_s", 1)),
    ]
    return [*tensors, *shape, *floats, *strides]


KERNEL = KernelSpec(
    name="group_quant",
    summary="Quantise groups of a row to eight bits, one scale a group.",
    arguments=[
        tensor(
            "input",
            INPUTS,
            (None,),
            leading=True,
            contiguous=True,
            align=16,
            doc="[..., K]: numel / K rows",
        ),
        tensor(
            "output_q",
            OUTPUTS,
            (K,),
            leading=True,
            contiguous=True,
            align=16,
            access="write",
            doc="[..., K], no fewer rows than input; with packed scales, further rows up to a "
            "multiple of 4 are zeroed",
        ),
        tensor(
            "output_s",
            ("int32", "float32"),
            (ROWS, None),
            access="write",
            doc="int32 [rows, ceil(groups / 4)], strides [1, rows up to a multiple of 4]: the "
            "exponents of four groups in a word; or float32 [rows, groups], any strides",
        ),
        scalar("group_size", "int", doc="elements that share a scale"),
        scalar("eps", "float", minimum=0.0, default=1e-10, doc="least magnitude of a group"),
        scalar("min", "float", maximum=0.0, doc="least quantised value: -448 or -128"),
        scalar("max", "float", minimum=1e-20, doc="greatest quantised value: 448 or 127"),
        scalar(
            "scale_ue8m0",
            "bool",
            default=True,
            doc="scales are powers of two; packed ones always are",
        ),
    ],
    checks=[
        check((K % GROUP).eq(0), "a row of input is a whole number of groups"),
        check(numel("output_q") >= numel("input"), "output_q has no fewer rows than input"),
        check(
            FLOATS,
            "output_s of float32 is [rows, K / group_size]",
            where={"scales": ["float32"]},
        ),
        check(
            WORD_COLUMNS,
            "output_s of int32 is [rows, ceil(K / group_size / 4)] with strides [1, rows rounded "
            "up to a multiple of 4]",
            where={"scales": ["packed"]},
        ),
    ],
    axes=[
        bound("input", INPUTS, by=dtype_of("input")),
        bound("output", OUTPUTS, by=dtype_of("output_q")),
        bound("scales", {"packed": "int32", "float32": "float32"}, by=dtype_of("output_s")),
        bound("ue8m0", (False, True), by=value("scale_ue8m0")),
        bound("group_size", GROUP_SIZES, by=value("group_size")),
        tuned("kx", (1, 2, 4, 8, 16)),
        tuned("ry", (4, 16)),
    ],
    domain=[
        {**DTYPES, "scales": ("packed",), "ue8m0": (True,), "group_size": PACKED_SIZES},
        {**DTYPES, "scales": ("float32",), "ue8m0": (False, True), "group_size": GROUP_SIZES},
    ],
    rules=[each for group_size in GROUP_SIZES for each in rules(group_size)],
    params=params,
    launch=geometry,
    source=CudaSource(entry="group_quant"),
    max_registers=40,
)
