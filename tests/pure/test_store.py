"""The store shows an entry whole or not at all, whatever happens to the processes that write it."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dsv4_aot.generator.inspect import CubinFacts
from dsv4_aot.generator.render import Source
from dsv4_aot.generator.store import Artifact, Store, _seal
from dsv4_aot.runtime.abi import Slot
from dsv4_aot.runtime.errors import BuildError
from dsv4_aot.runtime.schema import Resources

SOURCE = Source("cuda", "copy", "// text\n", ("--std=c++17",), (), {"threads": 64})
FACTS = CubinFacts(
    sm=90,
    entry="copy",
    slots=(Slot(0, 8),),
    resources=Resources(registers=8, stack=0, local=0, shared=0, spills=0, code=128),
    tool_arch=None,
)
KEY = "ab" * 32


def artifact(cubin: bytes = b"cubin", build_key: str = KEY) -> Artifact:
    return Artifact(
        key="copy/sm_90a/threads=64",
        build_key=build_key,
        cubin=cubin,
        sha256=hashlib.sha256(cubin).hexdigest(),
        facts=FACTS,
        shared=None,
        log="warning: none\n",
        seconds=0.25,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_looking_makes_nothing(store: Store) -> None:
    assert store.get(KEY) is None
    assert store.ptx(KEY) is None
    assert store.sweep() == 0
    assert not store.root.exists()


def test_what_was_kept_comes_back(store: Store) -> None:
    store.publish(artifact(), SOURCE, "// ptx\n")
    assert store.get(KEY) == artifact()
    assert store.ptx(KEY) == "// ptx\n"
    assert (store.folder(KEY) / "source").read_text() == SOURCE.text
    assert list((store.root / "tmp").iterdir()) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


FILES = ["source", "options.json", "kernel.cubin", "log.txt", "artifact.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink])
def test_damaged_entry_is_none_and_gets_replaced(
    store: Store, name: str, damage: Callable[[Path], None]
) -> None:
    store.publish(artifact(), SOURCE)
    damage(store.folder(KEY) / name)
    assert store.get(KEY) is None
    store.publish(artifact(b"again"), SOURCE)
    assert store.get(KEY) == artifact(b"again")


def test_edited_record_is_none(store: Store) -> None:
    store.publish(artifact(), SOURCE)
    record = store.folder(KEY) / "artifact.json"
    text = record.read_text()
    assert '"registers":8' in text
    record.write_text(text.replace('"registers":8', '"registers":9'))
    assert store.get(KEY) is None


def test_record_that_names_other_places_is_none(store: Store, tmp_path: Path) -> None:
    """Also when its seal is right."""
    store.publish(artifact(), SOURCE)
    (tmp_path / "secret").write_bytes(b"cubin")
    digest = artifact().sha256
    files = {"kernel.cubin": digest, "log.txt": digest, "../../../../secret": digest}
    (store.folder(KEY) / "artifact.json").write_bytes(_seal(artifact(), files))
    assert store.get(KEY) is None


def test_entry_of_another_key_is_none(store: Store) -> None:
    store.publish(artifact(), SOURCE)
    other = "cd" * 32
    store.folder(other).parent.mkdir(parents=True)
    store.folder(KEY).rename(store.folder(other))
    assert store.get(other) is None


PUBLISH = """
import sys
sys.path.insert(0, {folder!r})
from test_store import SOURCE, Store, artifact
from pathlib import Path
store = Store(Path({root!r}))
print("ready", flush=True)
while True:
    with store.locked({key!r}):
        store.folder({key!r}).joinpath("log.txt").unlink(missing_ok=True)
        store.publish(artifact(b"c" * 100_000), SOURCE)
"""


def test_killed_writers_leave_nothing_half_visible(store: Store) -> None:
    program = PUBLISH.format(folder=str(Path(__file__).parent), root=str(store.root), key=KEY)
    for attempt in range(8):
        writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        with writer, writer.stdout:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.004 * attempt)
            writer.kill()
        with store.locked(KEY):  # the lock of a killed process is free
            assert store.get(KEY) in {None, artifact(b"c" * 100_000)}
    with store.locked(KEY):
        store.publish(artifact(b"whole"), SOURCE)
    assert store.get(KEY) == artifact(b"whole")
    store.sweep()
    assert list((store.root / "tmp").iterdir()) == []


def test_sweep_spares_what_is_in_use(store: Store) -> None:
    with store.scratch() as used:
        (used / "file").touch()
        program = (
            "import sys; from pathlib import Path; from dsv4_aot.generator.store import Store\n"
            "with Store(Path(sys.argv[1])).scratch() as folder:\n"
            "    print(folder, flush=True); sys.stdin.read()"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", program, store.root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert other.stdout is not None
        with other:
            left = Path(other.stdout.readline().decode().strip())
            assert left.is_dir()
            other.kill()
        assert store.sweep() == 1
        assert not left.exists()
        assert (used / "file").exists()


def _hold(root: Path, held: object, release: object) -> None:
    with Store(root).locked(KEY):
        held.set()  # type: ignore[attr-defined]
        release.wait(10)  # type: ignore[attr-defined]


def test_one_process_at_a_time_holds_a_key(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(store.root, held, release))
    process.start()
    assert held.wait(10)
    started = time.monotonic()
    with store.locked("cd" * 32):
        assert time.monotonic() - started < 5
    release.set()
    with store.locked(KEY):
        process.join(10)
    assert process.exitcode == 0


@pytest.fixture
def no_rights(store: Store) -> Iterator[None]:
    """The store's folder is read-only for this user, who is not root for the while."""
    user = os.geteuid()
    store.root.mkdir()
    store.root.chmod(0o500)
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)
    store.root.chmod(0o700)


@pytest.mark.usefixtures("no_rights")
def test_read_only_folder_is_one_clear_line(store: Store) -> None:
    with pytest.raises(BuildError, match=r"cannot write .*: Permission denied \(choose a folder"):
        store.publish(artifact(), SOURCE)
    with pytest.raises(BuildError, match="cannot write"), store.locked(KEY):
        pass


def test_folder_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "store")
    assert store.get(KEY) is None
    with pytest.raises(BuildError, match=r"cannot write .*: Not a directory \(choose a folder"):
        store.publish(artifact(), SOURCE)
    with pytest.raises(BuildError, match="cannot write"), store.locked(KEY):
        pass


def test_full_disk_is_one_clear_line_and_leaves_nothing(store: Store) -> None:
    """A limit on file sizes stands in for the disk's end: the same write fails, for real."""
    store.publish(artifact(b"old"), SOURCE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(BuildError, match=os.strerror(errno.EFBIG) + ".*free some space"):
            store.publish(artifact(b"n" * 10_000), SOURCE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.get(KEY) == artifact(b"old")
    assert list((store.root / "tmp").iterdir()) == []
