from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from dsv4_aot.generator.publish import write_file
from dsv4_aot.generator.records import (
    ValidationFile,
    ValidationRecord,
    encode_validation,
    read_validation,
    validations_of,
    write_validation,
)
from dsv4_aot.runtime.errors import BuildError


def record(sha256: str, **changes: object) -> ValidationRecord:
    fields: dict[str, object] = {
        "key": "scale/sm_90a/threads=128",
        "cases": 7,
        "worst": 0.25,
        "date": "2026-11-20",
        "driver": "580.1",
    }
    return ValidationRecord(sha256=sha256, **(fields | changes))  # type: ignore[arg-type]


A, B, C = "a" * 64, "b" * 64, "c" * 64


def test_only_records_of_the_same_bytes_count(tmp_path: Path) -> None:
    h200 = ValidationFile(gpu="NVIDIA H200", driver="580.1", records=(record(B), record(A)))
    h100 = ValidationFile(gpu="NVIDIA H100", driver="570.2", records=(record(A), record(C)))
    write_validation(tmp_path / "nvidia-h200.json", h200)
    write_validation(tmp_path / "nvidia-h100.json", h100)
    found = validations_of(tmp_path, [A, B])
    assert [(v.sha256, v.gpu) for v in found] == [
        (A, "NVIDIA H100"),
        (A, "NVIDIA H200"),
        (B, "NVIDIA H200"),
    ]
    assert (found[0].cases, found[0].worst, found[0].date) == (7, 0.25, "2026-11-20")
    assert validations_of(tmp_path / "none", [A]) == ()


def test_bytes_do_not_depend_on_the_order_of_records(tmp_path: Path) -> None:
    one = ValidationFile(gpu="g", driver="d", records=(record(A), record(B)))
    two = ValidationFile(gpu="g", driver="d", records=(record(B), record(A)))
    assert encode_validation(one) == encode_validation(two)
    write_validation(tmp_path / "g.json", two)
    assert read_validation(tmp_path / "g.json") == one


@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
def test_an_error_without_a_number_cannot_be_recorded(worst: float) -> None:
    with pytest.raises(BuildError, match="no finite number"):
        encode_validation(ValidationFile(gpu="g", driver="d", records=(record(A, worst=worst),)))


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", b'{"gpu":"g","driver":"d","records":[1]}'])
def test_other_files_are_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "g.json").write_bytes(text)
    with pytest.raises(BuildError, match="is no validation file"):
        validations_of(tmp_path, [A])


# How tracked files are written --------------------------------------------------------------------


def test_a_file_that_outgrows_its_limit_leaves_the_old_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(BuildError, match=f"cannot write {path}: {os.strerror(errno.EFBIG)}"):
            write_file(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match=r"cannot write .*/file/below: File exists"):
        write_file(tmp_path / "file" / "below", b"")


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_file(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
