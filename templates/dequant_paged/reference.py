"""dequant_paged in plain PyTorch, slow and obvious, on any device."""

from __future__ import annotations

import torch

PART = 65536
"""Rows decoded at once, to bound the memory that a huge call takes."""
LAYOUTS = {584: (576, 8), 528: (512, 16), 288: (256, 32)}
"""Bytes of a record's data and of its scales."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def e4m3(codes: torch.Tensor) -> torch.Tensor:
    return codes.contiguous().view(torch.float8_e4m3fn).to(torch.float64)


def e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Two elements a byte, the first in its low bits."""
    nibbles = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2).long()
    magnitudes = torch.tensor(E2M1, dtype=torch.float64, device=codes.device)[nibbles & 7]
    return torch.where(nibbles >= 8, -magnitudes, magnitudes)


def ue8m0(codes: torch.Tensor, greatest: float) -> torch.Tensor:
    """2^(code - 127), and what 255 stands for."""
    exponents = codes.to(torch.float64) - 127
    powers = torch.pow(torch.full_like(exponents, 2.0), exponents)
    return torch.where(codes == 255, torch.full_like(powers, greatest), powers)


def to_bf16(values: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """Double precision holds every product, and float32 after it: only the last step rounds."""
    products = values * scales.repeat_interleave(group, dim=1)
    return products.to(torch.float32).to(torch.bfloat16)


def decode(data: torch.Tensor, scales: torch.Tensor, record: int) -> torch.Tensor:
    """Records as uint8 ``[n, data bytes]`` and ``[n, scale bytes]`` -> bf16 ``[n, 512]``."""
    if record == 584:
        factors = ue8m0(scales[:, :7], float("inf"))
        rope = data[:, 448:].contiguous().view(torch.bfloat16)
        return torch.cat([to_bf16(e4m3(data[:, :448]), factors, 64), rope], dim=1)
    if record == 528:
        return to_bf16(e4m3(data), ue8m0(scales, float("nan")), 32)
    return to_bf16(e2m1(data), e4m3(scales), 16)


def read_rows(
    k_cache: torch.Tensor, ids: torch.Tensor, page_size: int, record: int, interleaved: bool
) -> torch.Tensor:
    """The records of ``ids``, decoded -> bf16 ``[n, 512]``."""
    pages, slots = ids // page_size, ids % page_size
    data_bytes, scale_bytes = LAYOUTS[record]
    if interleaved:
        data_at = slots * record
        scales_at = data_at + data_bytes
    else:
        data_at = slots * data_bytes
        scales_at = page_size * data_bytes + slots * scale_bytes

    def bytes_at(first: torch.Tensor, count: int) -> torch.Tensor:
        columns = first[:, None] + torch.arange(count, device=k_cache.device)
        return k_cache[pages[:, None], columns]

    return decode(bytes_at(data_at, data_bytes), bytes_at(scales_at, scale_bytes), record)


def reference(
    out: torch.Tensor,
    k_cache: torch.Tensor,
    token_ids: torch.Tensor,
    page_size: int,
    record: int = 584,
    interleaved: bool = False,
    window_out: torch.Tensor | None = None,
    window_k_cache: torch.Tensor | None = None,
    window_token_ids: torch.Tensor | None = None,
    window_page_size: int = 0,
    window_record: int = 0,
) -> None:
    """``out[t, 0]`` becomes the row of ``token_ids[t]``; the second source's likewise.

    ``out`` bf16 ``[T, 1, 512]``; ``k_cache`` uint8 ``[pages, bytes]``. An id outside the cache
    means its nearest record, and ``window_record`` 0 that both sources have the same.
    """
    sources = [(out, k_cache, token_ids, page_size, record)]
    if window_out is not None and window_k_cache is not None and window_token_ids is not None:
        second = window_record or record
        sources.append((window_out, window_k_cache, window_token_ids, window_page_size, second))
    for target, cache, ids, size, kind in sources:
        for low in range(0, len(ids), PART):
            part = ids[low : low + PART].long().clamp(0, cache.shape[0] * size - 1)
            target[low : low + PART, 0] = read_rows(cache, part, size, kind, interleaved)
