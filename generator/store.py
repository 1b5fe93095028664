"""Build key -> what was compiled for it, kept on disk.

One folder a key: ``source``, ``options.json``, ``kernel.cubin``, ``log.txt``, ``artifact.json`` and
``kernel.ptx`` where the compiler gave it. A folder appears whole, by one rename, or not at all; it
counts only while every file in it has the hash that ``artifact.json`` holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs
from filelock import FileLock, Timeout

from dsv4_aot.generator.inspect import CubinFacts
from dsv4_aot.generator.publish import sync_folder, writing
from dsv4_aot.generator.render import Source
from dsv4_aot.runtime.errors import BuildError
from dsv4_aot.runtime.schema import FileName, Sha256

_CUBIN, _PTX, _LOG, _RECORD = "kernel.cubin", "kernel.ptx", "log.txt", "artifact.json"


@dataclass(frozen=True)
class Artifact:
    """One compiled variant. ``key`` is the variant's; several variants may share a build key.

    shared: dynamic shared memory in bytes as the compiler states it, None when it does not.
    seconds: what compiling and inspecting took when it was done.
    """

    key: str
    build_key: str
    cubin: bytes
    sha256: str
    facts: CubinFacts
    shared: int | None
    log: str
    seconds: float


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    build_key: Sha256
    files: dict[FileName, Sha256]
    facts: CubinFacts
    shared: int | None
    seconds: float


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record and the hash of its own bytes."""

    sha256: Sha256
    record: msgspec.Raw


class Store:
    """A folder of compiled variants that any number of processes share."""

    def __init__(self, root: Path | None = None) -> None:
        """``root``: the user's cache folder when left out. Nothing is made before it is needed."""
        self.root = platformdirs.user_cache_path("dsv4-aot") if root is None else root

    def folder(self, build_key: str) -> Path:
        return self.root / "entries" / build_key[:2] / build_key

    def get(self, build_key: str) -> Artifact | None:
        """What is kept for a key. An entry that is damaged or was edited counts as none.

        Raises BuildError when the folder may not be read.
        """
        folder = str(self.folder(build_key))
        try:
            record = _unseal(_read(folder, _RECORD))
            if (
                record is None
                or record.build_key != build_key
                or not record.files.keys() >= {_CUBIN, _LOG}
            ):
                return None
            bodies = {name: _read(folder, name) for name in record.files}
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BuildError(
                f"cannot read {folder}: {error.strerror}", tip="remove it, or choose another cache"
            ) from error
        if any(_hash(bodies[name]) != digest for name, digest in record.files.items()):
            return None
        return Artifact(
            key=record.key,
            build_key=build_key,
            cubin=bodies[_CUBIN],
            sha256=record.files[_CUBIN],
            facts=record.facts,
            shared=record.shared,
            log=bodies[_LOG].decode(),
            seconds=record.seconds,
        )

    def ptx(self, build_key: str) -> str | None:
        """The PTX kept for a key, None when there is none."""
        try:
            return (self.folder(build_key) / _PTX).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def publish(self, artifact: Artifact, source: Source, ptx: str | None = None) -> None:
        """Keeps an artifact, in the place of whatever its key had. Hold the key's lock.

        Raises BuildError when the folder cannot be written; what stood there then still stands.
        """
        bodies = {
            "source": source.text.encode(),
            "options.json": _options(source),
            _CUBIN: artifact.cubin,
            _LOG: artifact.log.encode(),
        }
        if ptx is not None:
            bodies[_PTX] = ptx.encode()
        bodies[_RECORD] = _seal(artifact, {name: _hash(body) for name, body in bodies.items()})
        final = self.folder(artifact.build_key)
        with self.scratch() as scratch, writing(final):
            staged = scratch / "entry"
            staged.mkdir()
            for name, body in bodies.items():
                with (staged / name).open("xb") as file:
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
            sync_folder(staged)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():
                final.rename(scratch / "damaged")
            staged.rename(final)
            sync_folder(final.parent)

    @contextlib.contextmanager
    def locked(self, build_key: str) -> Iterator[None]:
        """Holds a key, so that one process at a time builds it. Raises BuildError."""
        with writing(self.root):
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "locks" / f"{build_key}.lock")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A fresh folder on the store's own file system, removed at the end. Raises BuildError.

        It is locked while in use, so that :meth:`sweep` knows the folders of killed processes.
        """
        with writing(self.root):
            temporary = self.root / "tmp"
            temporary.mkdir(parents=True, exist_ok=True)
            folder = temporary / secrets.token_hex(8)
            lock = FileLock(_lock_of(folder))
            lock.acquire()
            folder.mkdir()
        try:
            yield folder
        finally:
            _remove(folder, lock)

    def prepare(self) -> None:
        """Removes leftovers and makes sure that entries can be written. Raises BuildError."""
        self.sweep()
        with self.scratch():
            pass

    def sweep(self) -> int:
        """Removes what killed processes left behind; the number of folders removed."""
        removed = 0
        for path in (self.root / "tmp").glob("*.lock"):
            lock = FileLock(path, timeout=0)
            with contextlib.suppress(Timeout, OSError):
                lock.acquire()
                _remove(path.with_suffix(""), lock)
                removed += 1
        return removed


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _remove(folder: Path, lock: FileLock) -> None:
    """The folder first and its lock file last: a lock file without a folder is swept again."""
    shutil.rmtree(folder, ignore_errors=True)
    _lock_of(folder).unlink(missing_ok=True)
    lock.release()


def _read(folder: str, name: str) -> bytes:
    """Without pathlib and buffers: an unchanged build spends most of its time on this."""
    with open(f"{folder}/{name}", "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _options(source: Source) -> bytes:
    """Everything of a source but its text, for the reader."""
    shown = {
        "kind": source.kind,
        "entry": source.entry,
        "options": source.options,
        "files": source.files,
        "choices": dict(source.choices),
    }
    return msgspec.json.format(msgspec.json.encode(shown, order="deterministic"), indent=1) + b"\n"


def _seal(artifact: Artifact, files: dict[str, str]) -> bytes:
    record = _Record(
        key=artifact.key,
        build_key=artifact.build_key,
        files=files,
        facts=artifact.facts,
        shared=artifact.shared,
        seconds=artifact.seconds,
    )
    body = msgspec.json.encode(record)
    return msgspec.json.encode(_Sealed(_hash(body), msgspec.Raw(body)))


def _unseal(data: bytes) -> _Record | None:
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        if _hash(bytes(sealed.record)) != sealed.sha256:
            return None
        return msgspec.json.decode(sealed.record, type=_Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
