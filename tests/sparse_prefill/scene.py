"""Chunks for sparse prefill as a server would have them: requests, pools, caches, selections."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KERNELS = (
    "combine_topk_swa", "dequant_paged", "flatten_page_table", "sparse_mla_fwd", "swa_token_ids",
)  # fmt: skip
"""What a plan launches."""
WINDOW = 128
LOGICAL_PAGE = 256
"""Tokens of an entry of a page table."""
DATA_BYTES = {584: 576, 528: 512, 288: 256}
POISON = 2**31 - 1


@dataclass(frozen=True)
class Scene:
    """Requests, as (tokens, new tokens), and how their caches are kept.

    padding: query rows after the requests'. topk: columns of a layer's selection. shares: each
    request's query rows where they are not its new tokens. small: values that attention can be
    computed with, up to 2 or so.
    """

    requests: tuple[tuple[int, int], ...]
    padding: int = 0
    topk: int = 64
    record: int = 584
    interleaved: bool = False
    swa_record: int = 584
    swa_page: int = 64
    windows: bool = False
    shares: tuple[int, ...] | None = None
    small: bool = False
    seed: int = 0

    def make(self, device: Any) -> Pools:
        return Pools(self, torch.device(device))


@dataclass(frozen=True)
class Cache:
    """Pages of records, padded at the end: uint8 [pages, bytes of a page], here and on a device."""

    host: Tensor
    data: Tensor
    page: int
    record: int
    interleaved: bool

    @classmethod
    def random(
        cls,
        rows: int,
        page: int,
        record: int,
        interleaved: bool,
        small: bool,
        random: Any,
        device: Any,
    ) -> Cache:
        """Every code but the two NaN of e4m3, and scales that keep values finite, or small."""
        pages = rows // page + 2
        codes = torch.randint(0, 256, (pages, page, record), generator=random, dtype=torch.uint8)
        split = DATA_BYTES[record]
        e4m3 = codes[..., :448] if record == 584 else codes[..., :split]
        if record == 288:
            e4m3 = codes[..., split:]
        e4m3[(e4m3 & 127) == 127] = 126
        if record != 288:
            codes[..., split:] = codes[..., split:] % (4 if small else 40) + (116 if small else 105)
        elif small:
            codes[..., split:] &= 0x1F
        if small and record == 584:
            tail = torch.randn(pages, page, 64, generator=random).bfloat16() / 2
            codes[..., 448:split] = tail.view(torch.uint8)
        if not interleaved:
            parts = codes[..., :split].flatten(1), codes[..., split:].flatten(1)
            flat = torch.cat(parts, dim=1)
        else:
            flat = codes.flatten(1)
        padded = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 64 + 64), value=255)
        return cls(padded, padded.to(device), page, record, interleaved)

    def decode(self, rows: Tensor | list[int]) -> Tensor:
        """bf16 [rows, 512] on the CPU, of physical rows; in float64, which is exact."""
        ids = torch.as_tensor(rows).cpu().long()
        pages, at = (ids // self.page)[:, None], ids % self.page
        split, extra = DATA_BYTES[self.record], self.record - DATA_BYTES[self.record]
        if self.interleaved:
            first, scales_at = at * self.record, at * self.record + split
        else:
            first, scales_at = at * split, self.page * split + at * extra
        codes = self.host[pages, first[:, None] + torch.arange(split)]
        scales = self.host[pages, scales_at[:, None] + torch.arange(extra)]
        if self.record == 288:
            table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
            values = torch.stack((codes & 15, codes >> 4), 2).flatten(1).long()
            factors = scales.view(torch.float8_e4m3fn).double().repeat_interleave(16, 1)
            return (table.double()[values] * factors).bfloat16()
        group, count = (64, 448) if self.record == 584 else (32, 512)
        values = codes[:, :count].contiguous().view(torch.float8_e4m3fn).double()
        powers = 2.0 ** (scales[:, : count // group].double() - 127)
        decoded = (values * powers.repeat_interleave(group, 1)).bfloat16()
        return torch.cat((decoded, codes[:, count:].contiguous().view(torch.bfloat16)), 1)


class Pools:
    """A scene's tensors. Whatever a plan has no business to read is poison."""

    def __init__(self, scene: Scene, device: torch.device) -> None:
        self.scene, self.device = scene, device
        self.random = random = torch.Generator().manual_seed(scene.seed)
        self.seq_lens = [n for n, _ in scene.requests]
        self.extend_lens = [new for _, new in scene.requests]
        self.query_lens = list(scene.shares or self.extend_lens)
        requests, longest = len(scene.requests), max(self.seq_lens)
        self.rows = sum(self.query_lens) + scene.padding

        # Positions of the query rows; of shares, every other new token or so.
        self.positions = []
        for length, new, share in zip(
            self.seq_lens, self.extend_lens, self.query_lens, strict=True
        ):
            begin, step = length - new, max(new // max(share, 1), 1)
            self.positions += [begin + step * i for i in range(share)]
        self.request_of = [r for r, n in enumerate(self.query_lens) for _ in range(n)]
        self.query_pos = torch.tensor(
            self.positions + [0] * scene.padding, dtype=torch.int32, device=device
        )

        # Tokens, and where the window cache has those that windows may reach.
        tokens = sum(self.seq_lens) + 7
        order = torch.randperm(tokens, generator=random)
        table = torch.full((requests + 2, longest + 3), POISON, dtype=torch.int32)
        pool = torch.randperm(requests + 2, generator=random)[:requests]
        slots = torch.full((tokens,), POISON, dtype=torch.int64)
        self.window_rows = sum(min(n, new + WINDOW - 1) for n, new in scene.requests)
        room = torch.randperm(self.window_rows + 5, generator=random)
        begin = used = 0
        for r, (length, new) in enumerate(scene.requests):
            mine = order[begin : begin + length]
            begin += length
            reached = min(length, new + WINDOW - 1)
            table[pool[r], length - reached : length] = mine[length - reached :].int()
            slots[mine[length - reached :]] = room[used : used + reached]
            used += reached
        self.req_pool_indices, self.req_to_token = pool.to(device), table.to(device)
        self.full_to_swa = slots.to(device)

        # Windows that the cache keeps a request at a time: token p in slot p % WINDOW of request r.
        self.window_size = (requests + 1) * WINDOW
        self.swa_indices = torch.full((self.rows, WINDOW), -1, dtype=torch.int32)
        self.swa_lengths = torch.zeros(self.rows, dtype=torch.int32)
        for t, (r, pos) in enumerate(zip(self.request_of, self.positions, strict=True)):
            seen = range(max(pos + 1 - WINDOW, 0), pos + 1)
            self.swa_lengths[t] = len(seen)
            self.swa_indices[t, : len(seen)] = torch.tensor(
                [(r + 1) * WINDOW + p % WINDOW for p in seen]
            )
        self.swa_indices, self.swa_lengths = (
            self.swa_indices.to(device),
            self.swa_lengths.to(device),
        )

        swa_rows = self.window_size if scene.windows else self.window_rows + 5
        interleaved = scene.interleaved and scene.swa_record != 584
        self.swa = Cache.random(
            swa_rows, scene.swa_page, scene.swa_record, interleaved, scene.small, random, device
        )

        # Logical pages, of which each request has its own.
        entries = [math.ceil(n / LOGICAL_PAGE) for n in self.seq_lens]
        self.pages = sum(entries) + 1
        numbers = (torch.randperm(sum(entries), generator=random) + 1).tolist()
        page_table = torch.full((self.rows, max(*entries, 1) + 1), -1, dtype=torch.int32)
        for t, r in enumerate(self.request_of):
            first = sum(entries[:r])
            page_table[t, : entries[r]] = torch.tensor(numbers[first : first + entries[r]])
        self.page_table = page_table.to(device)
        self._page_numbers = [
            numbers[sum(entries[:r]) : sum(entries[: r + 1])] for r in range(requests)
        ]
        self._caches: dict[int, Cache] = {}

    def cache(self, ratio: int) -> Cache:
        """The compressed cache of a ratio: a logical page has LOGICAL_PAGE / ratio of its rows."""
        if ratio not in self._caches:
            self._caches[ratio] = self.another_cache(ratio)
        return self._caches[ratio]

    def another_cache(self, ratio: int) -> Cache:
        """As ``cache``, and another layer's."""
        page, scene = LOGICAL_PAGE // ratio, self.scene
        return Cache.random(
            self.pages * page, page, scene.record, scene.interleaved, scene.small, self.random,
            self.device,
        )  # fmt: skip

    def page_indices(self) -> Tensor:
        """int32 [query rows, columns]: the rows of ratio 128 that each query may see."""
        page = LOGICAL_PAGE // 128
        columns = page * self.page_table.shape[1]
        found = torch.full((self.rows, columns), -1, dtype=torch.int32)
        for t, (r, pos) in enumerate(zip(self.request_of, self.positions, strict=True)):
            seen = (pos + 1) // 128
            found[t, :seen] = torch.tensor([self.physical(128, r, j) for j in range(seen)])
        return found.to(self.device)

    def physical(self, ratio: int, request: int, row: int) -> int:
        page = LOGICAL_PAGE // ratio
        return self._page_numbers[request][row // page] * page + row % page

    def select(self, ratio: int) -> Tensor:
        """An indexer's choice: int32 [query rows, topk], some of what each query may see."""
        topk = self.scene.topk
        chosen = torch.full((self.rows, topk), -1, dtype=torch.int32)
        for t, pos in enumerate(self.positions):
            seen = (pos + 1) // ratio
            picked = torch.randperm(seen, generator=self.random)[:topk]
            picked[torch.rand(len(picked), generator=self.random) < 0.1] = -1  # holes
            chosen[t, : len(picked)] = picked.int()
        return chosen.to(self.device)
