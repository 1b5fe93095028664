from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dsv4_aot.generator.wheel import write_wheel
from dsv4_aot.runtime import manifest as manifests
from dsv4_aot.runtime.errors import BuildError

if TYPE_CHECKING:
    from tests.conftest import Sample

PLACE = "dsv4_aot/artifacts/sm_90a"


def info(sample: Sample) -> str:
    return f"dsv4_aot_sm90a-{sample.manifest.version}.dist-info"


@pytest.fixture
def wheel(sample: Sample, tmp_path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(write_wheel(sample.folder, tmp_path))


def test_file_list(sample: Sample, wheel: zipfile.ZipFile) -> None:
    """Data alone: no Python, nothing to run, and nothing beyond the manifest's files."""
    entries = sample.manifest.kernels[0].entries
    assert Path(wheel.filename or "").name == (
        f"dsv4_aot_sm90a-{sample.manifest.version}-py3-none-any.whl"
    )
    assert wheel.namelist() == [
        *sorted([f"{PLACE}/manifest.json", *{f"{PLACE}/{entry.file}" for entry in entries}]),
        f"{info(sample)}/METADATA",
        f"{info(sample)}/RECORD",
        f"{info(sample)}/WHEEL",
        f"{info(sample)}/entry_points.txt",
    ]


def test_metadata(sample: Sample, wheel: zipfile.ZipFile) -> None:
    version = sample.manifest.version
    metadata = wheel.read(f"{info(sample)}/METADATA").decode()
    for line in (
        "Name: dsv4-aot-sm90a",
        f"Version: {version}",
        f"Requires-Dist: dsv4-aot=={version}",
        "License-Expression: Apache-2.0",
    ):
        assert f"{line}\n" in metadata
    assert "Tag: py3-none-any\n" in wheel.read(f"{info(sample)}/WHEEL").decode()
    assert wheel.read(f"{info(sample)}/entry_points.txt").decode() == (
        "[dsv4_aot.artifacts]\nsm_90a = dsv4_aot.artifacts.sm_90a\n"
    )


def test_record_has_the_hash_of_every_file(sample: Sample, wheel: zipfile.ZipFile) -> None:
    lines = wheel.read(f"{info(sample)}/RECORD").decode().splitlines()
    rows = dict(line.split(",", 1) for line in lines)
    assert sorted(rows) == sorted(wheel.namelist())
    assert rows.pop(f"{info(sample)}/RECORD") == ","
    for name, rest in rows.items():
        data = wheel.read(name)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert rest == f"sha256={digest},{len(data)}"


def test_the_same_bytes_at_another_place_and_time(sample: Sample, tmp_path: Path) -> None:
    first = write_wheel(sample.folder, tmp_path / "one")
    folder = sample.copy(tmp_path / "elsewhere")
    for path in folder.iterdir():
        path.chmod(0o600)
        os.utime(path, (10**9, 10**9))
    second = write_wheel(folder, tmp_path / "two")
    assert first.read_bytes() == second.read_bytes()
    for member in zipfile.ZipFile(first).infolist():
        assert member.date_time == (1980, 1, 1, 0, 0, 0)
        assert member.external_attr >> 16 == 0o100644
        assert member.compress_type == zipfile.ZIP_STORED


def test_a_corrupt_folder_is_refused(sample: Sample, tmp_path: Path) -> None:
    folder = sample.copy(tmp_path)
    (folder / sample.manifest.kernels[0].entries[0].file).write_bytes(b"other")
    (folder / "stray.txt").touch()
    with pytest.raises(BuildError, match=r"stray\.txt is not in the manifest.* has 5 bytes"):
        write_wheel(folder, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"manifest\.json cannot be read"):
        write_wheel(tmp_path, tmp_path / "dist")


def test_unpacked_the_wheel_is_a_whole_folder(
    sample: Sample, wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    wheel.extractall(tmp_path / "site")
    assert manifests.read(tmp_path / "site" / PLACE) == sample.manifest
