"""Tensors of other libraries: read through DLPack and the CUDA array interface, or refused."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from dsv4_aot.runtime import ArgumentError
from dsv4_aot.runtime.abi import ITEMSIZE
from dsv4_aot.runtime.tensor import NAMES, View, adapt, meet_torch, spellings
from tests.recording import RecordingDriver

DRIVER = RecordingDriver(pointer_devices={0x4000: 0, 0x4001: 0, 0x5000: None, 0x6000: 1})


class Array:
    """Anything with a CUDA array interface."""

    def __init__(self, typestr: str, shape: tuple[int, ...], pointer: int, **more: Any) -> None:
        self.__cuda_array_interface__ = {
            "version": 3, "typestr": typestr, "shape": shape, "data": (pointer, False), **more
        }  # fmt: skip


class Bfloat16Array(Array):
    dtype = "bfloat16"


class Capsule:
    """Host memory that claims to be a device's, to be looked at and never touched."""

    def __init__(self, tensor: torch.Tensor, kind: int = 2) -> None:
        self.tensor = tensor
        self.kind = kind
        self.asked: list[int | None] = []

    def __dlpack__(self, *, stream: int | None = None) -> object:
        self.asked.append(stream)
        return self.tensor.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0


def read(view: View) -> tuple[Any, ...]:
    return view.dtype, view.shape, view.stride(), view.data_ptr(), view.get_device()


def test_the_cuda_array_interface() -> None:
    assert read(adapt(Array("<f4", (2, 3), 0x4000), "x", DRIVER)) == (
        "float32", (2, 3), (3, 1), 0x4000, 0
    )  # fmt: skip
    strided = Array("<i4", (2, 3), 0x6000, strides=(400, 8))
    assert read(adapt(strided, "x", DRIVER)) == ("int32", (2, 3), (100, 2), 0x6000, 1)
    assert read(adapt(Bfloat16Array("<V2", (4,), 0x4000), "x", DRIVER))[0] == "bfloat16"
    assert read(adapt(Array("|u1", (0,), 0), "x", DRIVER))[3:] == (0, 0)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Array("<f4", (2,), 0x5000), "that is not in a CUDA device's memory"),
        (Array("<f4", (2,), 0x4001), "whose elements are not aligned to their size"),
        (Array("<c8", (2,), 0x4000), "of dtype <c8, which no kernel takes"),
        (Array("<V2", (2,), 0x4000), "of dtype <V2, which no kernel takes"),
        (Array(">f4", (2,), 0x4000), "of type >f4 with swapped bytes or a mask"),
        (Array("<f4", (2,), 0x4000, strides=(6,)), "whose strides are no whole elements"),
        (Array("<f4", (2,), 0x4000, mask=1), "of type <f4 with swapped bytes or a mask"),
        (Capsule(torch.zeros(3), kind=1), "that is not in a CUDA device's memory"),
        (Capsule(torch.zeros(3, dtype=torch.complex64)), "of dtype DLPack 5/64"),
        (torch.zeros(3), "a torch tensor on cpu"),
        (torch.zeros(3, device="meta"), "a torch tensor on meta"),
        (3, "x is a int, allowed: a CUDA tensor of torch"),
    ],
)
def test_what_is_no_device_tensor_is_refused(value: object, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        adapt(value, "x", DRIVER)


def test_a_protocol_that_raises_is_an_argument_error() -> None:
    class Broken:
        @property
        def __cuda_array_interface__(self) -> object:
            raise BufferError("no view today")

    with pytest.raises(ArgumentError, match="gives no view: no view today"):
        adapt(Broken(), "x", DRIVER)


@pytest.mark.parametrize("dtype", [name for name in ITEMSIZE if hasattr(torch, name)])
def test_dlpack_in_every_dtype(dtype: str) -> None:
    tensor = torch.zeros(4, 6, dtype=getattr(torch, dtype))[1:, ::2]
    source = Capsule(tensor)
    view = adapt(source, "x", DRIVER, stream=9)
    assert read(view) == (dtype, (3, 3), (6, 2), tensor.data_ptr(), 0)
    assert source.asked == [9]
    adapt(source, "x", DRIVER)
    assert source.asked[1] == 1  # the null stream, as DLPack numbers it


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((2, 3), (3, 1)), ((2, 3), (1, 2)), ((1, 3), (9, 1)), ((0, 3), (5, 7)), ((), ())],
)
def test_contiguity_is_torchs(shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    like = torch.zeros(64).as_strided(shape, stride)
    view = View("float32", shape, stride, 0, 0, None)
    assert view.is_contiguous() == like.is_contiguous()
    assert view.numel() == like.numel()


def test_torchs_dtypes_are_learnt_when_torch_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4_aot.runtime.tensor.NAMES", {name: name for name in ITEMSIZE})
    monkeypatch.setattr("dsv4_aot.runtime.tensor._SPELLINGS", {})
    group = spellings(("int8", "bfloat16"))
    assert group == {"int8", "bfloat16"}
    with monkeypatch.context() as without:
        without.delitem(sys.modules, "torch")
        assert not meet_torch()
    assert group == {"int8", "bfloat16"}
    assert meet_torch()
    assert group == {"int8", "bfloat16", torch.int8, torch.bfloat16}


def test_every_dtype_has_a_name() -> None:
    meet_torch()
    assert all(NAMES[name] == name for name in ITEMSIZE)
