"""turboquant_store in plain PyTorch: slow, obvious, on any device."""

from __future__ import annotations

import torch

PART = 1 << 21
"""Elements of a key encoded at once, to bound the memory that a huge call takes."""

CENTROIDS = {
    (64, 3): (0x3CFADCFB, 0x3DC171FC, 0x3E2BED53, 0x3E899F54),
    (128, 3): (0x3CB16317, 0x3D88C955, 0x3DF3243D, 0x3E42A09F),
    (64, 4): (
        0x3C83828A, 0x3D46B9FF, 0x3DA82948, 0x3DF1444A,
        0x3E20CD0C, 0x3E4F16C0, 0x3E846170, 0x3EAEC76E,
    ),
    (128, 4): (
        0x3C39FBAE, 0x3D0C8559, 0x3D6DD0E1, 0x3DAA99F2,
        0x3DE3682B, 0x3E126F17, 0x3E3B36E7, 0x3E772CC4,
    ),
}  # fmt: skip
"""Bits of the positive centroids as float32, ascending, by head_dim and bits."""


def codebook(head_dim: int, bits: int, device: torch.device) -> torch.Tensor:
    """What the codes stand for, ascending -> float32 ``[2^bits]``."""
    upper = torch.tensor(CENTROIDS[min(head_dim, 128) if head_dim != 256 else 64, bits])
    upper = upper.int().view(torch.float32) * (0.5 if head_dim == 256 else 1.0)
    return torch.cat([-upper.flip(0), upper]).to(device)


def midpoints(head_dim: int, bits: int, device: torch.device) -> torch.Tensor:
    """Where one code ends and the next begins -> float32 ``[2^bits - 1]``."""
    centroids = codebook(head_dim, bits, device)
    return (centroids[:-1] + centroids[1:]) / 2


def hadamard(head_dim: int, device: torch.device) -> torch.Tensor:
    """Sylvester's matrix of +1 and -1 -> float64 ``[head_dim, head_dim]``."""
    matrix = torch.ones(1, 1, dtype=torch.float64, device=device)
    while len(matrix) < head_dim:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """``[..., head_dim]`` -> uint8: one stream of bits, the lowest first."""
    stream = (codes[..., None] >> torch.arange(bits, device=codes.device)) & 1
    octets = stream.reshape(*codes.shape[:-1], codes.shape[-1] * bits // 8, 8)
    return (octets << torch.arange(8, device=codes.device)).sum(-1).to(torch.uint8)


def half_bytes(values: torch.Tensor) -> torch.Tensor:
    """Rounded to fp16, its two bytes as a last dim."""
    return values.to(torch.float16)[..., None].contiguous().view(torch.uint8)


def to_e4m3(values: torch.Tensor) -> torch.Tensor:
    """The nearest code; beyond 448 that of 448, and 0x7F for NaN."""
    codes = values.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(values.isnan(), 0x7F, codes)


def rotate(key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 ``[..., head_dim]`` -> its direction in the rotated basis in float64, and its norm.

    A key with a NaN or an infinity has no direction, only NaN; one with a norm beyond float32, 0.
    """
    norm = key.square().sum(-1).sqrt()
    length = (norm.double() + 1e-8) * key.shape[-1] ** 0.5
    return key.double() @ hadamard(key.shape[-1], key.device) / length[..., None], norm


def encode_key(key: torch.Tensor, bits: int) -> torch.Tensor:
    """Float32 ``[..., head_dim]`` -> the key's bytes of a slot."""
    if bits == 8:
        return to_e4m3(key)
    rotated, norm = rotate(key)
    codes = torch.zeros(key.shape, dtype=torch.int64, device=key.device)
    for midpoint in midpoints(key.shape[-1], bits, key.device):
        codes += rotated >= midpoint  # never of NaN
    return torch.cat([pack(codes, bits), half_bytes(norm)], -1)


def encode_value(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Float32 ``[..., head_dim]`` -> the value's bytes of a slot. -0 counts as below 0."""
    most = torch.full_like(value[..., 0], 2**bits - 1)
    minimum, maximum = value.amin(-1), value.amax(-1)
    negative_zero = ((value == 0) & value.signbit()).any(-1)
    minimum = torch.where(minimum == 0, torch.where(negative_zero, -0.0, 0.0), minimum)
    # tensors divide: by a plain number, torch multiplies with its reciprocal on a GPU
    step = (maximum - minimum) / most
    step = torch.where(step > 1e-8, step, 1e-8)
    steps = (value - minimum[..., None]) / step[..., None]
    codes = (steps + 0.5).to(torch.int64).clamp(0, 2**bits - 1)
    return torch.cat([pack(codes, bits), half_bytes(step), half_bytes(minimum)], -1)


def encode(key: torch.Tensor, value: torch.Tensor, key_bits: int, value_bits: int) -> torch.Tensor:
    """``[..., head_dim]`` of each -> slots, uint8 ``[..., bytes of a slot]``."""
    parts = [encode_key(key.float(), key_bits), encode_value(value.float(), value_bits)]
    return torch.cat(parts, -1)


def reference(
    key: torch.Tensor,
    value: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    key_bits: int,
    value_bits: int,
) -> None:
    """Slot ``slot_mapping[t]`` of ``kv_cache`` becomes that of token t, where there is one.

    ``key``, ``value`` ``[tokens or more, heads, head_dim]``; ``kv_cache`` uint8 ``[pages, page
    size, heads, bytes of a slot]``. Keys are rotated in float64, values divided in float32.
    """
    pages, page_size = kv_cache.shape[:2]
    tokens = torch.nonzero((slot_mapping >= 0) & (slot_mapping < pages * page_size))[:, 0]
    for some in torch.split(tokens, 1 + PART // max(key[:1].numel(), 1)):
        slots = slot_mapping[some].long()
        encoded = encode(key[some], value[some], key_bits, value_bits)
        kv_cache[slots // page_size, slots % page_size] = encoded
