"""Calls of turboquant_store: every preset, the vectors of the format's description, all layouts.

Random keys are settled: none of their elements lies so near to a midpoint, and no norm so near to
where fp16 rounds the other way, that the order of a sum could decide. Bytes are then equal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from dsv4_aot.generator.spec import Case
from dsv4_aot.templates.turboquant_store.reference import midpoints, rotate

BF16, FP16 = torch.bfloat16, torch.float16
PRESETS = {(8, 4): "k8v4", (4, 4): "4bit_nc", (3, 4): "k3v4_nc", (3, 3): "3bit_nc"}
POISON = 0xA5
MARGIN = 1e-6
"""To the next midpoint, of elements of a key of norm 1, and to the next tie of a norm of 1."""


def slot_bytes(head_dim: int, key_bits: int, value_bits: int) -> int:
    return head_dim * (key_bits + value_bits) // 8 + (4 if key_bits == 8 else 6)


@dataclass(frozen=True)
class Call:
    """A call to make.

    skipped: every third token has no slot, or one that no page has. spare: tokens that key and
    value have beyond slot_mapping. fused: key and value are slices of one projection. gap: bytes
    between pages. far: bytes of unused pages before the used ones. edges: keys and values that are
    special.
    """

    preset: tuple[int, int]
    tokens: int
    heads: int = 8
    head_dim: int = 128
    page: int = 16
    dtype: torch.dtype = BF16
    slots: torch.dtype = torch.int64
    order: Literal["random", "sequence"] = "random"
    skipped: bool = False
    spare: int = 0
    fused: bool = False
    gap: int = 0
    far: int = 0
    edges: bool = False

    @property
    def name(self) -> str:
        plain = Call(self.preset, self.tokens)
        fields = ("slots", "order", "skipped", "spare", "fused", "gap", "far", "edges")
        unusual = [each for each in fields if getattr(self, each) != getattr(plain, each)]
        parts = [
            PRESETS[self.preset],
            str(self.dtype),
            f"{self.tokens} x {self.heads} x {self.head_dim}",
            f"page {self.page}",
            *(f"{each} {getattr(self, each)}".removesuffix(" True") for each in unusual),
        ]
        return ", ".join(parts).replace("torch.", "")

    @property
    def slot(self) -> int:
        return slot_bytes(self.head_dim, *self.preset)

    @property
    def page_stride(self) -> int:
        return self.page * self.heads * self.slot + self.gap

    def make(self, device: Any, seed: int) -> dict[str, Any]:
        random = torch.Generator(device).manual_seed(seed)
        key, value = self._rows(random, device)
        if self.preset[0] != 8:
            settle(key, self.preset[0], random)
        if self.edges:
            put_edges(key, value)
        used = 2 + math.ceil(self.tokens * 1.3 / self.page)
        skipped = -(-self.far // self.page_stride)
        storage = torch.full(((skipped + used) * self.page_stride + 64,), POISON,
                             dtype=torch.uint8, device=device)  # fmt: skip
        form = (skipped + used, self.page, self.heads, self.slot)
        steps = (self.page_stride, self.heads * self.slot, self.slot, 1)
        return {
            "key": key,
            "value": value,
            "kv_cache": storage.as_strided(form, steps, storage_offset=2 if self.gap else 0),
            "slot_mapping": self._slots(skipped, used, random, device),
            "key_bits": self.preset[0],
            "value_bits": self.preset[1],
        }

    def _rows(self, random: torch.Generator, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.tokens + self.spare

        def normal(*form: int) -> torch.Tensor:
            return torch.randn(form, generator=random, device=device).to(self.dtype)

        if self.fused:  # query, key and value of a token one behind the other
            both = normal(tokens, 3 * self.heads + 1, self.head_dim)
            return both[:, self.heads : 2 * self.heads], both[:, 2 * self.heads : -1]
        form = (tokens, self.heads, self.head_dim)
        return normal(*form), normal(*form)

    def _slots(self, skipped: int, used: int, random: torch.Generator, device: Any) -> torch.Tensor:
        if self.order == "sequence":
            slots = torch.arange(self.tokens, device=device)
        else:
            slots = torch.randperm(used * self.page, generator=random, device=device)
        slots = slots[: self.tokens] + skipped * self.page
        if self.skipped:
            end = (skipped + used) * self.page
            least, most = torch.iinfo(self.slots).min, torch.iinfo(self.slots).max
            none = torch.tensor([-1, end, least, -2, end + 7, most, -1], device=device)
            slots[1::3] = none.repeat(1 + self.tokens // 7)[: len(slots[1::3])]
        return slots.to(self.slots)

    def case(self, *, bench: bool = False) -> Case:
        pairs = self.tokens * self.heads
        return Case(
            name=self.name,
            make=self.make,
            read=pairs * self.head_dim * 4 + self.tokens * self.slots.itemsize,
            write=pairs * self.slot,
            bench=bench,
            peer_share=0.01,  # codes of values next to a tie, by a peer's inexact division
            memory=self.far + pairs * (self.head_dim * 4 + 2 * self.slot),
        )


# Keys and values ----------------------------------------------------------------------------------


Change = Callable[[torch.Tensor], torch.Tensor]
"""Makes a vector special, in place."""


def undecided(key: torch.Tensor, bits: int) -> torch.Tensor:
    """Which keys a last bit could decide -> bool ``[...]``, of ``[..., head_dim]``."""
    rotated, norm = rotate(key.float())
    near = torch.zeros_like(rotated, dtype=torch.bool)
    for midpoint in midpoints(key.shape[-1], bits, key.device):
        near |= (rotated - midpoint).abs() < MARGIN
    exact = norm.double()
    rounded = [(exact * factor).half() for factor in (1 - MARGIN, 1 + MARGIN)]
    return near.any(-1) | (rounded[0] != rounded[1])


def settle(key: torch.Tensor, bits: int, random: torch.Generator) -> None:
    """Draws those keys again, in place, a part at a time."""
    for part in torch.split(key, 2048):
        bad = undecided(part, bits)
        while bool(bad.any()):
            again = torch.randn(part[bad].shape, generator=random, device=key.device)
            part[bad] = again.to(key.dtype)
            bad = undecided(part, bits)


def put_edges(key: torch.Tensor, value: torch.Tensor) -> None:
    """Special keys and values, in place of the first ones of ``[tokens, heads, head_dim]``."""
    wide = key.dtype == BF16
    nan, inf = float("nan"), float("inf")
    keys: list[Change] = [
        lambda k: k.zero_(),
        lambda k: k.fill_(-0.0),
        lambda k: k.mul_(1024),  # an exact multiple stays settled
        lambda k: k.mul_(2.0**-12 if wide else 2.0**-3),
        lambda k: k.zero_()[5:6].fill_(3.0),  # rotated, all elements are as great
        lambda k: k[7:8].fill_(nan),
        lambda k: k[9:10].fill_(-inf),
        lambda k: k.fill_(2.0**100 if wide else 448.0),  # a norm beyond float32
        lambda k: k[:4].copy_(torch.tensor([448.0, 449.0, -500.0, 2.0**-9])),
    ]
    ramp = torch.arange(value.shape[-1], device=value.device)
    values: list[Change] = [
        lambda v: v.zero_(),
        lambda v: v.fill_(-0.0),
        lambda v: v.fill_(1.5),
        lambda v: v.copy_(ramp % 31 - 15),  # ties, of which there are many
        lambda v: v.copy_(ramp % 15 * 3),
        lambda v: v.copy_(ramp % 2 * 2.0**-24),
        lambda v: v.mul_(2.0**10),
        lambda v: v.abs_()[3:5].copy_(torch.tensor([-0.0, 0.0])),
        lambda v: v.zero_()[-1:].fill_(-7.0),
    ]
    for rows, changes in ((key, keys), (value, values)):
        for index, change in enumerate(changes):
            change(rows[index % len(rows), index // len(rows) % rows.shape[1]])


# The vectors of the format's description ----------------------------------------------------------

K8 = (
    "1e2f34373838342f1aaab3b7b9b9b7b3a9213136393a3936301aacb5b9babab9b4aa2332383a3b3a38311baeb7babc"
    "bbbab6ab2534393c3c3b39321ab0b8bbbdbdbbb7ac27353a3d3e3d3a331ab1b9bdbebebcb8ad28373c3e3f3e3b3419"
    "b2babec0bfbdb9ae2a383d40403f3c3518b3bbbfc0c0bebaaf2b393e4041403c3616"
)
K4 = (
    "8a7878773380809a878888788c787876878888788f786974778787888788897886888a788f6a4c717787878885898b"
    "7877878788938b8e797877778776878688ae4a"
)
K3 = (
    "25c76d09089623497226c76d23497227c769db389223497223597267e760db3892226972db3892617972dcb68ddb38"
    "92ae4a"
)
V4 = (
    "feffdeac7845120010215497caedffefcd9b67341100103275a8dcfeffeebd8a46230100214386b9ecfeffdeac7835"
    "120010215497cbedffefcd9b6734110010443400c0"
)
V3 = (
    "ff7fb79c940040a28db5ffff76b9290100441a5bfbffed925302004834b2f6ffdf2d272500906863edffbf5d6e4a00"
    "00923800c0"
)
SLOTS = {(8, 4): K8 + V4, (4, 4): K4 + V4, (3, 4): K3 + V4, (3, 3): K3 + V3}


def described(preset: tuple[int, int], device: Any, _seed: int) -> dict[str, Any]:
    """One token of one head, into the second place of the second page of two."""
    i = torch.arange(128, dtype=torch.float64)
    key = torch.sin(0.37 * i + 0.11) * (1 + 0.01 * i)
    value = 2 * torch.cos(0.23 * i - 0.4)
    cache = torch.full((2, 2, 1, slot_bytes(128, *preset)), POISON, dtype=torch.uint8)
    return {
        "key": key.half().view(1, 1, 128).to(device),
        "value": value.half().view(1, 1, 128).to(device),
        "kv_cache": cache.to(device),
        "slot_mapping": torch.tensor([3], device=device),
        "key_bits": preset[0],
        "value_bits": preset[1],
    }


def as_described(preset: tuple[int, int]) -> dict[str, Any]:
    slot = torch.tensor(list(bytes.fromhex(SLOTS[preset])), dtype=torch.uint8)
    cache = torch.full((2, 2, 1, len(slot)), POISON, dtype=torch.uint8)
    cache[1, 1, 0] = slot
    return {"kv_cache": cache}


def of_nothing(device: Any, _seed: int) -> dict[str, Any]:
    """A key of zeros, and a value of 1.5 throughout; a token without a slot behind them."""
    value = torch.full((2, 1, 64), 1.5, dtype=BF16)
    return {
        "key": torch.zeros(2, 1, 64, dtype=BF16, device=device),
        "value": value.to(device),
        "kv_cache": torch.full((1, 1, 1, 54), POISON, dtype=torch.uint8, device=device),
        "slot_mapping": torch.tensor([0, -1], dtype=torch.int32, device=device),
        "key_bits": 3,
        "value_bits": 3,
    }


def as_nothing() -> dict[str, Any]:
    """Every code of the key is 4, the first that is not below 0: bits 001, the lowest first."""
    slot = bytes.fromhex("244992" * 8 + "0000" + "000000" * 8 + "0000" + "003e")
    return {"kv_cache": torch.tensor(list(slot), dtype=torch.uint8).view(1, 1, 1, 54)}


def worked_out() -> list[Case]:
    return [
        Case(f"{name}: as described", partial(described, preset),
             expected=partial(as_described, preset))
        for preset, name in PRESETS.items()
    ] + [Case("3bit_nc: by hand", of_nothing, expected=as_nothing)]  # fmt: skip


# The lists ----------------------------------------------------------------------------------------


def correctness() -> Iterator[Call]:
    combinations = itertools.product(PRESETS, (64, 128, 256), (BF16, FP16))
    for preset, head_dim, dtype in combinations:
        call = Call(preset, 37, 8, head_dim, dtype=dtype, edges=True)
        yield replace(call, skipped=True, spare=3)
        yield replace(call, slots=torch.int32, fused=True, gap=32, page=64)
        yield replace(call, heads=3, gap=6, skipped=True, edges=False)
    for preset in PRESETS:
        call = Call(preset, 41)
        for heads in (1, 2, 3, 4, 5, 7, 16, 33):
            yield replace(call, heads=heads, gap=10, skipped=heads % 2 == 0)
            yield replace(call, heads=heads, slots=torch.int32, order="sequence")
        for page in (1, 16, 24, 32, 64, 128):
            yield replace(call, page=page, gap=16)
        for tokens in (0, 1, 2, 3, 4, 5, 9):
            yield replace(call, tokens=tokens, edges=tokens > 0)
            yield replace(call, tokens=tokens, heads=1, gap=2)
        yield replace(call, tokens=3000, skipped=True)
        yield replace(call, far=2**31 + 2**20, order="sequence")


def timed() -> Iterator[Call]:
    for preset in PRESETS:
        for tokens in (1, 64, 1024, 16384):
            yield Call(preset, tokens)
        yield Call(preset, 16384, order="sequence")
        yield Call(preset, 16384, head_dim=64)
        yield Call(preset, 16384, head_dim=256)
        yield Call(preset, 16384, heads=1, gap=2)
        yield Call(preset, 16384, dtype=FP16)


def cases() -> list[Case]:
    return (
        worked_out()
        + [call.case() for call in correctness()]
        + [call.case(bench=True) for call in timed()]
    )
