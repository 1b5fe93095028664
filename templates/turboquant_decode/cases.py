"""Calls of turboquant_decode: every preset, size of head, page and group; requests of no token, of
one and of 131072; several queries, windows, sinks; views with gaps and pages past 2^31 bytes.

Keys and values are random codes with the norms, steps and minimums of vectors of normal numbers.
What lies behind a request's last token is made of ones, which is no number in any of the formats.
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
TOLERANCES = {FP16: Tolerance(2e-3, 0.0), BF16: Tolerance(1.6e-2, 0.0)}
MULTIPROCESSORS = 256
"""What scratch is made for."""
FILLED = 512
"""Pages at once: random numbers take many times their codes."""


def slot_bytes(head_dim: int, key_bits: int, value_bits: int) -> int:
    return head_dim * (key_bits + value_bits) // 8 + (4 if key_bits == 8 else 6)


@dataclass(frozen=True)
class Call:
    """A call to make.

    heads: of the cache; group: of q for each of those. spare: pages that the table has room for
    beyond the longest request. gap: bytes between pages, and elements between rows of q and out.
    far: bytes of unused pages before the used ones. magnitude: of queries.
    """

    preset: tuple[int, int]
    lengths: tuple[int, ...]
    heads: int = 8
    group: int = 4
    head_dim: int = 128
    page: int = 16
    dtype: torch.dtype = FP16
    queries: int = 1
    window: int = 0
    sinks: bool = False
    lse: bool = True
    spare: int = 2
    gap: int = 0
    far: int = 0
    magnitude: float = 1.0
    label: str = ""

    @property
    def name(self) -> str:
        lengths = self.label or ", ".join(str(length) for length in self.lengths)
        parts = [PRESETS[self.preset], str(self.dtype).removeprefix("torch."),
                 f"{self.heads} x {self.group} heads of {self.head_dim}", f"page {self.page}",
                 f"tokens {lengths}"]  # fmt: skip
        plain = Call(self.preset, self.lengths)
        fields = ("queries", "window", "sinks", "lse", "gap", "far", "magnitude")
        unusual = [each for each in fields if getattr(self, each) != getattr(plain, each)]
        return ", ".join([*parts, *(f"{each} {getattr(self, each)}" for each in unusual)])

    @property
    def slot(self) -> int:
        return slot_bytes(self.head_dim, *self.preset)

    @property
    def pages(self) -> int:
        """That the requests have tokens in."""
        return sum(-(-max(length, 0) // self.page) for length in self.lengths)

    @property
    def stride(self) -> int:
        return self.page * self.heads * self.slot + self.gap

    @property
    def scratch(self) -> int:
        rows = self.queries * self.heads * self.group
        return 2 * MULTIPROCESSORS * rows * (self.head_dim + 4)

    @property
    def read(self) -> int:
        seen = (min(n, self.window + self.queries - 1) if self.window else n for n in self.lengths)
        rows = len(self.lengths) * self.queries * self.heads * self.group
        return sum(max(n, 0) for n in seen) * self.heads * self.slot + rows * self.head_dim * 2

    @property
    def write(self) -> int:
        return len(self.lengths) * self.queries * self.heads * self.group * self.head_dim * 2

    def make(self, device: Any, seed: int) -> dict[str, Any]:
        random = torch.Generator(device).manual_seed(seed)
        skipped = -(-self.far // self.stride)
        cache = self._cache(random, device, skipped)
        rows, heads = len(self.lengths) * self.queries, self.heads * self.group
        pitch = heads * self.head_dim + self.gap
        q = torch.randn(rows * pitch + 64, generator=random, device=device) * self.magnitude
        out = torch.full((rows * pitch + 64,), -7.0, dtype=self.dtype, device=device)
        form = ((rows, heads, self.head_dim), (pitch, self.head_dim, 1))
        sinks = torch.randn(heads, generator=random, device=device) * 3 if self.sinks else None
        lse = torch.full((rows, heads), -7.0, device=device) if self.lse else None
        table = torch.full(self._table_form, -(2**31), dtype=torch.int32, device=device)
        order = torch.randperm(self.pages, generator=random, device=device).int() + skipped
        used = 0
        for request, length in enumerate(self.lengths):
            count = -(-max(length, 0) // self.page)
            table[request, :count] = order[used : used + count]
            if length % self.page and length > 0:
                cache[order[used + count - 1], length % self.page :] = 0xFF
            used += count
        return {
            "out": out.as_strided(*form),
            "q": q.to(self.dtype).as_strided(*form),
            "kv_cache": cache,
            "block_table": table,
            "seq_lens": torch.tensor(self.lengths, dtype=torch.int32, device=device),
            "workspace": torch.full((self.scratch,), float("nan"), device=device),
            "counters": torch.zeros(4 * MULTIPROCESSORS, dtype=torch.int32, device=device),
            "scale": self.head_dim**-0.5,
            "key_bits": self.preset[0],
            "value_bits": self.preset[1],
            "queries": self.queries,
            "window": self.window,
            "sinks": sinks,
            "lse": lse,
        }

    @property
    def _table_form(self) -> tuple[int, int]:
        longest = max((max(length, 0) for length in self.lengths), default=0)
        return len(self.lengths), -(-longest // self.page) + self.spare

    def _cache(self, random: torch.Generator, device: Any, skipped: int) -> torch.Tensor:
        total = skipped + self.pages + 1
        storage = torch.empty(total * self.stride + 64, dtype=torch.uint8, device=device)
        shape = (total, self.page, self.heads, self.slot)
        steps = (self.stride, self.heads * self.slot, self.slot, 1)
        cache = storage.as_strided(shape, steps)
        storage[skipped * self.stride :].fill_(0xFF)  # NaN in gaps and behind the last slot
        for first in range(skipped, total, FILLED):
            fill(cache[first : first + FILLED], self.head_dim, *self.preset, random)
        return cache


def fill(
    slots: torch.Tensor, head_dim: int, key_bits: int, value_bits: int, random: torch.Generator
) -> None:
    """Random slots ``[..., bytes]``."""

    def normal(*form: int) -> torch.Tensor:
        return torch.randn(form, generator=random, device=slots.device)

    def halves(at: int, values: torch.Tensor) -> None:
        octets = values.to(torch.float16)[..., None].contiguous().view(torch.uint8)
        slots[..., at : at + 2] = octets

    lead = slots.shape[:-1]
    slots.random_(0, 256, generator=random)
    value_at = head_dim * key_bits // 8
    if key_bits == 8:
        keys = normal(*lead, head_dim).to(torch.float8_e4m3fn)
        slots[..., :head_dim] = keys.view(torch.uint8)
    else:
        halves(value_at, head_dim**0.5 * (1 + 0.2 * normal(*lead)))
        value_at += 2
    step_at = value_at + head_dim * value_bits // 8
    halves(step_at, (0.3 + 0.02 * normal(*lead)) * 15 / (2**value_bits - 1))
    halves(step_at + 2, -2.25 + 0.2 * normal(*lead))


def case(call: Call, *, bench: bool = False) -> Case:
    held = call.far + 2 * (call.pages + 2) * call.stride
    longest = max((max(n, 0) for n in call.lengths), default=0)
    filled = min(call.pages + 1, FILLED) * call.page
    work = 40 * (longest * call.group + filled) * call.heads * call.head_dim
    return Case(
        name=call.name,
        make=call.make,
        tolerance=replace(TOLERANCES[call.dtype], relative=1e-3 if call.magnitude > 1 else 0.0),
        read=call.read,
        write=call.write,
        flops=4 * sum(call.lengths) * call.queries * call.heads * call.group * call.head_dim,
        bench=bench,
        memory=held + work + 4 * call.scratch,
    )


MIXED = (1, 0, 17, 1000, 16, 333, 0, 64, 15, 2049)


def correctness() -> Iterator[Call]:
    for preset in PRESETS:
        one = Call(preset, MIXED)
        for head_dim, dtype in itertools.product((64, 128, 256), (FP16, BF16)):
            yield replace(one, head_dim=head_dim, dtype=dtype)
        for page in (32, 64, 128):
            yield replace(one, page=page, gap=96)
        for heads, group in (
            (8, 1),
            (1, 8),
            (2, 16),
            (3, 5),
            (4, 2),
            (5, 3),
            (6, 8),
            (7, 4),
            (16, 1),
        ):
            yield replace(one, heads=heads, group=group, head_dim=64 if heads % 2 else 128)
        few = replace(one, heads=1, group=3, lengths=(1, 17, 0, 33))  # what sanitizers run
        for head_dim, queries in ((64, 1), (64, 3), (128, 1), (128, 3), (256, 1)):
            yield replace(few, head_dim=head_dim, queries=queries, sinks=queries == 1)
        yield replace(one, heads=1, group=5, head_dim=256, gap=16)
        yield replace(one, heads=3, group=16, head_dim=256, dtype=BF16)
        for queries in (2, 3, 5, 8):
            yield replace(one, queries=queries, lengths=(8, 4, 0, 100, 23, 5000), group=queries)
        yield replace(one, queries=8, group=16, heads=2, lengths=(8, 700, 3), head_dim=64)
        yield replace(one, queries=8, group=4, head_dim=256, lengths=(9, 2000))
        for window in (1, 16, 100, 5000):
            yield replace(one, window=window, queries=1 + window % 3)
        yield replace(one, sinks=True)
        yield replace(one, sinks=True, window=33, queries=4, lengths=(0, 2, 40, 5000))
        yield replace(one, lse=False, sinks=True, heads=2)
        yield replace(one, lengths=(131072,), page=64)
        yield replace(one, lengths=(20000,), heads=1, group=16)
        # Blocks that wait for two requests, and that begin or end with one that few share.
        yield replace(one, lengths=(30000, 20000, 50000))
        yield replace(one, lengths=(3000, 70000, 5, 0, 90000, 2), queries=2, heads=4, group=2)
        yield replace(one, lengths=(50000,), heads=16, group=2)
        yield replace(one, lengths=tuple(range(300)), heads=2, head_dim=64, label="0 to 299")
        yield replace(one, lengths=(0, 0, 0))
        yield replace(one, lengths=(0, -1), spare=0)  # a page table without columns
        yield replace(one, lengths=())
        yield replace(one, lengths=(-5, 40))
        yield replace(one, lengths=(700, 3), far=2**31 + 2**20)
        yield replace(one, dtype=BF16, magnitude=4.0, lengths=(40, 3000))
        yield replace(one, magnitude=1e-6, lengths=(40, 300))
        yield replace(one, dtype=BF16, magnitude=1e30, lengths=(1, 1, 2), lse=False)


# Worked out by hand -------------------------------------------------------------------------------


def by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """k8v4, heads of 64: two tokens whose keys are 1 and 2 in their first element, and ln 2 of it.

    Their values are 0 with a minimum of 1, and code 1 throughout with a step of 2 and a minimum 2.
    """
    cache = torch.zeros(1, 16, 1, 100, dtype=torch.uint8)
    cache[0, 0, 0, 0], cache[0, 1, 0, 0] = 0x38, 0x40
    cache[0, 0, 0, 98:] = torch.tensor([0x00, 0x3C])
    cache[0, 1, 0, 64:96] = 0x11
    cache[0, 1, 0, 96:] = torch.tensor([0x00, 0x40, 0x00, 0x40])
    q = torch.zeros(1, 1, 64, dtype=FP16)
    q[0, 0, 0] = 1.0
    scratch = 2 * MULTIPROCESSORS * 68
    return {
        "out": torch.full((1, 1, 64), -7.0, dtype=FP16, device=device),
        "q": q.to(device),
        "kv_cache": cache.to(device),
        "block_table": torch.zeros(1, 1, dtype=torch.int32, device=device),
        "seq_lens": torch.tensor([2], dtype=torch.int32, device=device),
        "workspace": torch.zeros(scratch, device=device),
        "counters": torch.zeros(4 * MULTIPROCESSORS, dtype=torch.int32, device=device),
        "scale": 0.6931471805599453,
        "key_bits": 8,
        "value_bits": 4,
        "queries": 1,
        "window": 0,
        "sinks": None,
        "lse": torch.full((1, 1), -7.0, device=device),
    }


def worked_out() -> dict[str, Any]:
    """Weights 2 and 4 of 6: (2 * 1 + 4 * 4) / 6 = 3, and the logarithm of 6."""
    return {
        "out": torch.full((1, 1, 64), 3.0, dtype=FP16),
        "lse": torch.full((1, 1), 1.791759469228055),
        "counters": torch.zeros(4 * MULTIPROCESSORS, dtype=torch.int32),
    }


# What serving sees --------------------------------------------------------------------------------


def alike(preset: tuple[int, int], requests: int, length: int, **more: Any) -> Call:
    """Requests of one length, as a model in bf16 makes them."""
    label = f"{requests} x {length}"
    call = Call(preset, (length,) * requests, lse=False, spare=0, dtype=BF16, label=label)
    return replace(call, **more)


def timed() -> Iterator[Call]:
    sizes = ((1, 4096), (1, 32768), (1, 131072), (16, 8192), (64, 8192), (128, 4096))
    for preset in PRESETS:
        for requests, length in sizes:
            yield alike(preset, requests, length)
        yield alike(preset, 64, 8192, head_dim=64)
        yield alike(preset, 64, 8192, head_dim=256, heads=4)
        for heads, group in ((8, 1), (4, 8), (2, 16), (1, 8)):
            yield alike(preset, 64, 8192, heads=heads, group=group)
        yield alike(preset, 64, 8192, queries=4)
        yield alike(preset, 64, 8192, page=64)
        lengths = tuple(1 + 613 * i % 16384 for i in range(64))
        yield alike(preset, 64, 8192, lengths=lengths, label="64 of 1 to 16384")


def cases() -> list[Case]:
    tolerance = TOLERANCES[FP16]
    hand = Case("k8v4: by hand", by_hand, tolerance=tolerance, expected=worked_out)
    return [
        hand,
        *(case(call) for call in correctness()),
        *(case(call, bench=True) for call in timed()),
    ]
