from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dsv4_aot.generator.expand import expand
from dsv4_aot.generator.pack import cubin_name, pack
from dsv4_aot.generator.policy import violations
from dsv4_aot.generator.records import ValidationFile, ValidationRecord, write_validation
from dsv4_aot.runtime import manifest as manifests
from dsv4_aot.runtime.abi import Slot
from dsv4_aot.runtime.errors import BuildError, CorruptArtifactError
from dsv4_aot.runtime.schema import Entry, Manifest
from dsv4_aot.runtime.target import Target

if TYPE_CHECKING:
    from tests.conftest import Sample

KEY = "scale/sm_90a/element=float,threads=256"
replace = dataclasses.replace


def repack(sample: Sample, out: Path, **changes: Any) -> Manifest:
    given = {"target": sample.target, "folders": sample.folders, "artifacts": sample.artifacts}
    return pack(**(given | changes), out=out, validation=out / "none")


def spoiled(sample: Sample, **facts: Any) -> dict[str, Any]:
    """The artifacts, with one whose cubin says something else of itself."""
    artifact = sample.artifacts[KEY]
    return {**sample.artifacts, KEY: replace(artifact, facts=replace(artifact.facts, **facts))}


def entries(manifest: Manifest) -> tuple[Entry, ...]:
    (kernel,) = manifest.kernels
    return kernel.entries


