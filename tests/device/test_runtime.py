"""The runtime on a real driver: contexts, threads, captures, foreign tensors and devices.

The kernel is compiled here by NVRTC for the device at hand, so nothing but the runtime is tested.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dsv4_aot.runtime import (
    ArgumentError,
    CaptureError,
    CorruptArtifactError,
    DriverError,
    Library,
    NoArtifactError,
)
from tests.artifact import write_artifact
from tests.device.probe import KINDS, PROBE

if TYPE_CHECKING:
    import torch


def fresh(count: int = 1000, index: int = 0) -> torch.Tensor:
    import torch

    return torch.full((count,), -1, dtype=torch.int32, device=f"cuda:{index}")


def right(out: torch.Tensor, start: int = 6) -> bool:
    import torch

    return torch.equal(out.cpu(), torch.arange(start, start + out.numel(), dtype=torch.int32))


def in_thread(work: Callable[[], object]) -> None:
    """Runs in a thread that never touched CUDA; passes its failure on."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # re-raised below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_launch_gives_exact_values(probe: Library, kind: str) -> None:
    out = fresh()
    probe.op("probe", choices={"kind": kind})(out, 5)
    assert right(out, 5 + KINDS[kind].get("cluster", 1))


def test_a_bound_kernel_launches_the_same(probe: Library) -> None:
    out = fresh()
    kernel = probe.op("probe", out=out, value=7)
    kernel()
    assert right(out, 8)
    out.fill_(-1)
    kernel()
    assert right(out, 8)


def test_an_empty_launch_is_nothing(probe: Library) -> None:
    probe.launch("probe", fresh(0))
    probe.op("probe", out=fresh(0))()


def test_the_current_stream_is_torchs(probe: Library) -> None:
    """A launch that went to another stream would not wait for the slow fill before it."""
    import torch

    out, stream = fresh(1 << 20), torch.cuda.Stream()
    kernel = probe.op("probe", out=out)
    torch.cuda.synchronize()
    for launch in (kernel, lambda: probe.launch("probe", out)):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            out.fill_(-1)
            launch()
        stream.synchronize()
        assert right(out)


def test_streams_can_be_given_in_every_form(probe: Library) -> None:
    import torch

    stream = torch.cuda.Stream()

    class Foreign:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, stream.cuda_stream

    for given in (stream, stream.cuda_stream, Foreign(), torch.cuda.default_stream(), 0):
        out = fresh()
        torch.cuda.synchronize()
        probe.launch("probe", out, stream=given)
        torch.cuda.synchronize()
        assert right(out)
        bound = probe.op("probe", out=out, value=9)
        bound(stream=given)
        torch.cuda.synchronize()
        assert right(out, 10)


def test_a_thread_without_a_context_launches(probe: Library) -> None:
    import torch

    stream = torch.cuda.Stream()
    outs = [fresh(), fresh(), fresh()]
    bound = probe.op("probe", out=outs[2])
    torch.cuda.synchronize()
    in_thread(lambda: probe.launch("probe", outs[0]))
    in_thread(lambda: probe.launch("probe", outs[1], stream=stream.cuda_stream))
    in_thread(bound)
    torch.cuda.synchronize()
    assert all(right(out) for out in outs)


def test_another_current_context_is_left_as_it_was(probe: Library) -> None:
    """The null stream is that of the current context; the launch still goes to the tensor's."""
    import torch
    from cuda.bindings import driver as cuda

    out = fresh()
    kernel = probe.op("probe", out=out)
    torch.cuda.synchronize()
    device = cuda.cuDeviceGet(0)[1]
    try:
        status, context = cuda.cuCtxCreate(None, 0, device)
    except TypeError:  # before CUDA 13 there are no creation parameters
        status, context = cuda.cuCtxCreate(0, device)
    assert int(status) == 0
    try:
        probe.launch("probe", out)
        kernel()
        assert int(cuda.cuCtxGetCurrent()[1]) == int(context)
    finally:
        cuda.cuCtxDestroy(context)
    torch.cuda.synchronize()
    assert right(out)


