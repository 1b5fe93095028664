"""turboquant_dequant in plain PyTorch: slow, obvious, on any device."""

from __future__ import annotations

import torch

from dsv4_aot.templates.turboquant_store.reference import codebook, hadamard

PART = 4096
"""Tokens of a request decoded at once, to bound the memory that a huge call takes."""


def unpack(data: torch.Tensor, bits: int) -> torch.Tensor:
    """A stream of codes, the lowest bits first: uint8 ``[..., n]`` -> ``[..., 8 n / bits]``."""
    stream = (data[..., None].long() >> torch.arange(8, device=data.device)) & 1
    codes = stream.reshape(*data.shape[:-1], data.shape[-1] * 8 // bits, bits)
    return (codes << torch.arange(bits, device=data.device)).sum(-1)


def halves(data: torch.Tensor) -> torch.Tensor:
    """The fp16 in each pair of bytes: uint8 ``[..., 2]`` -> float64 ``[..., 1]``."""
    return data.contiguous().view(torch.float16).double()


def decode_key(data: torch.Tensor, head_dim: int, bits: int, rotate: bool) -> torch.Tensor:
    """The key's bytes of a slot, and what may follow them -> float64 ``[..., head_dim]``."""
    if bits == 8:
        return data[..., :head_dim].contiguous().view(torch.float8_e4m3fn).double()
    end = head_dim * bits // 8
    centroids = codebook(head_dim, bits, data.device).double()[unpack(data[..., :end], bits)]
    length = (centroids.square().sum(-1, keepdim=True) + 1e-16).sqrt()
    if rotate:
        centroids = centroids @ hadamard(head_dim, data.device) / head_dim**0.5
    return halves(data[..., end : end + 2]) * centroids / length


def decode_value(data: torch.Tensor, bits: int) -> torch.Tensor:
    """The value's bytes of a slot -> float64 ``[..., head_dim]``."""
    step, minimum = halves(data[..., -4:-2]), halves(data[..., -2:])
    return unpack(data[..., :-4], bits) * step + minimum


def to(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """By way of float32, as a kernel with float32 registers rounds."""
    return values.float().to(dtype)


def reference(
    key_out: torch.Tensor,
    value_out: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    starts: torch.Tensor,
    key_bits: int,
    value_bits: int,
    rotate: bool = True,
) -> None:
    """Rows ``starts[b] + t`` of both outputs become token t of request b, for t < seq_lens[b].

    Outputs ``[rows, heads, head_dim]``; ``kv_cache`` uint8 ``[pages, page size, heads, bytes of a
    slot]``. Tokens beyond the outputs, the table or the cache are left out. A row of two requests
    belongs to the later one.
    """
    rows, _, head_dim = key_out.shape
    pages, page_size = kv_cache.shape[:2]
    for request, (length, start) in enumerate(zip(seq_lens.tolist(), starts.tolist(), strict=True)):
        after = starts[request + 1].item() if request + 1 < len(starts) else rows
        end = min(length, block_table.shape[1] * page_size, rows - start, after - start)
        for first in range(max(-start, 0), end, PART):
            tokens = torch.arange(first, min(first + PART, end), device=kv_cache.device)
            ids = block_table[request].long()[tokens // page_size]
            known = (ids >= 0) & (ids < pages)
            tokens, ids = tokens[known], ids[known]
            slots = kv_cache[ids, tokens % page_size]
            split = head_dim * key_bits // 8 + (0 if key_bits == 8 else 2)
            key = decode_key(slots[..., :split], head_dim, key_bits, rotate)
            key_out[start + tokens] = to(key, key_out.dtype)
            value_out[start + tokens] = to(decode_value(slots[..., split:], value_bits),
                                           value_out.dtype)  # fmt: skip
