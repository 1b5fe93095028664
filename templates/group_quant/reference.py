"""group_quant in plain PyTorch: slow, obvious, exact; on any device."""

from __future__ import annotations

import torch

ROWS_AT_ONCE = 1 << 26  # elements, so that huge inputs need no huge temporaries


def reference(
    input: torch.Tensor,
    output_q: torch.Tensor,
    output_s: torch.Tensor,
    group_size: int,
    eps: float,
    min: float,
    max: float,
    scale_ue8m0: bool = True,
) -> None:
    k = input.shape[-1]
    x = input.reshape(-1, k)
    q = output_q.view(-1, k)
    mn, groups = x.shape[0], k // group_size
    packed = output_s.dtype == torch.int32
    step = 1 + ROWS_AT_ONCE // k
    scale_bytes = torch.zeros(mn, -(-groups // 4) * 4, dtype=torch.uint8, device=x.device)

    for begin in range(0, mn, step):
        rows = slice(begin, begin + step)
        values = x[rows].float().view(-1, groups, group_size)
        absmax = torch.where(values.isnan(), 0.0, values.abs()).amax(2)
        absmax = torch.maximum(absmax, torch.full_like(absmax, eps))
        # a tensor divisor: by a plain number, torch multiplies with its reciprocal on a GPU
        scale = absmax / torch.full_like(absmax, max)
        if packed or scale_ue8m0:
            byte = exponent_of_power_above(scale)
            scale_bytes[rows, :groups] = byte.to(torch.uint8)
            scale = (byte << 23).to(torch.int32).view(torch.float32)
        if packed:
            scaled = (values.double() * torch.exp2(127.0 - byte.double()).unsqueeze(2)).float()
        else:
            scaled = values * (1.0 / scale).unsqueeze(2)
            output_s[rows] = scale
        q[:mn][rows] = to_eight_bits(scaled.clamp(min, max), q.dtype).flatten(1)

    if packed:
        pad_and_pack(scale_bytes, q, output_s)


def exponent_of_power_above(scale: torch.Tensor) -> torch.Tensor:
    """The biased exponent of the least power of two that is not below ``scale`` and 1e-10."""
    bits = torch.maximum(scale, torch.full_like(scale, 1e-10)).view(torch.int32).long()
    return (bits >> 23) + ((bits & 0x7FFFFF) != 0)


def to_eight_bits(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.int8:
        return torch.where(values.isnan(), 0.0, values).clamp(-128, 127).trunc().to(torch.int8)
    codes = values.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(values.isnan(), 0x7F, codes).view(torch.float8_e4m3fn)


def pad_and_pack(scale_bytes: torch.Tensor, q: torch.Tensor, output_s: torch.Tensor) -> None:
    """Zeroes the padding rows of q; lays the words out in columns of ceil4(mn) rows."""
    mn, width = scale_bytes.shape
    if mn == 0:
        return
    column = -(-mn // 4) * 4
    q.view(torch.uint8)[mn:column] = 0
    padded = torch.zeros(column, width, dtype=torch.uint8, device=q.device)
    padded[:mn] = scale_bytes
    words = padded.view(torch.int32).t().flatten()
    stored = mn + (width // 4 - 1) * column  # the last column ends at its last row
    output_s.as_strided((stored,), (1,)).copy_(words[:stored])