def test_capture_needs_a_loaded_kernel_and_then_works(probe: Library) -> None:
    import torch

    out, graph = fresh(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(CaptureError, match=r"preload\(\['probe'\]\)"):
            probe.launch("probe", out)
        out.add_(0)  # the capture is still good
    done = probe.preload()
    assert (done.kernels, done.cubins) == (1, 1)
    other = fresh()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        probe.launch("probe", out)
        probe.launch("probe", other, stream=torch.cuda.current_stream().cuda_stream)
    out.fill_(-1)
    graph.replay()
    torch.cuda.synchronize()
    assert right(out)
    assert right(other)


def test_loading_leaves_a_capture_of_another_thread_alone(probe: Library) -> None:
    """Global capture mode forbids unsafe calls in every thread: a load may not spoil it."""
    import torch

    out, graph = fresh(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="global"):
        out.fill_(3)
        in_thread(probe.preload)
        out.add_(1)
    graph.replay()
    torch.cuda.synchronize()
    assert out.eq(4).all()


def test_threads_launch_on_their_own_streams(probe: Library) -> None:
    import torch

    outs = [fresh(5000) for _ in range(8)]
    barrier = threading.Barrier(len(outs))

    def work(index: int) -> None:
        stream = torch.cuda.Stream()
        bound = probe.op("probe", out=outs[index], value=index)
        barrier.wait()
        with torch.cuda.stream(stream):
            for _ in range(500):
                outs[index].fill_(-1)
                probe.launch("probe", outs[index], index)
                bound()
        stream.synchronize()

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(outs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(right(out, index + 1) for index, out in enumerate(outs))


def test_foreign_tensors_are_read_through_their_protocols(probe: Library) -> None:
    import torch

    class Array:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.__cuda_array_interface__ = tensor.__cuda_array_interface__

    class Dlpack:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __dlpack__(self, *, stream: int | None = None) -> object:
            return self.tensor.__dlpack__(stream=stream)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.tensor.__dlpack_device__()

    for wrap in (Array, Dlpack):
        out = fresh()
        probe.launch("probe", wrap(out))
        torch.cuda.synchronize()
        assert right(out)
        probe.op("probe", out=wrap(out), value=8)()
        torch.cuda.synchronize()
        assert right(out, 9)
    with pytest.raises(ArgumentError, match="out has dtype float32, allowed: int32"):
        probe.launch("probe", Array(torch.zeros(4, device="cuda")))


def test_tensors_on_the_cpu_are_refused(probe: Library) -> None:
    import torch

    with pytest.raises(ArgumentError, match="out is a torch tensor on cpu"):
        probe.launch("probe", torch.zeros(4, dtype=torch.int32))


def test_a_flipped_byte_is_never_loaded(folder: Path) -> None:
    file = next(folder.glob("*.cubin"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match="SHA-256"):
        Library.open(folder).launch("probe", fresh())


def test_what_the_driver_refuses_is_explained(tmp_path: Path, target: str) -> None:
    place = write_artifact(tmp_path / target, [(PROBE, {"kind": "plain"}, b"no cubin")], target)
    with pytest.raises(DriverError, match=r"probe/.* cannot be loaded .*nvidia-cuda-nvrtc 13\.5"):
        Library.open(place).launch("probe", fresh())


def test_more_shared_memory_than_there_is_is_refused(
    tmp_path: Path, target: str, cubin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "shared", {"shared": 1 << 20})
    place = write_artifact(tmp_path / target, [(PROBE, {"kind": "shared"}, cubin)], target)
    kernel = Library.open(place).op("probe", choices={"kind": "shared"})
    with pytest.raises(NoArtifactError, match="takes 1048576 bytes of shared memory"):
        kernel(fresh())


def test_a_stream_of_another_device_is_refused(probe: Library) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    stream = torch.cuda.Stream("cuda:1")
    for given in (stream, stream.cuda_stream):
        with pytest.raises(ArgumentError, match="is of device 1, allowed: a stream of device 0"):
            probe.launch("probe", fresh(), stream=given)


def test_devices_are_told_apart(probe: Library) -> None:
    """Whatever device is current, a launch goes to its tensors'; mixed ones are refused."""
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    outs = [fresh(index=0), fresh(index=1)]
    bound = [probe.op("probe", out=out, value=11) for out in outs]
    for current in (0, 1):
        with torch.cuda.device(current):
            for index, out in enumerate(outs):
                out.fill_(-1)
                torch.cuda.synchronize(index)
                probe.launch("probe", out)
                torch.cuda.synchronize(index)
                assert right(out)
                bound[index]()
                torch.cuda.synchronize(index)
                assert right(out, 12)
            assert torch.cuda.current_device() == current
