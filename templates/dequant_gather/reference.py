"""dequant_gather in plain PyTorch, slow and obvious, on any device."""

from __future__ import annotations

import torch

PART = 65536
"""Rows decoded at once, to bound the memory that a huge request takes."""


def decode(data: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """E4M3 codes uint8 ``[n, d]`` and UE8M0 codes uint8 ``[n, d / group]`` -> bf16 ``[n, d]``.

    Code 0 of a scale means 0 and code 255 means infinity. Double precision holds every product,
    and float32 after it, so that only the last step rounds.
    """
    values = data.contiguous().view(torch.float8_e4m3fn).to(torch.float64)
    exponents = scales.to(torch.float64) - 127
    factors = torch.pow(torch.full_like(exponents, 2.0), exponents)
    factors[scales == 0] = 0.0
    factors[scales == 255] = float("inf")
    return (values * factors.repeat_interleave(group, dim=1)).to(torch.float32).to(torch.bfloat16)


def read_rows(k_cache: torch.Tensor, pages: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Records ``(pages[i], slots[i])`` of the paged cache, decoded -> bf16 ``[n, 512]``."""
    page_count, block_size, record = k_cache.shape
    flat = torch.as_strided(k_cache, (page_count, block_size * record), (k_cache.stride(0), 1))

    def bytes_at(first: torch.Tensor, count: int) -> torch.Tensor:
        return flat[pages[:, None], first[:, None] + torch.arange(count, device=flat.device)]

    if record == 584:  # block split: every data row of the page, then every scale row
        data = bytes_at(slots * 576, 576)
        scales = bytes_at(block_size * 576 + slots * 8, 7)
        rope = data[:, 448:].contiguous().view(torch.bfloat16)
        return torch.cat([decode(data[:, :448], scales, 64), rope], dim=1)
    if record == 528:  # interleaved: a row's scales follow its data
        row = bytes_at(slots * 528, 528)
        return decode(row[:, :512], row[:, 512:], 32)
    raise ValueError(f"a record of {record} bytes is unknown; 584 and 528 are known")


def reference(
    out: torch.Tensor,
    k_cache: torch.Tensor,
    seq_lens: torch.Tensor,
    gather_lens: torch.Tensor | None,
    block_table: torch.Tensor,
    offset: int = 0,
) -> None:
    """Write the last ``gather_lens[r]`` rows (all when None) of request r to ``out[r, offset:]``.

    ``out`` bf16 ``[R, M, 512]``; ``k_cache`` uint8 ``[pages, block_size, 584 | 528]``; ``seq_lens``
    and ``gather_lens`` int32 ``[R]``, in rows; ``block_table`` int32 ``[R, B]``. Everything else in
    ``out`` stays as it was.
    """
    block_size = k_cache.shape[1]
    for request, length in enumerate(seq_lens.tolist()):
        count = length if gather_lens is None else int(gather_lens[request])
        for low in range(length - count, length, PART):
            rows = torch.arange(low, min(low + PART, length), device=k_cache.device)
            pages = block_table[request, rows // block_size].long()
            first = offset + low - (length - count)
            out[request, first : first + len(rows)] = read_rows(k_cache, pages, rows % block_size)
