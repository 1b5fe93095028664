"""The library over a recording driver: loading, binding, streams, devices, threads, errors."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from dsv4_aot import runtime
from dsv4_aot.runtime import (
    ArgumentError,
    CaptureError,
    CorruptArtifactError,
    DriverError,
    Library,
    NoArtifactError,
    UnknownKernelError,
)
from dsv4_aot.runtime import library as library_module
from dsv4_aot.runtime import manifest as manifests
from dsv4_aot.runtime.driver import Device
from dsv4_aot.runtime.schema import Validation
from dsv4_aot.runtime.target import Capability
from tests.artifact import (
    GATHER,
    GATHER_CHOICES,
    Tensor,
    cubin_of,
    gather_call,
    gather_cubins,
    write_artifact,
)
from tests.recording import H200, RecordingDriver

B200 = Device(1, "NVIDIA B200", Capability(10, 0), 148, 227 << 10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "build" / "sm_90a", list(gather_cubins()))


def opened(*folders: Path, **changes: Any) -> tuple[Library, RecordingDriver]:
    driver = RecordingDriver(Library.open(*folders).installed, **changes)
    return Library(driver.installed, driver), driver


def on(device: int, **changes: Any) -> dict[str, Any]:
    """A right call with every tensor on a device."""
    call = gather_call(**changes)
    return {
        name: replace(value, device=device) if isinstance(value, Tensor) else value
        for name, value in call.items()
    }


# Loading ------------------------------------------------------------------------------------------


def test_a_cubin_is_loaded_on_first_use_and_once(folder: Path) -> None:
    library, driver = opened(folder)
    assert driver.loads == []
    for _ in range(3):
        library.launch("gather", **gather_call())
        library.op("gather", **gather_call())()
    assert len(driver.loads) == len(driver.functions) == 1
    assert len(driver.launches) == 6


def test_preload_loads_everything_and_says_so(folder: Path) -> None:
    library, driver = opened(folder)
    done = library.preload()
    sizes = [len(cubin_of("gather", choices)) for choices in GATHER_CHOICES]
    assert (done.kernels, done.cubins, done.bytes) == (1, len(sizes), sum(sizes))
    assert done.milliseconds > 0
    assert library.preload(["gather"]).cubins == 0
    library.launch("gather", **gather_call())
    assert len(driver.loads) == len(sizes)
    with pytest.raises(UnknownKernelError, match="nearest: gather"):
        library.preload(["gathr"])


def test_equal_bytes_are_loaded_once(tmp_path: Path) -> None:
    cubins = [(GATHER, choices, b"the same") for choices in GATHER_CHOICES]
    library, driver = opened(write_artifact(tmp_path / "sm_90a", cubins))
    assert library.preload().cubins == 1
    assert len(driver.functions) == 2  # two sizes of shared memory


def test_a_flipped_byte_is_never_loaded(folder: Path) -> None:
    for file in folder.glob("*.cubin"):
        data = bytearray(file.read_bytes())
        data[3] ^= 0x10
        file.write_bytes(data)
    library, driver = opened(folder)
    for attempt in (lambda: library.launch("gather", **gather_call()), library.preload):
        with pytest.raises(CorruptArtifactError, match=r"has SHA-256 .*, the manifest says"):
            attempt()
    assert driver.loads == driver.launches == []


def test_a_driver_that_refuses_a_cubin_is_named_with_the_toolchain(folder: Path) -> None:
    class Old(RecordingDriver):
        def load(self, cubin: bytes) -> str:
            raise DriverError("cuLibraryLoadData failed: CUDA_ERROR_INVALID_IMAGE")

    library = Library(Library.open(folder).installed, Old(cuda=12020))
    with pytest.raises(DriverError) as caught:
        library.launch("gather", **gather_call())
    words = caught.value.message
    assert words.startswith("gather/sm_90a/block_size=64,lens=false,record=v4,rows=4 from ")
    assert "CUDA_ERROR_INVALID_IMAGE (the driver serves CUDA 12.2, the cubin was built " in words
    assert "nvidia-cuda-nvrtc 13.5.37" in words


def test_more_shared_memory_than_the_device_has_is_refused(folder: Path) -> None:
    library, _ = opened(folder, devices=[structs.replace(H200, shared_memory=4095)])
    with pytest.raises(NoArtifactError, match="takes 4096 bytes of shared memory, device 0, NV"):
        library.launch("gather", **gather_call())


def test_an_unloaded_kernel_is_refused_during_a_capture(folder: Path) -> None:
    library, driver = opened(folder, stream_devices={77: 0}, capturing={77})
    with pytest.raises(CaptureError, match=r"call preload\(\['gather'\]\) before the capture"):
        library.launch("gather", **gather_call(), stream=77)
    with pytest.raises(CaptureError):
        library.op("gather", **gather_call(), stream=77)
    assert driver.loads == []
    library.preload()
    library.launch("gather", **gather_call(), stream=77)
    library.op("gather", **gather_call(), stream=77)()
    assert [launch.stream for launch in driver.launches] == [77, 77]


# What there is ------------------------------------------------------------------------------------


def test_unknown_kernels_and_devices_without_artifacts(folder: Path) -> None:
    library, _ = opened(folder)
    for attempt in (lambda: library.launch("gathr", 1), lambda: library.op("gathr")):
        with pytest.raises(UnknownKernelError, match="'gathr'; nearest: gather"):
            attempt()
    library, driver = opened(folder, devices=[structs.replace(B200, index=0)])
    with pytest.raises(NoArtifactError, match="on device 0, NVIDIA B200") as caught:
        library.launch("gather", **gather_call())
    assert "runs on 9.0 exactly, the device is 10.0" in caught.value.message
    assert str(caught.value.tip).startswith("pip install dsv4-aot-sm100a")
    with pytest.raises(NoArtifactError, match="no artifacts are installed"):
        Library([], driver).launch("gather")


def test_the_catalog_lists_every_cubin_without_a_driver(folder: Path) -> None:
    path = folder / manifests.FILE_NAME
    content = manifests.read(folder)
    first = content.kernels[0].entries[0]
    record = Validation(
        sha256=first.sha256, gpu="NVIDIA H200", driver="580", date="2026-11-20", cases=3, worst=0.0
    )
    path.write_bytes(manifests.encode(structs.replace(content, validation=(record,))))
    listed = Library.open(folder).catalog()
    assert [each.choices for each in listed] == GATHER_CHOICES
    assert [each.validated for each in listed] == [("NVIDIA H200",)] + [()] * (len(listed) - 1)
    assert {(each.kernel, each.target, each.origin) for each in listed} == {
        ("gather", "sm_90a", str(folder))
    }


def test_open_without_paths_looks_at_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSV4_AOT_ARTIFACTS", str(folder.parent))
    assert len(Library.open().catalog()) == len(GATHER_CHOICES)
    monkeypatch.delenv("DSV4_AOT_ARTIFACTS")
    assert Library.open().catalog() == []


def test_the_default_library_is_that_of_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = RecordingDriver(Library.open(folder).installed)
    monkeypatch.setenv("DSV4_AOT_ARTIFACTS", str(folder))
    monkeypatch.setattr(Library, "_default", None)
    monkeypatch.setattr(library_module, "_calls", library_module._Calls(Library.default))
    monkeypatch.setattr(library_module, "CudaDriver", lambda: driver)
    assert len(runtime.catalog()) == len(GATHER_CHOICES)
    runtime.launch("gather", **gather_call())
    runtime.launch("gather", *gather_call().values())
    runtime.op("gather", block_size=64)(
        **{name: value for name, value in gather_call().items() if name != "block_size"}
    )
    assert runtime.preload().cubins == len(GATHER_CHOICES) - 1
    assert len(driver.launches) == 3
    assert Library.default() is Library.default()
    for args, named, words in [((), {"x": 1}, "no argument 'x'"), ((1,) * 9, {}, "7 arguments")]:
        with pytest.raises(ArgumentError, match=words):
            runtime.launch("gather", *args, **named)


def test_a_type_error_of_ones_own_stays_one(folder: Path) -> None:
    class Broken(Tensor):
        def data_ptr(self) -> int:
            raise TypeError("no address today")

    library, _ = opened(folder)
    call = gather_call(out=Broken("bfloat16", (3, 10, 512)))
    with pytest.raises(ArgumentError, match="gives no view: no address today"):
        library.launch("gather", **call)


# Binding ------------------------------------------------------------------------------------------


def test_any_subset_can_be_bound(folder: Path) -> None:
    library, driver = opened(folder)
    call = gather_call(offset=2)
    names = list(call)
    for count in range(len(names) + 1):
        bound = {name: call[name] for name in names[:count]}
        rest = {name: call[name] for name in names[count:]}
        kernel = library.op("gather", **bound)
        kernel(**rest)
        kernel(*rest.values())
        assert kernel.select(**rest) == kernel.select(*rest.values())
    assert len(driver.launches) == 2 * (len(names) + 1)
    assert len(set(map(repr, driver.launches))) == 1


def test_a_bound_kernel_refuses_what_it_has(folder: Path) -> None:
    library, _ = opened(folder)
    call = gather_call()
    kernel = library.op("gather", block_size=64)
    with pytest.raises(ArgumentError, match="block_size is bound already"):
        kernel(**call)
    with pytest.raises(ArgumentError, match="7 arguments came by position, 6 are not bound: out,"):
        kernel(*range(7))
    del call["block_size"]
    with pytest.raises(ArgumentError, match="out came twice"):
        kernel(call["out"], **call)
    with pytest.raises(ArgumentError, match="no argument 'blocksize', did you mean block_size"):
        library.op("gather", blocksize=64)
    with pytest.raises(ArgumentError, match="offset is bound already"):
        library.op("gather", **gather_call())(offset=1)
    with pytest.raises(ArgumentError, match=r"offset is within out; came: offset = 99"):
        library.op("gather", **gather_call(offset=99))


def test_bound_tensors_are_kept_alive(folder: Path) -> None:
    library, _ = opened(folder)
    call = gather_call()
    seen = weakref.ref(call["out"])
    kernel = library.op("gather", **call)
    del call
    gc.collect()
    assert seen() is not None
    del kernel
    gc.collect()
    assert seen() is None


def test_tuned_choices_can_be_forced(folder: Path) -> None:
    library, driver = opened(folder)
    library.op("gather", choices={"rows": 8})(**gather_call())
    library.launch("gather", **gather_call())
    assert [launch.grid[1] for launch in driver.launches] == [2, 3]
    for choices, words in [
        ({"rows": 16}, "rows=16 was not built; built: 4, 8"),
        ({"block_size": 2}, "choices names 'block_size', allowed: rows"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            library.op("gather", choices=choices)(**gather_call())


# Streams and devices ------------------------------------------------------------------------------


class TorchStream:
    cuda_stream = 77
    device_index = 0


class ForeignStream:
    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 77


@pytest.mark.parametrize("stream", [77, TorchStream(), ForeignStream()])
def test_streams_in_every_form(folder: Path, stream: Any) -> None:
    library, driver = opened(folder, stream_devices={77: 0})
    for _ in range(2):
        library.launch("gather", **gather_call(), stream=stream)
    library.op("gather", **gather_call(), stream=stream)()
    kernel = library.op("gather", **gather_call())
    kernel(stream=stream)
    kernel()
    assert [launch.stream for launch in driver.launches] == [77, 77, 77, 77, 0]


def test_a_stream_of_another_device_is_refused(folder: Path) -> None:
    library, driver = opened(folder, stream_devices={5: 1, 6: None}, devices=[H200, H200])
    kernel = library.op("gather", **gather_call())
    for stream, words in [
        (5, r"stream 0x5 is of device 1, allowed: a stream of device 0"),
        (6, "stream 0x6 is of another CUDA context"),
        (7, "stream 0x7 is no CUDA stream"),
        ("x", "stream is a builtins.str, allowed: None, a handle"),
        (-1, "stream is -1, allowed"),
        (True, "stream is a builtins.bool"),
    ]:
        for attempt in (library.launch, kernel):
            args = ("gather",) if attempt == library.launch else ()
            call = gather_call() if args else {}
            for _ in range(2):
                with pytest.raises(ArgumentError, match=words):
                    attempt(*args, **call, stream=stream)
                if args:
                    library.launch("gather", **call)
    assert all(launch.stream == 0 for launch in driver.launches)


def test_each_device_gets_its_own_function(tmp_path: Path) -> None:
    root = tmp_path / "build"
    for target in ("sm_90a", "sm_100a"):
        cubins = [(GATHER, c, target.encode() + cubin_of("gather", c)) for c in GATHER_CHOICES]
        write_artifact(root / target, cubins, target)
    third = structs.replace(H200, index=2)
    library, driver = opened(root, devices=[H200, B200, third])
    kernel = library.op("gather")
    for device in (0, 1, 2, 1, 0):
        library.launch("gather", **on(device))
        kernel(**on(device))
        library.op("gather", **on(device))()
    assert [launch.device for launch in driver.launches] == [
        each for device in (0, 1, 2, 1, 0) for each in [device] * 3
    ]
    assert len(driver.loads) == 2  # one for each target: a library serves all its devices
    assert library.function("gather", 0, {}) is library.function("gather", 2, {})
    with pytest.raises(ArgumentError, match="seq_lens is on device 0, allowed: device 1"):
        library.launch("gather", **{**on(1), "seq_lens": gather_call()["seq_lens"]})


def test_the_wrong_context_gets_a_second_try(folder: Path) -> None:
    library, driver = opened(folder)
    kernel = library.op("gather", **gather_call())
    for attempt in (kernel, lambda: library.launch("gather", **gather_call())):
        for status in (201, 400):
            driver.statuses[:] = [status]
            attempt()
    assert driver.switched == [0, 0, 0, 0]
    assert len(driver.launches) == 4
    driver.statuses[:] = [400, 400]
    with pytest.raises(DriverError, match="launching gather on device 0, NVIDIA H200 failed: sta"):
        kernel()
    driver.statuses[:] = [700]
    with pytest.raises(DriverError, match=r"status 700 .*earlier work on this device"):
        library.launch("gather", **gather_call())
    kernel()
    assert len(driver.launches) == 5


def test_threads_share_nothing_while_they_launch(folder: Path) -> None:
    """Every launch carries its own thread's values, with the driver switching threads mid-call."""
    library, driver = opened(folder)
    enqueue = driver.launch
    pause = threading.Event()

    def slow(*args: Any) -> tuple[int]:
        pause.wait(1e-4)  # as the real driver, without the interpreter's lock
        return enqueue(*args)

    driver.launch = slow  # type: ignore[method-assign]
    count, rounds = 8, 40
    kernels = [library.op("gather", **gather_call(offset=n)) for n in range(count)]
    start = threading.Barrier(count)

    def work(number: int) -> None:
        start.wait()
        for _ in range(rounds):
            library.launch("gather", **gather_call(offset=number))
            kernels[number](stream=2)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.threads) == count
    seen = [(launch.params[4], launch.stream, launch.grid[1]) for launch in driver.launches]
    for number in range(count):
        for stream in (0, 2):
            assert seen.count((number, stream, -(-(10 - number) // 4))) == rounds


def test_a_launch_within_a_launch_keeps_its_own_memory(folder: Path) -> None:
    """A finaliser may launch at any moment, even between packing and launching."""
    library, driver = opened(folder)
    library.launch("gather", **gather_call())
    enqueue = driver.launch
    inner: list[Callable[[], None]] = [lambda: library.launch("gather", **gather_call(offset=7))]

    def nested(*args: Any) -> tuple[int]:
        if inner:
            inner.pop()()
        return enqueue(*args)

    driver.launch = nested  # type: ignore[method-assign]
    fresh = Library(library.installed, driver)
    fresh.launch("gather", **gather_call(offset=1))
    assert [launch.params[4] for launch in driver.launches] == [0, 7, 1]
