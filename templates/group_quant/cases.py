"""Calls of group_quant: every combination, padding to the byte, odd numbers, huge sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from dsv4_aot.generator.spec import Case

Scales = Literal["packed", "rows", "columns"]

BF16, FP16 = torch.bfloat16, torch.float16
E4M3, INT8 = torch.float8_e4m3fn, torch.int8
SCALES: tuple[Scales, ...] = ("packed", "rows", "columns")
RANGES = {E4M3: (-448.0, 448.0), INT8: (-128.0, 127.0)}
CANARIES = 64  # bytes or scales behind the last one that belongs to the call


@dataclass(frozen=True)
class Call:
    """One call. scales: packed words, or floats row by row or in columns of ``rows + gap``.

    groups: of a row. more_q: rows that output_q has beyond those of the input.
    data: plain random numbers, or every kind of number that is treated differently.
    """

    rows: int
    groups: int
    group_size: int
    scales: Scales = "packed"
    input: torch.dtype = BF16
    output: torch.dtype = E4M3
    ue8m0: bool = True
    more_q: int = 0
    gap: int = 0
    leading: tuple[int, ...] = ()
    data: Literal["plain", "edges"] = "plain"
    eps: float = 1e-10
    range: tuple[float, float] | None = None

    @property
    def k(self) -> int:
        return self.groups * self.group_size

    @property
    def name(self) -> str:
        parts = [
            f"{_short(self.input)}->{_short(self.output)} {self.scales} {self.k} x {self.rows}",
            f"group {self.group_size}",
        ]
        plain = replace(Call(self.rows, self.groups, self.group_size), scales=self.scales)
        fields = ("ue8m0", "more_q", "gap", "leading", "data", "eps", "range")
        unusual = [each for each in fields if getattr(self, each) != getattr(plain, each)]
        return ", ".join([*parts, *(f"{each} {getattr(self, each)}" for each in unusual)])

    @property
    def scale_count(self) -> int:
        """Elements of output_s's storage."""
        if self.scales == "packed":
            return self.rows + (_ceil(self.groups, 4) // 4 - 1) * _ceil(self.rows, 4)
        return (self.rows + self.gap) * self.groups

    def make(self, device: Any, seed: int) -> dict[str, Any]:
        random = torch.Generator(device).manual_seed(seed)
        x = torch.empty(self.rows, self.k, dtype=self.input, device=device)
        x.normal_(generator=random)
        if self.data == "edges":
            _put_edges(x, self.group_size, random)
        least, most = self.range or RANGES[self.output]
        return {
            "input": x.view(*self.leading, -1, self.k) if self.leading else x,
            "output_q": self._poisoned_q(device),
            "output_s": self._poisoned_s(device),
            "group_size": self.group_size,
            "eps": self.eps,
            "min": least,
            "max": most,
            "scale_ue8m0": self.ue8m0,
        }

    def _poisoned_q(self, device: Any) -> torch.Tensor:
        rows = self.rows + self.more_q
        flat = torch.full((rows * self.k + CANARIES,), 0x55, dtype=torch.uint8, device=device)
        return flat[: rows * self.k].view(rows, self.k).view(self.output)

    def _poisoned_s(self, device: Any) -> torch.Tensor:
        dtype = torch.int32 if self.scales == "packed" else torch.float32
        flat = torch.full((self.scale_count + CANARIES,), -7, dtype=dtype, device=device)
        if self.scales == "rows":
            return flat.as_strided((self.rows, self.groups), (self.groups, 1))
        if self.scales == "columns":
            return flat.as_strided((self.rows, self.groups), (1, self.rows + self.gap))
        return flat.as_strided((self.rows, _ceil(self.groups, 4) // 4), (1, _ceil(self.rows, 4)))

    def case(self, *, bench: bool = False) -> Case:
        numbers = self.rows * self.k
        scales = self.rows * self.groups * (1 if self.scales == "packed" else 4)
        held = 3 * numbers + self.more_q * self.k + 4 * self.scale_count
        return Case(
            name=self.name,
            make=self.make,
            read=2 * numbers,
            write=numbers + scales,
            bench=bench,
            memory=held,
        )


def _ceil(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _short(dtype: torch.dtype) -> str:
    return {BF16: "bf16", FP16: "fp16", E4M3: "e4m3", INT8: "int8"}[dtype]


def _put_edges(x: torch.Tensor, group_size: int, random: torch.Generator) -> None:
    """Groups of all magnitudes, and in turn one with each special number, in place."""
    groups = x.view(-1, group_size)
    info = torch.finfo(x.dtype)
    exponents = torch.randint(-36, 15, (len(groups), 1), generator=random, device=x.device)
    groups *= torch.exp2(exponents.float()).to(x.dtype)
    nan, inf = float("nan"), float("inf")
    specials = [
        [0.0] * group_size,
        [-0.0, info.smallest_normal, -info.smallest_normal / 4] * (group_size // 4),
        [nan],
        [nan] * group_size,
        [inf, info.max, -1.0],
        [-inf, nan, 0.0],
        [info.max, -info.max],
        # just what the range holds, and the next number
        [448.0] + [1.0] * (group_size - 1),
        [450.0] + [1.0] * (group_size - 1),
        [127.0, -127.5] + [0.5] * (group_size - 2),
        [2.0**-12, 2.0**-14 * 1.75] * (group_size // 2),
    ]
    for index, numbers in enumerate(specials):
        values = torch.tensor(numbers, device=x.device).to(x.dtype)
        groups[index::17, : len(numbers)] = values[: groups.shape[1]]


def _every_combination() -> Iterator[Call]:
    dtypes = itertools.product((BF16, FP16), (E4M3, INT8))
    axes = itertools.product(SCALES, (32, 64, 128, 256), dtypes, (True, False))
    for scales, group_size, (source, target), ue8m0 in axes:
        call = Call(21, 13, group_size, scales, source, target, ue8m0, data="edges")
        if scales != "packed":
            yield replace(call, gap=5 if scales == "columns" else 0)
        elif group_size in (32, 128) and ue8m0:
            yield replace(call, more_q=3)
            yield replace(call, rows=1027, groups=9)


def _padding() -> Iterator[Call]:
    """Few rows and odd numbers of groups; output_q without, with part of, all and more padding."""
    for group_size, rows in itertools.product((32, 128), (0, 1, 2, 3, 4, 5, 8)):
        for groups, more_q in ((1, 0), (2, 1), (5, _ceil(rows, 4) - rows), (56, 7)):
            yield Call(rows, groups, group_size, more_q=more_q)
    yield Call(6, 7, 128, leading=(2, 1), more_q=2)


def _strides() -> Iterator[Call]:
    for scales, group_size, rows in itertools.product(SCALES[1:], (32, 128), (0, 1, 3, 1025)):
        yield Call(rows, 7, group_size, scales, ue8m0=False, more_q=2)
        yield Call(rows, 33, group_size, scales, gap=11 if scales == "columns" else 0)


def _ranges() -> Iterator[Call]:
    """Other bounds: tight, lopsided, so small that exponents end; and other least magnitudes."""
    for scales, group_size in itertools.product(SCALES, (32, 128)):
        call = Call(40, 13, group_size, scales, data="edges")
        yield replace(call, range=(-240.0, 240.0))
        yield replace(call, range=(-10.0, 448.0))
        yield replace(call, range=(-1.0, 1.0), eps=0.0)
        yield replace(call, range=(-1e-4, 1e-4), eps=0.0)
        yield replace(call, eps=0.125)
        yield replace(call, output=INT8, range=(-127.0, 127.0))
        yield replace(call, output=INT8, range=(0.0, 100.0))


def _large() -> Iterator[Call]:
    """More rows than a grid has in its second dimension, and elements past 2^31."""
    yield Call(70_001, 5, 32)
    yield Call(600_002, 1, 128)
    yield Call(600_002, 4, 32, "columns", gap=2)
    yield Call(299_997, 224, 32, more_q=3)
    yield Call(299_997, 56, 128, "rows", ue8m0=False)
    yield Call(1_100_003, 1, 256, "rows")


# Worked out by hand -------------------------------------------------------------------------------


def by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """Two rows of three groups of 32: 448, 1 and nothing; -3, nothing and nothing."""
    x = torch.zeros(2, 96, dtype=BF16)
    x[0, 0], x[0, 32], x[1, 0] = 448.0, 1.0, -3.0
    return {
        "input": x.to(device),
        "output_q": torch.full((5, 96), 0x5A, dtype=torch.uint8, device=device).view(E4M3),
        "output_s": torch.full((6,), -1, dtype=torch.int32, device=device).as_strided(
            (2, 1), (1, 4)
        ),
        "group_size": 32, "eps": 1e-10, "min": -448.0, "max": 448.0,
    }  # fmt: skip


def expected_by_hand() -> dict[str, Any]:
    """448 / 448 is 2^0 itself: byte 127. 1 / 448 lies between 2^-9 and 2^-8: byte 119, so that 1
    becomes 256. 3 / 448 lies between 2^-8 and 2^-7: byte 120, -384. Nothing counts as 1e-10, which
    lies between 2^-34 and 2^-33: byte 94. The fourth byte pads; rows 2 and 3 are zeroed, row 4 is
    not touched, nor are scales from the third on.
    """
    q = torch.zeros(5, 96, dtype=torch.uint8)
    q[0, 0], q[0, 32], q[1, 0], q[4] = 0x7E, 0x78, 0xFC, 0x5A
    words = torch.tensor([0x005E777F, 0x005E5E78, -1, -1, -1, -1], dtype=torch.int32)
    return {"output_q": q.view(E4M3), "output_s": words.as_strided((2, 1), (1, 4))}


def by_hand_in_floats(device: Any, _seed: int) -> dict[str, Any]:
    x = torch.zeros(1, 32, dtype=BF16)
    x[0, :4] = torch.tensor([127.0, -2.75, 1.9921875, -0.5])
    return {
        "input": x.to(device),
        "output_q": torch.full((1, 32), 0x5A, dtype=INT8, device=device),
        "output_s": torch.full((1, 1), -1.0, device=device),
        "group_size": 32, "eps": 1e-10, "min": -128.0, "max": 127.0, "scale_ue8m0": False,
    }  # fmt: skip


def expected_by_hand_in_floats() -> dict[str, Any]:
    """The scale is 127 / 127, and integers are cut off toward zero."""
    q = torch.zeros(1, 32, dtype=INT8)
    q[0, :3] = torch.tensor([127, -2, 1])
    return {"output_q": q, "output_s": torch.ones(1, 1)}


def worked_out() -> list[Case]:
    return [
        Case("packed: by hand", by_hand, expected=expected_by_hand),
        Case("floats: by hand", by_hand_in_floats, expected=expected_by_hand_in_floats),
    ]


TIMED = (
    (7168, 8192), (7168, 1024), (2048, 8192), (1536, 8192), (384, 8192), (7168, 64), (7168, 1),
    (4096, 32768),
)  # fmt: skip


def cases() -> list[Case]:
    calls = [*_every_combination(), *_padding(), *_strides(), *_ranges(), *_large()]
    timed = [
        Call(rows, k // group_size, group_size)
        for (k, rows), group_size in itertools.product(TIMED, (128, 32))
    ]
    timed += [
        Call(8192, 56, 128, "rows", ue8m0=False),
        Call(8192, 56, 128, "columns"),
        Call(64, 56, 128, "rows", ue8m0=False),
    ]
    return (
        worked_out() + [call.case() for call in calls] + [call.case(bench=True) for call in timed]
    )
