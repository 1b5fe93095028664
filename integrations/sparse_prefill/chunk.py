"""A chunk as the host knows it: lengths, windows, and how numbers get to the GPU."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import gt, sub
from typing import NamedTuple

import torch
from torch import Tensor

from dsv4_aot.runtime.errors import ArgumentError

MAX_ROWS = 1 << 30
"""Rows of a workspace: their numbers are int32, and so is the sum of any two."""

ALL_SEEN = 128
"""The compression ratio whose layers select nothing: a query reads all rows that it may see."""

Lengths = Sequence[int] | Tensor
"""One number a request, on the host."""


class TokenWindows(NamedTuple):
    """Windows of a cache that keeps tokens one by one. All tensors are on the GPU.

    req_pool_indices: int32 or int64 [requests], rows of req_to_token.
    req_to_token: int32 [pool, positions], the token of each position; stride(0) is free.
    full_to_swa: int64 [tokens], where the window cache keeps each.
    """

    req_pool_indices: Tensor
    req_to_token: Tensor
    full_to_swa: Tensor


class RequestWindows(NamedTuple):
    """Windows of a cache that keeps one a request. All its rows are gathered.

    size: rows of that cache.
    swa_indices: int32 [query rows, window], rows of that cache, -1 for none.
    swa_lengths: int32 [query rows], columns of swa_indices that count.
    """

    size: int
    swa_indices: Tensor
    swa_lengths: Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Lists of one number a request: tokens in all, new tokens, query rows; and their sums.

    query_start: where the query rows of each request begin, and where the last one's end.
    """

    seq_lens: list[int]
    extend_lens: list[int]
    query_lens: list[int]
    query_start: list[int]

    @classmethod
    def of(cls, seq_lens: Lengths, extend_lens: Lengths, query_lens: Lengths | None) -> Chunk:
        """Raises ArgumentError for lengths that contradict each other."""
        seq, extend = numbers("seq_lens", seq_lens), numbers("extend_lens", extend_lens)
        query = extend if query_lens is None else numbers("query_lens", query_lens)
        if not seq or not len(seq) == len(extend) == len(query):
            raise ArgumentError(
                f"lengths are of {len(seq)}, {len(extend)} and {len(query)} requests (seq_lens, "
                "extend_lens, query_lens), allowed: the same number, 1 or more"
            )
        if min(*query, *extend) < 0 or any(map(gt, extend, seq)) or max(seq) > MAX_ROWS:
            wrong = next(
                f"request {r} has {n} tokens, {new} new ones and {rows} query rows"
                for r, (n, new, rows) in enumerate(zip(seq, extend, query, strict=True))
                if rows < 0 or not 0 <= new <= n <= MAX_ROWS
            )
            raise ArgumentError(
                f"{wrong}, allowed: 0 <= new ones <= tokens <= 2^30, and no number below 0",
                tip="seq_lens counts the new tokens too",
            )
        return cls(seq, extend, query, [0, *accumulate(query)])

    def query_rows(self, query_pos: Tensor | None, query_rows: int | None) -> int:
        """Those of requests and of padding. Raises ArgumentError."""
        if query_pos is None and self.query_lens is not self.extend_lens:
            raise ArgumentError(
                "query_lens comes without query_pos: which tokens the query rows are is not known",
                tip="pass both or neither",
            )
        if query_pos is not None and query_rows is not None:
            raise ArgumentError(
                "query_rows comes with query_pos, whose length says the same", tip="leave it out"
            )
        owned = self.query_start[-1]
        rows = owned if query_rows is None else query_rows
        rows = rows if query_pos is None else len(query_pos)
        if rows < owned:
            raise ArgumentError(
                f"there are {rows} query rows, allowed: {owned} or more, which the requests have"
            )
        check_rows(rows)
        return rows

    def window_lens(self, windows: TokenWindows | RequestWindows, swa_window: int) -> list[int]:
        """Tokens of each request that its queries' windows reach. Raises ArgumentError."""
        if swa_window < 1:
            raise ArgumentError(f"swa_window is {swa_window}, allowed: 1 or more tokens")
        if isinstance(windows, RequestWindows):
            check_rows(windows.size)
            return [0] * len(self.seq_lens)
        longest, positions = max(self.seq_lens), windows.req_to_token.shape[-1]
        if longest > positions:
            raise ArgumentError(
                f"a request has {longest} tokens, and req_to_token has room for {positions}"
            )
        reach = swa_window - 1
        gathered = list(map(min, self.seq_lens, [new + reach for new in self.extend_lens]))
        check_rows(sum(gathered))
        return gathered

    def compressed_base(self, compress_ratio: int) -> list[int]:
        """Where each request's compressed rows begin, and where the last one's end.

        Those of ratio 128 are as many for every request, and one at least. Raises ArgumentError.
        """
        if compress_ratio < 1:
            raise ArgumentError(f"a compression ratio is {compress_ratio}, allowed: 1 or more")
        if compress_ratio == ALL_SEEN:
            columns = max(max(self.seq_lens) // ALL_SEEN, 1)
            return [columns * request for request in range(len(self.seq_lens) + 1)]
        return [0, *accumulate([length // compress_ratio for length in self.seq_lens])]

    def positions(self, rows: int) -> Tensor:
        """int32 [rows] on the host: where the new tokens are in their sequences; 0 for padding."""
        owned = self.query_start[-1]
        # A position is one more than the row before's, but for a jump where a request begins.
        # One without rows begins where the next does, and their jumps add up.
        shifts = list(map(sub, self.seq_lens, self.query_start[1:]))
        jumps = list(map(sub, shifts, [1, *shifts]))
        steps = torch.ones(rows + 1, dtype=torch.int32)
        steps.index_add_(0, on_host(self.query_start[:-1]), on_host(jumps))
        pos = torch.cumsum(steps[:-1], 0, dtype=torch.int32)
        pos[owned:] = 0
        return pos


def check_rows(count: int) -> None:
    if not 0 <= count <= MAX_ROWS:
        raise ArgumentError(
            f"the chunk has {count} rows, allowed: 0 to 2^30", tip="plan fewer requests at once"
        )


def numbers(name: str, values: Lengths) -> list[int]:
    """As a list of Python's integers. Raises ArgumentError."""
    if isinstance(values, Tensor) and values.is_cuda:
        raise ArgumentError(
            f"{name} is on the GPU, and reading it would wait for all that is queued there",
            tip="pass the host's copy of the lengths",
        )
    listed: list[int] = values.tolist() if hasattr(values, "tolist") else list(values)
    if not {*map(type, listed)} <= {int}:
        strange = next(n for n in listed if type(n) is not int)
        raise ArgumentError(f"{name} has {strange!r} in it, allowed: an integer a request")
    return listed


def upload(
    device: torch.device, *parts: Sequence[int], tail: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The parts and the tail as int32 on the device.

    One copy takes them all there, and nothing waits for it.
    """
    sizes = list(map(len, parts))
    source = on_host(list(chain.from_iterable(parts)))
    if tail is not None:
        source = torch.cat((source, tail))
        sizes.append(len(tail))
    # A GPU copies by itself from pinned memory alone.
    host = torch.empty(len(source), dtype=torch.int32, pin_memory=device.type == "cuda")
    on_device = host.copy_(source).to(device, non_blocking=True)
    return tuple(on_device.split_with_sizes(sizes))


def on_host(values: list[int]) -> Tensor:
    """int32; several times faster than ``torch.tensor``."""
    return torch.frombuffer(array("i", values), dtype=torch.int32)
