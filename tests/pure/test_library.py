"""The library over a recording driver: loading, the catalog, binding, errors."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from pathlib import Path

import pytest
from msgspec import structs

from dsv4_aot import runtime
from dsv4_aot.runtime import (
    ArgumentError,
    CaptureError,
    CorruptArtifactError,
    DriverError,
    Library,
    ManifestError,
    NoArtifactError,
    UnknownKernelError,
)
from dsv4_aot.runtime import library as library_module
from dsv4_aot.runtime import manifest as manifests
from dsv4_aot.runtime.schema import Validation
from tests.artifact import (
    GATHER,
    GATHER_CHOICES,
    Tensor,
    cubin_of,
    gather_call,
    gather_cubins,
    write_artifact,
)
from tests.recording import B200, H200, RecordingDriver, open_recorded

# Loading ------------------------------------------------------------------------------------------


def test_a_cubin_is_loaded_on_first_use_and_once(folder: Path) -> None:
    library, driver = open_recorded(folder)
    assert driver.loads == []
    for _ in range(3):
        library.launch("gather", **gather_call())
        library.op("gather", **gather_call())()
    assert len(driver.loads) == len(driver.functions) == 1
    assert len(driver.launches) == 6


def test_a_launch_reads_one_kernel_of_one_target(tmp_path: Path) -> None:
    other = dataclasses.replace(GATHER, name="other")
    for target in ("sm_100a", "sm_90", "sm_90a"):
        cubins = [(spec, choices, cubin_of(spec.name, choices)) for spec in (other, GATHER)
                  for choices in GATHER_CHOICES]  # fmt: skip
        path = write_artifact(tmp_path / target, cubins, target) / manifests.FILE_NAME
        # What is not needed is not even looked at, so this damage is found by who needs it.
        broken = {"other"} if target == "sm_90a" else {"other", "gather"}
        content = json.loads(path.read_bytes())
        for record in content["kernels"]:
            if record["name"] in broken:
                del record["arguments"]
        path.write_text(json.dumps(content, separators=(",", ":"), sort_keys=True) + "\n")
    known = Library.open(write_artifact(tmp_path / "elsewhere" / "sm_90a", list(gather_cubins())))
    driver = RecordingDriver(known.installed)
    library = Library.open(tmp_path, driver=driver)
    library.launch("gather", **gather_call())
    assert len(driver.launches) == 1
    with pytest.raises(ManifestError, match=r"sm_90a/manifest\.json: .*missing .* `arguments`"):
        library.launch("other", **gather_call())
    with pytest.raises(UnknownKernelError, match="nearest: gather"):
        library.launch("gathr", **gather_call())
    with pytest.raises(ManifestError):
        library.catalog()


def test_preload_loads_everything_and_says_so(folder: Path) -> None:
    library, driver = open_recorded(folder)
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
    library, driver = open_recorded(write_artifact(tmp_path / "sm_90a", cubins))
    assert library.preload().cubins == 1
    assert len(driver.functions) == 2  # two sizes of shared memory


def test_a_flipped_byte_is_never_loaded(folder: Path) -> None:
    for file in folder.glob("*.cubin"):
        data = bytearray(file.read_bytes())
        data[3] ^= 0x10
        file.write_bytes(data)
    library, driver = open_recorded(folder)
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
    library, _ = open_recorded(folder, devices=[structs.replace(H200, shared_memory=4095)])
    with pytest.raises(NoArtifactError, match="takes 4096 bytes of shared memory, device 0, NV"):
        library.launch("gather", **gather_call())


def test_an_unloaded_kernel_is_refused_during_a_capture(folder: Path) -> None:
    library, driver = open_recorded(folder, stream_devices={77: 0}, capturing={77})
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
    library, _ = open_recorded(folder)
    for attempt in (lambda: library.launch("gathr", 1), lambda: library.op("gathr")):
        with pytest.raises(UnknownKernelError, match="'gathr'; nearest: gather"):
            attempt()
    library, driver = open_recorded(folder, devices=[structs.replace(B200, index=0)])
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

    library, _ = open_recorded(folder)
    call = gather_call(out=Broken("bfloat16", (3, 10, 512)))
    with pytest.raises(ArgumentError, match="gives no view: no address today"):
        library.launch("gather", **call)


# Binding ------------------------------------------------------------------------------------------


def test_any_subset_can_be_bound(folder: Path) -> None:
    library, driver = open_recorded(folder)
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
    library, _ = open_recorded(folder)
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
    library, _ = open_recorded(folder)
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
    library, driver = open_recorded(folder)
    library.op("gather", choices={"rows": 8})(**gather_call())
    library.launch("gather", **gather_call())
    assert [launch.grid[1] for launch in driver.launches] == [2, 3]
    for choices, words in [
        ({"rows": 16}, "rows=16 was not built; built: 4, 8"),
        ({"block_size": 2}, "choices names 'block_size', allowed: rows"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            library.op("gather", choices=choices)(**gather_call())
