"""Calls of global_topk: holes, padding, any page size, views with gaps and odd addresses, entries
that must not be looked at, ids past 2^31; and the sizes that serving sees, timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from dsv4_aot.generator.spec import Case

LEAST, MOST = -(2**31), 2**31 - 1
POISON = -0x5A5A5A5A


@dataclass(frozen=True)
class Call:
    """A call to make.

    entries: pages of a request. gap: columns between rows, of every matrix. shift: elements that
    topk_indices starts later, and out twice as many. bad: indices and requests in no table.
    far: added to every page. in_place: out is topk_indices.
    """

    tokens: int
    width: int = 512
    block_size: int = 64
    requests: int = 7
    entries: int = 50
    output: torch.dtype = torch.int32
    holes: bool = True
    valid: bool = True
    gap: int = 0
    shift: int = 0
    bad: bool = False
    far: int = 0
    in_place: bool = False

    def make(self, device: Any, seed: int) -> dict[str, Any]:
        random = torch.Generator(device).manual_seed(seed)

        def between(low: int, high: int, *shape: int) -> torch.Tensor:
            return torch.randint(low, high, shape, generator=random, device=device)

        def matrix(dtype: torch.dtype, shift: int) -> torch.Tensor:
            pitch = self.width + self.gap
            flat = torch.full((self.tokens * pitch + shift,), POISON, dtype=dtype, device=device)
            return flat[shift:].view(self.tokens, pitch)[:, : self.width]

        rows = matrix(torch.int32, self.shift)
        shape = rows.shape
        rows.copy_(between(0, max(self.entries * self.block_size, 1), *shape))
        if self.holes:
            holes = torch.tensor([-1, -1, LEAST, -77], dtype=torch.int32, device=device)
            hole = between(0, 10, *shape) < 3
            rows.copy_(torch.where(hole, holes[between(0, 4, *shape)], rows))
        requests = between(0, self.requests, self.tokens + 3).int()
        if self.bad:
            beyond = [MOST, self.entries * self.block_size, self.entries * self.block_size + 9]
            outside = torch.tensor(beyond, dtype=torch.int32, device=device)
            some = between(0, 10, *shape) < 2
            rows.copy_(torch.where(some, outside[between(0, 3, *shape)], rows))
            strange = torch.tensor([-1, LEAST, MOST, self.requests], device=device).int()
            requests[::5] = strange[between(0, 4, *requests[::5].shape)]
        table = torch.full(
            (self.requests, self.entries + self.gap), MOST, dtype=torch.int32, device=device
        )
        table[:, : self.entries] = between(0, 10_000, self.requests, self.entries) + self.far
        return {
            "out": rows if self.in_place else matrix(self.output, 2 * self.shift),
            "lens": torch.full((self.tokens,), POISON, dtype=torch.int32, device=device),
            "topk_indices": rows,
            "token_to_req": requests,
            "block_table": table[:, : self.entries],
            "block_size": self.block_size,
            "is_valid_token": between(0, 4, self.tokens) > 0 if self.valid else None,
        }

    def case(self, name: str, *, bench: bool = False) -> Case:
        item = 8 if self.output == torch.int64 else 4
        cells = self.tokens * self.width
        size = f"{self.tokens} x {self.width}, page {self.block_size}"
        return Case(
            name=f"int{8 * item} {size}, {name}",
            make=self.make,
            read=4 * cells + 4 * self.requests * self.entries + 5 * self.tokens,
            write=item * cells + 4 * self.tokens,
            bench=bench,
            memory=(60 * self.width + 32 * self.gap) * self.tokens,
        )


def correctness() -> Iterator[Case]:
    for output in (torch.int32, torch.int64):
        for width in (512, 2048):  # one for either choice of threads
            call = Call(21, width, output=output)
            yield replace(call, tokens=0).case("nothing")
            yield replace(call, tokens=1).case("one token")
            yield replace(call, valid=False, holes=False).case("plain")
            yield call.case("holes")
            yield replace(call, bad=True).case("in no table")
            yield replace(call, width=width + 3, gap=5, shift=1).case("odd addresses")
            yield replace(call, gap=4, shift=4).case("gaps")
            yield replace(call, entries=0, holes=False, valid=False, bad=True).case("empty table")
            for block_size in (1, 2, 3, 48, 256):
                yield replace(call, block_size=block_size).case("page size")
        for width in (1, 3, 127, 1024, 1025, 8191, 20_000):
            yield Call(5, width, output=output).case("widths")
    yield replace(Call(5), in_place=True).case("in place")
    yield Call(4, 600, 128, output=torch.int64, far=2_000_000_000).case("ids past 2^31")
    yield Call(70_000, 4).case("many tokens")
    yield Call(5, 64, gap=1 << 28, valid=False).case("strides past 2^31 bytes")


# Worked out by hand -------------------------------------------------------------------------------


def ints(values: Any, device: Any = "cpu") -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """Pages of four rows."""
    return {
        "out": torch.full((2, 3), -77, dtype=torch.int32, device=device),
        "lens": torch.full((2,), -77, dtype=torch.int32, device=device),
        "topk_indices": ints([[0, 6, -1], [3, -1, 2]], device),
        "token_to_req": ints([0, 1], device),
        "block_table": ints([[5, 9], [7, -1]], device),
        "block_size": 4,
        "is_valid_token": torch.tensor([True, False], device=device),
    }


def expected() -> dict[str, Any]:
    """5 * 4 + 0, 9 * 4 + 2, a hole; 7 * 4 + 3, a hole, 7 * 4 + 2, of a token that is padding."""
    return {"out": ints([[20, 38, -1], [31, -1, 30]]), "lens": ints([2, 0])}


# What serving sees --------------------------------------------------------------------------------


def timed() -> Iterator[Case]:
    serving = Call(64, requests=64, entries=512, holes=False)
    for tokens in (1, 64, 1024, 16384):
        yield replace(serving, tokens=tokens).case("c4", bench=True)
    yield replace(serving, tokens=1024, width=1024).case("c4", bench=True)
    for width in (128, 8192):
        yield replace(serving, width=width, block_size=2, entries=4096).case("c128", bench=True)
    yield replace(serving, tokens=1024, output=torch.int64).case("c4", bench=True)


def cases() -> list[Case]:
    by_hand_case = Case("by hand", by_hand, expected=expected)
    return [by_hand_case, *correctness(), *timed()]
