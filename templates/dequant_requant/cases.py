"""Calls of dequant_requant: as for dequant_paged, and rows of zeros behind the last id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from dsv4_aot.generator.spec import Case
from dsv4_aot.templates.dequant_paged.cases import LAYOUTS, Call, Source, make_source, pages

POISON = 0x5A


@dataclass(frozen=True)
class Requant:
    """The call whose values are rounded, and how many rows become zero."""

    call: Call
    extra: int = 0

    @property
    def name(self) -> str:
        return f"{self.call.name} + {self.extra}"

    @property
    def out_rows(self) -> int:
        return self.call.rows + self.extra


def make(requant: Requant, device: Any, seed: int) -> dict[str, Any]:
    call = requant.call
    random = torch.Generator(device).manual_seed(seed)
    cache, ids = make_source(call, call.first, random, device)
    gap = 16 if call.gaps else 0
    form = (requant.out_rows + gap, 1, 512 + 2 * gap)
    out = torch.full(form, POISON, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
    return {
        "out": out[gap // 2 : gap // 2 + requant.out_rows, :, gap : gap + 512],
        "k_cache": cache,
        "token_ids": ids if call.wide else ids.int(),
        "page_size": call.first.page,
        "record": call.record,
        "interleaved": call.interleaved,
    }


def case(requant: Requant, *, bench: bool = False) -> Case:
    call = requant.call
    return Case(
        name=requant.name,
        make=partial(make, requant),
        read=call.rows * (call.record + (8 if call.wide else 4)),
        write=requant.out_rows * 512,
        bench=bench,
        memory=call.far + call.rows * 1200 + requant.extra * 512 + 1500 * call.first.page,
    )


def correctness() -> Iterator[Requant]:
    for record, interleaved in LAYOUTS:
        one = Call(record, interleaved, Source(91, 64))
        for size in (1, 2, 3, 64, 100, 255, 256):
            ragged = replace(one, first=Source(2 * size + 37, size), gaps=True)
            yield Requant(replace(ragged, wide=size % 2 == 0), extra=size % 5)
        for order in ("same", "backwards", "shuffled", "invalid"):
            yield Requant(replace(one, first=Source(91, 64, order)), extra=1)
        for rows, extra in ((0, 0), (0, 1), (0, 40), (1, 0), (7, 1), (8, 8), (9, 3), (16, 130)):
            yield Requant(replace(one, first=Source(rows, 64)), extra)
        yield Requant(replace(one, first=Source(0, 64, spare=0)), extra=3)
        yield Requant(replace(one, wide=True, first=Source(91, 64, "invalid")), extra=2)
        yield Requant(replace(one, first=Source(4099, 64), wild=True), extra=1)
        yield Requant(replace(one, first=Source(70_000, 64, "scattered"), wild=True), extra=1)
        yield Requant(replace(one, first=Source(200, 64), far=2**31 + 2**20))


# Worked out by hand -------------------------------------------------------------------------------


def rows_of(rows: int, device: Any, codes: dict[int, int] | None = None) -> torch.Tensor:
    """Poison, or rows of zeros but for these codes of the first."""
    out = torch.full((rows, 1, 512), POISON if codes is None else 0, dtype=torch.uint8)
    for column, code in (codes or {}).items():
        out[0, 0, column] = code
    return out.view(torch.float8_e4m3fn).to(device)


def v4_by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """Id 3 is the second row of the second page of two: data at 576, scales at 2 * 576 + 8.

    Scales 1, 2 and 1/2; in the bf16 tail 1.0625, 1.1875 and infinities.
    """
    codes = {576: 0x38, 577: 0xB8, 578: 0x7F, 640: 0x7E, 641: 0xFD, 704: 0x01, 705: 0x83}
    tail = {1024: 0x88, 1025: 0x3F, 1026: 0x98, 1027: 0x3F, 1029: 0x7F, 1028: 0x80,
            1151: 0xFF, 1150: 0x80}  # fmt: skip
    scales = {1160: 127, 1161: 128, 1162: 126, 1167: 255}  # the last is padding
    return {
        "out": rows_of(2, device),
        "k_cache": pages(2, 1168, codes | tail | scales, device),
        "token_ids": torch.tensor([3], dtype=torch.int32, device=device),
        "page_size": 2,
    }


def v4_worked_out() -> dict[str, Any]:
    """1, -1 and NaN; 896 and -832 are too large; 2^-10 and -3 * 2^-10 are ties, as in the tail."""
    codes = {0: 0x38, 1: 0xB8, 2: 0x7F, 64: 0x7E, 65: 0xFE, 128: 0x00, 129: 0x82}
    return {"out": rows_of(2, "cpu", codes | {448: 0x38, 449: 0x3A, 450: 0x7E, 511: 0xFE})}


def fp4_by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """Codes 2 and 7, 15 and 9 under the scale 2; 8, which is -0, and 1 under the scale 2^-9."""
    written = {0: 0x72, 7: 0x9F, 8: 0x18, 256: 0x40, 257: 0x01}
    return {
        "out": rows_of(3, device),
        "k_cache": pages(2, 288, written, device),
        "token_ids": torch.tensor([1], dtype=torch.int64, device=device),
        "page_size": 1,
        "record": 288,
        "interleaved": True,
    }


def fp4_worked_out() -> dict[str, Any]:
    """2, 12, -12 and -1; -0, and 2^-10, which is a tie."""
    return {"out": rows_of(3, "cpu", {0: 0x40, 1: 0x54, 14: 0xD4, 15: 0xB8, 16: 0x80, 17: 0x00})}


def worked_out() -> list[Case]:
    return [
        Case("584: by hand", v4_by_hand, expected=v4_worked_out),
        Case("288 interleaved: by hand", fp4_by_hand, expected=fp4_worked_out),
    ]


# What serving sees --------------------------------------------------------------------------------


def timed() -> Iterator[Requant]:
    v4 = Call(584, False, Source(1, 64))
    for rows in (512, 2048, 8192, 32768, 131072, 262144):
        yield Requant(replace(v4, first=Source(rows, 64)), extra=1)
    for page in (2, 256):
        yield Requant(replace(v4, first=Source(131072, page)), extra=1)
    for record, interleaved in LAYOUTS[1:]:
        yield Requant(Call(record, interleaved, Source(131072, 128)), extra=1)


def cases() -> list[Case]:
    return (
        worked_out()
        + [case(each) for each in correctness()]
        + [case(each, bench=True) for each in timed()]
    )
