"""swa_token_ids in plain PyTorch, request by request; on any device."""

from __future__ import annotations

import torch


def reference(
    out: torch.Tensor,
    req_to_token: torch.Tensor,
    full_to_swa: torch.Tensor,
    req_pool_indices: torch.Tensor,
    swa_first_pos: torch.Tensor,
    swa_offsets: torch.Tensor,
) -> None:
    """``out`` int32 ``[ids]`` is written whole; what has no token is 0."""
    out.zero_()
    pool, positions = req_to_token.shape
    offsets = swa_offsets.tolist()
    for request, (row, first) in enumerate(
        zip(req_pool_indices.tolist(), swa_first_pos.tolist(), strict=True)
    ):
        begin, end = offsets[request], min(offsets[request + 1], len(out))
        low, high = first, first + end - begin
        if not 0 <= row < pool or low >= high:
            continue
        position = torch.arange(low, high, device=out.device)
        inside = (position >= 0) & (position < positions)
        token = req_to_token[row, position.clamp(0, positions - 1)].long()
        inside &= (token >= 0) & (token < len(full_to_swa))
        ids = full_to_swa[token.clamp(0, len(full_to_swa) - 1)]
        out[begin:end] = torch.where(inside, ids, 0).to(torch.int32)
