"""The real driver's wrapper, as far as it goes without a GPU, and the memory it is given."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest
from cuda.bindings import driver as cuda

from dsv4_aot.runtime import DriverError
from dsv4_aot.runtime.driver import CudaDriver
from dsv4_aot.runtime.expr import Const, Value
from dsv4_aot.runtime.packet import ATTRIBUTE_SIZE, CONFIG_SIZE, Layout
from dsv4_aot.runtime.schema import Launch, Number, Param


def answer(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    for name, value in answers.items():
        monkeypatch.setattr(cuda, name, lambda *_, value=value: value)


OK = cuda.CUresult.CUDA_SUCCESS


def test_a_driver_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, cuInit=(OK,), cuDriverGetVersion=(OK, 11080))
    with pytest.raises(DriverError) as caught:
        CudaDriver()
    assert str(caught.value) == (
        "the driver serves CUDA 11.8, loading artifacts needs CUDA 12.0 or later "
        "(install a newer NVIDIA driver)"
    )


def test_a_machine_without_a_driver_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise RuntimeError("libcuda.so.1 was not found")

    monkeypatch.setattr(cuda, "cuInit", missing)
    with pytest.raises(DriverError, match=r"cannot be used: libcuda\.so\.1 was not found"):
        CudaDriver()


def test_a_refused_call_is_named_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(
        monkeypatch, cuInit=(cuda.CUresult.CUDA_ERROR_NO_DEVICE,),
        cuGetErrorString=(OK, b"no CUDA-capable device is detected"),
    )  # fmt: skip
    with pytest.raises(DriverError, match="cuInit failed: CUDA_ERROR_NO_DEVICE: no CUDA-capable"):
        CudaDriver()


def test_packets_are_laid_out_as_cuda_declares_them() -> None:
    """Our formats against the bindings' own structures, field by field."""
    params = (
        Param(name="a", type="i32", source=Number(node=Value("a")), offset=0, size=4),
        Param(name="b", type="i64", source=Number(node=Value("b")), offset=8, size=8),
        Param(name="c", type="f32", source=Number(node=Value("c")), offset=16, size=4),
    )
    launch = Launch(
        grid=(Value("a"), Value("b"), Const(9)), block=(32, 4, 2), cluster=(2, 1, 1), shared=1000,
        programmatic=True,
    )  # fmt: skip
    layout = Layout(launch, params)

    class Address:
        def config(self, address: int) -> int:
            return address

    block, address, table, last, _ = layout.packet(Address())  # type: ignore[arg-type]
    assert last == 0
    layout.pack_into(block, 0, -5, 2**40, 1.5, 7, 8)
    layout.write_stream(block, layout.stream_offset, 0xABC)
    config = cuda.CUlaunchConfig(_ptr=address)
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (7, 8, 9)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (32, 4, 2)
    assert (config.sharedMemBytes, int(config.hStream), config.numAttrs) == (1000, 0xABC, 2)
    first = cuda.CUlaunchAttribute(_ptr=int.from_bytes(ctypes.string_at(address + 40, 8), "little"))
    assert first.id == cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    dims = first.value.clusterDim
    assert (dims.x, dims.y, dims.z) == (2, 1, 1)
    second = cuda.CUlaunchAttribute(_ptr=first.getPtr() + ATTRIBUTE_SIZE)
    serial = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    assert second.id == serial
    assert second.value.programmaticStreamSerializationAllowed == 1
    pointers = (ctypes.c_uint64 * 3).from_address(table)
    values = [
        struct.unpack(text, ctypes.string_at(place, struct.calcsize(text)))[0]
        for place, text in zip(pointers, ("=i", "=q", "=f"), strict=True)
    ]
    assert values == [-5, 2**40, 1.5]
    assert len(block) == 24 + CONFIG_SIZE
