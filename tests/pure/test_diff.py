from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from dsv4_aot.generator.diff import diff, load
from dsv4_aot.generator.lock import PackageChange, lock_of, write_lock
from dsv4_aot.runtime.errors import ManifestError

if TYPE_CHECKING:
    from tests.conftest import Sample

replace = msgspec.structs.replace


def test_every_kind_of_build_loads_the_same(sample: Sample, tmp_path: Path) -> None:
    lock = lock_of(sample.manifest)
    write_lock(tmp_path / "sm_90a.lock.json", lock)
    for path in (
        sample.folder,
        sample.folder / "manifest.json",
        tmp_path / "sm_90a.lock.json",
    ):
        assert load(path) == lock


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="neither a target folder"):
        load(tmp_path / "notes.txt")


def test_equal_builds(sample: Sample) -> None:
    result = diff(sample.manifest, lock_of(sample.manifest))
    assert result.empty
    assert result.same == 4


def test_changes_as_data(sample: Sample) -> None:
    lock = lock_of(sample.manifest)
    first, second, *rest = sorted(lock.entries)
    entry = lock.entries[first]
    slower = replace(entry, bytes=entry.bytes + 8, resources=replace(entry.resources, registers=99))
    after = replace(
        lock,
        toolchain={k: v for k, v in lock.toolchain.items() if k != "nvidia-cuda-cccl"},
        entries={
            first: slower,
            **{key: lock.entries[key] for key in rest},
            "scale/sm_90a/new": entry,
        },
    )
    result = diff(lock, after)
    assert [(c.key, c.kind) for c in result.changes] == [
        (first, "changed"),
        (second, "removed"),
        ("scale/sm_90a/new", "added"),
    ]
    assert list(result.changes[0].details()) == [
        ("bytes", entry.bytes, entry.bytes + 8),
        ("registers", entry.resources.registers, 99),
    ]
    assert result.packages == (
        PackageChange("nvidia-cuda-cccl", lock.toolchain["nvidia-cuda-cccl"], None),
    )
    assert result.same == 2


def test_targets_are_compared_variant_by_variant(sample: Sample) -> None:
    lock = lock_of(sample.manifest)
    entries = {key.replace("/sm_90a/", "/sm_100a/"): each for key, each in lock.entries.items()}
    result = diff(lock, replace(lock, target="sm_100a", entries=entries))
    assert (result.before, result.after, result.changes, result.same) == (
        "sm_90a",
        "sm_100a",
        (),
        4,
    )
    assert not result.empty
