"""Calls of turboquant_dequant: every preset, ragged requests, gaps, strides, tables gone wrong.

FP8 keys and all values are exact. Other keys are sums in float32, which may round the other way.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from dsv4_aot.generator.spec import Case, Tolerance

BF16, FP16 = torch.bfloat16, torch.float16
PRESETS = {(8, 4): "k8v4", (4, 4): "4bit_nc", (3, 4): "k3v4_nc", (3, 3): "3bit_nc"}
POISON = -0x5A5B
ULP = {BF16: Tolerance(4e-6, 2.0**-7), FP16: Tolerance(4e-6, 2.0**-10)}
"""One unit in the last place, where the norm is about 1 as here, or what float32 leaves of it."""


@dataclass(frozen=True)
class Call:
    """A call to make.

    lengths: of the requests. gaps: rows without a request between them, and around every output.
    upstream: outputs are ``[heads, rows, head_dim]``. gap: bytes between pages. far: bytes of
    unused pages before the used ones. invalid: pages outside the cache, lengths beyond the table,
    starts outside the outputs. extremes: steps and norms of the first heads are
    nothing, the least there is, or great.
    """

    preset: tuple[int, int]
    lengths: tuple[int, ...]
    heads: int = 8
    head_dim: int = 128
    page: int = 16
    dtype: torch.dtype = BF16
    rotate: bool = True
    gaps: bool = False
    upstream: bool = False
    gap: int = 0
    far: int = 0
    invalid: bool = False
    extremes: bool = False

    @property
    def name(self) -> str:
        lengths = "+".join(map(str, self.lengths)) or "none"
        if len(set(self.lengths)) == 1:
            lengths = f"{len(self.lengths)} x {self.lengths[0]}"
        plain = Call(self.preset, self.lengths)
        fields = ("rotate", "gaps", "upstream", "gap", "far", "invalid", "extremes")
        unusual = [each for each in fields if getattr(self, each) != getattr(plain, each)]
        return ", ".join(
            [
                PRESETS[self.preset],
                str(self.dtype).removeprefix("torch."),
                f"{lengths} x {self.heads} x {self.head_dim}",
                f"page {self.page}",
                *(f"{each} {getattr(self, each)}".removesuffix(" True") for each in unusual),
            ]
        )

    @property
    def slot(self) -> int:
        key_bits, value_bits = self.preset
        return self.head_dim * (key_bits + value_bits) // 8 + (4 if key_bits == 8 else 6)

    @property
    def page_stride(self) -> int:
        return self.page * self.heads * self.slot + self.gap

    def make(self, device: Any, seed: int) -> dict[str, Any]:
        random = torch.Generator(device).manual_seed(seed)
        width = max([-(-length // self.page) for length in self.lengths], default=0)
        skipped = -(-self.far // self.page_stride)
        used = width * len(self.lengths) + 1
        table = torch.randperm(used, generator=random, device=device)[: used - 1] + skipped
        table = table.int().view(len(self.lengths), width)
        lengths, starts, row = list(self.lengths), [], 0
        for index, length in enumerate(lengths):
            row += 3 * (index + 1) if self.gaps else 0
            starts.append(row)
            row += length
        rows = row + (5 if self.gaps else 0)
        if self.invalid:
            wrong = torch.tensor([-1, skipped + used, 2**31 - 1, -(2**31)], device=device)
            table[0, 1::3] = wrong.repeat(width)[: len(table[0, 1::3])]
            starts[0] = -3
            lengths[-1] = 2**31 - 1
            rows -= 2
        outs = [self._output(rows, device) for _ in range(2)]
        return {
            "key_out": outs[0],
            "value_out": outs[1],
            "kv_cache": self._cache(skipped, used, random, device),
            "block_table": table if not self.gaps else _with_gap(table),
            "seq_lens": torch.tensor(lengths, dtype=torch.int32, device=device),
            "starts": torch.tensor(starts, dtype=torch.int32, device=device),
            "key_bits": self.preset[0],
            "value_bits": self.preset[1],
            "rotate": self.rotate,
        }

    def _output(self, rows: int, device: Any) -> torch.Tensor:
        spare = 1 if self.gaps else 0
        form = (rows, self.heads + spare, self.head_dim + 8 * spare)
        if self.upstream:
            form = (form[1], form[0], form[2])
        storage = torch.full(form, POISON, dtype=torch.int16, device=device).view(self.dtype)
        storage = storage.transpose(0, 1) if self.upstream else storage
        return storage[:, : self.heads, : self.head_dim]

    def _cache(self, skipped: int, used: int, random: torch.Generator, device: Any) -> torch.Tensor:
        """Slots of random codes, with the fp16 numbers that go with them."""
        storage = torch.empty((skipped + used) * self.page_stride + 2, dtype=torch.uint8,
                              device=device)  # fmt: skip
        form = (skipped + used, self.page, self.heads, self.slot)
        steps = (self.page_stride, self.heads * self.slot, self.slot, 1)
        cache = storage.as_strided(form, steps, storage_offset=2 if self.gap else 0)
        storage[skipped * self.page_stride :].random_(0, 256, generator=random)
        slots = cache[skipped:]
        if self.preset[0] == 8:
            codes = slots[..., : self.head_dim]
            codes -= ((codes & 0x7F) == 0x7F).to(torch.uint8)  # NaN become the largest values
        else:
            self._put(slots, self.head_dim * self.preset[0] // 8, (0.5, 2.0), random)
        self._put(slots, self.slot - 4, (0.0, 0.25), random)
        self._put(slots, self.slot - 2, (-2.0, 0.0), random)
        if self.extremes:
            numbers = torch.tensor([0.0, -0.0, 2.0**-24, 4.0], device=device).half()
            places = [self.slot - 4]  # steps, and norms where there are any
            places += [self.head_dim * self.preset[0] // 8] if self.preset[0] != 8 else []
            for head, number in enumerate(numbers):
                for at in places:
                    slots[:, :, head, at : at + 2] = number.view(1).view(torch.uint8)
        return cache

    def _put(
        self, slots: torch.Tensor, at: int, span: tuple[float, float], random: torch.Generator
    ) -> None:
        numbers = torch.rand(slots.shape[:-1], generator=random, device=slots.device)
        halves = (span[0] + (span[1] - span[0]) * numbers).half()
        slots[..., at : at + 2] = halves[..., None].view(torch.uint8)

    def case(self, *, bench: bool = False) -> Case:
        tokens = sum(self.lengths)
        pairs = tokens * self.heads
        return Case(
            name=self.name,
            make=self.make,
            tolerance=None if self.preset[0] == 8 else ULP[self.dtype],
            read=pairs * self.slot + -(-tokens // self.page) * 4,
            write=pairs * self.head_dim * 4,
            bench=bench,
            peer_share=0.15,  # a peer rounds to fp16 first, keys twice
            memory=self.far + pairs * (self.head_dim * 4 + self.slot),
        )


def _with_gap(table: torch.Tensor) -> torch.Tensor:
    """The same table in the midst of a wider one."""
    wide = torch.full((table.shape[0], table.shape[1] + 3), -7, dtype=torch.int32,
                      device=table.device)  # fmt: skip
    wide[:, 1:-2] = table
    return wide[:, 1:-2]


# Worked out by hand -------------------------------------------------------------------------------


def by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """Two tokens of one head in pages of one token, the second page first; FP8 keys."""
    cache = torch.zeros(3, 1, 1, 100, dtype=torch.uint8)
    cache[2, 0, 0, :2] = torch.tensor([0x38, 0xC0])  # 1, -2
    cache[2, 0, 0, 64] = 0x21  # codes 1 and 2
    cache[2, 0, 0, 96:] = torch.tensor([0x00, 0x38, 0x00, 0xBC])  # step 1/2, minimum -1
    cache[0, 0, 0, 63] = 0x7E  # 448
    out = torch.full((4, 1, 64), POISON, dtype=torch.int16).view(BF16)
    return {
        "key_out": out.to(device),
        "value_out": out.clone().to(device),
        "kv_cache": cache.to(device),
        "block_table": torch.tensor([[2, 0, 1]], dtype=torch.int32, device=device),
        "seq_lens": torch.tensor([2], dtype=torch.int32, device=device),
        "starts": torch.tensor([1], dtype=torch.int32, device=device),
        "key_bits": 8,
        "value_bits": 4,
    }


def worked_out() -> dict[str, Any]:
    key = torch.full((4, 1, 64), POISON, dtype=torch.int16).view(BF16)
    value = key.clone()
    key[1:3], value[1], value[2] = 0.0, -1.0, 0.0
    key[1, 0, :2] = torch.tensor([1.0, -2.0])
    key[2, 0, 63] = 448.0
    value[1, 0, :2] = torch.tensor([-0.5, 0.0])
    return {"key_out": key, "value_out": value}


def rotated_by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """All codes 4: every element is 1/8 of the norm, and back in the model's basis the first is
    all of it.
    """
    slot = bytes.fromhex("244992" * 8 + "0042" + "ffffff" * 8 + "003c" + "0000")
    cache = torch.tensor(list(slot), dtype=torch.uint8).view(1, 1, 1, 54)
    out = torch.full((1, 1, 64), POISON, dtype=torch.int16).view(FP16)
    return {
        "key_out": out.to(device),
        "value_out": out.clone().to(device),
        "kv_cache": cache.to(device),
        "block_table": torch.zeros(1, 1, dtype=torch.int32, device=device),
        "seq_lens": torch.ones(1, dtype=torch.int32, device=device),
        "starts": torch.zeros(1, dtype=torch.int32, device=device),
        "key_bits": 3,
        "value_bits": 3,
    }


def rotated_worked_out() -> dict[str, Any]:
    key = torch.zeros(1, 1, 64, dtype=FP16)
    key[0, 0, 0] = 3.0
    return {"key_out": key, "value_out": torch.full((1, 1, 64), 7.0, dtype=FP16)}


def by_hands() -> list[Case]:
    return [
        Case("k8v4: by hand", by_hand, expected=worked_out),
        Case("3bit_nc: by hand", rotated_by_hand, expected=rotated_worked_out,
             tolerance=Tolerance(1e-6, 0.0)),
    ]  # fmt: skip


# The lists ----------------------------------------------------------------------------------------

RAGGED = (37, 0, 1, 64, 5, 0, 130)


def correctness() -> Iterator[Call]:
    for preset, head_dim, dtype in itertools.product(PRESETS, (64, 128, 256), (BF16, FP16)):
        call = Call(preset, RAGGED, 8, head_dim, dtype=dtype)
        yield replace(call, gaps=True, gap=32)
        yield replace(call, heads=3, rotate=False, upstream=True)
    for preset in PRESETS:
        call = Call(preset, RAGGED)
        for heads in (1, 2, 5, 7, 16, 33):
            yield replace(call, heads=heads, gaps=True, gap=6, upstream=heads % 2 == 1)
        for page in (1, 24, 32, 64, 128):
            yield replace(call, page=page, extremes=True)
        for length in (0, 1, 2, 3, 4, 5, 33):
            yield replace(call, lengths=(length,), heads=4 if length % 2 else 8)
        yield replace(call, lengths=(), gaps=True)
        yield replace(call, lengths=(0, 0, 0), gaps=True)
        yield replace(call, lengths=tuple(i % 7 for i in range(300)), heads=2)
        yield replace(call, invalid=True)
        yield replace(call, invalid=True, heads=3, gap=2)
        yield replace(call, lengths=(100, 60), far=2**31 + 2**20)
        yield replace(call, lengths=(2**31 // (2 * 8 * 128) + 40,), page=128)


def timed() -> Iterator[Call]:
    for preset in PRESETS:
        call = Call(preset, (1024,))
        for lengths in ((1024,), (8192,), (65536,), (8192,) * 8):
            yield replace(call, lengths=lengths)
        yield replace(call, lengths=(65536,), head_dim=64)
        yield replace(call, lengths=(32768,), head_dim=256)
        yield replace(call, lengths=(65536,), rotate=False)
        yield replace(call, lengths=(65536,), upstream=True, dtype=FP16)


def cases() -> list[Case]:
    return (
        by_hands()
        + [call.case() for call in correctness()]
        + [call.case(bench=True) for call in timed()]
    )
