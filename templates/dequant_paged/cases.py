"""Calls of dequant_paged: every record, layout and page size, one source and two, the corners of
all formats, ids that repeat, go backwards or mean nothing, views with gaps, pages past 2^31 bytes;
and the sizes that serving sees, timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from dsv4_aot.generator.spec import Case, Tolerance

LAYOUTS = ((584, False), (528, True), (528, False), (288, True), (288, False))
DATA = {584: 576, 528: 512, 288: 256}
UNIT = {(584, False): 576, (528, False): 512, (528, True): 528, (288, False): 256, (288, True): 288}
"""What page strides are a multiple of."""
POISON = -0x5A5A
EXACT = Tolerance(0.0, 0.0)
"""NaN is NaN whatever its bits, and everything else is equal."""

Order = Literal["pages", "scattered", "shuffled", "same", "backwards", "invalid"]


@dataclass(frozen=True)
class Source:
    """Rows to gather, from pages of so many records.

    order: of the ids: whole pages in random order, as page tables list them; any records, some
    of them twice; each record once; one record; descending; some outside the cache.
    """

    rows: int
    page: int
    order: Order = "pages"
    spare: int = 1  # pages that no id means


@dataclass(frozen=True)
class Call:
    """A call to make. wide: int64 ids. gaps: around every row of out, and between pages.

    far: bytes of unused pages before the used ones. wild: all codes and scales, also those that
    stand for NaN, infinity and nothing. joined: both outputs are slices of one workspace.
    window_record: of the second source, 0 leaves it out.
    """

    record: int
    interleaved: bool
    first: Source
    second: Source | None = None
    wide: bool = False
    gaps: bool = False
    far: int = 0
    wild: bool = False
    joined: bool = False
    window_record: int = 0

    @property
    def rows(self) -> int:
        return self.first.rows + (self.second.rows if self.second else 0)

    @property
    def of_second(self) -> Call:
        """The same, its record being the second source's."""
        return replace(self, record=self.window_record or self.record)

    @property
    def name(self) -> str:
        sources = [self.first, *([self.second] if self.second else [])]
        parts = [f"page {s.page}: {s.rows}{'' if s.order == 'pages' else ' ' + s.order}"
                 for s in sources]  # fmt: skip
        flags = ("wide", "gaps", "far", "wild", "joined")
        parts += [flag for flag in flags if getattr(self, flag)]
        layout = "interleaved" if self.interleaved else "split"
        records = f"{self.record} + {self.window_record}" if self.window_record else self.record
        return f"{records} {layout} " + ", ".join(parts)


