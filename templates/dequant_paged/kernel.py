"""dequant_paged: records of a paged K cache, picked by physical token ids, decoded to bf16 rows.

    out[t, 0, :] = decode(row token_ids[t] % page_size of page token_ids[t] // page_size)

and, in the same launch, the same of a second source: ``window_out`` from ``window_k_cache``. Its
records are like the first one's, or FP8 beside FP4, as V4.1 keeps windows beside compressed rows.
Ids are read on the device, so a captured launch follows them; no host can check them. An id below 0
reads record 0, as the callers of SGLang's kernel clamp it, and one beyond the pool reads its last
record, so that no id reads outside the cache; a caller must not rely on either.

Scales follow SGLang: an exponent code 0 is 2^-127 in every record, and 255 is infinity in a V4
record and NaN in a V4.1 record. The launch is programmatic, as dequant_gather's is.
"""

from collections.abc import Iterator

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
from dsv4_aot.runtime.expr import Node, cdiv, maximum, minimum, present, size, stride, value
from dsv4_aot.runtime.schema import Argument, Check, Choice, Launch

IDS: tuple[Dtype, ...] = ("int32", "int64")
MAX_ROWS = 1 << 30
MAX_PAGE = 256
"""The kernel's division by the page size is exact up to here."""
FIRST, SECOND = "", "window_"
"""What the names of a source's arguments begin with."""

# What dequant_requant asks for too ---------------------------------------------------------------

FORMAT = (
    scalar("record", "int", default=584, doc="584 is V4, 528 is V4.1 FP8, 288 is V4.1 FP4"),
    scalar(
        "interleaved",
        "bool",
        default=False,
        doc="each record's scales follow its data (V4.1 alone); otherwise the data of all rows of "
        "a page come first, then the scales of all",
    ),
)
AXES = (
    bound("record", (584, 528, 288), by=value("record")),
    bound("interleaved", (False, True), by=value("interleaved")),
    bound("ids", IDS, by=dtype_of("token_ids")),
)
DOMAIN: tuple[dict[str, tuple[Choice, ...]], ...] = (
    {"record": (584,), "interleaved": (False,), "ids": IDS},
    {"record": (528, 288), "interleaved": (False, True), "ids": IDS},
)


def rows(source: str) -> Node:
    return size(f"{source}token_ids", 0)


def page(source: str) -> Node:
    return value(f"{source}page_size")


def pool(source: str) -> Node:
    """Records that the cache has room for."""
    return size(f"{source}k_cache", 0) * page(source)


def record(source: str) -> Node:
    """Bytes of a record."""
    if source == FIRST:
        return value("record")
    return value("window_record") + value("window_record").eq(0) * value("record")


def which(source: str) -> str:
    return "the second source's " if source == SECOND else ""


def inputs(source: str) -> Iterator[Argument]:
    second = source == SECOND
    yield tensor(
        f"{source}k_cache",
        "uint8",
        (None, None),
        strides=(None, 1),
        align=16,
        optional=second,
        doc=f"{which(source)}[pages, bytes of a page]; stride(0), the page stride, is a free "
        "multiple of 16. A page holds page_size records and then whatever pads it",
    )
    yield tensor(
        f"{source}token_ids",
        "int32" if second else IDS,
        (None,),
        contiguous=True,
        optional=second,
        doc=f"{which(source)}[tokens], page * page_size + row in the page; those outside the cache "
        "are the caller's mistake and read its first or last record",
    )
    yield scalar(
        f"{source}page_size",
        "int",
        minimum=0 if second else 1,
        maximum=MAX_PAGE,
        default=0 if second else None,
        doc=f"{which(source)}records a page, any number; required with a second source"
        if second
        else "records a page, any number",
    )


def checks(source: str, unit: int) -> Iterator[Check]:
    """unit: elements of out in 16 bytes."""
    out, cache = f"{source}out", f"{source}k_cache"
    where: dict[str, list[Choice]] = {"two": [True, "mixed"]} if source == SECOND else {}
    conditions = [
        (
            (size(out, 0) <= 1) | (stride(out, 0) % unit).eq(0),
            f"{out}.stride(0) is a multiple of {unit} elements",
        ),
        (
            (size(cache, 0) <= 1) | (stride(cache, 0) % 16).eq(0),
            f"{cache}.stride(0), the page stride, is a multiple of 16 bytes",
        ),
        (
            page(source) * record(source) <= size(cache, 1),
            f"a page of {cache} has room for {source}page_size records",
        ),
        (
            rows(source).eq(0) | (size(cache, 0) >= 1),
            f"{cache} has a page that ids can mean",
        ),
        (size(out, 0) <= MAX_ROWS, f"{out} has at most 2^30 rows"),
    ]
    if source == SECOND:
        conditions.insert(0, (page(source) >= 1, "a second source has a window_page_size"))
    for require, message in conditions:
        yield check(require, message, where=where)


