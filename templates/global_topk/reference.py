"""global_topk in plain PyTorch, token by token, in 64-bit integers; on any device."""

from __future__ import annotations

import torch


def reference(
    out: torch.Tensor,
    lens: torch.Tensor,
    topk_indices: torch.Tensor,
    token_to_req: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    is_valid_token: torch.Tensor | None = None,
) -> None:
    """``out`` int32 or int64 ``[tokens, k]`` and ``lens`` int32 ``[tokens]`` are written whole."""
    requests, entries = block_table.shape
    for token, request in enumerate(token_to_req[: len(out)].tolist()):
        rows = topk_indices[token].long()
        pages = torch.div(rows, block_size, rounding_mode="floor")
        there = (pages >= 0) & (pages < entries) & (0 <= request < requests)
        out[token] = -1
        if 0 <= request < requests:
            first = block_table[request, pages[there]].long() * block_size
            out[token, there] = (first + rows[there] % block_size).to(out.dtype)
        valid = is_valid_token is None or bool(is_valid_token[token])
        lens[token] = int(there.sum()) if valid else 0
