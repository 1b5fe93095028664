"""Reading and writing manifests, strictly.

One ``manifest.json`` per target lies beside its cubins. :mod:`dsv4_aot.runtime.schema` says what
it holds. Nothing in it is used before it is checked; nothing is checked before it is needed, since
every start reads manifests and few need all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from dsv4_aot.runtime.consistency import kernel_problems
from dsv4_aot.runtime.errors import CorruptArtifactError, Dsv4AotError, ManifestError
from dsv4_aot.runtime.schema import (
    SCHEMA,
    Entry,
    Identifier,
    KernelRecord,
    Manifest,
    Sha256,
    Validation,
)
from dsv4_aot.runtime.target import Target

FILE_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
MAX_CUBIN_BYTES = 64 << 20

T = TypeVar("T")


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON, one byte string per manifest; on one line, since every start reads it."""
    return _canonical(manifest) + b"\n"


def decode(data: bytes) -> Manifest:
    """Everything, checked. Raises ManifestError unless ``data`` is a valid manifest."""
    return Reader(data).whole()


def read(folder: Path) -> Manifest:
    """The manifest of an artifact folder, all of it checked. Raises ManifestError."""
    return reader(folder).whole()


def reader(folder: Path) -> Reader:
    """The manifest of an artifact folder, to be checked as it is read. Raises ManifestError."""
    path = folder / FILE_NAME
    try:
        return Reader(_read_plain_file(path, MAX_MANIFEST_BYTES), path)
    except CorruptArtifactError as error:
        raise ManifestError(error.message, tip=error.tip) from error


class _Cover(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A manifest whose lists are still as they stand in the file."""

    schema: Literal[1]
    target: str
    version: str
    toolchain: dict[str, str]
    source_digest: Sha256
    kernels: tuple[msgspec.Raw, ...]
    validation: msgspec.Raw


class _Named(msgspec.Struct, frozen=True):
    name: Identifier


class Reader:
    """A manifest of which each part is decoded and checked when it is first asked for.

    The fields that are no lists are checked at once. Whatever is asked for may raise ManifestError.
    Any thread may ask.
    """

    def __init__(self, data: bytes, path: Path | None = None) -> None:
        """``path``: what errors call the file."""
        self._path = path
        if len(data) > MAX_MANIFEST_BYTES:
            raise self._refusal(f"has {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are allowed")
        cover = self._decode(data, _Cover)
        canonical = _canonical(cover)
        if not (data.startswith(canonical) and len(data) == len(canonical) + 1):
            self._refuse_duplicate_keys(data)
        self.target = cover.target
        self.version = cover.version
        self.toolchain = cover.toolchain
        self.source_digest = cover.source_digest
        self._cover = cover
        self._kernels: dict[str, KernelRecord] = {}
        try:
            Target.parse(self.target)
        except Dsv4AotError as error:
            raise self._contradiction(error.message) from error

    @property
    def names(self) -> tuple[str, ...]:
        """The kernels, in the order of the file."""
        return tuple(self._parts)

    @property
    def kernels(self) -> tuple[KernelRecord, ...]:
        return tuple(self._checked(name) for name in self._parts)

    def kernel(self, name: str) -> KernelRecord | None:
        """The record of a kernel, always the same object; None where there is no such kernel."""
        return self._checked(name) if name in self._parts else None

    @cached_property
    def validation(self) -> tuple[Validation, ...]:
        return self._part(self._cover.validation, tuple[Validation, ...], "validation")

    def whole(self) -> Manifest:
        return Manifest(
            schema=1, target=self.target, version=self.version, toolchain=self.toolchain,
            source_digest=self.source_digest, kernels=self.kernels, validation=self.validation,
        )  # fmt: skip

    @cached_property
    def _parts(self) -> dict[str, msgspec.Raw]:
        """Each kernel's record as it stands in the file."""
        parts = {self._decode(raw, _Named).name: raw for raw in self._cover.kernels}
        if len(parts) != len(self._cover.kernels):
            raise self._contradiction("two kernels have one name")
        return parts

    def _checked(self, name: str) -> KernelRecord:
        if name not in self._kernels:
            record = self._part(self._parts[name], KernelRecord, name)
            for problem in kernel_problems(record):
                raise self._contradiction(f"{name}: {problem}")
            self._kernels.setdefault(name, record)
        return self._kernels[name]

    def _part(self, raw: msgspec.Raw, kind: type[T], name: str) -> T:
        part = self._decode(raw, kind, f"{name}: ")
        if _canonical(part) != bytes(raw):
            self._refuse_duplicate_keys(raw)
        return part

    def _decode(self, data: bytes | msgspec.Raw, kind: type[T], name: str = "") -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise self._refusal(
                f"does not fit schema {SCHEMA}: {name}{error}",
                tip="rebuild it, or install the runtime of the same release",
            ) from error

    def _refuse_duplicate_keys(self, data: bytes | msgspec.Raw) -> None:
        """JSON decoders keep the last of two equal keys; here that is an error."""

        def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
            keys = [key for key, _ in items]
            for key in keys:
                if keys.count(key) > 1:
                    raise self._contradiction(f"the key {key!r} stands twice in one object")
            return dict(items)

        try:
            json.loads(bytes(data), object_pairs_hook=pairs)
        except (ValueError, RecursionError) as error:  # in a part that is not decoded yet
            raise self._refusal(f"is no JSON: {error}") from error

    def _contradiction(self, problem: str) -> ManifestError:
        return self._refusal(f"contradicts itself: {problem}")

    def _refusal(self, problem: str, tip: str | None = None) -> ManifestError:
        what = "the manifest" if self._path is None else f"{self._path}: the manifest"
        return ManifestError(f"{what} {problem}", tip=tip)


def _canonical(value: object) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def read_cubin(folder: Path, entry: Entry) -> bytes:
    """The bytes of an entry's cubin, hashed. Raises CorruptArtifactError unless they are those."""
    path = folder / entry.file
    data = _read_plain_file(path, MAX_CUBIN_BYTES)
    tip = "reinstall the artifact wheel, or rebuild"
    if len(data) != entry.bytes:
        raise CorruptArtifactError(
            f"{path} has {len(data)} bytes, the manifest says {entry.bytes}", tip=tip
        )
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        raise CorruptArtifactError(
            f"{path} has SHA-256 {digest}, the manifest says {entry.sha256}", tip=tip
        )
    return data


def _read_plain_file(path: Path, limit: int) -> bytes:
    """Reads a regular file that is no link and not over the limit."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise CorruptArtifactError(f"{path} is a link, and links are refused") from error
        raise CorruptArtifactError(f"{path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CorruptArtifactError(f"{path} is not a regular file")
        if status.st_size > limit:
            raise CorruptArtifactError(
                f"{path} has {status.st_size} bytes, at most {limit} are allowed"
            )
        return file.read(status.st_size)
