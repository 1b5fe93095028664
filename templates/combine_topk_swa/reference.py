"""combine_topk_swa in plain PyTorch, request by request, in 64-bit integers; on any device."""

from __future__ import annotations

import torch


def reference(
    out: torch.Tensor,
    lens: torch.Tensor,
    topk_indices: torch.Tensor | None,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    gather_lens: torch.Tensor,
    window_size: int = 128,
    compress_ratio: int = 1,
    topk: int = 0,
    m: int = 0,
    n: int = 0,
    left_visible: torch.Tensor | None = None,
    right_visible: torch.Tensor | None = None,
    max_image_tokens: int = 0,
    v41: bool = True,
    query_pos: torch.Tensor | None = None,
    compressed_base: torch.Tensor | None = None,
    swa_base: torch.Tensor | None = None,
    swa_indices: torch.Tensor | None = None,
    swa_lengths: torch.Tensor | None = None,
) -> None:
    """``out`` int32 ``[queries, width]`` and ``lens`` int32 ``[queries]`` are written whole."""
    rows, width = out.shape
    assert topk + window_size + max_image_tokens <= width
    out.fill_(-1)
    lens.zero_()
    starts = query_start_loc.tolist()
    for request, (sequence, gathered) in enumerate(
        zip(seq_lens.tolist(), gather_lens.tolist(), strict=True)
    ):
        begin, end = (starts[request + i] - starts[0] for i in (0, 1))
        if begin >= min(end, rows):
            continue
        mine = slice(begin, min(end, rows))
        row = torch.arange(begin, min(end, rows), device=out.device)
        gather_start = sequence - gathered

        # Where this request's gathered rows lie, and the positions of its queries.
        if query_pos is not None:
            assert compressed_base is not None and swa_base is not None
            compressed_at, window_at = int(compressed_base[request]), int(swa_base[request])
            pos = query_pos[mine].long()
        else:
            compressed_at, window_at = m * request, m * request + n
            pos = sequence - end + row

        # The tokens that each query sees: from `first` to `last`, both included.
        last = pos.clone()
        first = (pos - (window_size - 1)).clamp(min=0)
        if left_visible is not None and right_visible is not None:
            further = (left_visible[mine].long() - (window_size - 1)).clamp(min=0)
            first = (pos - (window_size - 1) - further).clamp(min=0)
            last = pos + right_visible[mine].long()
        if v41 and query_pos is None:
            first = first.clamp(min=gather_start)
        window_count = (last - first + 1).clamp(min=0)

        selected = torch.full((len(row), width), -1, dtype=torch.int64, device=out.device)
        if topk_indices is None:
            selected[:, :topk] = torch.arange(topk, device=out.device)
        else:
            selected[:, :topk] = topk_indices[mine, :topk].long()
        if query_pos is not None:
            selected = torch.where(selected < 0, -1, selected + compressed_at)
        elif v41:
            hole = (selected < 0) | (selected >= n)
            selected = torch.where(hole, -1, selected + compressed_at)
        else:
            selected += compressed_at
        select_count = torch.zeros_like(pos)
        if compress_ratio > 0:
            select_count = ((pos + 1) // compress_ratio).clamp(0, topk)

        column = torch.arange(width, device=out.device)
        nth = column - select_count[:, None]  # in the window
        window = window_at + (first[:, None] - gather_start) + nth
        if swa_indices is not None and swa_lengths is not None:
            columns = swa_indices.shape[1]
            window_count = swa_lengths[mine].long().clamp(0, columns)
            listed = torch.gather(swa_indices[mine].long(), 1, nth.clamp(0, columns - 1))
            window = torch.where(listed < 0, -1, listed + window_at)

        total = (select_count + window_count).clamp(max=width)
        result = torch.where(column < select_count[:, None], selected, window)
        result = torch.where(column < total[:, None], result, -1)
        out[mine] = result.to(torch.int32)
        lens[mine] = total.to(torch.int32)
