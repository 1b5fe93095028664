"""turboquant_decode in plain PyTorch: slow, obvious, on any device."""

from __future__ import annotations

import torch

from dsv4_aot.templates.turboquant_dequant.reference import decode_key, decode_value


def attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int,
    sinks: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One request: ``q`` ``[i, heads, d]``, ``keys`` and ``values`` ``[tokens, kv_heads, d]``.

    Gives ``[i, heads, d]`` and the logarithms of sums ``[i, heads]``, float32.
    """
    count, heads, tokens = q.shape[0], q.shape[1], len(keys)
    group = heads // keys.shape[1]
    keys, values = (x.repeat_interleave(group, 1) for x in (keys, values))
    scores = torch.einsum("ihd,thd->iht", q, keys) * scale
    own = torch.arange(tokens - count, tokens, device=q.device)[:, None]
    other = torch.arange(tokens, device=q.device)
    seen = other <= own
    if window:
        seen &= other > own - window
    scores = scores.masked_fill(~seen[:, None], -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None].expand(count, heads, 1)], -1)
        values = torch.cat([values, torch.zeros_like(values[:1])])
    elif tokens == 0:
        return torch.zeros_like(q), torch.full(q.shape[:2], -torch.inf, device=q.device)
    sums = scores.logsumexp(-1)
    weights = (scores - sums[..., None]).exp().nan_to_num(0.0)  # of rows that see nothing
    return torch.einsum("iht,thd->ihd", weights, values), sums


def reference(
    out: torch.Tensor,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    workspace: torch.Tensor,
    counters: torch.Tensor,
    scale: float,
    key_bits: int,
    value_bits: int,
    queries: int = 1,
    window: int = 0,
    sinks: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> None:
    """Attention in float32 on what the cache's bytes stand for, one request after the other."""
    del workspace, counters  # the kernel's own
    head_dim, page = q.shape[2], kv_cache.shape[1]
    key_bytes = head_dim * key_bits // 8 + (0 if key_bits == 8 else 2)
    for request, said in enumerate(seq_lens.tolist()):
        length = min(max(said, 0), block_table.shape[1] * page)
        pages = block_table[request, : -(-length // page)].long().clamp(0, len(kv_cache) - 1)
        slots = kv_cache[pages].flatten(0, 1)[:length]
        keys = decode_key(slots[..., :key_bytes], head_dim, key_bits, rotate=True).float()
        values = decode_value(slots[..., key_bytes:], value_bits).float()
        rows = slice(request * queries, (request + 1) * queries)
        x = q[rows].float()
        result, sums = attention(x, keys, values, scale, window, sinks)
        out[rows] = result.to(out.dtype)
        if lse is not None:
            lse[rows] = sums
