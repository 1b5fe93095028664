"""What counts as a tensor: torch's, and anything that speaks DLPack or the CUDA array interface.

Generated code reads a tensor by the names of ``torch.Tensor``. Others are wrapped in a
:class:`View`, which has the same names. Torch is never imported here, only met.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from typing import Any

from dsv4_aot.runtime.abi import ITEMSIZE
from dsv4_aot.runtime.driver import Driver
from dsv4_aot.runtime.errors import ArgumentError, DriverError

NAMES: dict[Any, str] = {name: name for name in ITEMSIZE}
"""Every spelling of a dtype met so far (``"int8"``, ``torch.int8``) -> its name."""

_SPELLINGS: dict[tuple[str, ...], set[Any]] = {}

ALLOWED = "a CUDA tensor of torch, or one with __dlpack__ or __cuda_array_interface__"


def spellings(dtypes: Iterable[str]) -> set[Any]:
    """A set that holds every spelling of these dtypes, and grows when torch is met."""
    key = tuple(sorted(dtypes))
    return _SPELLINGS.setdefault(key, {each for each, name in NAMES.items() if name in key})


def meet_torch() -> bool:
    """Learns torch's dtypes if torch was imported; says whether it was."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "Tensor"):
        return False
    if getattr(torch, "int8", None) not in NAMES:
        met = {getattr(torch, name): name for name in ITEMSIZE if hasattr(torch, name)}
        NAMES.update(met)
        for key, group in list(_SPELLINGS.items()):
            group.update(each for each, name in met.items() if name in key)
    return True


def stream_accessor() -> Callable[[int], int] | None:
    """Device -> handle of torch's current stream there, once torch was imported with CUDA."""
    core = getattr(sys.modules.get("torch"), "_C", None)
    found: Callable[[int], int] | None = getattr(core, "_cuda_getCurrentRawStream", None)
    return found


def current_stream(device: int) -> int:
    """Torch's current stream on a device; the null stream where torch was not imported."""
    accessor = stream_accessor()
    return 0 if accessor is None else accessor(device)


