"""Launches over a recording driver: streams, devices, contexts, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from dsv4_aot.runtime import ArgumentError, DriverError, Library
from tests.artifact import GATHER, GATHER_CHOICES, Tensor, cubin_of, gather_call, write_artifact
from tests.recording import B200, H200, open_recorded


def on(device: int, **changes: Any) -> dict[str, Any]:
    """A right call with every tensor on a device."""
    call = gather_call(**changes)
    return {
        name: replace(value, device=device) if isinstance(value, Tensor) else value
        for name, value in call.items()
    }


class TorchStream:
    cuda_stream = 77
    device_index = 0


class ForeignStream:
    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 77


@pytest.mark.parametrize("stream", [77, TorchStream(), ForeignStream()])
def test_streams_in_every_form(folder: Path, stream: Any) -> None:
    library, driver = open_recorded(folder, stream_devices={77: 0})
    for _ in range(2):
        library.launch("gather", **gather_call(), stream=stream)
    library.op("gather", **gather_call(), stream=stream)()
    kernel = library.op("gather", **gather_call())
    kernel(stream=stream)
    kernel()
    assert [launch.stream for launch in driver.launches] == [77, 77, 77, 77, 0]


def test_a_stream_of_another_device_is_refused(folder: Path) -> None:
    library, driver = open_recorded(folder, stream_devices={5: 1, 6: None}, devices=[H200, H200])
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
    library, driver = open_recorded(root, devices=[H200, B200, third])
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
    library, driver = open_recorded(folder)
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
    library, driver = open_recorded(folder)
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
    library, driver = open_recorded(folder)
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
