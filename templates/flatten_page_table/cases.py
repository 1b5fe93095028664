"""Calls of flatten_page_table: both forms, requests of all sizes and none, any page size and ratio,
views with gaps, entries that must not be looked at; and the sizes that serving sees, timed.
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

    sequences: tokens of each request, and how many of them are queries. room: elements of out
    beyond the list, or missing. gap: columns between rows of the table. origin: what
    query_start_loc starts with. holes: pages, or indices, that do not exist. missing: entries that
    the table lacks, queries that it lacks.
    """

    sequences: Sequence[tuple[int, int]]
    rectangular: bool = False
    page_size: int = 64
    ratio: int = 4
    room: int = 0
    gap: int = 0
    origin: int = 0
    holes: bool = False
    missing: tuple[int, int] = (0, 0)

    @property
    def counts(self) -> list[int]:
        return [length // self.ratio for length, _ in self.sequences]

    @property
    def columns(self) -> int:
        return max(max(self.counts, default=0), 1)

    @property
    def ids(self) -> int:
        count = self.columns * len(self.sequences) if self.rectangular else sum(self.counts)
        return count + self.room

    def make(self, device: Any, seed: int) -> dict[str, Any]:
        random = torch.Generator(device).manual_seed(seed)
        counts, starts = self.counts, [0]
        for _, queries in self.sequences:
            starts.append(starts[-1] + queries)
        lacking, absent = self.missing
        rows = max(starts[-1] + 2 - absent, 0)
        width = self.columns + 3 if self.rectangular else -(-self.columns // self.page_size)
        width = max(width - lacking, 0)
        pitch = width + self.gap
        storage = torch.full((rows * pitch,), MOST // 2, dtype=torch.int32, device=device)
        table = storage.as_strided((rows, width), (pitch, 1))
        # What is read is the first query's row of pages, or the last one's of indices, alone.
        read = [start - 1 for start in starts[1:]] if self.rectangular else starts[:-1]
        for count, (_, queries), row in zip(counts, self.sequences, read, strict=True):
            used = count if self.rectangular else -(-count // self.page_size)
            if queries == 0 or row >= rows:
                continue
            if self.rectangular:
                table[row] = -1
            part = table[row, :used]
            part.random_(1, 2**20, generator=random)
            if self.holes:
                values = torch.tensor([-1, -1, -7, 0], device=device).int()
                part[::5] = values[torch.arange(len(part[::5]), device=device) % 4]

        def ints(values: Sequence[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        out = torch.full((self.ids + 9,), POISON, dtype=torch.int32, device=device)[: self.ids]
        start = ints([self.origin + each for each in starts])
        if self.rectangular:
            return {"out": out, "query_start_loc": start, "page_indices": table}
        bases = [0, *accumulate(counts)][:-1]
        return {
            "out": out,
            "query_start_loc": start,
            "page_table": table,
            "compressed_base": ints(bases),
            "seq_lens": ints([length for length, _ in self.sequences]),
            "page_size": self.page_size,
            "compress_ratio": self.ratio,
        }

    def case(self, name: str, *, bench: bool = False) -> Case:
        requests, queries = len(self.sequences), sum(queries for _, queries in self.sequences)
        width = self.columns if self.rectangular else self.columns // self.page_size + 1
        form = "rectangular" if self.rectangular else f"ragged, page {self.page_size}"
        entry = 1 if self.rectangular else self.page_size
        return Case(
            name=f"{form}, ratio {self.ratio}, {requests} requests, {self.ids} ids, {name}",
            make=self.make,
            read=4 * self.ids // entry + 12 * requests,
            write=4 * self.ids,
            bench=bench,
            memory=4 * (queries + 2) * (width + 3 + self.gap) + 40 * self.ids,
        )


RAGGED = ((9, 9), (1000, 33), (3, 1), (3000, 1), (515, 15), (1, 1), (131, 30), (7000, 77))


def correctness() -> Iterator[Case]:
    for rectangular in (False, True):
        ragged = Call(RAGGED, rectangular)
        yield Call((), rectangular).case("nothing")
        yield Call(((1, 1),), rectangular, ratio=1).case("one row")
        yield Call(((3, 3), (2, 1)), rectangular).case("no row")
        yield ragged.case("all sizes")
        yield replace(ragged, origin=123_456).case("global offset")
        yield replace(ragged, gap=7).case("gaps")
        yield replace(ragged, holes=True, ratio=1).case("holes")
        yield replace(ragged, ratio=128).case("few rows")
        yield replace(ragged, missing=(0, 30)).case("queries without a row")
        idle = tuple((length, queries * (i % 2)) for i, (length, queries) in enumerate(RAGGED))
        yield replace(ragged, sequences=idle).case("requests without queries")
        for requests in (31, 32, 33, 65, 1100):
            many = tuple((50 * i % 777 + 3, i % 3 + 1) for i in range(requests))
            yield Call(many, rectangular, page_size=16).case("many requests")
        short = tuple((i % 9, 1) for i in range(800))
        yield Call(short, rectangular).case("hardly any rows")
        yield replace(ragged, gap=1 << 28, sequences=((400, 3), (99, 2))).case("far pitch")
    ragged = Call(RAGGED)
    for page_size in (1, 2, 3, 48, 128, 256):
        for ratio in (1, 2, 4, 128):
            yield replace(ragged, page_size=page_size, ratio=ratio, holes=True).case("pages")
    yield Call((), room=5).case("room alone")
    yield replace(ragged, room=3001).case("more room")
    yield replace(ragged, room=-777).case("less room")
    long = tuple((100_000 + 77 * i, 3) for i in range(2, 9))
    yield Call(long, page_size=48, holes=True).case("long")
    yield Call(long, ratio=1, room=99, holes=True).case("long")
    yield Call((*long, *long), ratio=1, page_size=2, holes=True).case("long")
    yield replace(ragged, missing=(9, 0)).case("short table")


# Worked out by hand -------------------------------------------------------------------------------


def ints(values: Any, device: Any = "cpu") -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def ragged_by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """Requests of two queries and one, 13 and 4 tokens long: three rows and one, pages of two."""
    return {
        "out": torch.full((5,), -77, dtype=torch.int32, device=device),
        "query_start_loc": ints([5, 7, 8], device),
        "page_table": ints([[4, 6], [0, 0], [9, -1]], device),
        "compressed_base": ints([0, 3], device),
        "seq_lens": ints([13, 4], device),
        "page_size": 2,
        "compress_ratio": 4,
    }


def ragged_expected() -> dict[str, Any]:
    return {"out": ints([8, 9, 12, 18, 0])}


def rectangle_by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """The last queries of two requests are rows 1 and 2."""
    return {
        "out": torch.full((4,), -77, dtype=torch.int32, device=device),
        "query_start_loc": ints([0, 2, 3], device),
        "page_indices": ints([[1, 2], [3, -1], [7, 8]], device),
    }


def rectangle_expected() -> dict[str, Any]:
    return {"out": ints([3, 0, 7, 8])}


def worked_out() -> list[Case]:
    return [
        Case("ragged: by hand", ragged_by_hand, expected=ragged_expected),
        Case("rectangular: by hand", rectangle_by_hand, expected=rectangle_expected),
    ]


# What serving sees --------------------------------------------------------------------------------


def timed() -> Iterator[Case]:
    for requests, length, queries in ((1, 131_072, 512), (16, 8_192, 64), (64, 65_536, 16)):
        sequences = ((length, queries),) * requests
        yield Call(sequences).case("c4", bench=True)
        yield Call(sequences, page_size=256, ratio=1).case("c1", bench=True)
        yield Call(sequences, rectangular=True, ratio=128).case("c128", bench=True)


def cases() -> list[Case]:
    return [*worked_out(), *correctness(), *timed()]
