"""Element types of tensors, types of kernel parameters, and how parameters lie in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

Dtype = Literal[
    "bfloat16",
    "float16",
    "float32",
    "float64",
    "float8_e4m3fn",
    "float8_e5m2",
    "int8",
    "uint8",
    "int16",
    "int32",
    "int64",
    "bool",
]
"""Element types by PyTorch's names (without ``torch.``)."""

ITEMSIZE: dict[str, int] = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "bool": 1,
}
"""Bytes an element."""

ParamType = Literal["pointer", "i32", "u32", "i64", "u64", "f32", "f64"]

PARAM_FORMAT: dict[str, str] = {
    "pointer": "Q",
    "i32": "i",
    "u32": "I",
    "i64": "q",
    "u64": "Q",
    "f32": "f",
    "f64": "d",
}
"""``struct`` format character of each parameter type."""

PARAM_SIZE: dict[str, int] = {
    "pointer": 8,
    "i32": 4,
    "u32": 4,
    "i64": 8,
    "u64": 8,
    "f32": 4,
    "f64": 8,
}
"""Bytes of each parameter type, which is also its alignment."""

PARAM_RANGE: dict[str, tuple[int, int]] = {
    "i32": (-(2**31), 2**31 - 1),
    "u32": (0, 2**32 - 1),
    "i64": (-(2**63), 2**63 - 1),
    "u64": (0, 2**64 - 1),
}
"""Smallest and largest value of the integer parameter types."""

assert set(get_args(Dtype)) == set(ITEMSIZE)
assert set(get_args(ParamType)) == set(PARAM_FORMAT) == set(PARAM_SIZE)


class Slot(msgspec.Struct, frozen=True):
    """Where one kernel parameter lies in the parameter block, in bytes."""

    offset: int
    size: int


def lay_out(types: Iterable[ParamType]) -> tuple[Slot, ...]:
    """Parameter slots by the C rules: in order, each at a multiple of its own size."""
    slots: list[Slot] = []
    end = 0
    for kind in types:
        size = PARAM_SIZE[kind]
        offset = -(-end // size) * size
        slots.append(Slot(offset, size))
        end = offset + size
    return tuple(slots)
