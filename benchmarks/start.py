"""One fresh process: imports the runtime, launches a kernel, preloads all; prints milliseconds.

Run by ``host.py``. Creating the CUDA context comes first and is timed apart, through ctypes, so
that all of the runtime's imports count as its own. Memory is allocated by hand: no torch.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

ITEMSIZE = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "int16": 2,
    "int32": 4,
    "int64": 8,
}
TYPESTR = {"float16": "<f2", "float32": "<f4", "float64": "<f8", "int8": "|i1", "uint8": "|u1",
           "int16": "<i2", "int32": "<i4", "int64": "<i8", "bool": "|b1"}  # fmt: skip


class Buffer:
    """Zeroed device memory under the CUDA array interface."""

    def __init__(self, cuda: Any, dtype: str, shape: list[int], stride: list[int]) -> None:
        size = ITEMSIZE.get(dtype, 1)
        reach = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        pointer = ctypes.c_uint64()
        check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(reach * size)))
        check(cuda.cuMemsetD8_v2(pointer, 0, ctypes.c_size_t(reach * size)))
        self.dtype = dtype
        self.__cuda_array_interface__ = {
            "version": 3,
            "typestr": TYPESTR.get(dtype, f"<V{size}"),
            "shape": tuple(shape),
            "strides": tuple(step * size for step in stride),
            "data": (pointer.value, False),
        }


def check(status: int) -> None:
    if status:
        raise SystemExit(f"CUDA error {status}")


def main() -> None:
    call = json.loads(sys.argv[1])
    begin = time.perf_counter()
    cuda = ctypes.CDLL("libcuda.so.1")
    context = ctypes.c_void_p()
    check(cuda.cuInit(0))
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
    check(cuda.cuCtxSetCurrent(context))
    arguments = {
        name: Buffer(cuda, **value) if isinstance(value, dict) else value
        for name, value in call["arguments"].items()
    }
    check(cuda.cuCtxSynchronize())
    created = time.perf_counter()

    from dsv4_aot.runtime import Library

    imported = time.perf_counter()
    library = Library.open(call["artifacts"], entry_points=True)
    opened = time.perf_counter()
    library.launch(call["kernel"], **arguments)
    launched = time.perf_counter()
    check(cuda.cuCtxSynchronize())
    preloaded = library.preload()
    loaded = time.perf_counter()
    library.launch(call["kernel"], **arguments)
    again = time.perf_counter()

    def ms(start: float, end: float) -> float:
        return (end - start) * 1e3

    print(
        json.dumps(
            {
                "context": ms(begin, created),
                "import": ms(created, imported),
                "manifests": ms(imported, opened),
                "first_load_and_launch": ms(opened, launched),
                "beyond_context": ms(created, launched),
                "preload": ms(launched, loaded),
                "preload_cubins": preloaded.cubins,
                "preload_bytes": preloaded.bytes,
                "second_launch": ms(loaded, again),
            }
        )
    )


if __name__ == "__main__":
    main()
