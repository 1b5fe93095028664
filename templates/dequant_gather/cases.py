"""Calls of dequant_gather: every record, page size and window, the corners of both formats, ragged
and idle requests, views with gaps, pages past 2^31 bytes; and the sizes that serving sees, timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from dsv4_aot.generator.spec import Case, Tolerance

BYTES = {"v4": 584, "v41": 528}
UNIT = {"v4": 576, "v41": 528}
"""What page strides are a multiple of."""
BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
POISON = -0x5A5A
STALE = -1_000_000
"""An entry of a block table that must not be followed."""
EXACT = Tolerance(0.0, 0.0)
"""NaN is NaN whatever its bits, and everything else is equal."""


@dataclass(frozen=True)
class Call:
    """A call to make; the seed decides which request gets which length, and all contents.

    gathered: lengths of the windows, None to gather all. gaps: around every row of out, between
    pages and behind every row of the table. far: bytes of unused pages before the used ones.
    wild: all codes and scales, also those that stand for NaN, infinity and nothing.
    """

    record: str
    block_size: int
    lengths: Sequence[int]
    gathered: Sequence[int] | None = None
    offset: int = 0
    room: int | None = None
    gaps: bool = False
    far: int = 0
    wild: bool = False

    @property
    def rows(self) -> int:
        return sum(self.lengths if self.gathered is None else self.gathered)

    @property
    def rooms(self) -> int:
        """Rows of out for a request."""
        if self.room is not None:
            return self.room
        return self.offset + max(
            self.lengths if self.gathered is None else self.gathered, default=4
        )

    @property
    def page_stride(self) -> int:
        unit = UNIT[self.record]
        return -(-self.block_size * BYTES[self.record] // unit) * unit + (96 if self.gaps else 0)


def fill(pages: torch.Tensor, call: Call, random: torch.Generator) -> None:
    """Random records into uint8 ``[n, page_stride]``."""
    pages.random_(0, 256, generator=random)
    size = call.block_size
    if call.record == "v4":
        codes = pages[:, : size * 576].view(-1, size, 576)[..., :448]
        scales = pages[:, size * 576 : size * 584]
    else:
        rows = pages[:, : size * 528].view(-1, size, 528)
        codes, scales = rows[..., :512], rows[..., 512:]
    if not call.wild:
        codes -= ((codes & 0x7F) == 0x7F).to(torch.uint8)  # the two NaN become the largest values
        scales.random_(100, 140, generator=random)


def make(call: Call, device: Any, seed: int) -> dict[str, Any]:
    random = torch.Generator(device).manual_seed(seed)
    order = torch.randperm(len(call.lengths), generator=torch.Generator().manual_seed(seed))
    lengths = [call.lengths[i] for i in order]
    gathered = lengths if call.gathered is None else [call.gathered[i] for i in order]
    size, stride = call.block_size, call.page_stride

    # Pages in random order, and only those that the gathered rows lie in.
    width = max((-(-length // size) for length in lengths), default=0) + (3 if call.gaps else 0)
    table = torch.full((len(lengths), width + 5), STALE, dtype=torch.int32, device=device)
    spans = [
        ((length - count) // size, -(-length // size) if count else (length - count) // size)
        for length, count in zip(lengths, gathered, strict=True)
    ]
    used = sum(end - begin for begin, end in spans) + 1
    skipped = -(-call.far // stride)
    ids = skipped + torch.randperm(used, generator=random, device=device).int()
    for request, (begin, end) in enumerate(spans):
        table[request, :begin] = skipped
        table[request, begin:end], ids = ids[: end - begin], ids[end - begin :]
    storage = torch.empty((skipped + used) * stride, dtype=torch.uint8, device=device)
    fill(storage.view(-1, stride)[skipped:], call, random)

    room = call.rooms
    gap = 8 if call.gaps else 0
    form = (len(lengths), room + gap, 512 + 2 * gap)
    out = torch.full(form, POISON, dtype=torch.int16, device=device).view(torch.bfloat16)
    record = BYTES[call.record]
    return {
        "out": out[:, gap // 2 : gap // 2 + room, gap : gap + 512],
        "k_cache": storage.as_strided((skipped + used, size, record), (stride, record, 1)),
        "seq_lens": torch.tensor(lengths, dtype=torch.int32, device=device),
        "gather_lens": None
        if call.gathered is None
        else torch.tensor(gathered, dtype=torch.int32, device=device),
        "block_table": table[:, : width if call.gaps else max(width, 1)],
        "offset": call.offset,
    }


def case(name: str, call: Call, *, bench: bool = False) -> Case:
    window = "" if call.gathered is None else ", window"
    return Case(
        name=f"{call.record} page {call.block_size}{window}: {name}",
        make=partial(make, call),
        tolerance=EXACT if call.wild else None,
        read=call.rows * BYTES[call.record] + 4 * len(call.lengths),
        write=call.rows * 1024,
        bench=bench,
        memory=call.far + call.rows * 600 + 1024 * call.rooms * len(call.lengths),
    )


def ragged(block_size: int) -> list[int]:
    """Empty, one row, around a page, odd counts over several tiles and pages."""
    p = block_size
    return [1, 0, p, 7, p + 1, 0, 2 * p + 3, 33, 100, 3 * p - 1 if p > 1 else 5]


def tails(lengths: Sequence[int]) -> list[int]:
    """Windows of them: none, all and parts, starting in mid-page."""
    return [(0, length, length // 2, min(length, 3))[i % 4] for i, length in enumerate(lengths, 1)]


def correctness() -> list[Case]:
    cases = []
    for record in BYTES:
        for size in BLOCK_SIZES:
            lengths = ragged(size)
            for gathered in (None, tails(lengths)):
                call = Call(record, size, lengths, gathered, offset=3, gaps=True)
                cases.append(case("ragged, with gaps", call))
        for windowed in (False, True):
            cases += [
                case(name, replace(call, gathered=tails(call.lengths) if windowed else None))
                for name, call in {
                    "every code and scale": Call(record, 64, [2048] * 4, wild=True),
                    "one row": Call(record, 64, [1]),
                    "no request": Call(record, 64, []),
                    "idle requests": Call(record, 64, [0] * 5, room=9),
                    "beyond 2^31 bytes": Call(record, 64, [64, 200, 70, 1], far=2**31 + 2**20),
                    "one long request": Call(record, 32, [9, 5000] + [0] * 30),
                    "many short requests": Call(record, 16, [i % 19 for i in range(500)]),
                    "room for many": Call(record, 128, [0, 6600, 1] + [0] * 37, room=6700),
                }.items()
            ]
    return cases


# Worked out by hand -------------------------------------------------------------------------------

BY_HAND: dict[str, tuple[dict[int, int], dict[int, int]]] = {
    # Bytes of the second page, which begins at 1728 or 1056, and bf16 bits of the decoded columns.
    # V4: the second row's data begins at 576, its scales at 2 * 576 + 8, its bf16 tail at 448.
    "v4": (
        {
            576: 0x38, 577: 0x7E,  # 1 and 448, times 2^0
            640: 0x40, 641: 0x01, 642: 0x80,  # 2, 2^-9 and -0, times 2^1
            960: 0xB8,  # -1, times 2^-1
            1024: 0x80, 1025: 0x3F, 1150: 0x00, 1151: 0xC0,  # 1 and -2 as bf16
            1160: 127, 1161: 128, 1166: 126, 1167: 255,  # scales, and the pad that is none
        },
        {
            0: 0x3F80, 1: 0x43E0, 64: 0x4080, 65: 0x3B80, 66: 0x8000, 384: 0xBF00,
            448: 0x3F80, 511: 0xC000,
        },
    ),
    # V4.1: the second row begins at 528, its scales 512 bytes on.
    "v41": (
        {528: 0x38, 559: 0x08, 560: 0x7E, 1039: 0xFE, 1040: 130, 1041: 120, 1055: 119},
        {0: 0x4100, 31: 0x3E00, 32: 0x4060, 511: 0xBFE0},  # 8, 2^-3, 3.5 and -1.75
    ),
}  # fmt: skip


def by_hand(record: str, device: Any, _seed: int) -> dict[str, Any]:
    """The second row of a request whose only page is the second; the cache is zero otherwise."""
    stride = {"v4": 1728, "v41": 1056}[record]
    storage = torch.zeros(2 * stride, dtype=torch.uint8)
    for position, byte in BY_HAND[record][0].items():
        storage[stride + position] = byte
    size = BYTES[record]
    out = torch.full((1, 3, 512), POISON, dtype=torch.int16, device=device)
    return {
        "out": out.view(torch.bfloat16),
        "k_cache": storage.to(device).as_strided((2, 2, size), (stride, size, 1)),
        "seq_lens": torch.tensor([2], dtype=torch.int32, device=device),
        "gather_lens": torch.tensor([1], dtype=torch.int32, device=device),
        "block_table": torch.tensor([[1, STALE]], dtype=torch.int32, device=device),
        "offset": 1,
    }


def expected(record: str) -> dict[str, Any]:
    out = torch.full((1, 3, 512), POISON, dtype=torch.int16)
    out[0, 1] = 0
    for column, bits in BY_HAND[record][1].items():
        out[0, 1, column] = bits - (bits >> 15 << 16)
    return {"out": out.view(torch.bfloat16)}


def worked_out() -> list[Case]:
    return [
        Case(f"{record}: by hand", partial(by_hand, record), expected=partial(expected, record))
        for record in BY_HAND
    ]


# What serving sees --------------------------------------------------------------------------------


def timed() -> list[Case]:
    whole = [
        (1, 512), (1, 2048), (1, 8192), (1, 32000), (1, 131072), (1, 262144), (1, 1048576),
        (8, 8192), (64, 2048), (256, 512),
    ]  # fmt: skip
    windows = [(1, 512, 8192), (1, 1024, 1048576), (16, 640, 131072)]
    cases = [
        case(f"{requests} x {rows}", Call("v4", 64, [rows] * requests), bench=True)
        for requests, rows in whole
    ]
    cases += [
        case(f"{requests} x {rows} of {length}",
             Call("v4", 64, [length] * requests, [rows] * requests), bench=True)
        for requests, rows, length in windows
    ]  # fmt: skip
    for record, size in [("v4", 2), ("v41", 64), ("v41", 32)]:
        for requests, rows in [(1, 2048), (1, 131072)]:
            call = Call(record, size, [rows] * requests)
            cases.append(case(f"{requests} x {rows}", call, bench=True))
    for record, size in [("v4", 256), ("v41", 32)]:
        call = Call(record, size, [8192] * 16, [640] * 16)
        cases.append(case("16 x 640 of 8192", call, bench=True))
    return cases


def cases() -> list[Case]:
    return worked_out() + correctness() + timed()
