from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dsv4_aot.generator.verify import verify
from dsv4_aot.runtime import manifest as manifests

if TYPE_CHECKING:
    from tests.conftest import Sample

replace = msgspec.structs.replace


def rewrite(folder: Path, **changes: Any) -> str:
    """Changes the first entry of the manifest; gives the entry's key."""
    manifest = manifests.read(folder)
    (kernel,) = manifest.kernels
    entry, *rest = kernel.entries
    changed = replace(kernel, entries=(replace(entry, **changes), *rest))
    (folder / "manifest.json").write_bytes(manifests.encode(replace(manifest, kernels=(changed,))))
    return "scale/sm_90a/element=float,threads=256"


def test_what_was_packed_is_whole(sample: Sample) -> None:
    assert verify(sample.folder) == []


def test_one_flipped_bit(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path)
    victim = folder / sample.manifest.kernels[0].entries[0].file
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    (problem,) = verify(folder)
    assert problem.startswith(f"scale/sm_90a/element=float,threads=256: {victim} has SHA-256 ")


def test_missing_and_extra_files(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path)
    victim = folder / sample.manifest.kernels[0].entries[0].file
    victim.rename(folder / "other.cubin")
    extra, missing = verify(folder)
    assert extra == f"{folder}/other.cubin is not in the manifest"
    assert missing.endswith(f"{victim} cannot be read: No such file or directory")


def test_a_link_in_the_place_of_a_cubin(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path)
    victim = folder / sample.manifest.kernels[0].entries[0].file
    victim.unlink()
    victim.symlink_to(sample.folder / victim.name)
    (problem,) = verify(folder)
    assert problem.endswith("is a link, and links are refused")


def test_no_manifest(tmp_path: Path) -> None:
    (problem,) = verify(tmp_path)
    assert problem.endswith("manifest.json cannot be read: No such file or directory")


def test_a_folder_by_another_targets_name(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path).rename(tmp_path / "sm_100a")
    (problem,) = verify(folder)
    assert problem == f"{folder} holds sm_90a, and its name says otherwise"


def test_a_parameter_table_that_is_not_the_cubins(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path)
    params = sample.manifest.kernels[0].entries[0].params
    key = rewrite(folder, params=params[:3])
    (problem,) = verify(folder)
    assert problem == (
        f"{key}: the declared parameters are (x [0:8], factor [8:12], count [16:24]), "
        "the cubin takes ([0:8], [8:12], [16:24], [24:32])"
    )


def test_resources_and_symbols_that_are_not_the_cubins(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path)
    resources = sample.manifest.kernels[0].entries[0].resources
    key = rewrite(folder, resources=replace(resources, registers=5))
    (problem,) = verify(folder)
    assert problem.startswith(f"{key}: the manifest says Resources(registers=5,")
    rewrite(folder, resources=resources, symbol="scales")
    (problem,) = verify(folder)
    assert problem == f"{key}: the cubin has no kernel 'scales'; it has ['scale']"


def test_cubins_of_another_target(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path).rename(tmp_path / "sm_90")
    manifest = replace(manifests.read(folder), target="sm_90")
    (folder / "manifest.json").write_bytes(manifests.encode(manifest))
    problems = verify(folder)
    assert len(problems) == 4
    assert all(p.endswith("assembled for sm_90a, not for sm_90") for p in problems)