class View:
    """A tensor of any library, under torch's names. ``owner`` keeps its memory alive."""

    __slots__ = ("_device", "_pointer", "_stride", "dtype", "owner", "shape")

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        pointer: int,
        device: int,
        owner: object,
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self.owner = owner
        self._stride = stride
        self._pointer = pointer
        self._device = device

    def stride(self) -> tuple[int, ...]:
        """In elements."""
        return self._stride

    def data_ptr(self) -> int:
        return self._pointer

    def get_device(self) -> int:
        return self._device

    def numel(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    def is_contiguous(self) -> bool:
        return self.numel() == 0 or all(
            step == want or extent == 1
            for extent, step, want in zip(
                self.shape, self._stride, row_major(self.shape), strict=True
            )
        )


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a tensor without gaps."""
    steps = [1] * len(shape)
    for dim in reversed(range(len(shape) - 1)):
        steps[dim] = steps[dim + 1] * shape[dim + 1]
    return tuple(steps)


def adapt(value: Any, name: str, driver: Driver, stream: int | None = None) -> Any:
    """A tensor that generated code can read: ``value`` itself, or a View of it.

    ``stream`` is where the tensor will be used (None: the current one), which DLPack wants to know.
    Raises ArgumentError, with ``name`` as the argument's name, for anything that is no tensor in
    a CUDA device's memory.
    """
    if isinstance(value, View):
        return value
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.device.type != "cuda":
            raise _refusal(name, f"a torch tensor on {value.device}")
        if value.layout is not torch.strided:
            raise _refusal(name, f"a torch tensor of layout {value.layout}")
        return value
    try:
        found = _adapt_foreign(value, driver, stream)
    except (ArgumentError, DriverError):
        raise
    except Exception as error:  # another library's protocol may raise anything
        raise _refusal(name, f"a {_kind(value)} that gives no view: {error}") from error
    if found is None:
        raise _refusal(name, f"a {_kind(value)}")
    if isinstance(found, str):
        raise _refusal(name, f"a {_kind(value)} {found}")
    if found.data_ptr() % ITEMSIZE[found.dtype]:
        raise _refusal(name, f"a {_kind(value)} whose elements are not aligned to their size")
    return found


def _refusal(name: str, came: str) -> ArgumentError:
    return ArgumentError(f"{name} is {came}, allowed: {ALLOWED}")


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _adapt_foreign(value: Any, driver: Driver, stream: int | None) -> View | str | None:
    """A View, or what is wrong with the tensor, or None for no tensor at all."""
    if all(hasattr(value, each) for each in ("data_ptr", "shape", "stride", "dtype")):
        pointer = int(value.data_ptr())
        device = _device_of(value, pointer, driver)
        dtype = NAMES.get(value.dtype) or str(value.dtype).removeprefix("torch.")
        return _view(dtype, value.shape, value.stride(), pointer, device, value)
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        kind, index = value.__dlpack_device__()
        if int(kind) not in (_DLPACK_CUDA, _DLPACK_MANAGED):
            return "that is not in a CUDA device's memory"
        return _from_dlpack(value, int(index), stream)
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:
        return None
    return _from_cuda_array(value, interface, driver)


def _device_of(value: Any, pointer: int, driver: Driver) -> int | None:
    if hasattr(value, "get_device"):
        return int(value.get_device())
    return driver.pointer_device(pointer) if pointer else driver.current_device()


def _view(
    dtype: str, shape: Any, stride: Any, pointer: int, device: int | None, owner: object
) -> View | str:
    if dtype not in ITEMSIZE:
        return f"of dtype {dtype}, which no kernel takes"
    if device is None or device < 0:
        return "that is not in a CUDA device's memory"
    steps = tuple(int(step) for step in stride)
    return View(dtype, tuple(int(extent) for extent in shape), steps, pointer, device, owner)


# CUDA array interface -----------------------------------------------------------------------------

_TYPESTR = {
    "f2": "float16", "f4": "float32", "f8": "float64", "i1": "int8", "u1": "uint8", "i2": "int16",
    "i4": "int32", "i8": "int64", "b1": "bool",
}  # fmt: skip


def _from_cuda_array(value: Any, interface: dict[str, Any], driver: Driver) -> View | str:
    text = str(interface["typestr"])
    # Types that numpy lacks (bfloat16) travel as raw bytes; then the object's own dtype says more.
    dtype = _TYPESTR.get(text[1:]) or str(getattr(value, "dtype", text))
    if text[0] == ">" or interface.get("mask") is not None:
        return f"of type {text} with swapped bytes or a mask"
    shape = tuple(int(extent) for extent in interface["shape"])
    pointer = int(interface["data"][0])
    device = driver.pointer_device(pointer) if pointer else driver.current_device()
    strides = interface.get("strides")
    if strides is None:
        return _view(dtype, shape, row_major(shape), pointer, device, value)
    itemsize = ITEMSIZE.get(dtype, 1)
    if any(step % itemsize for step in strides):
        return "whose strides are no whole elements"
    return _view(dtype, shape, [step // itemsize for step in strides], pointer, device, value)


# DLPack -------------------------------------------------------------------------------------------

_DLPACK_CUDA, _DLPACK_MANAGED = 2, 13
_DLPACK_DTYPES = {
    (0, 8): "int8", (0, 16): "int16", (0, 32): "int32", (0, 64): "int64", (1, 8): "uint8",
    (2, 16): "float16", (2, 32): "float32", (2, 64): "float64", (4, 16): "bfloat16",
    (6, 8): "bool", (10, 8): "float8_e4m3fn", (12, 8): "float8_e5m2",
}  # fmt: skip
"""``(DLDataTypeCode, bits)`` -> dtype, of dlpack.h."""
_LEGACY_STREAM = 1


class _DlTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _from_dlpack(value: Any, device: int, stream: int | None) -> View | str:
    # Never renamed to "used_dltensor": the capsule stays the owner and frees itself.
    where = current_stream(device) if stream is None else stream
    capsule = value.__dlpack__(stream=where or _LEGACY_STREAM)
    tensor = _DlTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    dtype = _DLPACK_DTYPES.get((tensor.code, tensor.bits), f"DLPack {tensor.code}/{tensor.bits}")
    if tensor.lanes != 1:
        return f"of dtype {dtype} in vectors of {tensor.lanes}, which no kernel takes"
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else row_major(shape)
    pointer = (tensor.data or 0) + tensor.byte_offset
    return _view(dtype, shape, strides, pointer, device, (value, capsule))
