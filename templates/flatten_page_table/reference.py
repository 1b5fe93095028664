"""flatten_page_table in plain PyTorch, request by request; on any device."""

from __future__ import annotations

import torch


def reference(
    out: torch.Tensor,
    query_start_loc: torch.Tensor,
    page_table: torch.Tensor | None = None,
    compressed_base: torch.Tensor | None = None,
    seq_lens: torch.Tensor | None = None,
    page_size: int = 64,
    compress_ratio: int = 4,
    page_indices: torch.Tensor | None = None,
) -> None:
    """``out`` int32 ``[ids]`` is written whole; what is no row of a request is 0."""
    out.zero_()
    starts = (query_start_loc - query_start_loc[0]).tolist()
    requests = len(starts) - 1
    for request in range(requests):
        begin, end = starts[request], starts[request + 1]
        if begin == end:
            continue
        if page_indices is not None:
            if end <= len(page_indices):
                columns = len(out) // requests
                ids = page_indices[end - 1, :columns]
                out[request * columns : (request + 1) * columns] = torch.clamp(ids, min=0)
        elif page_table is not None and compressed_base is not None and seq_lens is not None:
            first, last = int(compressed_base[request]), len(out)
            if request + 1 < requests:
                last = min(last, int(compressed_base[request + 1]))
            entries = page_table.shape[1]
            count = min(int(seq_lens[request]) // compress_ratio, entries * page_size, last - first)
            if begin < len(page_table) and count > 0:
                row = torch.arange(count, device=out.device)
                pages = page_table[begin, row // page_size].long()
                ids = pages * page_size + row % page_size
                out[first : first + count] = ids.clamp(min=0).to(torch.int32)