def identity(path: Path) -> tuple[int, int]:
    """Changes when the file is replaced."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_ino, p.read_bytes()) for p in folder.iterdir()}


# What is written ----------------------------------------------------------------------------------


def test_folder_holds_the_manifest_and_each_cubin_under_its_hash(sample: Sample) -> None:
    (kernel,) = sample.manifest.kernels
    hashes = {artifact.sha256 for artifact in sample.artifacts.values()}
    assert {p.name for p in sample.folder.iterdir()} == {
        "manifest.json",
        *(f"scale-{sha256[:16]}.cubin" for sha256 in hashes),
    }
    for entry in kernel.entries:
        assert manifests.read_cubin(sample.folder, entry) in {
            artifact.cubin for artifact in sample.artifacts.values()
        }
    assert sample.manifest.target == "sm_90a"
    assert sample.manifest.toolchain.keys() >= {"nvidia-cuda-nvrtc", "nvidia-cuda-runtime"}
    assert [(p.name, p.offset, p.size) for p in kernel.entries[0].params] == [
        ("x", 0, 8), ("factor", 8, 4), ("count", 16, 8), ("y", 24, 8),
    ]  # fmt: skip


def test_equal_content_leaves_every_file_alone(sample: Sample, tmp_path: Path) -> None:
    first = repack(sample, tmp_path)
    before = snapshot(tmp_path / "sm_90a")
    assert repack(sample, tmp_path) == first == sample.manifest
    assert snapshot(tmp_path / "sm_90a") == before


def test_validation_travels_with_equal_bytes(sample: Sample, tmp_path: Path) -> None:
    sha256 = sample.artifacts[KEY].sha256
    records = tuple(
        ValidationRecord(sha256=h, key=KEY, cases=3, worst=0.0, date="2026-11-20", driver="580.1")
        for h in (sha256, "0" * 64)
    )
    file = ValidationFile(gpu="NVIDIA H200", driver="580.1", records=records)
    write_validation(tmp_path / "validation" / "nvidia-h200.json", file)
    manifest = pack(
        sample.target, sample.folders, sample.artifacts, tmp_path, tmp_path / "validation"
    )
    assert [v.sha256 for v in manifest.validation] == [sha256]


def test_what_earlier_builds_left_is_swept_and_nothing_else(sample: Sample, tmp_path: Path) -> None:
    folder = tmp_path / "sm_90a"
    folder.mkdir()
    for name in (cubin_name("scale", "0" * 64), ".tmp-0123456789abcdef", "notes.txt"):
        (folder / name).write_text("old")
    repack(sample, tmp_path)
    assert {p.name for p in folder.iterdir()} == {
        *(p.name for p in sample.folder.iterdir()),
        "notes.txt",
    }


def test_a_spoiled_file_is_written_again(sample: Sample, tmp_path: Path) -> None:
    repack(sample, tmp_path)
    victim = next((tmp_path / "sm_90a").glob("*.cubin"))
    whole = victim.read_bytes()
    victim.unlink()
    victim.symlink_to(sample.folder / victim.name)
    repack(sample, tmp_path)
    assert not victim.is_symlink()
    assert victim.read_bytes() == whole


def test_at_every_moment_the_manifest_names_files_that_are_there(
    sample: Sample, tmp_path: Path
) -> None:
    """Two builds with different cubins take turns. Only who read the old manifest may miss one."""
    longer = {
        key: replace(a, cubin=a.cubin + b"\0", sha256=hashlib.sha256(a.cubin + b"\0").hexdigest())
        for key, a in sample.artifacts.items()
    }
    folder = tmp_path / "sm_90a"
    repack(sample, tmp_path)
    done = threading.Event()

    def write() -> None:
        for turn in range(20):
            repack(sample, tmp_path, artifacts=sample.artifacts if turn % 2 else longer)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    whole: set[tuple[int, ...]] = set()
    late: list[str] = []
    while not done.is_set():
        stood = identity(folder / "manifest.json")
        manifest = manifests.read(folder)
        try:
            whole.add(tuple(len(manifests.read_cubin(folder, e)) for e in entries(manifest)))
        except CorruptArtifactError as error:
            if identity(folder / "manifest.json") == stood:
                late.append(error.message)
    writer.join()
    assert late == []
    assert len(whole) == 2


# What is refused ----------------------------------------------------------------------------------


def refused(sample: Sample, out: Path, match: str, **changes: Any) -> None:
    repack(sample, out)
    before = snapshot(out / "sm_90a")
    with pytest.raises(BuildError, match=match):
        repack(sample, out, **changes)
    assert snapshot(out / "sm_90a") == before


def test_parameter_tables_that_differ(sample: Sample, tmp_path: Path) -> None:
    refused(
        sample,
        tmp_path,
        rf"{KEY}: the declared parameters are \(x \[0:8\], factor \[8:12\], "
        r"count \[16:24\], y \[24:32\]\), the cubin takes \(\[0:8\], \[8:16\]\)",
        artifacts=spoiled(sample, slots=(Slot(0, 8), Slot(8, 8))),
    )


def test_a_spec_that_swaps_two_parameters(sample: Sample, tmp_path: Path) -> None:
    folder = sample.folders["scale"]
    params = folder.spec.params_of({})
    swapped = replace(folder, spec=replace(folder.spec, params=(params[1], params[0], *params[2:])))
    refused(sample, tmp_path, "the cubin takes", folders={"scale": swapped})


def test_missing_variants(sample: Sample, tmp_path: Path) -> None:
    artifacts = {key: a for key, a in sample.artifacts.items() if key != KEY}
    refused(sample, tmp_path, f"1 of 4 variants for sm_90a .* {KEY}", artifacts=artifacts)


def test_bytes_that_are_not_those_of_the_hash(sample: Sample, tmp_path: Path) -> None:
    artifact = replace(sample.artifacts[KEY], cubin=b"other")
    refused(
        sample, tmp_path, "not the one that was compiled",
        artifacts={**sample.artifacts, KEY: artifact},
    )  # fmt: skip


def test_another_target(sample: Sample, tmp_path: Path) -> None:
    moved = {key.replace("sm_90a", "sm_90"): artifact for key, artifact in sample.artifacts.items()}
    with pytest.raises(BuildError, match="assembled for sm_90a, not for sm_90"):
        repack(sample, tmp_path, target=Target.parse("sm_90"), artifacts=moved)


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"sm": 100}, "built for sm_100, not for sm_90a"),
        ({"tool_arch": "sm_90"}, "assembled for sm_90, not for sm_90a"),
        ({"entry": "scale2"}, "the spec launches scale, the cubin is scale2"),
        ({"block": (64, 1, 1)}, r"launched with block (256, 1, 1), compiled for (64, 1, 1)"),
        ({"max_threads": 128}, "launched with 256 threads a block, compiled for at most 128"),
        ({"cluster": (2, 1, 1)}, "launched with cluster (1, 1, 1), compiled for (2, 1, 1)"),
    ],
)
def test_contradictions(sample: Sample, facts: dict[str, Any], problem: str) -> None:
    variant = next(v for v in expand(sample.folders["scale"], sample.target) if v.key == KEY)
    assert violations(variant, sample.artifacts[KEY].facts) == []
    assert violations(variant, replace(sample.artifacts[KEY].facts, **facts)) == [problem]


def test_budgets(sample: Sample) -> None:
    import msgspec

    folder = sample.folders["scale"]
    facts = sample.artifacts[KEY].facts
    heavy = replace(
        facts,
        resources=msgspec.structs.replace(facts.resources, registers=200, spills=4, stack=16),
    )
    spent = "4 local loads and stores (16 bytes of stack), and the spec gives no reason"

    def judge(**spec: Any) -> list[str]:
        changed = replace(folder, spec=replace(folder.spec, **spec))
        (variant,) = (v for v in expand(changed, sample.target) if v.key == KEY)
        return violations(variant, heavy, shared=48)

    assert judge(max_registers=128) == [
        "the spec launches with 0 bytes of dynamic shared memory, the kernel uses 48",
        "200 registers a thread, the spec allows 128",
        f"{spent} in spills_allowed",
    ]
    assert len(judge(spills_allowed="measured faster than fewer threads")) == 1
    full = replace(heavy, max_threads=None)
    (variant,) = (v for v in expand(folder, sample.target) if v.key == KEY)
    resources = msgspec.structs.replace(full.resources, registers=255, spills=0)
    assert violations(variant, replace(full, resources=resources)) == []


def test_a_block_that_needs_more_registers_than_there_are(sample: Sample) -> None:
    import msgspec

    folder = sample.folders["scale"]
    facts = sample.artifacts[KEY].facts
    resources = msgspec.structs.replace(facts.resources, registers=65)
    launch = folder.spec.launch({"threads": 1024})
    spec = replace(folder.spec, launch=lambda choices: launch)
    (variant,) = (v for v in expand(replace(folder, spec=spec), sample.target) if v.key == KEY)
    assert violations(variant, replace(facts, max_threads=None, resources=resources)) == [
        "65 registers a thread make 73728 a block of 1024 threads, a block can have 65536"
    ]


# Where it cannot write ----------------------------------------------------------------------------


def test_a_full_folder_keeps_the_old_build(sample: Sample, tmp_path: Path) -> None:
    """A file-size limit stands in for a disk with little left; the error is the system's own."""
    artifacts = {key: replace(a, build_key="0" * 64) for key, a in sample.artifacts.items()}
    repack(sample, tmp_path)
    before = snapshot(tmp_path / "sm_90a")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        with pytest.raises(BuildError, match=os.strerror(errno.EFBIG)) as caught:
            repack(sample, tmp_path, artifacts=artifacts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.tip == "free some space there, or choose another folder"
    assert snapshot(tmp_path / "sm_90a") == before


def test_an_output_folder_that_is_a_file(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(BuildError, match=r"cannot write .*/out/sm_90a: Not a directory"):
        repack(sample, tmp_path / "out")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become someone else")
def test_a_read_only_folder(sample: Sample, tmp_path: Path) -> None:
    """Root may write anywhere, so another user tries."""
    script = (
        "import os, sys; os.setegid(65534); os.seteuid(65534)\n"
        "from pathlib import Path\n"
        "from dsv4_aot.generator.publish import write_file\n"
        "from dsv4_aot.runtime.errors import BuildError\n"
        "try: write_file(Path(sys.argv[1], 'manifest.json'), b'')\n"
        "except BuildError as error: print(error)\n"
    )
    import_first = script.replace(
        "import os, sys; ", "import os, sys, dsv4_aot.generator.publish\n"
    )
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    run = subprocess.run(
        [sys.executable, "-c", import_first, str(tmp_path)],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert run.stdout == (
        f"cannot write {tmp_path}/manifest.json: Permission denied "
        "(choose a folder that can be written)\n"
    )