def parameters(source: str) -> list[Parameter]:
    names = [f"{source}{name}" for name in ("out", "k_cache", "token_ids")]
    return [
        *(pointer(name) for name in names),
        number(f"{source}out_stride", "i64", stride(names[0], 0)),
        number(f"{source}page_stride", "i64", stride(names[1], 0)),
        number(f"{source}inverse", "i64", cdiv(1 << 40, maximum(page(source), 1))),
        number(f"{source}rows", "i32", rows(source)),
        number(f"{source}page_size", "i32", page(source)),
        number(f"{source}last", "i32", minimum(pool(source), 1 << 31) - 1),
    ]


# This kernel --------------------------------------------------------------------------------------


def output(source: str) -> Argument:
    return tensor(
        f"{source}out",
        "bfloat16",
        (rows(source), 1, 512),
        strides=(None, None, 1),
        align=16,
        optional=source == SECOND,
        access="write",
        doc=f"{which(source)}[tokens, 1, 512]; stride(0) is a free multiple of 8",
    )


def params(choices: Choices) -> list[Parameter]:
    return [*parameters(FIRST), *(parameters(SECOND) if choices["two"] else [])]


def geometry(choices: Choices) -> Launch:
    """One block a tile; the second source's blocks follow the first one's."""
    tile = choices["rows"] * choices["warps"]
    blocks: Node = cdiv(rows(FIRST), tile)
    if choices["two"]:
        blocks = blocks + cdiv(rows(SECOND), tile)
    return launch([blocks], 32 * choices["warps"], programmatic=True)


second = present("window_k_cache")
# Whatever is no record, too: a check refuses it in words.
mixed = value("window_record").ne(0) & value("window_record").ne(value("record"))
in_all = rows(FIRST) + rows(SECOND)

KERNEL = KernelSpec(
    name="dequant_paged",
    summary="Decode records of one or two paged K caches to bf16 rows, by physical token ids.",
    arguments=[
        output(FIRST),
        *inputs(FIRST),
        *FORMAT,
        output(SECOND),
        *inputs(SECOND),
        scalar(
            "window_record",
            "int",
            default=0,
            doc="the second source's record, where it differs: 528 beside a record of 288",
        ),
    ],
    checks=[
        check(
            present("window_out").eq(second) & present("window_token_ids").eq(second),
            "window_out, window_k_cache and window_token_ids are all given or all absent",
        ),
        check(
            mixed.eq(0) | (value("window_record").eq(528) & value("record").eq(288)),
            "window_record is 0 or record, which is the same, or 528 beside a record of 288",
        ),
        check(
            mixed.eq(0),
            "token_ids is int32 where window_record differs from record",
            where={"two": ["mixed"], "ids": ["int64"]},
        ),
        *checks(FIRST, unit=8),
        *checks(SECOND, unit=8),
    ],
    axes=[
        *AXES,
        # One source, two of one record, or FP8 beside FP4.
        bound("two", {False: False, True: True, "mixed": 2}, by=second * (mixed + 1)),
        tuned("rows", (2, 8)),
        tuned("warps", (1, 2, 4)),
        tuned("once", ("nothing", "input", "all")),
    ],
    domain=[
        *({**product, "two": (False, True)} for product in DOMAIN),
        {"record": (288,), "interleaved": (False, True), "ids": ("int32",), "two": ("mixed",)},
    ],
    rules=[
        # As for dequant_gather: latency counts, and a small output loses nothing outside L2;
        rule(when=in_all <= 2048, rows=2, warps=4, once="all"),
        # the output fits into L2, and the input makes room for it;
        rule(when=in_all <= 49152, rows=8, warps=2, once="input"),
        # more than L2 holds: the narrower the front, the better memory serves it.
        rule(rows=8, warps=1, once="nothing"),
    ],
    params=params,
    launch=geometry,
    source=CudaSource(entry="dequant_paged"),
    max_registers=80,
)
