"""Which artifacts are installed, and which of them a device runs."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from dsv4_aot.runtime import manifest
from dsv4_aot.runtime.errors import (
    ConflictError,
    ManifestError,
    NoArtifactError,
    UnknownKernelError,
)
from dsv4_aot.runtime.schema import KernelRecord, Manifest, choices_text
from dsv4_aot.runtime.target import Capability, Target, rank_targets, suggest_targets

ENTRY_POINT_GROUP = "dsv4_aot.artifacts"
FOLDERS_VARIABLE = "DSV4_AOT_ARTIFACTS"

_DIST_INFO = re.compile(r"(?P<name>dsv4_aot_\w+)-(?P<version>[^-]+)\.dist-info")
_DOTTED = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


class Installed(msgspec.Struct, frozen=True):
    """One target's artifacts. ``origin`` is the wheel and its version, or the folder."""

    folder: Path
    manifest: Manifest | manifest.Reader
    target: Target
    origin: str

    def kernel(self, name: str) -> KernelRecord | None:
        return self.manifest.kernel(name)


def wheel_name(target: Target) -> str:
    """Name of the wheel that carries a target's artifacts: ``dsv4-aot-sm90a``."""
    return f"dsv4-aot-{str(target).replace('_', '')}"


def find(
    paths: Sequence[Path] = (),
    environ: Mapping[str, str] = os.environ,
    entry_points: bool = True,
) -> list[Installed]:
    """Artifacts of installed wheels, then of ``$DSV4_AOT_ARTIFACTS``, then of ``paths``.

    A path is a target's folder (it has a manifest.json) or a folder of such folders.
    Raises ManifestError for a path without artifacts or with a bad manifest.
    """
    places: dict[Path, str] = {}
    if entry_points:
        for folder, origin in _wheels():
            places.setdefault(folder.resolve(), origin)
    named = [Path(text) for text in environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if text]
    for path in (*named, *paths):
        for folder in _target_folders(path):
            places.setdefault(folder.resolve(), str(folder))
    return [_installed(folder, origin) for folder, origin in places.items()]


def _installed(folder: Path, origin: str) -> Installed:
    content = manifest.reader(folder)
    return Installed(folder, content, Target.parse(content.target), origin)


def _wheels() -> Iterator[tuple[Path, str]]:
    """Folders that installed wheels name, and the wheels. Nothing of theirs is imported.

    Only wheels called dsv4-aot-* are opened: asking importlib.metadata reads the metadata of
    every installed package, which takes longer than all else in a start.
    """
    for place in dict.fromkeys(sys.path):
        for folder in sorted(Path(place).glob("dsv4_aot_*.dist-info")):
            wheel = _DIST_INFO.fullmatch(folder.name)
            points = folder / "entry_points.txt"
            if wheel is None or not points.is_file():
                continue
            for value in _entry_points(points.read_text(encoding="utf-8")):
                if not _DOTTED.fullmatch(value):
                    raise ManifestError(
                        f"{points}: {value!r} in {ENTRY_POINT_GROUP} names no folder",
                        tip="reinstall the wheel; it should read dsv4_aot.artifacts.sm_90a",
                    )
                origin = f"{wheel['name'].replace('_', '-')} {wheel['version']}"
                yield Path(place, *value.split(".")), origin


def _entry_points(text: str) -> Iterator[str]:
    """Values of our group in an entry_points.txt."""
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line
        elif section == f"[{ENTRY_POINT_GROUP}]" and "=" in line:
            yield line.partition("=")[2].strip()


def _target_folders(path: Path) -> list[Path]:
    if (path / manifest.FILE_NAME).is_file():
        return [path]
    found = [file.parent for file in sorted(path.glob(f"*/{manifest.FILE_NAME}"))]
    if not found:
        raise ManifestError(
            f"{path} has no {manifest.FILE_NAME}, nor has a folder in it",
            tip="name a folder that dsv4-aot build wrote, such as artifacts/build",
        )
    return found


def select(
    installed: Sequence[Installed], name: str, capability: Capability, device: str = "this device"
) -> tuple[Installed, KernelRecord]:
    """The best artifact of a kernel for a device: exact ``a`` > family ``f`` > plain.

    ``device`` names the device in errors. Raises NoArtifactError, UnknownKernelError or
    ConflictError.
    """
    accepted, rejected = rank_targets({place.target for place in installed}, capability)
    for target in accepted:
        places = [place for place in installed if place.target == target]
        best = [(p, record) for p in places if (record := p.kernel(name)) is not None]
        for place, record in best[1:]:
            _refuse_conflict(best[0][0], best[0][1], place, record)
        if best:  # where two agree, one may have been built for more choices
            return max(best, key=lambda pair: len(pair[1].entries))
    having = [place for place in installed if name in place.manifest.names]
    if installed and not having:
        raise unknown(name, {known for place in installed for known in place.manifest.names})
    reasons = {verdict.target: verdict.reason for verdict in rejected}
    raise _no_artifact(name, device, capability, [
        f"{place.target} from {place.origin}: {reasons[place.target]}" for place in having
    ])  # fmt: skip


def unknown(name: str, known: Iterable[str]) -> UnknownKernelError:
    """The error for a kernel that is none of ``known``."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3)
    return UnknownKernelError(
        f"no installed artifact has a kernel {name!r}; "
        + (f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(names)}"),
        tip="dsv4-aot list shows what is installed",
    )


def _no_artifact(
    name: str, device: str, capability: Capability, refused: Sequence[str]
) -> NoArtifactError:
    targets = suggest_targets(capability)
    found = "no artifacts are installed" if not refused else f"refused: {'; '.join(refused)}"
    return NoArtifactError(
        f"no installed artifact runs {name} on {device} (compute capability {capability}); {found}",
        tip=f"pip install {wheel_name(targets[0])}, or dsv4-aot build --arch {targets[0]}",
    )


def _refuse_conflict(a: Installed, one: KernelRecord, b: Installed, other: KernelRecord) -> None:
    """Two artifacts of one target may both have a kernel, if they say the same of it."""
    tip = "uninstall one of them"
    digests = {choices_text(entry.choices): entry.sha256 for entry in one.entries}
    for entry in other.entries:
        key = choices_text(entry.choices)
        if digests.get(key, entry.sha256) != entry.sha256:
            raise ConflictError(
                f"{a.origin} and {b.origin} give different bytes for {one.name}/{a.target}/{key}: "
                f"SHA-256 {digests[key][:16]} and {entry.sha256[:16]}",
                tip=tip,
            )
    for field in ("arguments", "checks", "axes", "domain", "rules"):
        if getattr(one, field) != getattr(other, field):
            raise ConflictError(
                f"{a.origin} and {b.origin} give different {field} for {one.name}/{a.target}",
                tip=tip,
            )
