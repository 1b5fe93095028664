"""What changed between two builds, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from dsv4_aot.generator.lock import (
    Change,
    Lock,
    PackageChange,
    changes,
    lock_of,
    package_changes,
    read_lock,
)
from dsv4_aot.runtime import manifest
from dsv4_aot.runtime.errors import ManifestError
from dsv4_aot.runtime.schema import Manifest


@dataclass(frozen=True)
class Diff:
    """Two builds compared: targets, variants by key, toolchain packages by name. Between two
    targets a variant goes by the second one's key.

    same: number of variants that are equal in bytes and resources.
    """

    before: str
    after: str
    packages: tuple[PackageChange, ...]
    changes: tuple[Change, ...]
    same: int

    @property
    def empty(self) -> bool:
        return not self.changes and not self.packages and self.before == self.after


def load(path: Path) -> Lock:
    """A lock file, a manifest, or a target folder. Raises LockError or ManifestError."""
    if path.is_dir():
        return lock_of(manifest.read(path))
    if path.name == manifest.FILE_NAME:
        return lock_of(manifest.read(path.parent))
    if path.name.endswith(".lock.json"):
        return read_lock(path)
    raise ManifestError(
        f"{path} is neither a target folder, a {manifest.FILE_NAME} nor a <target>.lock.json",
        tip="give for example artifacts/build/sm_90a or artifacts/sm_90a.lock.json",
    )


def diff(before: Lock | Manifest, after: Lock | Manifest) -> Diff:
    old = lock_of(before) if isinstance(before, Manifest) else before
    new = lock_of(after) if isinstance(after, Manifest) else after
    if old.target != new.target:
        old = _retargeted(old, new.target)
    changed = changes(old, new)
    return Diff(
        before=before.target,
        after=new.target,
        packages=package_changes(old, new),
        changes=changed,
        same=len(old.entries.keys() | new.entries.keys()) - len(changed),
    )


def _retargeted(lock: Lock, target: str) -> Lock:
    """The same entries under the keys that they would have on another target."""

    def renamed(key: str) -> str:
        kernel, _, choices = key.split("/")
        return f"{kernel}/{target}/{choices}"

    entries = {renamed(key): entry for key, entry in lock.entries.items()}
    return msgspec.structs.replace(lock, entries=entries)
