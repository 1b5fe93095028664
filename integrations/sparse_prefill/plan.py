"""One chunk's plan: what its layers share, made once, and what each layer does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import sub
from typing import NamedTuple

import torch
from torch import Tensor

from dsv4_aot import runtime
from dsv4_aot.integrations.sparse_prefill.chunk import (
    ALL_SEEN,
    Chunk,
    Lengths,
    RequestWindows,
    TokenWindows,
    check_rows,
    upload,
)
from dsv4_aot.integrations.sparse_prefill.workspace import (
    HEAD_DIM,
    KCache,
    Regions,
    Source,
    SparsePrefillWorkspace,
)
from dsv4_aot.runtime.errors import ArgumentError

INDEX_ALIGNMENT = 128
"""Attention reads indices in blocks of so many columns."""


class AttentionInputs(NamedTuple):
    """What ``sparse_mla_fwd`` and FlashMLA's ``flash_mla_sparse_fwd`` take beside the queries.

    kv: bf16 [rows, 1, 512]. The next step on the workspace overwrites it.
    indices: int32 [query rows, 1, width], rows of kv, -1 for none; width is a multiple of 128.
    topk_length: int32 [query rows], columns of indices that count.
    """

    kv: Tensor
    indices: Tensor
    topk_length: Tensor


class Attention(NamedTuple):
    """A layer's attention. A query row of padding attends to nothing, which is 0, -inf and +inf.

    out: bf16 [query rows, heads, 512].
    max_logits, lse: float32 [query rows, heads], in natural units; without the sink.
    """

    out: Tensor
    max_logits: Tensor
    lse: Tensor


@dataclass(slots=True, eq=False)
class CompressedGather:
    """What the layers of one compression ratio share. Those of ratio 0 have windows alone.

    flat_token_ids: int32 [compressed rows], rows of that ratio's caches.
    compressed_base, swa_base: int32 [requests], each request's first rows in the workspace.
    page_size: rows of a page that the ids count with; None where the caller's ids do.
    combined_indices, combined_lens: int32 [query rows, width] and [query rows]. Of ratios 0 and
    128 they are there at once; of others each step writes them anew.
    """

    compress_ratio: int
    flat_token_ids: Tensor
    compressed_base: Tensor
    swa_base: Tensor
    page_size: int | None = None
    combined_indices: Tensor | None = None
    combined_lens: Tensor | None = None
    regions: Regions | None = None


class SparsePrefillPlan:
    """A chunk of requests, whose last tokens are its queries. For eager execution on one stream.

    On the workspace's device, all int32: ``seq_lens``, ``swa_gather_lens``, ``swa_first_pos``
    [requests]; ``query_start_loc``, ``swa_offsets`` [requests + 1]; ``query_pos`` [query rows];
    ``swa_token_ids`` [window rows]. ``gathers``: by compression ratio, that of 0 from the start.
    """

    def __init__(
        self,
        workspace: SparsePrefillWorkspace,
        seq_lens: Lengths,
        extend_lens: Lengths,
        windows: TokenWindows | RequestWindows,
        *,
        query_lens: Lengths | None = None,
        query_pos: Tensor | None = None,
        query_rows: int | None = None,
        swa_window: int = 128,
        compress_ratios: Sequence[int] = (),
        launch: Callable[..., None] = runtime.launch,
    ) -> None:
        """Takes the lengths to the GPU, lists the windows' rows, combines the indices of ratio 0.

        seq_lens, extend_lens: each request's tokens, and how many of them are new; on the host.
        query_lens: query rows of each request, if they are a share of the new tokens alone;
        query_pos is required then. query_pos: int32 [query rows], each one's position in its
        sequence, 0 for padding; if left out, the new tokens' positions. query_rows: how many
        there are with padding, if query_pos is left out. swa_window: tokens that a query sees.
        compress_ratios: those to be listed later, if known: their lengths go to the GPU too, and
        need no copies of their own. launch: ``Library.launch`` of another library than the
        default one.

        Raises ArgumentError, and what a launch raises.
        """
        self.workspace = workspace
        self.swa_window = swa_window
        self._launch = launch
        self._chunk = chunk = Chunk.of(seq_lens, extend_lens, query_lens)
        rows = chunk.query_rows(query_pos, query_rows)
        gathered = chunk.window_lens(windows, swa_window)
        self._swa_offsets = offsets = [0, *accumulate(gathered)]
        first_pos = list(map(sub, chunk.seq_lens, gathered))
        self._window_rows = windows.size if isinstance(windows, RequestWindows) else offsets[-1]
        self._compressed_rows: dict[int, int] = {}
        bases = [self._host_bases(ratio) for ratio in compress_ratios]
        (
            self.seq_lens, self.query_start_loc, self.swa_gather_lens, self.swa_first_pos,
            self.swa_offsets, no_rows, *rest,
        ) = upload(
            workspace.device, chunk.seq_lens, chunk.query_start, gathered, first_pos, offsets,
            [0] * len(gathered), *chain.from_iterable(bases),
            tail=chunk.positions(rows) if query_pos is None else None,
        )  # fmt: skip
        self._bases = {r: (rest[2 * i], rest[2 * i + 1]) for i, r in enumerate(compress_ratios)}
        self.query_pos = rest[-1] if query_pos is None else query_pos
        self._listed: tuple[Tensor, Tensor] | None = None
        if isinstance(windows, RequestWindows):
            self.swa_token_ids = torch.arange(
                windows.size, dtype=torch.int32, device=workspace.device
            )
            self._listed = windows.swa_indices, windows.swa_lengths
        else:
            self.swa_token_ids = self._empty(self._window_rows)
            launch(
                "swa_token_ids", self.swa_token_ids, windows.req_to_token, windows.full_to_swa,
                windows.req_pool_indices, self.swa_first_pos, self.swa_offsets,
            )  # fmt: skip
        window_only = CompressedGather(0, no_rows[:0], no_rows, self.swa_offsets[:-1])
        self._combine(window_only, 0)
        self.gathers = {0: window_only}

    # Once a ratio ---------------------------------------------------------------------------------

    def ensure_compressed(
        self, compress_ratio: int, page_table: Tensor, page_size: int
    ) -> CompressedGather:
        """Lists the rows of a ratio whose layers select among them: 4, and V4.1's 1 and 2.

        page_table: int32 [query rows, entries], the same in all rows of a request. An entry is
        a page of ``page_size`` rows of that ratio's caches. A ratio is listed once: what comes
        with later calls is not looked at. Raises ArgumentError, and what a launch raises.
        """
        if compress_ratio in self.gathers:
            return self.gathers[compress_ratio]
        if compress_ratio == ALL_SEEN:
            raise ArgumentError(
                f"compress_ratio is {ALL_SEEN}, whose layers select nothing", tip="ensure_c128"
            )
        if compress_ratio < 1 or page_size < 1:
            raise ArgumentError(
                f"compress_ratio is {compress_ratio} and page_size {page_size}, allowed: 1 or more"
            )
        rows = max(self._chunk.seq_lens) // compress_ratio
        self._check_table("page_table", page_table, -(-rows // page_size))
        gather = self._gather(compress_ratio, page_size)
        self._launch(
            "flatten_page_table", gather.flat_token_ids, self.query_start_loc, page_table,
            gather.compressed_base, self.seq_lens, page_size, compress_ratio,
        )  # fmt: skip
        self.gathers[compress_ratio] = gather
        return gather

    def ensure_c128(self, page_indices: Tensor) -> CompressedGather:
        """Lists the rows of ratio 128, of which every query reads all that it may see.

        page_indices: int32 [query rows, columns], rows of that ratio's caches, -1 where there is
        none for the query. Listed once, and raises, as ``ensure_compressed``.
        """
        if ALL_SEEN in self.gathers:
            return self.gathers[ALL_SEEN]
        columns = max(max(self._chunk.seq_lens) // ALL_SEEN, 1)
        self._check_table("page_indices", page_indices, columns)
        gather = self._gather(ALL_SEEN)
        self._launch(
            "flatten_page_table", gather.flat_token_ids, self.query_start_loc,
            page_indices=page_indices,
        )  # fmt: skip
        self._combine(gather, columns)
        self.gathers[ALL_SEEN] = gather
        return gather

    def _check_table(self, name: str, table: Tensor, columns: int) -> None:
        rows = self._chunk.query_start[-1]
        if table.dim() != 2 or table.shape[0] < rows or table.shape[1] < columns:
            raise ArgumentError(
                f"{name} is {list(table.shape)}, allowed: [{rows} or more, {columns} or more]",
                tip=f"the chunk has {rows} query rows, and its longest request has "
                f"{max(self._chunk.seq_lens)} tokens",
            )

    def _gather(self, compress_ratio: int, page_size: int | None = None) -> CompressedGather:
        bases = self._bases.get(compress_ratio)
        if bases is None:
            uploaded = upload(self.workspace.device, *self._host_bases(compress_ratio))
            bases = self._bases[compress_ratio] = uploaded[0], uploaded[1]
        ids = self._empty(self._compressed_rows[compress_ratio])
        return CompressedGather(compress_ratio, ids, *bases, page_size)

    def _host_bases(self, compress_ratio: int) -> tuple[list[int], list[int]]:
        """Each request's first compressed row and first window row. Raises ArgumentError."""
        *base, rows = self._chunk.compressed_base(compress_ratio)
        check_rows(rows + self._window_rows)
        self._compressed_rows[compress_ratio] = rows
        return base, [rows + offset for offset in self._swa_offsets[:-1]]

    # Once a layer ---------------------------------------------------------------------------------

    def step(
        self,
        swa_cache: KCache,
        compress_ratio: int = 0,
        compressed_cache: KCache | None = None,
        topk_indices: Tensor | None = None,
    ) -> AttentionInputs:
        """Decodes what a layer attends to and, where it selects rows, combines its indices.

        topk_indices: int32 [query rows, width], compressed rows of the query's own request, -1
        for none; of ratios that ``ensure_compressed`` listed, and of no other.
        A cache's rows stay as they are from its first step in a plan to its last.
        Raises ArgumentError, and what a launch raises.
        """
        gather = self.gathers.get(compress_ratio)
        if gather is None:
            raise ArgumentError(
                f"compress_ratio is {compress_ratio}, allowed: {', '.join(map(str, self.gathers))}",
                tip="ensure_compressed or ensure_c128 lists a ratio's rows, once a plan",
            )
        self._check_layer(gather, swa_cache, compressed_cache, topk_indices)
        workspace, ids = self.workspace, gather.flat_token_ids
        regions = gather.regions
        if regions is None or regions.buffer is not workspace.buffer:
            regions = gather.regions = workspace.split(len(ids), len(self.swa_token_ids))
        compressed = None
        if compressed_cache is not None and len(ids):
            compressed = Source(compressed_cache, ids)
        window = Source(swa_cache, self.swa_token_ids)
        workspace.fill(self._launch, regions, window, compressed)
        if topk_indices is not None:
            self._combine(gather, topk_indices.shape[1], topk_indices)
        assert gather.combined_indices is not None and gather.combined_lens is not None
        return AttentionInputs(
            regions.kv, gather.combined_indices.unsqueeze(1), gather.combined_lens
        )

    def attend(
        self,
        q: Tensor,
        swa_cache: KCache,
        compress_ratio: int = 0,
        compressed_cache: KCache | None = None,
        topk_indices: Tensor | None = None,
        *,
        sm_scale: float = HEAD_DIM**-0.5,
        attn_sink: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Attention:
        """A layer as a whole: a step, and the attention to what it has decoded.

        q: bf16 [query rows, 1 to 128 heads, 512], queries of padding included. attn_sink:
        float32 [heads]. out: bf16 [query rows, heads, 512] to write to, if not a new tensor.
        The others are ``step``'s. Raises ArgumentError, and what a launch raises.
        """
        if q.dim() != 3 or (len(q), q.shape[2]) != (len(self.query_pos), HEAD_DIM):
            raise ArgumentError(
                f"q is {list(q.shape)}, allowed: [{len(self.query_pos)}, heads, {HEAD_DIM}]",
                tip="the plan's query rows count those of padding too",
            )
        inputs = self.step(swa_cache, compress_ratio, compressed_cache, topk_indices)
        max_logits, lse = torch.empty((2, *q.shape[:2]), dtype=torch.float32, device=q.device)
        attention = Attention(torch.empty_like(q) if out is None else out, max_logits, lse)
        self._launch(
            "sparse_mla_fwd", q, inputs.kv, inputs.indices, *attention, sm_scale, attn_sink,
            inputs.topk_length,
        )  # fmt: skip
        return attention

    def _check_layer(
        self,
        gather: CompressedGather,
        swa_cache: KCache,
        cache: KCache | None,
        topk_indices: Tensor | None,
    ) -> None:
        ratio, page_size = gather.compress_ratio, gather.page_size
        for name, given, wanted in (
            ("compressed_cache", cache, ratio > 0),
            ("topk_indices", topk_indices, page_size is not None),
        ):
            if (given is not None) is not wanted:
                verb = "needs" if wanted else "takes no"
                raise ArgumentError(f"a layer of compress_ratio {ratio} {verb} {name}")
        if cache is not None and page_size not in {None, cache.page_size}:
            raise ArgumentError(
                f"compressed_cache has pages of {cache.page_size} rows, and the rows of "
                f"compress_ratio {ratio} were listed with {page_size}"
            )
        if cache is not None and cache.interleaved is not swa_cache.interleaved:
            raise ArgumentError(
                f"interleaved is {swa_cache.interleaved} of swa_cache and {cache.interleaved} of "
                "compressed_cache, allowed: the same"
            )

    def _combine(
        self, gather: CompressedGather, topk: int, topk_indices: Tensor | None = None
    ) -> None:
        """Into the ratio's own tensors: on one stream, no layer needs another's any more."""
        rows, width = len(self.query_pos), topk + self.swa_window
        width += -width % INDEX_ALIGNMENT
        if gather.combined_indices is None or gather.combined_indices.shape[1] != width:
            gather.combined_indices = self._empty(rows, width)
            gather.combined_lens = self._empty(rows)
        swa_indices, swa_lengths = self._listed or (None, None)
        self._launch(
            "combine_topk_swa", gather.combined_indices, gather.combined_lens, topk_indices,
            self.query_start_loc, self.seq_lens, self.swa_gather_lens,
            window_size=self.swa_window, compress_ratio=max(gather.compress_ratio, 1), topk=topk,
            query_pos=self.query_pos, compressed_base=gather.compressed_base,
            swa_base=gather.swa_base, swa_indices=swa_indices, swa_lengths=swa_lengths,
        )  # fmt: skip

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=self.workspace.device)