def page_stride(call: Call, page: int) -> int:
    unit = UNIT[call.record, call.interleaved]
    least = -(-page * call.record // unit) * unit
    return least + (-least % 16) + (96 if call.gaps else 0)


def fill(pages: torch.Tensor, call: Call, page: int, random: torch.Generator) -> None:
    """Random records into uint8 ``[n, page_stride]``; calm ones are finite and of equal bytes."""
    pages.random_(0, 256, generator=random)
    if call.wild:
        return
    data = DATA[call.record]
    if call.interleaved:
        records = pages[:, : page * call.record].view(-1, page, call.record)
        codes, scales = records[..., :data], records[..., data:]
    else:
        codes = pages[:, : page * data].view(-1, page, data)
        scales = pages[:, page * data : page * call.record]
    if call.record == 288:
        scales -= ((scales & 0x7F) == 0x7F).to(torch.uint8)
        return
    codes = codes[..., :448] if call.record == 584 else codes
    codes -= ((codes & 0x7F) == 0x7F).to(torch.uint8)  # the two NaN become the largest values
    scales.random_(100, 140, generator=random)


def make_ids(source: Source, random: torch.Generator, device: Any) -> tuple[torch.Tensor, int]:
    """Ids from 0, int64, and the number of pages that they need."""
    pages = -(-source.rows // source.page)
    size, records = source.page, pages * source.page
    if source.order == "pages":
        order = torch.randperm(pages, generator=random, device=device)
        ids = (order[:, None] * size + torch.arange(size, device=device)).flatten()
    elif source.order == "shuffled":
        ids = torch.randperm(records, generator=random, device=device)
    elif source.order == "same":
        ids = torch.full((source.rows,), max(records - 1, 0), device=device)
    elif source.order == "backwards":
        ids = torch.arange(records - 1, -1, -1, device=device)
    else:
        ids = torch.randint(0, max(records, 1), (source.rows,), generator=random, device=device)
    return ids[: source.rows], pages


def make_source(
    call: Call, source: Source, random: torch.Generator, device: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cache and int64 ids."""
    stride = page_stride(call, source.page)
    ids, used = make_ids(source, random, device)
    used += source.spare
    skipped = -(-call.far // stride)
    storage = torch.empty((skipped + used) * stride, dtype=torch.uint8, device=device)
    fill(storage.view(-1, stride)[skipped:], call, source.page, random)
    width = max(source.page * call.record, stride - 96 if call.gaps else stride)
    cache = storage.as_strided((skipped + used, width), (stride, 1))
    ids = ids + skipped * source.page
    if source.order == "invalid":
        pool = cache.shape[0] * source.page
        wrong = torch.tensor([-1, pool, -(2**31), pool + 1, 2**31 - 1, 2**40, -(2**40)]).to(device)
        ids[1::3] = wrong.repeat(source.rows)[: len(ids[1::3])]
    return cache, ids


def make_outputs(call: Call, device: Any) -> list[torch.Tensor]:
    gap = 8 if call.gaps else 0

    def rows(count: int) -> torch.Tensor:
        form = (count + gap, 1, 512 + 2 * gap)
        storage = torch.full(form, POISON, dtype=torch.int16, device=device)
        return storage.view(torch.bfloat16)[gap // 2 : gap // 2 + count, :, gap : gap + 512]

    counts = [call.first.rows] + ([call.second.rows] if call.second else [])
    if call.joined:
        workspace = rows(call.rows)
        return [workspace[: counts[0]], workspace[counts[0] :]]
    return [rows(count) for count in counts]


def make(call: Call, device: Any, seed: int) -> dict[str, Any]:
    random = torch.Generator(device).manual_seed(seed)
    outputs = make_outputs(call, device)
    arguments: dict[str, Any] = {"record": call.record, "interleaved": call.interleaved}
    if call.window_record:
        arguments["window_record"] = call.window_record
    sources = [("", call.first, call), ("window_", call.second, call.of_second)]
    for (prefix, source, form), out in zip(sources, outputs, strict=False):
        assert source is not None
        cache, ids = make_source(form, source, random, device)
        arguments |= {
            f"{prefix}out": out,
            f"{prefix}k_cache": cache,
            f"{prefix}token_ids": ids if call.wide and not prefix else ids.int(),
            f"{prefix}page_size": source.page,
        }
    return arguments


def case(call: Call, *, bench: bool = False) -> Case:
    first, second = call.first, call.second or Source(0, 1)
    return Case(
        name=call.name,
        make=partial(make, call),
        tolerance=EXACT if call.wild else None,
        read=first.rows * (call.record + (8 if call.wide else 4))
        + second.rows * (call.of_second.record + 4),
        write=call.rows * 1024,
        bench=bench,
        memory=call.far * (2 if call.second else 1)
        + call.rows * 2200
        + 2 * 1500 * max(first.page, second.page),
    )


def correctness() -> Iterator[Call]:
    for record, interleaved in LAYOUTS:
        one = Call(record, interleaved, Source(1, 64))
        for size in (1, 2, 3, 32, 64, 100, 255, 256):
            yield replace(one, first=Source(2 * size + 37, size), gaps=True, wide=size % 2 == 0)
            yield replace(one, first=Source(229, size, "scattered"), gaps=size > 64)
        for order in ("same", "backwards", "shuffled"):
            yield replace(one, first=Source(91, 64, order))
        for rows in (0, 1, 7, 8, 9, 17):
            yield replace(one, first=Source(rows, 64))
        for rows, more in ((0, 0), (0, 5), (5, 0), (1, 1), (8, 16), (33, 70), (71, 9)):
            yield replace(one, first=Source(rows, 64), second=Source(more, 256))
        for wide in (False, True):
            wider = replace(one, wide=wide)
            both = replace(wider, first=Source(301, 2), second=Source(97, 128))
            yield replace(both, gaps=True, joined=True)
            yield replace(wider, first=Source(91, 64, "invalid"))
            yield replace(wider, first=Source(45, 7, "invalid"), second=Source(50, 5, "invalid"))
        yield replace(one, first=Source(0, 64, spare=0), second=Source(9, 64))
        yield replace(one, first=Source(4099, 64), second=Source(515, 256), wild=True)
        yield replace(one, first=Source(60_000, 64, "scattered"), wild=True)
        yield replace(one, first=Source(200, 64), second=Source(30, 64), far=2**31 + 2**20)
    yield Call(528, True, Source(70, 64), Source(9, 64), window_record=528)
    for interleaved in (False, True):
        yield from mixed(Call(288, interleaved, Source(1, 64), Source(1, 64), window_record=528))


def mixed(one: Call) -> Iterator[Call]:
    """FP4 beside FP8."""
    for rows, more in ((0, 0), (0, 5), (5, 0), (1, 1), (8, 16), (33, 70), (71, 9), (7, 601)):
        yield replace(one, first=Source(rows, 64), second=Source(more, 256))
    yield replace(one, first=Source(301, 2), second=Source(97, 128), gaps=True, joined=True)
    yield replace(one, first=Source(37, 3, "backwards"), second=Source(29, 1, "same"), gaps=True)
    yield replace(one, first=Source(45, 7, "invalid"), second=Source(50, 5, "invalid"))
    yield replace(one, first=Source(0, 64, spare=0), second=Source(9, 64))
    yield replace(one, first=Source(9, 64), second=Source(0, 64, spare=0))
    yield replace(one, first=Source(4099, 64), second=Source(515, 256), wild=True)
    yield replace(one, first=Source(515, 256), second=Source(4099, 64, "scattered"), wild=True)
    yield replace(one, first=Source(50_000, 64, "scattered"), second=Source(9_001, 64), wild=True)
    yield replace(one, first=Source(200, 64), second=Source(30, 64), far=2**31 + 2**20)


# Worked out by hand -------------------------------------------------------------------------------


def pages(rows: int, size: int, written: dict[int, int], device: Any) -> torch.Tensor:
    """Pages of zeros, but for these bytes of the last one."""
    cache = torch.zeros(rows, size, dtype=torch.uint8)
    for position, byte in written.items():
        cache[-1, position] = byte
    return cache.to(device)


def rows_of(rows: int, device: Any, bits: dict[int, int] | None = None) -> torch.Tensor:
    """Poison, or a row of zeros but for the bits of these columns."""
    out = torch.full((rows, 1, 512), POISON if bits is None else 0, dtype=torch.int16)
    for column, pattern in (bits or {}).items():
        out[:, 0, column] = pattern - (pattern >> 15 << 16)
    return out.view(torch.bfloat16).to(device)


def two_by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """Id 3 is the second row of the second page of two: data at 576, scales at 2 * 576 + 8."""
    first = {576: 0x38, 1150: 0x00, 1151: 0xC0, 1160: 127, 1167: 255}
    second = {0: 0x7E, 576: 128}
    return {
        "out": rows_of(1, device),
        "k_cache": pages(2, 1168, first, device),
        "token_ids": torch.tensor([3], dtype=torch.int32, device=device),
        "page_size": 2,
        "window_out": rows_of(2, device),
        "window_k_cache": pages(1, 592, second, device),
        "window_token_ids": torch.tensor([0, 0], dtype=torch.int32, device=device),
        "window_page_size": 1,
    }


def two_worked_out() -> dict[str, Any]:
    """1 * 2^0 and a bf16 -2 in the last column; 448 * 2^1, twice."""
    return {
        "out": rows_of(1, "cpu", {0: 0x3F80, 511: 0xC000}),
        "window_out": rows_of(2, "cpu", {0: 0x4460}),
    }


def fp4_by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """Codes 2 and 7, 15 and 9 under the scale 2; 8, which is -0, under the scale 1."""
    written = {0: 0x72, 7: 0x9F, 8: 0x08, 256: 0x40, 257: 0x38}
    return {
        "out": rows_of(1, device),
        "k_cache": pages(2, 288, written, device),
        "token_ids": torch.tensor([1], dtype=torch.int64, device=device),
        "page_size": 1,
        "record": 288,
        "interleaved": True,
    }


def fp4_worked_out() -> dict[str, Any]:
    """1, 6, -6 and -1/2, doubled."""
    bits = {0: 0x4000, 1: 0x4140, 14: 0xC140, 15: 0xBF80, 16: 0x8000}
    return {"out": rows_of(1, "cpu", bits)}


def mixed_by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """FP4, id 1, the second row of the only page of two: data at 256, scales at 2 * 256 + 32.

    Codes 5 and 2 under the scale 2, and code 15 at the end under the scale 1/2. FP8, id 0: -1
    under 2^-1, and 2 at the end under 2^3, scales at 512.
    """
    first = {256: 0x25, 511: 0xF0, 544: 0x40, 575: 0x30}
    second = {1: 0xB8, 511: 0x40, 512: 126, 527: 130}
    return {
        "out": rows_of(1, device),
        "k_cache": pages(1, 576, first, device),
        "token_ids": torch.tensor([1], dtype=torch.int32, device=device),
        "page_size": 2,
        "record": 288,
        "window_out": rows_of(2, device),
        "window_k_cache": pages(1, 528, second, device),
        "window_token_ids": torch.tensor([0, 0], dtype=torch.int32, device=device),
        "window_page_size": 1,
        "window_record": 528,
    }


def mixed_worked_out() -> dict[str, Any]:
    """3 and 1, doubled, and half of -6; half of -1, and 2 * 8, twice."""
    return {
        "out": rows_of(1, "cpu", {0: 0x40C0, 1: 0x4000, 511: 0xC040}),
        "window_out": rows_of(2, "cpu", {1: 0xBF00, 511: 0x4180}),
    }


def worked_out() -> list[Case]:
    return [
        Case("584, two sources: by hand", two_by_hand, expected=two_worked_out),
        Case("288 interleaved: by hand", fp4_by_hand, expected=fp4_worked_out),
        Case("288 + 528, two sources: by hand", mixed_by_hand, expected=mixed_worked_out),
    ]


# What serving sees --------------------------------------------------------------------------------


def timed() -> Iterator[Call]:
    v4 = Call(584, False, Source(1, 64))
    for rows in (512, 2048, 8192, 32768, 131072, 262144):
        yield replace(v4, first=Source(rows, 64))
    for rows, more in ((256, 256), (24576, 8192), (98304, 32768), (65536, 65536)):
        yield replace(v4, first=Source(rows, 64), second=Source(more, 256), joined=True)
    for page in (2, 256):
        yield replace(v4, first=Source(131072, page))
    for rows in (8192, 32768, 131072):
        yield replace(v4, first=Source(rows, 64, "shuffled"))
    yield replace(v4, first=Source(131072, 64), wide=True)
    for record, interleaved in LAYOUTS[1:]:
        yield Call(record, interleaved, Source(131072, 128))
    mixed = Call(288, True, Source(1, 64), joined=True, window_record=528)
    for rows, more in ((256, 256), (24576, 8192), (98304, 32768)):
        yield replace(mixed, first=Source(rows, 64), second=Source(more, 64))


def cases() -> list[Case]:
    return (
        worked_out()
        + [case(call) for call in correctness()]
        + [case(call, bench=True) for call in timed()]
    )
