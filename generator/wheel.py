"""An artifact folder -> a wheel that holds data alone, with the same bytes every time."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from dsv4_aot.generator.publish import write_file
from dsv4_aot.generator.verify import verify
from dsv4_aot.runtime import manifest as manifests
from dsv4_aot.runtime.errors import BuildError
from dsv4_aot.runtime.resolve import ENTRY_POINT_GROUP, wheel_name
from dsv4_aot.runtime.schema import Manifest
from dsv4_aot.runtime.target import Target

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest date that a zip archive can hold."""
_REGULAR_FILE = 0o100644 << 16
_UNIX = 3


def write_wheel(folder: Path, dist: Path) -> Path:
    """Packs ``folder`` (one target) into ``dist``; gives the wheel's path.

    The folder is verified first. Raises BuildError when it is not whole, or when the wheel
    cannot be written.
    """
    problems = verify(folder)
    if problems:
        raise BuildError(
            f"{folder} cannot be packed: " + "; ".join(problems),
            tip="build it again with `dsv4-aot build`",
        )
    manifest = manifests.read(folder)
    path = dist / file_name(manifest)
    write_file(path, _archive(_files(folder, manifest)))
    return path


def file_name(manifest: Manifest) -> str:
    """``dsv4_aot_sm90a-0.1.0-py3-none-any.whl``."""
    return f"{_stem(manifest)}-py3-none-any.whl"


def _stem(manifest: Manifest) -> str:
    name = wheel_name(Target.parse(manifest.target))
    return f"{name.replace('-', '_')}-{manifest.version}"


def _files(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Every file of the wheel by name, RECORD included."""
    place = f"dsv4_aot/artifacts/{manifest.target}"
    info = f"{_stem(manifest)}.dist-info"
    files = {f"{place}/{manifests.FILE_NAME}": manifests.encode(manifest)}
    for kernel in manifest.kernels:
        for entry in kernel.entries:
            files[f"{place}/{entry.file}"] = manifests.read_cubin(folder, entry)
    files[f"{info}/METADATA"] = _metadata(manifest).encode()
    files[f"{info}/WHEEL"] = _wheel(manifest).encode()
    files[f"{info}/entry_points.txt"] = (
        f"[{ENTRY_POINT_GROUP}]\n{manifest.target} = {place.replace('/', '.')}\n".encode()
    )
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    return files


def _metadata(manifest: Manifest) -> str:
    target = Target.parse(manifest.target)
    kernels = "".join(f"- {k.name}: {k.summary}\n" for k in manifest.kernels)
    return (
        "Metadata-Version: 2.4\n"
        f"Name: {wheel_name(target)}\n"
        f"Version: {manifest.version}\n"
        f"Summary: dsv4-aot kernels compiled for {target}\n"
        "License-Expression: Apache-2.0\n"
        "Classifier: Environment :: GPU :: NVIDIA CUDA\n"
        "Requires-Python: >=3.11\n"
        f"Requires-Dist: dsv4-aot=={manifest.version}\n"
        "Description-Content-Type: text/markdown\n"
        "\n"
        f"CUDA kernels for {target}, for `dsv4_aot.runtime` {manifest.version}. Data alone, no "
        f"code to import.\n\n{kernels}"
    )


def _wheel(manifest: Manifest) -> str:
    return (
        "Wheel-Version: 1.0\n"
        f"Generator: dsv4-aot {manifest.version}\n"
        "Root-Is-Purelib: true\n"
        "Tag: py3-none-any\n"
    )


def _record(files: Mapping[str, bytes], own: str) -> bytes:
    lines = []
    for name in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=")
        lines.append(f"{name},sha256={digest.decode()},{len(files[name])}\n")
    return "".join([*lines, f"{own},,\n"]).encode()


def _archive(files: Mapping[str, bytes]) -> bytes:
    """Stored, not deflated: what deflate gives depends on the zlib of the machine."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        # The metadata folder comes last, as the wheel format recommends; RECORD at its end.
        for name in sorted(files, key=lambda name: (".dist-info/" in name, name)):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.create_system = _UNIX
            member.external_attr = _REGULAR_FILE
            archive.writestr(member, files[name])
    return buffer.getvalue()
