"""dequant_requant in plain PyTorch, slow and obvious, on any device."""

from __future__ import annotations

import torch

from dsv4_aot.templates.dequant_paged.reference import PART, read_rows


def to_e4m3(values: torch.Tensor) -> torch.Tensor:
    """Rounded to nearest even within +-448, which infinities become too; one code for all NaN."""
    codes = values.float().clamp(-448.0, 448.0).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(values.isnan(), 0x7F, codes).view(torch.float8_e4m3fn)


def reference(
    out: torch.Tensor,
    k_cache: torch.Tensor,
    token_ids: torch.Tensor,
    page_size: int,
    record: int = 584,
    interleaved: bool = False,
) -> None:
    """``out[t, 0]`` becomes the row of ``token_ids[t]``, and zero behind the last id.

    ``out`` e4m3 ``[T + extra, 1, 512]``; ``k_cache`` uint8 ``[pages, bytes]``. An id outside the
    cache means its nearest record.
    """
    count = len(token_ids)
    for low in range(0, count, PART):
        ids = token_ids[low : low + PART].long().clamp(0, k_cache.shape[0] * page_size - 1)
        rows = read_rows(k_cache, ids, page_size, record, interleaved)
        out[low : low + len(ids), 0] = to_e4m3(rows)
    out.view(torch.uint8)[count:] = 0
