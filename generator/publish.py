"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from dsv4_aot.runtime.errors import BuildError

TEMPORARY_PREFIX = ".tmp-"
_TIPS = {
    errno.ENOSPC: "free some space there, or choose another folder",
    errno.EDQUOT: "free some space there, or choose another folder",
    errno.EFBIG: "free some space there, or choose another folder",
}


def write_file(path: Path, data: bytes) -> None:
    """Writes beside, syncs, renames; makes missing folders. Raises BuildError.

    On failure what stood at ``path`` still stands, and nothing else is left behind.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the file system says about ``path`` into one BuildError."""
    try:
        yield
    except OSError as error:
        raise BuildError(
            f"cannot write {path}: {error.strerror or error}",
            tip=_TIPS.get(error.errno or 0, "choose a folder that can be written"),
        ) from error
