"""sparse_mla_fwd in plain PyTorch: gathered rows, float32 products, logsumexp; on any device."""

from __future__ import annotations

import math

import torch

VALUE_DIM = 512
FLOATS_AT_ONCE = 1 << 27  # of gathered rows, so that many queries need no huge temporaries


def reference(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    out: torch.Tensor,
    max_logits: torch.Tensor,
    lse: torch.Tensor,
    sm_scale: float,
    attn_sink: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
    base2: bool = False,
) -> None:
    """A query attends to the rows that it names; an index outside of kv names none.

    An empty set gives out 0, max_logits -inf and lse +inf. The sink is one more logit that has no
    value, and is in out alone.
    """
    s_q, _, dim = q.shape
    topk = indices.shape[-1]
    rows = kv.reshape(kv.shape[0], dim)
    step = 1 + FLOATS_AT_ONCE // (topk * dim)
    for begin in range(0, s_q, step):
        chunk = slice(begin, begin + step)
        named = indices[chunk].reshape(-1, topk).long()
        counted = (named >= 0) & (named < kv.shape[0])
        if topk_length is not None:
            columns = torch.arange(topk, device=q.device)
            counted &= columns < topk_length[chunk, None]
        k = gathered(rows, named, counted)
        logits = torch.einsum("thd,tkd->thk", q[chunk].float(), k) * sm_scale
        logits = torch.where(counted[:, None], logits, -torch.inf)
        empty = ~counted.any(1)[:, None, None]

        log_sum = torch.logsumexp(logits, 2, keepdim=True)
        with_sink = log_sum
        if attn_sink is not None:
            with_sink = torch.logaddexp(log_sum, attn_sink[None, :, None].expand_as(log_sum))
        weights = torch.where(empty | with_sink.isposinf(), 0.0, torch.exp(logits - with_sink))
        out[chunk] = torch.einsum("thk,tkd->thd", weights, k[..., :VALUE_DIM]).to(out.dtype)
        unit = 1 / math.log(2) if base2 else 1.0
        max_logits[chunk] = logits.amax(2) * unit
        lse[chunk] = torch.where(empty, torch.inf, log_sum)[..., 0] * unit


def gathered(rows: torch.Tensor, named: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """The named rows in float32, zero where there is none, whatever lies in memory."""
    if len(rows) == 0:
        return torch.zeros(*named.shape, rows.shape[1], device=rows.device)
    found = rows[torch.where(counted, named, 0)].float()
    return torch.where(counted[..., None], found, 0.0)
