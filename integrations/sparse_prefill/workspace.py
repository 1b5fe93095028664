"""The rows that attention reads: decoded from a layer's caches into one buffer for all layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

HEAD_DIM = 512


class KCache(NamedTuple):
    """A layer's paged K cache, as ``dequant_paged`` takes it.

    data: [pages, bytes of a page]; what is not uint8 is looked at as bytes.
    page_size: rows of a page.
    record: bytes of a row: 584 is V4, 528 is V4.1 FP8, 288 is V4.1 FP4.
    interleaved: each row's scales follow its data (V4.1 alone).
    """

    data: Tensor
    page_size: int
    record: int = 584
    interleaved: bool = False

    def bytes(self) -> Tensor:
        return self.data if self.data.dtype is torch.uint8 else self.data.view(torch.uint8)


class Source(NamedTuple):
    """Rows of a cache. token_ids: int32 [rows], page * page_size + row in the page."""

    cache: KCache
    token_ids: Tensor


class Regions(NamedTuple):
    """Views of a workspace's buffer: compressed rows, window rows behind them, and all of them."""

    buffer: Tensor
    kv: Tensor
    compressed: Tensor
    window: Tensor


class SparsePrefillWorkspace:
    """bf16 rows [capacity, 1, 512] for all layers and chunks of a stream. It only ever grows."""

    def __init__(self, device: torch.device | str) -> None:
        self.buffer = torch.empty(0, 1, HEAD_DIM, dtype=torch.bfloat16, device=device)
        self._held: Source | None = None

    @property
    def device(self) -> torch.device:
        return self.buffer.device

    def split(self, compressed: int, window: int) -> Regions:
        """So many compressed rows from the first on, and so many window rows behind them."""
        rows = compressed + window
        if rows > len(self.buffer):
            # The old rows go first: there may not be room for both.
            self.buffer, self._held = self.buffer.new_empty(0, 1, HEAD_DIM), None
            self.buffer = self.buffer.new_empty(rows, 1, HEAD_DIM)
        kv = self.buffer[:rows]
        return Regions(self.buffer, kv, kv[:compressed], kv[compressed:])

    def fill(
        self,
        launch: Callable[..., None],
        regions: Regions,
        window: Source,
        compressed: Source | None,
    ) -> None:
        """Decodes a layer's rows, in one launch. Both caches are interleaved, or neither is.

        Compressed rows stay until a step overwrites them, and are not decoded again for a layer
        that shares the cache of the layer before. Window rows are each layer's own.
        """
        if compressed is None:
            self._held = None
            _decode(launch, regions.window, window)
        elif self._holds(compressed):
            _decode(launch, regions.window, window)
        else:
            self._held = None  # until it is launched
            _decode(launch, regions.compressed, compressed, regions.window, window)
            self._held = compressed

    def _holds(self, source: Source) -> bool:
        """By the list itself: a new one may lie at an old one's address."""
        held = self._held
        return (
            held is not None
            and held.token_ids is source.token_ids
            and held.cache.data.data_ptr() == source.cache.data.data_ptr()
            and held.cache[1:] == source.cache[1:]
        )


def _decode(
    launch: Callable[..., None],
    out: Tensor,
    source: Source,
    window_out: Tensor | None = None,
    window: Source | None = None,
) -> None:
    cache, token_ids = source
    arguments = (out, cache.bytes(), token_ids, cache.page_size, cache.record, cache.interleaved)
    if window is None:
        launch("dequant_paged", *arguments)
    else:
        second, second_ids = window
        launch(
            "dequant_paged", *arguments, window_out, second.bytes(), second_ids, second.page_size,
            second.record,
        )  # fmt: skip
