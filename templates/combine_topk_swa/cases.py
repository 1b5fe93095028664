"""Calls of combine_topk_swa: both conventions, every rule, requests of all sizes, views with gaps
and odd addresses, numbers that must not be looked at; and the sizes that serving sees, timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dsv4_aot.generator.spec import Case

LEAST, MOST = -(2**31), 2**31 - 1
POISON = -0x5A5A5A5A


@dataclass(frozen=True)
class Call:
    """A call to make.

    sequences: tokens of each request, and how many of them are queries. topk: None for no list.
    more_columns, shift: columns of topk_indices beyond topk, elements that it starts later.
    gap: columns between rows of out. more_rows: rows of out beyond the queries.
    origin: what query_start_loc starts with. image: tokens of the longest image, None without.
    """

    sequences: Sequence[tuple[int, int]]
    topk: int = 512
    ratio: int = 4
    window: int = 128
    sglang: bool = False
    v41: bool = True
    explicit: bool = False
    image: int | None = None
    listed: bool = True
    more_columns: int = 0
    shift: int = 0
    gap: int = 0
    more_rows: int = 0
    more_width: int = 0
    origin: int = 0
    holes: bool = True

    @property
    def queries(self) -> int:
        return sum(queries for _, queries in self.sequences)

    @property
    def rows(self) -> int:
        return self.queries + self.more_rows

    @property
    def width(self) -> int:
        least = self.topk + self.window + (self.image or 0)
        return -(-least // 128) * 128 + self.more_width

    @property
    def n(self) -> int:
        return max((length // max(self.ratio, 1) for length, _ in self.sequences), default=0)

    @property
    def gathered(self) -> list[int]:
        return [min(length, queries + self.window - 1) for length, queries in self.sequences]

    def positions(self) -> list[int]:
        return [length - queries + i for length, queries in self.sequences for i in range(queries)]

    def make(self, device: Any, seed: int) -> dict[str, Any]:
        random = torch.Generator(device).manual_seed(seed)

        def ints(values: Sequence[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        lengths = [length for length, _ in self.sequences]
        starts = [self.origin]
        for _, queries in self.sequences:
            starts.append(starts[-1] + queries)
        storage = torch.full(
            (self.rows, self.width + self.gap), POISON, dtype=torch.int32, device=device
        )
        arguments: dict[str, Any] = {
            "out": storage[:, : self.width],
            "lens": torch.full((self.rows,), POISON, dtype=torch.int32, device=device),
            "topk_indices": self._topk(device, random) if self.listed else None,
            "query_start_loc": ints(starts),
            "seq_lens": ints(lengths),
            "gather_lens": ints(self.gathered),
            "window_size": self.window,
            "compress_ratio": self.ratio,
            "topk": self.topk,
        }
        if self.sglang:
            sizes = [length // max(self.ratio, 1) for length in lengths]
            bases = [sum(sizes[:i]) for i in range(len(sizes))]
            windows = [sum(sizes) + sum(self.gathered[:i]) for i in range(len(sizes))]
            arguments["query_pos"] = ints(self.positions() + [0] * self.more_rows)
            arguments["compressed_base"], arguments["swa_base"] = ints(bases), ints(windows)
            if self.explicit:
                arguments |= self._window(device, random)
        else:
            arguments |= {"m": self.n + max(self.gathered, default=0), "n": self.n}
            arguments["v41"] = self.v41
        if self.image is not None:
            arguments |= self._images(ints, random, device)
        return arguments

    def _topk(self, device: Any, random: torch.Generator) -> torch.Tensor:
        """Indices that exist, holes between them, and after those that count anything at all."""
        columns = self.topk + self.more_columns
        flat = torch.empty(self.rows * columns + self.shift, dtype=torch.int32, device=device)
        ids = flat[self.shift :].view(self.rows, columns)
        ids.random_(0, max(self.n, 1), generator=random)
        if not self.holes:
            return ids
        bad = torch.tensor(
            [-1, -1, -1, -1] if not self.v41 else [-1, LEAST, -123456, -1],
            dtype=torch.int32,
            device=device,
        )
        if self.v41 and not self.sglang:
            bad[1:] = torch.tensor([LEAST, MOST, self.n], dtype=torch.int32, device=device)
        which = torch.randint(0, 4, ids.shape, generator=random, device=device)
        hole = torch.rand(ids.shape, generator=random, device=device) < 0.2
        ids.copy_(torch.where(hole, bad[which], ids))
        counts = [min((p + 1) // max(self.ratio, 1), self.topk) for p in self.positions()]
        ends = torch.tensor(counts + [0] * self.more_rows, device=device)[:, None]
        ignored = torch.arange(columns, device=device) >= ends
        extremes = torch.tensor([LEAST, MOST, -1, 7], dtype=torch.int32, device=device)[which]
        ids.copy_(torch.where(ignored, extremes, ids))
        return ids

    def _window(self, device: Any, random: torch.Generator) -> dict[str, Any]:
        """Listed windows of any length, with holes, and extremes behind their end."""
        shape = (self.rows, self.window)
        ids = torch.randint(-9, 4096, shape, generator=random, device=device).int()
        counts = torch.randint(0, self.window + 1, shape[:1], generator=random, device=device)
        ignored = torch.arange(self.window, device=device) >= counts[:, None]
        wide = torch.full((self.rows, self.window + 3), MOST, dtype=torch.int32, device=device)
        wide[:, : self.window] = torch.where(ignored, LEAST, ids)
        return {"swa_indices": wide[:, : self.window], "swa_lengths": counts.int()}

    def _images(self, ints: Any, random: torch.Generator, device: Any) -> dict[str, Any]:
        """Every second query is inside of an image, as far as its sequence reaches."""
        image = self.image or 0
        shape = (self.rows,)
        left = torch.randint(0, image + self.window, shape, generator=random, device=device)
        right = torch.randint(0, image + 1, shape, generator=random, device=device)
        rest = [q - 1 - i for _, q in self.sequences for i in range(q)] + [0] * self.more_rows
        right = torch.minimum(right, ints(rest))
        left = torch.minimum(left, self.window - 1 + image - right)
        text = torch.arange(self.rows, device=device) % 2 == 0
        return {
            "left_visible": torch.where(text, 0, left).int(),
            "right_visible": torch.where(text, 0, right).int(),
            "max_image_tokens": image,
        }

    def case(self, name: str, *, bench: bool = False) -> Case:
        ratio = max(self.ratio, 1)
        read = sum(min((p + 1) // ratio, self.topk) for p in self.positions())
        convention = "sglang" if self.sglang else "vllm v4.1" if self.v41 else "vllm v4"
        parts = [convention, f"{self.rows} x {self.width}", name]
        if self.explicit:
            parts.append("listed window")
        if self.image is not None:
            parts.append(f"images of {self.image}")
        words = self.rows * (int(self.sglang) + int(self.explicit) + 2 * (self.image is not None))
        return Case(
            name=", ".join(parts),
            make=self.make,
            read=4 * ((read if self.listed else 0) + words + 4 * len(self.sequences))
            + (4 * self.window * self.rows if self.explicit else 0),
            write=4 * self.rows * (self.width + 1),
            bench=bench,
            memory=self.rows * (32 * self.width + 16 * (self.gap + self.more_columns)),
        )


RAGGED = ((9, 9), (1000, 33), (4, 0), (3000, 1), (515, 15), (1, 1), (131, 30), (7000, 77))
VARIANTS = (
    Call((), sglang=True),
    Call((), sglang=True, explicit=True),
    Call((), v41=True),
    Call((), v41=False),
    Call((), v41=True, image=50),
    Call((), v41=False, image=300),
)


def correctness() -> Iterator[Case]:
    for call in VARIANTS:
        ragged = replace(call, sequences=RAGGED)
        yield replace(call, sequences=()).case("nothing")
        yield replace(call, sequences=(), more_rows=3).case("padding alone")
        yield replace(call, sequences=((0, 0), (0, 0)), more_rows=5).case("empty requests")
        yield replace(call, sequences=((1, 1),)).case("one token")
        yield replace(call, sequences=((70000, 1),)).case("one query")
        yield replace(ragged, more_rows=37).case("ragged")
        yield replace(ragged, origin=123_456, more_rows=2).case("ragged, global offset")
        yield replace(ragged, gap=4, more_columns=4, shift=4).case("gaps, whole quads")
        yield replace(ragged, gap=132, more_columns=3, shift=1).case("gaps, odd addresses")
        whole = ((9, 9), (515, 515), (300, 300), (900, 1))
        yield replace(call, sequences=whole, more_rows=3).case("from the start")
        yield replace(ragged, topk=509).case("odd topk")
        yield replace(ragged, topk=3, ratio=128).case("few compressed rows")
        yield replace(ragged, topk=0, ratio=1).case("window alone")
        yield replace(ragged, topk=0, ratio=0, listed=False).case("window alone, ratio 0")
        yield replace(ragged, topk=64, ratio=1, window=7).case("narrow window")
        yield replace(ragged, topk=1024, ratio=2).case("ratio 2")
        yield replace(ragged, topk=2048, ratio=1, more_columns=5, more_width=256).case("wide")
        yield replace(ragged, topk=54, ratio=128, listed=False).case("positions as list")
        yield replace(ragged, topk=7000, ratio=1, listed=False).case("all positions as list")
        many = tuple((i % 37 * 9 + i % 3, i % 3) for i in range(1100))
        yield replace(call, sequences=many, topk=64, more_rows=1).case("1100 requests")
        for requests in (31, 32, 33, 64, 65):
            few = tuple((50 * i + 5, 5) for i in range(requests))
            yield replace(call, sequences=few, topk=128).case(f"{requests} requests")
    yield Call(((300_000, 270_001),), topk=0, ratio=1, sglang=True).case("many rows")
    far = replace(VARIANTS[0], gap=1 << 28, more_columns=1 << 28, holes=False)
    yield replace(far, sequences=((6000, 5),)).case("strides past 2^31 bytes")


# Worked out by hand -------------------------------------------------------------------------------


def ints(values: Any, device: Any = "cpu") -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """Two requests of one query each, at positions 4 and 0, and a row that belongs to none."""
    return {
        "out": torch.full((3, 128), -77, dtype=torch.int32, device=device),
        "lens": torch.full((3,), -77, dtype=torch.int32, device=device),
        "topk_indices": ints([[3, -1], [0, 7], [9, 9]], device),
        "query_start_loc": ints([10, 11, 12], device),
        "seq_lens": ints([5, 1], device),
        "gather_lens": ints([3, 1], device),
        "window_size": 2,
        "compress_ratio": 2,
        "topk": 2,
        "query_pos": ints([4, 0, 0], device),
        "compressed_base": ints([100, 150], device),
        "swa_base": ints([200, 300], device),
    }


def expected() -> dict[str, Any]:
    """At position 4 two compressed rows are whole, and the window is positions 3 and 4, second and
    third of the gathered 2, 3, 4. At position 0 none is, and the window is itself.
    """
    out = torch.full((3, 128), -1, dtype=torch.int32)
    out[0, :4] = ints([103, -1, 201, 202])
    out[1, 0] = 300
    return {"out": out, "lens": ints([4, 1, 0])}


# What serving sees --------------------------------------------------------------------------------


def timed() -> Iterator[Case]:
    chunk = Call(((65_536, 16_384),), sglang=True, holes=False)
    several = replace(chunk, sequences=((8_192, 1_024),) * 16)
    yield chunk.case("c4", bench=True)
    yield several.case("c4, 16 requests", bench=True)
    yield replace(chunk, sequences=((16_384, 16_384),)).case("c4 from the start", bench=True)
    yield replace(chunk, topk=1024).case("c4", bench=True)
    yield replace(chunk, topk=0, ratio=1).case("c0", bench=True)
    yield replace(chunk, topk=512, ratio=128).case("c128", bench=True)
    yield replace(chunk, topk=512, ratio=128, listed=False).case("c128, no list", bench=True)
    yield replace(chunk, explicit=True).case("c4", bench=True)
    yield replace(chunk, sequences=((65_536, 512),)).case("c4", bench=True)
    for v41 in (True, False):
        yield replace(several, sglang=False, v41=v41).case("c4, 16 requests", bench=True)


def cases() -> list[Case]:
    by_hand_case = Case("sglang: by hand", by_hand, expected=expected)
    return [by_hand_case, *correctness(), *timed()]
