"""global_topk in plain PyTorch, in 64-bit integers; on any device."""

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
    rows = topk_indices[: len(out)].long()
    request = token_to_req[: len(out), None].long().expand_as(rows)
    page = torch.div(rows, block_size, rounding_mode="floor")
    there = (page >= 0) & (page < entries) & (request >= 0) & (request < requests)
    first = block_table[request[there], page[there]].long() * block_size
    out.fill_(-1)
    out[there] = (first + rows[there] % block_size).to(out.dtype)
    lens[:] = there.sum(-1)
    if is_valid_token is not None:
        lens[~is_valid_token[: len(out)]] = 0
