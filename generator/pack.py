"""The artifacts of one target -> its manifest and files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from dsv4_aot.generator.coverage import closed
from dsv4_aot.generator.discover import KernelFolder, record
from dsv4_aot.generator.expand import Variant, expand
from dsv4_aot.generator.policy import refusal, violations
from dsv4_aot.generator.publish import TEMPORARY_PREFIX, sync_folder, write_file, writing
from dsv4_aot.generator.records import validations_of
from dsv4_aot.generator.spec import CuteSource
from dsv4_aot.generator.store import Artifact
from dsv4_aot.generator.toolchain import Kind, probe
from dsv4_aot.runtime import manifest as manifests
from dsv4_aot.runtime.errors import BuildError
from dsv4_aot.runtime.schema import Entry, Manifest
from dsv4_aot.runtime.target import Target

SHOWN_MISSING = 5
_CUBIN_NAME = re.compile(r"[a-z][a-z0-9_]*-[0-9a-f]{16}\.cubin")


def pack(
    target: Target,
    folders: Mapping[str, KernelFolder],
    artifacts: Mapping[str, Artifact],
    out: Path,
    validation: Path,
) -> Manifest:
    """Writes ``out/<target>/`` with the manifest and cubins of every variant of the folders.

    artifacts: by variant key; those of other targets are left alone. validation: folder of
    validation files, whose records are taken over for equal bytes.
    Raises BuildError, and leaves the folder as it was, when an artifact is missing or breaks its
    spec, when coverage is not closed, or when the folder cannot be written.
    """
    variants = [v for name in sorted(folders) for v in expand(folders[name], target)]
    missing = [variant.key for variant in variants if variant.key not in artifacts]
    if missing:
        raise BuildError(
            f"{len(missing)} of {len(variants)} variants for {target} were not built: "
            + ", ".join(missing[:SHOWN_MISSING] + ["..."] * (len(missing) > SHOWN_MISSING)),
            tip="nothing was packed; see the errors of the build",
        )
    built = {variant.key: artifacts[variant.key] for variant in variants}
    entries = {variant.key: _entry(variant, built[variant.key]) for variant in variants}
    kernels = tuple(
        record(
            folders[name].spec,
            [entries[v.key] for v in variants if v.folder.name == name],
            target,
        )
        for name in sorted(folders)
    )
    manifest = Manifest(
        schema=1,
        target=str(target),
        version=importlib.metadata.version("dsv4-aot"),
        toolchain=_toolchain(variants),
        source_digest=_source_digest(built),
        kernels=kernels,
        validation=validations_of(validation, (entry.sha256 for entry in entries.values())),
    )
    problems = closed(manifest)
    if problems:
        raise BuildError(f"coverage for {target} is not closed: " + "; ".join(problems))
    data = manifests.encode(manifest)
    manifests.decode(data)
    _publish(
        out / str(target),
        {entry.file: built[key].cubin for key, entry in entries.items()},
        data,
    )
    return manifest


def cubin_name(kernel: str, sha256: str) -> str:
    """The file's name changes with its bytes, so a name never stands for two contents."""
    return f"{kernel}-{sha256[:16]}.cubin"


# The manifest ---------------------------------------------------------------------------------


def _entry(variant: Variant, artifact: Artifact) -> Entry:
    if hashlib.sha256(artifact.cubin).hexdigest() != artifact.sha256:
        raise BuildError(
            f"{variant.key}: the stored cubin is not the one that was compiled",
            tip="remove it from the build cache and build again",
        )
    problems = violations(variant, artifact.facts, artifact.shared)
    if problems:
        raise BuildError(refusal(variant.key, problems))
    return variant.entry(
        file=cubin_name(variant.folder.name, artifact.sha256),
        size=len(artifact.cubin),
        sha256=artifact.sha256,
        resources=artifact.facts.resources,
        build_key=artifact.build_key,
    )


def _toolchain(variants: list[Variant]) -> dict[str, str]:
    """Packages and versions of the compilers that these variants used."""
    kinds: set[Kind] = {
        "cute" if isinstance(variant.source, CuteSource) else "cuda" for variant in variants
    }
    return dict(sorted(pair for kind in kinds for pair in probe(kind).packages))


def _source_digest(artifacts: Mapping[str, Artifact]) -> str:
    """One hash over every variant's build key, which covers its sources, options and tools."""
    lines = (f"{key} {artifacts[key].build_key}\n" for key in sorted(artifacts))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# The folder -----------------------------------------------------------------------------------


def _publish(folder: Path, cubins: Mapping[str, bytes], manifest: bytes) -> None:
    """Cubins first, then the manifest by one rename, then what it no longer names goes.

    Names follow from contents, so nothing that the standing manifest names is touched before the
    new one takes its place: at every moment the manifest names files that are there, and a build
    that is killed or runs out of space leaves the old ones. Who read the old manifest and comes
    late finds a cubin gone, never changed. What is current is not written again.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            for name, data in cubins.items():
                if not _is_current(folder / name, data):
                    write_file(folder / name, data)
            if not _is_current(folder / manifests.FILE_NAME, manifest):
                write_file(folder / manifests.FILE_NAME, manifest)
            _sweep(folder, keep={*cubins, manifests.FILE_NAME})


def _is_current(path: Path, data: bytes) -> bool:
    return path.is_file() and not path.is_symlink() and path.read_bytes() == data


def _sweep(folder: Path, keep: set[str]) -> None:
    """Removes what earlier builds left under the build's own names, and nothing else."""
    stale = [
        path
        for path in folder.iterdir()
        if path.name not in keep
        and (path.name.startswith(TEMPORARY_PREFIX) or _CUBIN_NAME.fullmatch(path.name))
    ]
    for path in stale:
        path.unlink()
    if stale:
        sync_folder(folder)
