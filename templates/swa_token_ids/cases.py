"""Calls of swa_token_ids: requests of all sizes and none, rooms that are too small or too large,
numbers outside of their tables, pitches past 2^31 elements; and the sizes that serving sees, timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from dsv4_aot.generator.spec import Case

LEAST, MOST = -(2**31), 2**31 - 1
POISON = -0x5A5A5A5A


@dataclass(frozen=True)
class Call:
    """A call to make.

    sequences: tokens of each request, and how many of them the chunk has. room: elements of out
    beyond the ids, or missing. page: tokens that lie together. gap: columns between rows of
    req_to_token. bad: positions, rows and tokens outside of their tables.
    """

    sequences: Sequence[tuple[int, int]]
    pool: torch.dtype = torch.int64
    window: int = 128
    tokens: int = 5000
    page: int = 1
    room: int = 0
    gap: int = 0
    bad: bool = False

    @property
    def gathered(self) -> list[int]:
        return [min(length, queries + self.window - 1) for length, queries in self.sequences]

    def make(self, device: Any, seed: int) -> dict[str, Any]:
        random = torch.Generator(device).manual_seed(seed)
        lengths, gathered = [length for length, _ in self.sequences], self.gathered
        requests, positions = len(lengths), max(lengths, default=0)
        rows = requests + 2
        order = torch.randperm(rows, generator=random, device=device)[:requests]
        pitch = positions + self.gap
        storage = torch.full((rows * pitch,), MOST, dtype=torch.int32, device=device)
        table = storage.as_strided((rows, positions), (pitch, 1))
        first = torch.tensor(lengths, dtype=torch.int32, device=device)
        first -= torch.tensor(gathered, dtype=torch.int32, device=device)
        for request, row in enumerate(order.tolist()):  # and only what is to be looked at
            part = table[row, lengths[request] - gathered[request] : lengths[request]]
            part.random_(0, self.tokens // self.page, generator=random)
            if self.page > 1:  # positions of a page are neighbours
                at = torch.arange(len(part), device=device)
                part.copy_(part[at // self.page * self.page] * self.page + at % self.page)
        if self.bad:
            strange = torch.tensor([-1, LEAST, MOST, self.tokens], device=device).int()
            table[:, ::3] = strange[torch.arange(positions, device=device)[::3] % 4]
            first[::3] = torch.tensor([-3, MOST - 2**20, LEAST], device=device).int()[
                torch.arange(requests, device=device)[::3] % 3
            ]
            order[1::3] = torch.tensor([-1, rows, MOST], device=device)[
                torch.arange(requests, device=device)[1::3] % 3
            ]
        offsets = [0, *accumulate(gathered)]
        count = offsets[-1] + self.room
        ids = torch.randint(0, MOST, (self.tokens,), generator=random, device=device)
        return {
            "out": torch.full((count + 9,), POISON, dtype=torch.int32, device=device)[:count],
            "req_to_token": table,
            "full_to_swa": ids,
            "req_pool_indices": order.to(self.pool),
            "swa_first_pos": first,
            "swa_offsets": torch.tensor(offsets, dtype=torch.int32, device=device),
        }

    def case(self, name: str, *, bench: bool = False) -> Case:
        ids, requests = sum(self.gathered), len(self.sequences)
        positions = max((length for length, _ in self.sequences), default=0)
        width = str(self.pool).removeprefix("torch.")
        return Case(
            name=f"{width} pool, {requests} requests, {ids} ids, {name}",
            make=self.make,
            read=12 * ids + 16 * requests,
            write=4 * (ids + self.room),
            bench=bench,
            memory=4 * (requests + 2) * (positions + self.gap) + 8 * self.tokens + 40 * ids,
        )


RAGGED = ((9, 9), (1000, 33), (0, 0), (3000, 1), (515, 515), (1, 1), (131, 130), (700, 77))


def correctness() -> Iterator[Case]:
    for pool in (torch.int32, torch.int64):
        ragged = Call(RAGGED, pool)
        yield Call((), pool).case("nothing")
        yield Call((), pool, room=7).case("room alone")
        yield Call(((0, 0), (0, 0)), pool, room=3).case("empty requests")
        yield Call(((1, 1),), pool).case("one token")
        yield ragged.case("ragged")
        yield replace(ragged, gap=13).case("gaps")
        yield replace(ragged, room=1000).case("more room")
        yield replace(ragged, room=-333).case("less room")
        yield replace(ragged, bad=True).case("outside")
        for requests in (31, 32, 33, 65, 1100):
            few = tuple((50 * i % 777 + 5 * (i % 3), 5 * (i % 3)) for i in range(requests))
            yield Call(few, pool, window=9).case("short")
        yield Call(((300_000, 270_000), (5000, 31)), pool, tokens=40_000, room=3).case("large")
        yield Call(tuple((i % 5, i % 5) for i in range(3000)), pool, room=3).case("tiny")
        yield replace(ragged, gap=1 << 28).case("pitch past 2^31 elements")
    yield replace(ragged, bad=True, room=1 << 19).case("outside, much room")


# Worked out by hand -------------------------------------------------------------------------------


def ints(values: Any, device: Any = "cpu") -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """Two requests in the pool's rows 1 and 0; token t is row 2 t + 1 of the window cache."""
    return {
        "out": torch.full((4,), -77, dtype=torch.int32, device=device),
        "req_to_token": ints([[10, 11, 12], [0, 1, 2]], device),
        "full_to_swa": 2 * torch.arange(13, device=device) + 1,
        "req_pool_indices": ints([1, 0], device),
        "swa_first_pos": ints([1, 0], device),
        "swa_offsets": ints([0, 2, 3], device),
    }


def expected() -> dict[str, Any]:
    """Tokens 1 and 2, then token 10, then nothing."""
    return {"out": ints([3, 5, 21, 0])}


# What serving sees --------------------------------------------------------------------------------


def timed() -> Iterator[Case]:
    serving = Call((), tokens=1 << 20, page=256)
    for requests, length, queries in (
        (1, 65_536, 16_384), (16, 8_192, 1_024), (64, 8_192, 256), (64, 16_384, 4_096),
        (64, 16_384, 16_384),
    ):  # fmt: skip
        yield replace(serving, sequences=((length, queries),) * requests).case(
            "pages of 256", bench=True
        )


def cases() -> list[Case]:
    by_hand_case = Case("by hand", by_hand, expected=expected)
    return [by_hand_case, *correctness(), *timed()]
