"""quantize_insert in plain PyTorch, slow and obvious, on any device."""

from __future__ import annotations

from itertools import pairwise

import torch

PART = 65536
"""Rows quantised at once, to bound the memory that a huge call takes."""
DATA_BYTES = {584: 576, 528: 512, 288: 256}
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def greatest(groups: torch.Tensor) -> torch.Tensor:
    """Greatest magnitude along the last dim; NaN counts as 0."""
    return torch.where(groups.isnan(), 0.0, groups.abs()).amax(-1)


def to_e4m3(values: torch.Tensor) -> torch.Tensor:
    """Codes of the nearest values, saturating; NaN is 0x7f."""
    codes = values.float().clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(values.isnan(), 0x7F, codes).to(torch.uint8)


def to_e2m1(values: torch.Tensor) -> torch.Tensor:
    """Codes of the nearest values, ties to the even code, saturating; NaN is 7, which is 6."""
    codes = torch.zeros_like(values, dtype=torch.uint8)
    for code, (below, above) in enumerate(pairwise(E2M1)):
        middle = (below + above) / 2
        codes[(values.abs() >= middle) if code % 2 else (values.abs() > middle)] = code + 1
    codes[values.signbit()] += 8
    return torch.where(values.isnan(), 7, codes).to(torch.uint8)


def encode_fp8(x: torch.Tensor, group: int, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``[n, d]`` -> E4M3 codes ``[n, d]`` and UE8M0 codes ``[n, d / group]`` of at least ``least``.

    The scale is the least power of two that is not below amax / 448, and infinity gives code 255.
    """
    groups = x.double().reshape(len(x), -1, group)
    amax = greatest(groups).clamp_min(1e-4)
    fraction, exponent = torch.frexp(amax / 448)  # fraction in [1/2, 1)
    exponent = torch.where(fraction == 0.5, exponent - 1, exponent).long()
    codes = (exponent + 127).clamp_min(least)
    codes[amax.isinf()] = 255
    factors = torch.pow(torch.full_like(amax, 2.0), 127.0 - codes)
    return to_e4m3(groups * factors[..., None]).flatten(1), codes.to(torch.uint8)


def encode_fp4(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[n, 512]`` -> 256 bytes of two E2M1 codes, the even element's below, and 32 E4M3 scales."""
    groups = x.float().reshape(len(x), -1, 16)
    amax = greatest(groups)
    # a tensor divisor: by a plain number, torch multiplies with its reciprocal on a GPU
    scales = to_e4m3((amax / torch.full_like(amax, 6.0)).clamp(2.0**-9, 448.0))
    codes = to_e2m1(groups / scales.view(torch.float8_e4m3fn).float()[..., None]).flatten(1)
    return codes[:, ::2] | codes[:, 1::2] << 4, scales


def encode(x: torch.Tensor, record: int, sglang: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """bf16 ``[n, 512]`` -> the data and the scale bytes that are written."""
    if record == 584:
        data, scales = encode_fp8(x[:, :448], 64, least=105)
        data = torch.cat([data, x[:, 448:].contiguous().view(torch.uint8)], dim=1)
        pad = torch.zeros_like(scales[:, :1])
        return data, scales if sglang else torch.cat([scales, pad], dim=1)
    if record == 528:
        return encode_fp8(x, 32, least=114 if sglang else 105)
    if record == 288:
        return encode_fp4(x)
    raise ValueError(f"a record of {record} bytes is unknown; 584, 528 and 288 are known")


def reference(
    k: torch.Tensor,
    k_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_split: bool = False,
    sglang: bool = False,
) -> None:
    """Encode row t of ``k`` into slot ``slot_mapping[t]`` of the cache, if it has such a slot.

    ``k`` bf16 ``[>= T, 512]``; ``k_cache`` uint8 ``[pages, page size, 584 | 528 | 288]``;
    ``slot_mapping`` int32 or int64 ``[T]``. Everything else in the cache stays as it was.
    """
    pages, size, record = k_cache.shape
    flat = torch.as_strided(k_cache, (pages, size * record), (k_cache.stride(0), 1))
    width = DATA_BYTES[record]

    def write(page: torch.Tensor, first: torch.Tensor, data: torch.Tensor) -> None:
        columns = first[:, None] + torch.arange(data.shape[1], device=data.device)
        flat[page[:, None], columns] = data

    for low in range(0, len(slot_mapping), PART):
        slots = slot_mapping[low : low + PART].long()
        kept = ((slots >= 0) & (slots < pages * size)).nonzero()[:, 0]
        if len(kept) == 0:
            continue
        page, row = slots[kept] // size, slots[kept] % size
        data, scales = encode(k[low + kept], record, sglang)
        if block_split or record == 584:
            write(page, row * width, data)
            write(page, size * width + row * (record - width), scales)
        else:
            write(page, row * record, data)
            write(page, row * record + width, scales)
