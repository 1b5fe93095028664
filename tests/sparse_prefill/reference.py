"""What a sparse-prefill plan is to make of a chunk, in plain PyTorch and told twice.

``Reference`` says which tensors a plan has, by the formulas; ``meant_rows`` says from the pools
alone which decoded rows a query attends to. Neither shares code with the plan, with the kernels or
with their references.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.sparse_prefill.scene import WINDOW, Pools


@dataclass
class Layer:
    """A layer's rows and indices, on the CPU: kv bf16 [rows, 512], indices int32, lens int32."""

    kv: Tensor
    indices: Tensor
    lens: Tensor


@dataclass
class Reference:
    """The tensors of a plan, by the formulas and on the CPU. ``tensors`` has those of the chunk."""

    pools: Pools
    tensors: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        pools = self.pools
        length, new = torch.tensor(pools.seq_lens), torch.tensor(pools.extend_lens)
        gathered = torch.minimum(length, new + WINDOW - 1)
        if pools.scene.windows:
            gathered = torch.zeros_like(length)
            ids = torch.arange(pools.window_size)
        else:
            table, pool = pools.req_to_token.cpu(), pools.req_pool_indices.cpu()
            spans = zip(pool, length - gathered, length, strict=True)
            tokens = [table[row, a:b].long() for row, a, b in spans]
            ids = pools.full_to_swa.cpu()[torch.cat(tokens)]
        self.tensors = {
            name: tensor.int()
            for name, tensor in {
                "seq_lens": length,
                "query_start_loc": prefix(torch.tensor(pools.query_lens)),
                "query_pos": pools.query_pos.cpu(),
                "swa_gather_lens": gathered,
                "swa_first_pos": length - gathered,
                "swa_offsets": prefix(gathered),
                "swa_token_ids": ids,
            }.items()
        }

    def flat_token_ids(self, ratio: int) -> Tensor:
        pools = self.pools
        ids: list[int] = []
        most = max(max(pools.seq_lens) // 128, 1)
        for r, length in enumerate(pools.seq_lens):
            count = most if ratio == 128 else length // ratio
            positions = [
                p for p, owner in zip(pools.positions, pools.request_of, strict=True) if owner == r
            ]
            there = 0  # where the request has no queries, nobody reads its rows
            if positions:
                there = (positions[-1] + 1) // 128 if ratio == 128 else count
            ids += [pools.physical(ratio, r, j) for j in range(there)] + [0] * (count - there)
        return torch.tensor(ids, dtype=torch.int32)

    def bases(self, ratio: int) -> tuple[Tensor, Tensor]:
        length, offsets = self.tensors["seq_lens"], self.tensors["swa_offsets"]
        counts = length // ratio if ratio else torch.zeros_like(length)
        if ratio == 128:
            counts = counts.amax().clamp(min=1).expand(len(length))
        base = prefix(counts)
        return base[:-1].int(), (base[-1] + offsets[:-1]).int()

    def layer(self, ratio: int, selected: Tensor | None) -> Layer:
        pools, tensors = self.pools, self.tensors
        compressed_base, swa_base = self.bases(ratio)
        kv = [pools.swa.decode(tensors["swa_token_ids"])]
        if ratio:
            kv.insert(0, pools.cache(ratio).decode(self.flat_token_ids(ratio)))
        topk = (
            0
            if not ratio
            else selected.shape[1]
            if selected is not None
            else int(max(max(pools.seq_lens) // 128, 1))
        )
        indices = torch.full((pools.rows, math.ceil((topk + WINDOW) / 128) * 128), -1)
        lens = torch.zeros(pools.rows, dtype=torch.int32)
        for t, (r, pos) in enumerate(zip(pools.request_of, pools.positions, strict=True)):
            seen = min((pos + 1) // ratio, topk) if ratio else 0
            chosen = torch.arange(seen) if selected is None else selected[t, :seen].cpu().long()
            window = min(pos + 1, WINDOW)
            if pools.scene.windows:
                listed = pools.swa_indices[t, :window].cpu() + swa_base[r]
            else:
                begin = swa_base[r] + pos - window + 1 - tensors["swa_first_pos"][r]
                listed = begin + torch.arange(window)
            indices[t, :seen] = torch.where(chosen < 0, -1, chosen + compressed_base[r])
            indices[t, seen : seen + window] = listed
            lens[t] = seen + window
        return Layer(torch.cat(kv), indices.int(), lens)


def prefix(counts: Tensor) -> Tensor:
    """Exclusive sums, and the sum of all."""
    return torch.cat((torch.zeros(1, dtype=torch.int64), counts.long().cumsum(0)))


def meant_rows(pools: Pools, row: int, ratio: int, selected: Tensor | None) -> Tensor:
    """bf16 [columns, 512]: what query row ``row`` attends to, in order, without holes."""
    request, pos = pools.request_of[row], pools.positions[row]
    parts = []
    if ratio:
        seen = (pos + 1) // ratio
        wanted = range(seen) if selected is None else selected[row, :seen].tolist()
        ids = [pools.physical(ratio, request, j) for j in wanted if j >= 0]
        parts.append(pools.cache(ratio).decode(ids))
    first = max(pos + 1 - WINDOW, 0)
    if pools.scene.windows:
        slots = [(request + 1) * WINDOW + p % WINDOW for p in range(first, pos + 1)]
    else:
        tokens = pools.req_to_token[pools.req_pool_indices[request], first : pos + 1].cpu()
        slots = pools.full_to_swa.cpu()[tokens.long()].tolist()
    parts.append(pools.swa.decode(slots))
    return torch.cat(parts)


def attention(
    queries: Tensor, rows: Tensor, sm_scale: float, sink: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of [heads, 512] to all rows, in float64: out, greatest logits, logarithm of the sum."""
    keys = rows.double()
    logits = queries.double() @ keys.T * sm_scale
    lse = logits.logsumexp(1)
    weights = torch.exp(logits - torch.logaddexp(lse, sink.double())[:, None])
    return weights @ keys, logits.amax(1), lse
