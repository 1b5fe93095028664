"""``artifacts/<target>.lock.json``: the bytes that a build of these sources must give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from dsv4_aot.generator.publish import write_file
from dsv4_aot.runtime.errors import LockError
from dsv4_aot.runtime.schema import Manifest, Resources, Sha256, entry_key

SHOWN_DIFFERENCES = 5


class LockEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One variant: what it was built from, what came out."""

    build_key: Sha256
    sha256: Sha256
    bytes: int
    resources: Resources


class Lock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One target's variants by key, and the exact toolchain."""

    schema: Literal[1]
    target: str
    toolchain: dict[str, str]
    entries: dict[str, LockEntry]


@dataclass(frozen=True)
class Change:
    """One variant that differs; ``before`` None when it was added, ``after`` when removed."""

    key: str
    before: LockEntry | None
    after: LockEntry | None

    @property
    def kind(self) -> Literal["added", "removed", "changed"]:
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"

    def details(self) -> Iterator[tuple[str, object, object]]:
        """The fields that differ in a changed variant: name, before, after."""
        if self.before is None or self.after is None:
            return
        for name, before in flat(self.before).items():
            after = flat(self.after)[name]
            if before != after:
                yield name, before, after


@dataclass(frozen=True)
class PackageChange:
    """A toolchain package whose version differs; None where it is absent."""

    package: str
    before: str | None
    after: str | None


def lock_path(artifacts: Path, target: str) -> Path:
    return artifacts / f"{target}.lock.json"


def lock_of(manifest: Manifest) -> Lock:
    return Lock(
        schema=1,
        target=manifest.target,
        toolchain=manifest.toolchain,
        entries={
            entry_key(kernel.name, manifest.target, entry.choices): LockEntry(
                build_key=entry.build_key,
                sha256=entry.sha256,
                bytes=entry.bytes,
                resources=entry.resources,
            )
            for kernel in manifest.kernels
            for entry in kernel.entries
        },
    )


def encode(lock: Lock) -> bytes:
    """Canonical JSON: one byte string per lock."""
    return msgspec.json.format(msgspec.json.encode(lock, order="deterministic"), indent=1) + b"\n"


def write_lock(path: Path, lock: Lock) -> None:
    """Raises BuildError when the file cannot be written."""
    write_file(path, encode(lock))


def read_lock(path: Path) -> Lock:
    """Raises LockError unless the file can be read and fits the schema."""
    tip = "`dsv4-aot build --update-lock` writes it"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Lock)
    except OSError as error:
        raise LockError(f"{path} cannot be read: {error.strerror}", tip=tip) from error
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise LockError(f"{path} is no lock file: {error}", tip=tip) from error


def changes(before: Lock, after: Lock) -> tuple[Change, ...]:
    """The variants that differ, by key."""
    keys = sorted(before.entries.keys() | after.entries.keys())
    pairs = (Change(key, before.entries.get(key), after.entries.get(key)) for key in keys)
    return tuple(change for change in pairs if change.before != change.after)


def package_changes(before: Lock, after: Lock) -> tuple[PackageChange, ...]:
    """The toolchain packages that differ, by name."""
    names = sorted(before.toolchain.keys() | after.toolchain.keys())
    pairs = (PackageChange(n, before.toolchain.get(n), after.toolchain.get(n)) for n in names)
    return tuple(change for change in pairs if change.before != change.after)


def compare(locked: Lock, built: Lock) -> list[str]:
    """Every difference as one readable line; the toolchain first, for it explains the rest."""
    lines = []
    if locked.target != built.target:
        lines.append(f"the lock is for {locked.target}, the build for {built.target}")
    for package in package_changes(locked, built):
        old, new = package.before or "absent", package.after or "absent"
        lines.append(f"{package.package}: locked {old}, built with {new}")
    for change in changes(locked, built):
        if change.kind == "added":
            lines.append(f"{change.key}: built, but not in the lock")
        elif change.kind == "removed":
            lines.append(f"{change.key}: in the lock, but not built")
        else:
            fields = (f"{name} {_short(a)} -> {_short(b)}" for name, a, b in change.details())
            lines.append(f"{change.key}: {', '.join(fields)}")
    return lines


def check(path: Path, manifest: Manifest) -> None:
    """Raises LockError when a build differs from its lock file, naming the first differences."""
    locked, built = read_lock(path), lock_of(manifest)
    differences = compare(locked, built)
    if not differences and path.read_bytes() != encode(built):
        differences = ["the same contents, but not the canonical bytes: the file was edited"]
    if not differences:
        return
    more = len(differences) - SHOWN_DIFFERENCES
    shown = [*differences[:SHOWN_DIFFERENCES], *([f"and {more} more"] if more > 0 else [])]
    raise LockError(
        f"the build differs from {path}:\n  " + "\n  ".join(shown),
        tip="install the versions in constraints.txt; if the change is meant, "
        "run `dsv4-aot build --update-lock` and commit the lock file",
    )


def flat(entry: LockEntry) -> dict[str, object]:
    """An entry's fields in one level, resources by their own names."""
    own = {"build_key": entry.build_key, "sha256": entry.sha256, "bytes": entry.bytes}
    return own | msgspec.structs.asdict(entry.resources)


def _short(value: object) -> str:
    return f"{value[:12]}.." if isinstance(value, str) and len(value) == 64 else str(value)
