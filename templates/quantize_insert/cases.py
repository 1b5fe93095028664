"""Calls of quantize_insert: every record, layout, rule and page size, slots in order and at
random, skipped tokens, the corners of all formats, views with gaps, pages past 2^31 bytes; and the
sizes that serving sees, timed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from dsv4_aot.generator.spec import Case

BYTES = {"v4": 584, "v41": 528, "v41_fp4": 288}
UNIT = {"v4": 576, "v41": 528, "v41_fp4": 288}
"""What page strides are a multiple of."""
GROUP = {"v4": 64, "v41": 32, "v41_fp4": 16}
DTYPES = {32: torch.int32, 64: torch.int64}
CANARY = 0xEE
PAGE_SIZES = (1, 2, 3, 16, 32, 64, 100, 128, 256)


@dataclass(frozen=True)
class Call:
    """A call to make; the seed decides the slots and all contents.

    order: of the slots: page by page, the pages at random, or all at random. skipped: every third
    token has a slot that is negative or behind the last page. more: rows of k without a token.
    gaps: between rows of k and between pages, and the cache starts inside its storage.
    far: bytes of unused pages before the used ones. data: plain random numbers, all bf16 values
    that a group can begin with, or every kind of number that is treated differently.
    """

    record: str
    page_size: int
    tokens: int
    block_split: bool = False
    sglang: bool = False
    slot_bits: int = 64
    order: Literal["pages", "random"] = "pages"
    skipped: bool = False
    more: int = 0
    gaps: bool = False
    far: int = 0
    data: Literal["plain", "amax", "edges"] = "plain"

    @property
    def page_stride(self) -> int:
        unit = UNIT[self.record]
        least = -(-self.page_size * BYTES[self.record] // unit) * unit
        return least + (96 if self.gaps else 0)

    @property
    def name(self) -> str:
        plain = Call(self.record, self.page_size, self.tokens)
        fields = ("block_split", "sglang", "skipped", "more", "gaps", "data")
        unusual = [each for each in fields if getattr(self, each) != getattr(plain, each)]
        settings = [each if getattr(self, each) is True else f"{each} {getattr(self, each)}"
                    for each in unusual]  # fmt: skip
        far = ["past 2^31 bytes"] if self.far else []
        parts = [f"{self.record} page {self.page_size}: {self.tokens}", f"int{self.slot_bits}"]
        return ", ".join([*parts, f"slots by {self.order}", *far, *settings])

    def make(self, device: Any, seed: int) -> dict[str, Any]:
        random = torch.Generator(device).manual_seed(seed)
        width = 512 + (24 if self.gaps else 0)
        k = torch.empty(self.tokens + self.more, width, dtype=torch.bfloat16, device=device)
        k.normal_(generator=random)
        k = k[:, 16:528] if self.gaps else k
        if self.data == "amax":
            put_every_amax(k, GROUP[self.record])
        if self.data == "edges":
            put_edges(k, GROUP[self.record], random)

        size, stride, record = self.page_size, self.page_stride, BYTES[self.record]
        skipped = -(-self.far // stride)
        used = -(-self.tokens // size) + 2
        start = 48 if self.gaps else 0
        storage = torch.empty(start + (skipped + used) * stride, dtype=torch.uint8, device=device)
        storage[start + skipped * stride :].random_(0, 256, generator=random)
        storage[:start] = CANARY
        pages = skipped + used
        return {
            "k": k,
            "k_cache": storage.as_strided((pages, size, record), (stride, record, 1), start),
            "slot_mapping": self.slots(skipped, used, random).to(DTYPES[self.slot_bits]),
            "block_split": self.block_split,
            "sglang": self.sglang,
        }

    def slots(self, first: int, used: int, random: torch.Generator) -> torch.Tensor:
        size, device = self.page_size, random.device
        if self.order == "random":
            slots = torch.randperm(used * size, generator=random, device=device)
        else:
            # sequences start inside a page and end inside another
            order = torch.randperm(used, generator=random, device=device)
            rows = torch.arange(used * size, device=device) + size // 3
            slots = order[rows // size % used] * size + rows % size
        slots = first * size + slots[: self.tokens]
        if self.skipped:
            end = (first + used) * size
            wrong = [-1, -2, end, -(2**31), 2**31 - 1, end + 1]
            if self.slot_bits == 64:
                wrong += [-(2**63), 2**63 - 1, 2**32, -(2**32) + 1, 2**32 + 5]
            values = torch.tensor(wrong, device=device)
            third = slots[1::3]
            third.copy_(values[torch.arange(len(third), device=device) % len(values)])
        return slots

    def case(self, *, bench: bool = False) -> Case:
        record = BYTES[self.record]
        held = (self.tokens + 2 * self.page_size) * record + self.far + 1100 * self.tokens
        return Case(
            name=self.name,
            make=self.make,
            read=self.tokens * (1024 + self.slot_bits // 8),
            write=self.tokens * (record - (1 if self.sglang and self.record == "v4" else 0)),
            bench=bench,
            memory=held,
        )


def put_every_amax(k: torch.Tensor, group: int) -> None:
    """Each group begins with the next bf16 pattern, NaN and infinities too; the rest is smaller."""
    groups = k.view(len(k), -1, group)
    count = groups.shape[0] * groups.shape[1]
    bits = torch.arange(count, device=k.device).view(groups.shape[:2]).to(torch.int16)
    first = bits.view(torch.bfloat16)
    finite = torch.where(first.isfinite(), first, 1.0)
    groups.clamp_(-1, 1)
    groups *= finite[..., None]
    groups[..., 0] = first


def put_edges(k: torch.Tensor, group: int, random: torch.Generator) -> None:
    """Groups of all magnitudes, in turn one with each special number, and one of ties."""
    groups = k.view(len(k), -1, group)
    exponents = torch.randint(-40, 15, groups.shape[:2], generator=random, device=k.device)
    groups *= torch.exp2(exponents.float()).to(k.dtype)[..., None]
    nan, inf = float("nan"), float("inf")
    info = torch.finfo(torch.bfloat16)
    ties = [
        6.0,
        -0.25,
        0.25,
        0.75,
        -0.75,
        1.25,
        1.75,
        -2.5,
        2.5,
        3.5,
        -3.5,
        5.0,
        -5.0,
        0.252,
        0.248,
    ]
    specials = [
        [0.0] * group,
        [-0.0, info.smallest_normal, -info.smallest_normal / 4] * (group // 4),
        [nan],
        [-nan] * group,
        [inf, info.max, -1.0, 2.0**-100],
        [-inf, nan, 0.0, 1.0],
        [info.max, -info.max, 1.0],
        # just what the scale holds, and the next number
        [448.0] + [1.0] * (group - 1),
        [450.0] + [1.0] * (group - 1),
        [1.0001e-4, -0.9e-4, 1e-6],
        [0.05, -0.054, 0.0546875, 1e-3],
        [2688.0, 448.0, -5.0],
        [2.0**-9 * 6, 2.0**-9 * 5, 2.0**-10 * 5, -(2.0**-11)],
        ties,
        [13 * each for each in ties],
        [2.0**-8 * 7 * each for each in ties],
    ]
    count = groups.shape[1]
    for index, numbers in enumerate(specials):
        values = torch.tensor(numbers, device=k.device).to(k.dtype)[:group]
        at = torch.arange(index, len(k) * count, len(specials) + 1, device=k.device)
        groups[at // count, at % count, : len(values)] = values


def layouts() -> list[Call]:
    """Every record in each of its layouts, by both rules, with both kinds of slots."""
    kinds = [("v4", False), *itertools.product(("v41", "v41_fp4"), (False, True))]
    return [
        Call(record, 64, 1, block_split, sglang, bits)
        for (record, block_split), sglang, bits in itertools.product(kinds, (False, True), (32, 64))
    ]


def correctness() -> list[Call]:
    calls = []
    for call in layouts():
        calls += [
            replace(call, tokens=0),
            call,
            replace(call, tokens=301, order="random", skipped=True, more=7, gaps=True),
            replace(call, tokens=4999, order="random", skipped=True, data="edges"),
            replace(call, tokens=5001, page_size=32, gaps=True, data="edges"),
        ]
        if call.slot_bits == 64:
            calls += [
                replace(call, tokens=385, page_size=size, more=1, gaps=True) for size in PAGE_SIZES
            ]
            calls.append(replace(call, tokens=9400, page_size=100, order="random", data="amax"))
        calls.append(replace(call, tokens=4400, page_size=2, far=2**31 + 5, order="random"))
    calls.append(Call("v4", 64, 777, block_split=True))  # as it is without
    calls += [Call(record, 256, 4097, skipped=True, gaps=True) for record in BYTES]
    calls += [Call(record, 64, 2_100_003, order="random") for record in BYTES]
    calls.append(Call("v4", 7, 70_001, slot_bits=32, order="random", skipped=True))
    return calls


# Worked out by hand -------------------------------------------------------------------------------

PAGE = {"v4": 1728, "v41": 1056, "v41_fp4": 576}
"""Bytes of a page of two rows."""
BY_HAND: dict[str, tuple[dict[int, float], range, dict[int, int]]] = {
    # Elements of the row, where its data lies in the page, and its bytes that are not 0.
    # V4: the second row's data begins at 576, its scales at 2 * 576 + 8, its bf16 tail at 448.
    "v4": (
        {0: 1.0, 1: 448.0, 64: 450.0, 65: -1.0, 384: -1.0, 448: 1.0, 511: -2.0},
        range(576, 1152),
        {
            576: 0x38, 577: 0x7E,  # 1 and 448, times 2^0
            640: 0x76, 641: 0xB0,  # 450 / 2 rounds to 224; -1 / 2
            960: 0xF8,  # -256, times 2^-8
            1025: 0x3F, 1024: 0x80, 1151: 0xC0,  # 1 and -2 as bf16
            **dict.fromkeys(range(1160, 1167), 105),  # ceil(log2(1e-4 / 448)) + 127
            1160: 127, 1161: 128, 1166: 119, 1167: 0,
        },
    ),
    # V4.1 by SGLang's rule, interleaved: the second row begins at 528, its scales 512 bytes on.
    "v41": (
        {0: 1.0, 32: 2.0**-10, 511: -448.0},
        range(528, 1040),
        {
            528: 0x78, 560: 0x50, 1039: 0xFE,  # 256 * 2^-8, 8 * 2^-13, -448
            **dict.fromkeys(range(1040, 1056), 114),
            1040: 119, 1055: 127,
        },
    ),
    # V4.1 FP4, block split: the second row's data begins at 256, its scales at 2 * 256 + 32.
    "v41_fp4": (
        {0: 6.0, 1: -2.5, 2: 0.75, 3: 0.25, 511: -12.0},
        range(256, 512),
        {
            256: 0xC7, 257: 0x02,  # 6 and -2, 1 and 0: ties go to even codes
            511: 0xF0,  # -6 * 2
            **dict.fromkeys(range(544, 576), 0x01),  # 2^-9
            544: 0x38, 575: 0x40,  # 1 and 2
        },
    ),
}  # fmt: skip


def by_hand(record: str, device: Any, _seed: int) -> dict[str, Any]:
    """A skipped token, one for the second row of the second page, and a row without a token."""
    k = torch.zeros(3, 512)
    k[0], k[2] = 5.0, float("nan")
    for column, element in BY_HAND[record][0].items():
        k[1, column] = element
    return {
        "k": k.bfloat16().to(device),
        "k_cache": two_pages(record, device),
        "slot_mapping": torch.tensor([-1, 3], device=device),
        "block_split": record == "v41_fp4",
        "sglang": record == "v41",
    }


def two_pages(record: str, device: Any = "cpu") -> torch.Tensor:
    stride, size = PAGE[record], BYTES[record]
    storage = torch.full((2 * stride,), CANARY, dtype=torch.uint8, device=device)
    return storage.as_strided((2, 2, size), (stride, size, 1))


def expected(record: str) -> dict[str, Any]:
    cache = two_pages(record)
    page = cache.as_strided((PAGE[record],), (1,), PAGE[record])
    _, data, others = BY_HAND[record]
    page[data.start : data.stop] = 0
    for position, byte in others.items():
        page[position] = byte
    return {"k_cache": cache}


def worked_out() -> list[Case]:
    return [
        Case(f"{record}: by hand", partial(by_hand, record), expected=partial(expected, record))
        for record in BY_HAND
    ]


# What serving sees --------------------------------------------------------------------------------


def timed() -> list[Call]:
    calls = [Call("v4", 64, tokens) for tokens in (1, 512, 2048, 8192, 32768, 131072, 1048576)]
    calls += [replace(call, order="random") for call in calls if call.tokens in (512, 32768)]
    calls += [Call("v4", 256, 32768, sglang=True, slot_bits=32), Call("v4", 2, 32768)]
    for record in ("v41", "v41_fp4"):
        calls += [Call(record, 64, tokens) for tokens in (512, 32768, 131072)]
    calls.append(Call("v41", 64, 32768, block_split=True))
    return calls


def cases() -> list[Case]:
    timed_calls = dict.fromkeys(timed())
    calls = [call for call in dict.fromkeys(correctness()) if call not in timed_calls]
    served = [call.case(bench=True) for call in timed_calls]
    return worked_out() + [call.case() for call in calls] + served
