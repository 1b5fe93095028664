from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from dsv4_aot.generator.lock import (
    check,
    compare,
    encode,
    lock_of,
    lock_path,
    read_lock,
    write_lock,
)
from dsv4_aot.runtime.errors import LockError

if TYPE_CHECKING:
    from tests.conftest import Sample

replace = msgspec.structs.replace
KEY = "scale/sm_90a/element=float,threads=256"


def test_round_trip(sample: Sample, tmp_path: Path) -> None:
    path = lock_path(tmp_path, "sm_90a")
    write_lock(path, lock_of(sample.manifest))
    assert path.name == "sm_90a.lock.json"
    assert read_lock(path) == lock_of(sample.manifest)
    check(path, sample.manifest)


def test_bytes_do_not_depend_on_the_order_of_entries(sample: Sample) -> None:
    lock = lock_of(sample.manifest)
    turned = replace(
        lock,
        entries=dict(reversed(lock.entries.items())),
        toolchain=dict(reversed(lock.toolchain.items())),
    )
    assert encode(turned) == encode(lock)


def test_every_difference_is_told(sample: Sample) -> None:
    lock = lock_of(sample.manifest)
    entry = lock.entries[KEY]
    changed = replace(
        entry, sha256="f" * 64, resources=replace(entry.resources, registers=200, spills=3)
    )
    removed = "scale/sm_90a/element=int,threads=128"
    built = replace(
        lock,
        toolchain={**lock.toolchain, "nvidia-cuda-nvrtc": "99.0"},
        entries={k: v for k, v in lock.entries.items() if k != removed}
        | {KEY: changed, "scale/sm_90a/new": entry},
    )
    more = f"registers {entry.resources.registers} -> 200, spills 0 -> 3"
    assert compare(lock, built) == [
        f"nvidia-cuda-nvrtc: locked {lock.toolchain['nvidia-cuda-nvrtc']}, built with 99.0",
        f"{KEY}: sha256 {entry.sha256[:12]}.. -> ffffffffffff.., {more}",
        f"{removed}: in the lock, but not built",
        "scale/sm_90a/new: built, but not in the lock",
    ]
    assert compare(lock, lock) == []


def test_check_names_the_first_differences_and_the_way_out(sample: Sample, tmp_path: Path) -> None:
    lock = lock_of(sample.manifest)
    packages = {f"package-{n}": "1" for n in range(7)}
    path = tmp_path / "sm_90a.lock.json"
    write_lock(path, replace(lock, toolchain=lock.toolchain | packages))
    with pytest.raises(LockError) as caught:
        check(path, sample.manifest)
    assert "package-0: locked 1, built with absent" in caught.value.message
    assert caught.value.message.endswith("and 2 more")
    assert "commit the lock file" in (caught.value.tip or "")


def test_an_edited_lock_is_told_from_a_written_one(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "sm_90a.lock.json"
    path.write_bytes(encode(lock_of(sample.manifest)) + b"\n")
    with pytest.raises(LockError, match="not the canonical bytes"):
        check(path, sample.manifest)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"schema":2}', b"\xff", b'{"schema":1,"extra":0}', b"[" * 10**5]
)
def test_other_files_are_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sm_90a.lock.json"
    path.write_bytes(text)
    with pytest.raises(LockError, match="is no lock file"):
        read_lock(path)


def test_missing_lock(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="cannot be read: No such file"):
        read_lock(tmp_path / "sm_90a.lock.json")
